"""What reading a header may cost: time and memory, measured in a process of its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.target import text
from tests.model_writers import METADATA, write_gguf

MEASURE = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({"code": done.returncode, "out": done.stdout, "err": done.stderr,
                  "cpu_s": used.ru_utime + used.ru_stime, "mib": used.ru_maxrss / 1024}))
"""
READ = """
import sys
from pathlib import Path
from enginehouse.core.errors import EnginehouseError
from enginehouse.edges.model_files import read_place
try:
    print("facts", read_place(Path(sys.argv[1])).layers)
except EnginehouseError as problem:
    print(problem.report.id)
"""
FIFTY_GB = 50 * 10**9
SPARE_S, SPARE_MIB = 0.6, 45
"""What starting Python with our modules takes before anything is read, measured here."""


def measure(*command: str, **environment: str) -> dict[str, object]:
    """Run a command; return its output, processor time and peak memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        capture_output=True, text=True, check=True, env={**os.environ, **environment},
    )  # fmt: skip
    found: dict[str, object] = json.loads(done.stdout)
    return found


def write_sparse(path: Path) -> Path:
    """Write a GGUF of 50 GB that takes a few KiB: its last tensor ends where the file does."""
    write_gguf(path)
    good = path.read_bytes()
    tensor = text("blk.0.ffn_up.weight") + struct.pack("<IQQIQ", 2, 4096, 6_000_000, 1, 0)
    entries = good.index(text("token_embd.weight"))
    head = bytearray(good[:entries])
    struct.pack_into("<Q", head, 8, 1)
    path.write_bytes(bytes(head) + tensor)
    with path.open("r+b") as file:
        file.truncate(FIFTY_GB)
    return path


@pytest.mark.parametrize("form", [[], ["--json"], ["--layers"]])
def test_a_model_of_50_gb_is_shown_at_once(tmp_path: Path, form: list[str]) -> None:
    """`models show` of a 50 GB file takes under 2 s of processor time and 200 MB."""
    path = write_sparse(tmp_path / "sparse.gguf")
    assert path.stat().st_blocks * 512 < 1 << 20
    folders = {f"ENGINEHOUSE_{name}_DIR": str(tmp_path) for name in ("STATE", "CACHE", "CONFIG")}
    program = [sys.executable, "-m", "enginehouse"]
    found = measure(*program, "models", "show", str(path), *form, **folders)
    assert found["code"] == 0, found
    if form == ["--json"]:
        document = json.loads(str(found["out"]))
        assert document["file_bytes"] == FIFTY_GB
        assert document["weight_bytes"] == 2 * 4096 * 6_000_000
        assert document["digest"] == ""
    assert float(str(found["cpu_s"])) < 2.0
    assert float(str(found["mib"])) < 200


def head(tensors: int, entries: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)


def entry(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


HOSTILE = {
    "two million strings": head(0, 1) + entry("a", 9, struct.pack("<IQ", 8, 2_000_000)),
    "too many strings": head(0, 1) + entry("a", 9, struct.pack("<IQ", 8, 9_000_000)),
    "overflowing count": head(1 << 63, 1 << 63),
    "overflowing array": head(0, 1) + entry("a", 9, struct.pack("<IQ", 12, (1 << 61) + 1)),
    "absurd string": head(0, 1) + entry("a", 8, struct.pack("<Q", 1 << 40)),
    "absurd key": head(0, 1) + struct.pack("<Q", (1 << 64) - 1),
    "array of arrays": head(0, 1) + entry("a", 9, struct.pack("<IQ", 9, 1 << 20)),
    "tensors of nothing": head(16_384, 0),
    "entries of nothing": head(0, 4096),
    "most kept strings": head(0, 40)
    + b"".join(entry(f"k{n}", 8, text("a" * (1 << 20))) for n in range(40)),
    "most kept numbers": head(0, 400)
    + b"".join(entry(f"k{n}", 9, struct.pack("<IQ", 0, 4096) + bytes(4096)) for n in range(400)),
    "most tensors": head(16_384, 0)
    + b"".join(
        text(f"blk.0.{n:0120d}") + struct.pack("<IQQQQIQ", 4, 256, 2, 3, 4, 12, 0)
        for n in range(16_384)
    ),
    "beyond the shape": head(1, 0) + text("t") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0),
    "beyond the end": head(1, 0) + text("t") + struct.pack("<IQIQ", 1, 32, 0, 1 << 62),
    "block not whole": head(1, 0) + text("t") + struct.pack("<IQIQ", 1, 33, 2, 0),
    "five dimensions": head(1, 0) + text("t") + struct.pack("<IQQQQQIQ", 5, 1, 1, 1, 1, 1, 0, 0),
    "a key twice": head(0, 2) + 2 * entry("a", 4, bytes(4)),
    "alignment of three": head(0, 1) + entry("general.alignment", 4, struct.pack("<I", 3)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_gguf_costs_no_time_and_no_memory(tmp_path: Path, name: str) -> None:
    """Whatever it claims, in 64 GiB of nothing: an answer within 1 s and 100 MB."""
    path = tmp_path / "x.gguf"
    path.write_bytes(HOSTILE[name])
    with path.open("r+b") as file:
        file.truncate(1 << 36)
    found = measure(sys.executable, "-c", READ, str(path))
    assert found["code"] == 0, found
    assert str(found["out"]).startswith(("facts", "model.file.damaged"))
    assert float(str(found["cpu_s"])) < 1.0 + SPARE_S, found
    assert float(str(found["mib"])) < 100, found


def test_hostile_json_costs_no_time_and_no_memory(tmp_path: Path) -> None:
    """A safetensors header of 16 MiB that is all small parts is refused by counting them."""
    for piece in (b'"a":{},', b"[],", b"1,", b'{"a":'):
        content = piece * ((16 << 20) // len(piece) - 1)
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(content)) + content)
        found = measure(sys.executable, "-c", READ, str(path))
        assert found["out"] == "model.file.damaged\n", found
        assert float(str(found["cpu_s"])) < 1.0 + SPARE_S, found
        assert float(str(found["mib"])) < 100, found


def test_the_largest_honest_header_is_read(tmp_path: Path) -> None:
    """A vocabulary as large as any (262,144 tokens, 514,906 merges) stays inside the limits."""
    tokens = {
        **METADATA,
        "tokenizer.ggml.tokens": [f"token {n}" for n in range(262_144)],
        "tokenizer.ggml.merges": [f"merge {n} {n}" for n in range(514_906)],
    }
    path = write_gguf(tmp_path / "large.gguf", tokens)
    found = measure(sys.executable, "-c", READ, str(path))
    assert found["out"] == "facts 2\n"
    assert float(str(found["cpu_s"])) < 1.0 + SPARE_S, found
    assert float(str(found["mib"])) < 100, found
