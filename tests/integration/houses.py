"""A user's folders in a temporary place, the program run there, and what it must leave behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest


class House:
    """A user's folders in a temporary place, and the program run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("ENGINEHOUSE_")}
        for kind in ("STATE", "CACHE", "CONFIG"):
            (folder / kind.lower()).mkdir()
            self.env[f"ENGINEHOUSE_{kind}_DIR"] = str(folder / kind.lower())
        self.settings_file = folder / "config" / "config.toml"

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with no terminal, below a program such as `setpriv`."""
        return self.python("-m", "enginehouse", *arguments, env=env, prefix=prefix)

    def python(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run Python in the house."""
        return subprocess.run(
            [*prefix, sys.executable, *arguments],
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )

    def run_json(self, *arguments: str) -> Any:
        """Run a command with --json that must work, and return its document."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def as_plain_user() -> tuple[str, ...]:
    """Return the head of an argv that takes from root the right to read and write everything."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    return (setpriv, "--bounding-set=-dac_override,-dac_read_search")


def write_model(path: Path, context_length: int = 4096) -> Path:
    """Write a GGUF file with a readable header; no engine could run it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(context_length)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_tensor("token_embd.weight", numpy.zeros((8, 32), dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
