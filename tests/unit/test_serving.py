"""Which engines can serve what, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.model import Block, Model, Part, Tokenizer, WeightQuantization
from enginehouse.core.serving import servable_by

GGUF = Model(
    "m", "/m", "file", "gguf", "", 0, "llama", "Q4_K", 0, 0, 0, 0, 1, 0, 0, 0, 0,
    blocks=(Block("full"),), tokenizer=Tokenizer("gpt2"),
)  # fmt: skip
CHECKPOINT = replace(
    GGUF, format="safetensors", architecture="LlamaForCausalLM",
    weight_quantization=WeightQuantization("none"),
)  # fmt: skip


def possible(model: Model) -> str:
    return " ".join(v.engine for v in servable_by(model) if v.is_possible)


def quantized(method: str) -> Model:
    return replace(CHECKPOINT, weight_quantization=WeightQuantization(method))


@pytest.mark.parametrize(
    ("model", "engines"),
    [
        (GGUF, "llama.cpp Ollama vLLM"),
        (replace(GGUF, architecture="unheard-of"), "vLLM"),
        (replace(GGUF, tokenizer=None), "vLLM"),
        (replace(GGUF, architecture="eagle3"), "vLLM"),
        (replace(GGUF, parts=(Part("a", 1), Part("b", 1))), "llama.cpp Ollama"),
        (replace(GGUF, source="ollama:x", architecture="gemma3"), "Ollama vLLM"),
        (replace(GGUF, source="ollama:x"), "llama.cpp Ollama vLLM"),
        (CHECKPOINT, "Ollama vLLM TensorRT"),
        (quantized("awq"), "vLLM TensorRT"),
        (quantized("bitsandbytes"), "vLLM"),
        (quantized("exl9"), ""),
        (replace(CHECKPOINT, blocks=()), "Ollama"),
        (replace(GGUF, role="projector"), ""),
        (replace(GGUF, role="adapter"), ""),
    ],
)
def test_each_family_has_its_verdict(model: Model, engines: str) -> None:
    """Formats, quantizations and roles decide; every verdict has a reason."""
    assert possible(model) == engines
    assert all(verdict.reason for verdict in servable_by(model))


def test_awq_cannot_become_gguf() -> None:
    """llama.cpp's converter takes GPTQ, not AWQ: the reason says which weights to use."""
    assert "does not take awq" in servable_by(quantized("awq"))[0].reason
    assert "convert_hf_to_gguf.py" in servable_by(quantized("gptq"))[0].reason
