"""The models that a gateway can serve, as the dialects show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from enginehouse.core.errors import UserError

DEFAULT_TAG = ":latest"


@dataclass(frozen=True)
class Served:
    """One model that is served, or can be on demand; sizes in bytes, times in Unix seconds.

    `context_length` is what the model was made for, `served_context` what one request may use.
    `metadata` are the file's own key-value pairs. `memory_bytes` is what its engine holds now, 0
    when it is not loaded; `expires_at` is when it will be unloaded, None for never.
    """

    name: str
    digest: str = ""
    bytes: int = 0
    modified_at: float = 0.0
    format: str = ""
    family: str = ""
    parameters: int = 0
    quantization: str = ""
    context_length: int = 0
    served_context: int = 0
    embedding_length: int = 0
    capabilities: tuple[str, ...] = ("completion",)
    template: str = ""
    license: str = ""
    engine: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)
    is_loaded: bool = False
    memory_bytes: int = 0
    expires_at: float | None = None
    aliases: tuple[str, ...] = ()


def plain_name(name: str) -> str:
    """Return a model's name without the default tag: `x` and `x:latest` are equal."""
    return name.removesuffix(DEFAULT_TAG)


def tagged_name(name: str) -> str:
    """Return a model's name with a tag, as Ollama's clients expect it in lists."""
    return name if ":" in name.rsplit("/", 1)[-1] else name + DEFAULT_TAG


def no_model(name: str) -> UserError:
    """Return the error for a name that means no model here."""
    return UserError(
        "model_not_found", f"model '{name[:100]}' not found",
        evidence=("no model that is served here has this name or alias",),
        remedies=("GET /v1/models lists the names", "enginehouse models add"),
    )  # fmt: skip


def no_embeddings(name: str) -> UserError:
    """Return the error for vectors of a model that gives none."""
    return UserError(
        "request.embeddings.unsupported", f"{name} is no embedding model",
        evidence=("its file does not declare a pooling type",),
        remedies=("serve an embedding model beside it: serve.models",),
    )  # fmt: skip


def find_served(catalog: tuple[Served, ...], name: str) -> Served | None:
    """Return the model that a request's name means: by name, then by alias; case does not matter
    where nothing else matches.
    """
    wanted = plain_name(name)
    for served in catalog:
        if plain_name(served.name) == wanted or wanted in map(plain_name, served.aliases):
            return served
    for served in catalog:
        if plain_name(served.name).lower() == wanted.lower():
            return served
    return None
