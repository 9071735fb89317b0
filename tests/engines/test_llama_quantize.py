"""The wheel's own routines against `llama-quantize`, where there is one."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from benchmarks.random_gguf import write_random_gguf
from benchmarks.shapes import SHAPES

from enginehouse.core.quant_types import FORMATS
from enginehouse.edges.model_files import read_place
from enginehouse.edges.paths import engines_dir
from enginehouse.edges.quantize import VariantStore, make_variant
from enginehouse.edges.quantize_run import PROGRAM, Tool, Tools, find_tools


def find_program() -> str | None:
    """Return a llama-quantize on PATH or among the builds made here."""
    return shutil.which(PROGRAM) or next(map(str, engines_dir().glob(f"llama.cpp/*/**/{PROGRAM}")),
                                         None)  # fmt: skip


pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(find_program() is None, reason="no llama-quantize on PATH or built here"),
]


@pytest.mark.parametrize("quantization", sorted(FORMATS))
def test_both_write_the_same_file(tmp_path: Path, quantization: str) -> None:
    """Whatever the format, the files are equal in every byte."""
    source = write_random_gguf(tmp_path / "m.gguf", SHAPES["tiny"], "F16")
    model = read_place(source)
    program = find_program()
    assert program is not None
    wheel = VariantStore(tmp_path / "a", Tools(library=find_tools().library), 1 << 34, 0)
    native = dataclasses.replace(
        wheel, cache=tmp_path / "b", tools=Tools(program=Tool(PROGRAM, program))
    )
    made = [make_variant(model, quantization, store) for store in (wheel, native)]
    assert made[0].digest == made[1].digest
