"""Models that can be fetched by name."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from enginehouse.knowledge.toml import parse_toml


@dataclass(frozen=True)
class KnownModel:
    """A model's name, where it comes from, and the digests that prove it."""

    name: str
    source: str
    wheel_bytes: int
    wheel_sha256: str
    gguf_sha256: str
    license: str
    note: str


def load_models() -> tuple[KnownModel, ...]:
    """Return the known models; the first is the demo."""
    text = (files("enginehouse.knowledge") / "models.toml").read_text()
    return tuple(
        KnownModel(**{name: value for name, value in table.items() if name != "checked"})
        for table in parse_toml(text)["model"]
    )
