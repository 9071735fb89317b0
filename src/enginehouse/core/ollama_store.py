"""Ollama's store as values: a model's name, its manifest, and what its layers are.

Layout: `manifests/HOST/NAMESPACE/MODEL/TAG` and `blobs/sha256-…` (ollama/ollama:
server/manifest.go, types/model/name.go).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = {
    "application/vnd.ollama.image.model": "weights",
    "application/vnd.ollama.image.projector": "projector",
    "application/vnd.ollama.image.adapter": "adapter",
    "application/vnd.ollama.image.template": "template",
    "application/vnd.ollama.image.params": "parameters",
    "application/vnd.ollama.image.system": "system",
    "application/vnd.ollama.image.license": "license",
}
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")

TRANSLATED = frozenset(
    {"gemma3", "gemma3n", "gemma4", "gptoss", "gpt-oss", "lfm2", "olmo3", "mistral3", "qwen35",
     "qwen35moe", "qwen3next", "qwen25vl", "qwen3vl", "qwen3vlmoe", "deepseekocr", "glmocr",
     "glm4moelite", "laguna", "nemotron_h", "nemotron_h_moe", "llama4", "gemma-embedding",
     "snowflake-arctic-embed2", "mllama"}
)  # fmt: skip
"""Architectures whose Ollama blobs differ from llama.cpp's own GGUF, so that Ollama patches them
while it loads (ollama/ollama: llama/compat/README.md)."""


@dataclass(frozen=True)
class Layer:
    """One layer of a manifest: the role it plays, its blob and its size."""

    role: str
    blob: str
    bytes: int


class ManifestError(Exception):
    """A manifest that Ollama did not write; the text says why."""


def manifest_path(name: str) -> str:
    """Return the manifest's path in the store for `[[host/]namespace/]model[:tag]`.

    Raises:
        ManifestError: not a name.
    """
    head, separator, tag = name.rpartition(":")
    if not separator or "/" in tag:
        head, tag = name, "latest"
    parts = head.split("/")
    host = parts[-3] if len(parts) == 3 else "registry.ollama.ai"
    namespace = parts[-2] if len(parts) > 1 else "library"
    words = (namespace, parts[-1], tag)
    if len(parts) > 3 or not _HOST.fullmatch(host) or not all(map(_WORD.fullmatch, words)):
        raise ManifestError(f"{name!r} is not the name of an Ollama model")
    return "/".join((host, *words))


def name_of_manifest(path: Sequence[str]) -> str:
    """Return the name that a manifest's path in the store stands for."""
    host, namespace, model, tag = path[-4:]
    shown = model if (host, namespace) == ("registry.ollama.ai", "library") else (
        f"{namespace}/{model}" if host == "registry.ollama.ai" else f"{host}/{namespace}/{model}"
    )  # fmt: skip
    return f"{shown}:{tag}"


def layers_of(manifest: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Return the layers whose role is known; the blobs as file names.

    Raises:
        ManifestError: no layers, or a digest that is none.
    """
    listed = manifest.get("layers")
    if not isinstance(listed, list) or not listed or len(listed) > 4096:
        raise ManifestError("it lists no layers")
    layers = []
    for entry in listed:
        entry = entry if isinstance(entry, Mapping) else {}
        digest, size = _DIGEST.fullmatch(str(entry.get("digest"))), entry.get("size")
        if digest is None:
            raise ManifestError(f"{str(entry.get('digest'))[:80]!r} is not a digest")
        role = ROLES.get(str(entry.get("mediaType")))
        if role is not None:
            layers.append(Layer(role, f"sha256-{digest[1]}", size if type(size) is int else 0))
    if not any(layer.role == "weights" for layer in layers):
        raise ManifestError("no layer of it is a model in GGUF")
    return tuple(layers)
