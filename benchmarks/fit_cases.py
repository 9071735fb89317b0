"""The cases of `benchmarks/fit_accuracy.py`: which shape, in which types, with which settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

FILES = (
    ("smollm2-135m", "Q4_0"), ("llama-3.2-1b", "Q4_K_M"), ("qwen2.5-0.5b", "Q8_0"),
    ("gemma3-270m", "Q8_0"), ("qwen3-0.6b", "Q4_K_M"), ("mixtral-small", "Q4_K_M"),
    ("lfm2-350m", "Q4_0"), ("phi3-mini-cut", "Q4_K_M"), ("deepseek2-small", "Q4_0"),
    ("tinyllama-1.1b", "Q4_0"), ("qwen3moe-small", "Q4_0"), ("gemma2-2b-cut", "Q4_0"),
    ("smollm2-135m", "F16"), ("mamba-370m", "Q8_0"), ("qwen2.5-7b-cut", "Q4_K_M"),
    ("smollm2-360m", "Q4_1"), ("gemma3-1b", "Q4_K_M"), ("mistral-7b-cut", "Q4_K_M"),
    ("qwen2.5-1.5b", "Q4_0"), ("smollm2-135m", "Q4_K_M"), ("llama-3.2-1b", "Q8_0"),
    ("qwen3-0.6b", "F16"), ("llama-3.2-3b", "Q4_K_M"), ("qwen3-1.7b", "Q8_0"),
    ("smollm2-360m", "IQ4_NL"),
)  # fmt: skip


LARGE = ("llama-3.2-3b", "qwen3-1.7b", "mistral-7b-cut", "qwen2.5-7b-cut", "qwen2.5-1.5b")
LARGE_PROMPT = 300
"""Shapes that two cores prefill slowly are given shorter prompts."""


@dataclass(frozen=True)
class Case:
    """One combination; `context` is a slot's, `prompt` is what each slot is given."""

    shape: str
    mix: str
    context: int = 1024
    slots: int = 1
    kv_type: str = "f16"
    flash: str = "auto"
    ubatch: int = 512
    prompt: int = 600

    @property
    def file(self) -> str:
        """The model's file name."""
        return f"{self.shape}-{self.mix}.gguf"

    @property
    def key(self) -> str:
        """The case as text, by which its result is stored."""
        return (
            f"{self.shape} {self.mix} {self.context}x{self.slots} {self.kv_type} "
            f"fa={self.flash} ub={self.ubatch} p={self.prompt}"
        )


VARIANTS: tuple[dict[str, str | int], ...] = (
    {"context": 1024, "prompt": 960},
    {"context": 2048, "slots": 2, "kv_type": "q8_0", "flash": "on", "prompt": 300},
    {"context": 4096, "flash": "off", "prompt": 600},
    {"context": 8192, "kv_type": "q4_0", "flash": "on", "ubatch": 256, "prompt": 300},
    {"context": 1024, "slots": 4, "flash": "off", "prompt": 200},
)


def cases() -> tuple[Case, ...]:
    """Return all cases: every file in its first three variants, then the others by turns."""
    found = []
    for turn in range(3):
        for number, (shape, mix) in enumerate(FILES):
            variant = VARIANTS[(turn if turn == 0 else turn + number) % len(VARIANTS)]
            case = Case(shape, mix, **variant)  # type: ignore[arg-type]
            if shape in LARGE:
                case = replace(case, prompt=min(case.prompt, LARGE_PROMPT))
            found.append(case)
    return tuple(dict.fromkeys(found))
