"""Empty the kernel's page cache: what files left in memory that an engine may want whole.

On a Jetson the GPU's allocations come out of the same memory, and before JetPack 7.2 they did not
push the page cache out. Needs root; the user's consent is asked for before (a setting).
"""

from __future__ import annotations

import os
from pathlib import Path

from enginehouse.edges.probes import read_available_bytes

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
CLEAN_PAGES = "1\n"
"""Clean pages of files only: inodes and directory entries stay (Linux, admin-guide/sysctl/vm)."""


def drop_page_cache(control: Path = DROP_CACHES) -> str:
    """Write dirty pages out, empty the page cache, and say what came of it."""
    before = read_available_bytes()
    os.sync()
    try:
        control.write_text(CLEAN_PAGES)
    except OSError as problem:
        return f"the page cache could not be emptied: {problem.strerror} ({control})"
    freed = (read_available_bytes() - before) / 2**20
    return f"the page cache was emptied: {freed:.0f} MiB more is available"
