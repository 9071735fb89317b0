"""Models of any shape with random weights are loaded and served by the real engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.engine_memory import run_wheel
from benchmarks.random_gguf import write_random_gguf
from benchmarks.shapes import SHAPES, with_layers

from enginehouse.core.estimate_llama import LlamaSettings, estimate_llama
from enginehouse.edges.model_files import read_place
from enginehouse.edges.probes import look_at_machine

pytestmark = [pytest.mark.real, pytest.mark.long]
PROMPT = list(range(10, 310))
FLAGS = ("--parallel", "1", "--ctx-size", "512", "--cache-ram", "0", "--fit", "off", "--no-webui")


@pytest.mark.parametrize(
    ("shape", "layers", "mix"),
    [
        ("smollm2-135m", 6, "Q4_0"), ("qwen3-0.6b", 2, "Q8_0"), ("gemma3-270m", 6, "F16"),
        ("qwen3moe-small", 2, "Q4_K_M"), ("lfm2-350m", 4, "Q4_1"), ("mamba-370m", 4, "Q8_0"),
        ("deepseek2-small", 2, "Q4_0"), ("phi3-mini-cut", 2, "IQ4_NL"),
    ],
)  # fmt: skip
def test_a_random_model_is_served_within_the_predicted_memory(
    tmp_path: Path, shape: str, layers: int, mix: str
) -> None:
    """The engine answers, and its peak is within 5 % of the prediction."""
    path = write_random_gguf(tmp_path / "model.gguf", with_layers(SHAPES[shape], layers), mix)
    seen = run_wheel(path, FLAGS, [PROMPT], decode=4)
    settings = LlamaSettings(512, prompt_tokens=304, isa=look_at_machine().isa)
    predicted = estimate_llama(read_place(path), settings)
    assert seen.decode_tok_per_s > 0
    assert predicted.resident.expected == pytest.approx(seen.resident_peak, rel=0.05)
    assert predicted.resident.low <= seen.resident_peak <= predicted.resident.high
