"""The forms of one model: the file it was asked for by, re-quantized files, other formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from enginehouse.core.candidate import Candidate
from enginehouse.core.engine import Engine
from enginehouse.core.model import Model


@dataclass(frozen=True)
class Forms:
    """One model in several files; `variants` are re-quantized ones by quantization.

    `given` holds the file that was asked for first, then what the user says is the same model, for
    instance its safetensors checkpoint.
    """

    given: tuple[Model, ...]
    variants: Mapping[str, Model] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The model that was asked for."""
        return self.given[0]

    def has(self, candidate: Candidate) -> bool:
        """Whether the quantization that a candidate wants is here."""
        return (candidate.get("quantization") or "") in ("", *self.variants)

    def of(self, engine: Engine, candidate: Candidate | None = None) -> Model:
        """Return the form that an engine loads for a candidate.

        It is the form that was asked for, which the engine refuses, when there is none it loads.

        Raises:
            KeyError: the candidate wants a quantization that was not made.
        """
        quantization = str((candidate.get("quantization") if candidate else None) or "")
        if quantization:
            return self.variants[quantization]
        return next((form for form in self.given if form.format in engine.formats), self.model)
