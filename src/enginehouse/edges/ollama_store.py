"""Read a model from Ollama's store, as it lies on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.core.errors import UserError
from enginehouse.core.model import Part
from enginehouse.core.ollama_store import (
    Layer,
    ManifestError,
    layers_of,
    manifest_path,
    name_of_manifest,
)
from enginehouse.core.safetensors_header import HeaderError
from enginehouse.edges.byte_sources import LocalFile, file_error
from enginehouse.edges.safetensors_file import parse_json

SERVICE_STORE = Path("/usr/share/ollama/.ollama/models")
"""Where the Linux installer's service keeps models: the home of its user `ollama`."""
MOST_MANIFEST_BYTES, MOST_TEXT_BYTES = 1 << 20, 1 << 18


@dataclass(frozen=True)
class OllamaModel:
    """A model of the store: its name, its files, and what its text layers say."""

    name: str
    weights: Path
    parts: tuple[Part, ...]
    template: str = ""
    license: str = ""


def stores() -> tuple[Path, ...]:
    """Return the stores of this machine: OLLAMA_MODELS, else the user's and the service's."""
    named = os.environ.get("OLLAMA_MODELS")
    candidates = [Path(named)] if named else [Path.home() / ".ollama" / "models", SERVICE_STORE]
    return tuple(path for path in candidates if _is_readable_store(path))


def _is_readable_store(path: Path) -> bool:
    """Whether a store is there for us: the service's home is often closed to other users."""
    try:
        return (path / "manifests").is_dir()
    except PermissionError:
        return False


def find_manifest(name: str) -> Path:
    """Return the manifest of a model by its name or its manifest's path.

    Raises:
        UserError: `model.ollama.unknown`, with the names that the store has.
    """
    if is_manifest(Path(name).absolute()):
        return Path(name).absolute()
    try:
        relative = manifest_path(name)
    except ManifestError as problem:
        raise UserError(
            "model.ollama.unknown",
            str(problem),
            evidence=("a name is [[host/]namespace/]model[:tag]",),
            remedies=("write ollama:llama3.2:3b",),
        ) from problem
    for store in stores():
        if (store / "manifests" / relative).is_file():
            return store / "manifests" / relative
    here = list_models()
    raise UserError(
        "model.ollama.unknown",
        f"Ollama's store has no model {name}",
        evidence=(
            f"looked in {', '.join(map(str, stores())) or 'no store: there is none'}",
            f"it has {', '.join(here[:10]) or 'none'}",
        ),
        remedies=(f"ollama pull {name}", "set OLLAMA_MODELS to the store's folder"),
    )


def list_models() -> tuple[str, ...]:
    """Return the names of the models in the stores."""
    found = []
    for store in stores():
        manifests = sorted((store / "manifests").glob("*/*/*/*"))
        found += [name_of_manifest(path.parts) for path in manifests if path.is_file()]
    return tuple(dict.fromkeys(found))


def is_manifest(path: Path) -> bool:
    """Whether a path lies in a store's manifests."""
    return len(path.parents) > 4 and path.parents[3].name == "manifests" and path.is_file()


def read_ollama_model(manifest: Path) -> OllamaModel:
    """Read a manifest and its text layers.

    Raises:
        UserError: `model.file.*`: damaged, a blob missing.
    """
    blobs = manifest.parents[4] / "blobs"
    try:
        layers = layers_of(parse_json(_read(manifest, MOST_MANIFEST_BYTES), dict[str, Any]))
    except (HeaderError, ManifestError) as problem:
        what = f"it is not a manifest of Ollama: {problem}"
        raise file_error(manifest.name, str(manifest), "damaged", what) from problem
    name = name_of_manifest(manifest.parts)
    for layer in layers:
        if layer.role in ("weights", "projector", "adapter") and not (blobs / layer.blob).exists():
            what = f"the blob with its {layer.role} is missing: {layer.blob[:19]}…"
            raise file_error(name, str(blobs / layer.blob), "missing", what)
    weights = next(layer for layer in layers if layer.role == "weights")
    return OllamaModel(
        name=name,
        weights=blobs / weights.blob,
        parts=tuple(
            Part(str(blobs / layer.blob), _size(blobs, layer), layer.role) for layer in layers
        ),
        template=_text(blobs, layers, "template"),
        license=_first_line(_text(blobs, layers, "license")),
    )


def _size(blobs: Path, layer: Layer) -> int:
    path = blobs / layer.blob
    return path.stat().st_size if path.exists() else layer.bytes


def _text(blobs: Path, layers: tuple[Layer, ...], role: str) -> str:
    for layer in layers:
        if layer.role == role and (blobs / layer.blob).is_file():
            return _read(blobs / layer.blob, MOST_TEXT_BYTES).decode(errors="replace")
    return ""


def _read(path: Path, most: int) -> bytes:
    source = LocalFile(path)
    try:
        return source.read_at(0, min(most, source.size))
    finally:
        source.close()


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:80] if lines else ""
