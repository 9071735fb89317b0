"""The generated failure catalogue is current."""

from __future__ import annotations

import subprocess
import sys

from tests.docs.documents import ROOT


def test_the_failure_catalogue_is_current() -> None:
    """What docs/generate_failures.py would write is what lies there."""
    command = [sys.executable, str(ROOT / "docs" / "generate_failures.py"), "--check"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"run python docs/generate_failures.py: {ended.stderr}"
