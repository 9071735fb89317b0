"""Free disk where models and records go, and who holds the ports that matter."""

from __future__ import annotations

from collections.abc import Iterator

from enginehouse.core.facts import Fact
from enginehouse.edges.seam import Reader


def storage_facts(reader: Reader) -> Iterator[Fact]:
    """Find free disk and held ports."""
    for role, sizes in (reader.source.ask("disks") or {}).items():
        for part in ("free", "total"):
            yield reader.from_library(f"disk.{role}.{part}_bytes", int(sizes[part]), "os.statvfs")
    for port, holder in (reader.source.ask("ports") or {}).items():
        yield reader.from_library(f"port.{port}", str(holder) or "a process", "psutil")
    for name, value in (reader.source.ask("environment") or {}).items():
        yield reader.from_library(f"environment.{name}", str(value), "os.environ")
