"""Make and keep re-quantized variants of a model: one file each, in the cache.

`<cache>/variants/<source digest>/<quantization>.gguf`, with its recipe beside it as JSON. A file
of that name is always whole: it is written as a draft, checked, and renamed.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from enginehouse.core.errors import EngineError, EnginehouseError, MachineError
from enginehouse.core.model import Model
from enginehouse.core.quant_types import predict_file_bytes, target_types
from enginehouse.core.variants import (
    KeptVariant,
    Variant,
    Workshop,
    choose_evictions,
    weigh_variants,
)
from enginehouse.edges.digests import hash_file
from enginehouse.edges.gguf_parts import read_model_header
from enginehouse.edges.leases import LeaseBook
from enginehouse.edges.model_files import read_place
from enginehouse.edges.progress import Progress, SilentProgress
from enginehouse.edges.quantize_run import Tools, run_tool, thread_count

LOCK_POLL_S = 0.1
DRAFTS = (".draft", ".journal")


class Recipe(msgspec.Struct, frozen=True):
    """How a variant was made, and what its file was then."""

    source: str
    source_digest: str
    quantization: str
    tool: str
    tool_version: str
    made_at: float
    seconds: float
    file_bytes: int
    mtime_ns: int
    digest: str


@dataclass(frozen=True)
class VariantStore:
    """Where variants are kept, what makes them, and the room there is; sizes in bytes.

    `should_stop` is asked often while one is made; what is made so far is then kept for next time.
    """

    cache: Path
    tools: Tools
    disk_budget_bytes: int
    free_reserve_bytes: int
    progress: Progress = dataclasses.field(default_factory=SilentProgress)
    should_stop: Callable[[], bool] = lambda: False

    def folder(self, model: Model) -> Path:
        """Return the folder of a model's variants."""
        return variants_folder(self.cache, model)


def variants_folder(cache: Path, model: Model) -> Path:
    """Return the folder of a model's variants in a cache."""
    return cache / "variants" / (model.digest or model.header_digest)[:16]


def kept_variants(cache: Path, model: Model) -> dict[str, Model]:
    """Return what was made of a model and is still here, by quantization, from headers alone."""
    found = {}
    for path in sorted(variants_folder(cache, model).glob("*.gguf")):
        with suppress(EnginehouseError):
            found[path.stem] = read_place(path, model.name, model.source)
    return found


def weigh_here(model: Model, store: VariantStore) -> tuple[Variant, ...]:
    """Return every quantization that may be worth making, with its reason or the reason against.

    Raises:
        UserError: `model.file.*`.
    """
    if model.format != "gguf":
        return ()
    header, _ = read_model_header(Path(model.path))
    folder = store.folder(model)
    store.cache.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(
        means=store.tools.means,
        disk_budget_bytes=store.disk_budget_bytes,
        free_bytes=shutil.disk_usage(store.cache).free,
        free_reserve_bytes=store.free_reserve_bytes,
        threads=thread_count(),
        kept=frozenset(path.stem for path in folder.glob("*.gguf")),
    )
    return weigh_variants(model, header, workshop)


def make_variant(model: Model, quantization: str, store: VariantStore) -> Model:
    """Return the model re-quantized, made now unless it is kept from earlier.

    Raises:
        EngineError: `quantize.failed`, `quantize.no_tool`.
        MachineError: `disk.full`: no room within the budget or on the disk.
        UserError: `model.file.*` of the source.
        CancelledError: the store said stop.
    """
    folder = store.folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{quantization}.gguf"
    with _lock(folder, store.should_stop):
        recipe = _kept_recipe(path)
        if recipe is None:
            recipe = _make(model, quantization, path, store)
    os.utime(_recipe_path(path))  # says when it was last used
    read = read_place(path, model.name, model.source)
    return dataclasses.replace(read, digest=recipe.digest)


def _make(model: Model, quantization: str, path: Path, store: VariantStore) -> Recipe:
    header, _ = read_model_header(Path(model.path))
    needed = predict_file_bytes(header, target_types(header, quantization))
    draft = path.with_suffix(".draft")
    _make_room(store, needed, {str(path.parent)}, draft)
    began = time.monotonic()
    tool = store.tools.best()
    if tool is None:
        raise EngineError(
            "quantize.no_tool",
            f"{model.name} cannot be quantized to {quantization}",
            evidence=("neither llama-quantize nor the wheel's own routines are here",),
            remedies=("pip install --upgrade xllamacpp, or put llama-quantize on PATH",),
        )
    lease = LeaseBook(store.cache / "leases").open(f"quantizing {model.name} to {quantization}")
    store.progress.begin(lease.label, needed)
    try:
        run_tool(tool, Path(model.path), quantization, draft, lambda: _tell(store, draft), lease.id)
        _check(draft, header_types(model, quantization) if tool.is_wheel else ())
        recipe = Recipe(
            source=model.path,
            source_digest=model.digest or model.header_digest,
            quantization=quantization,
            tool=tool.name,
            tool_version=tool.version,
            made_at=time.time(),
            seconds=time.monotonic() - began,
            file_bytes=draft.stat().st_size,
            mtime_ns=draft.stat().st_mtime_ns,
            digest=hash_file(draft),
        )
    except (EnginehouseError, OSError) as problem:
        _discard(path)
        raise _named(problem, model, quantization, needed) from problem
    finally:
        store.progress.end()
        LeaseBook(store.cache / "leases").close(lease)
    _recipe_path(path).write_bytes(msgspec.json.format(msgspec.json.encode(recipe)))
    draft.replace(path)
    draft.with_suffix(".journal").unlink(missing_ok=True)
    return recipe


def header_types(model: Model, quantization: str) -> tuple[tuple[str, int], ...]:
    """Return each tensor's name and type number as the quantization should make them."""
    header, _ = read_model_header(Path(model.path))
    return tuple((t.tensor.name, t.type_id) for t in target_types(header, quantization))


def _tell(store: VariantStore, draft: Path) -> None:
    """Tell how far the draft is.

    Raises:
        CancelledError: the store said stop.
    """
    if store.should_stop():
        raise CancelledError
    with suppress(OSError):
        store.progress.advance_to(draft.stat().st_size)


def _check(draft: Path, expected: Sequence[tuple[str, int]]) -> None:
    """Read the draft's header as an engine will.

    Raises:
        UserError: `model.file.*`.
        OSError: the types are not those that were asked for.
    """
    header, _ = read_model_header(draft)
    found = tuple((tensor.name, tensor.type_id) for tensor in header.tensors)
    if expected and found != tuple(expected):
        raise OSError("the tensors' types are not those that were asked for")


def _kept_recipe(path: Path) -> Recipe | None:
    """Return the recipe of a whole, unchanged variant, None when it has to be made."""
    try:
        recipe = msgspec.json.decode(_recipe_path(path).read_bytes(), type=Recipe)
        stat = path.stat()
    except (OSError, msgspec.MsgspecError):
        return None
    unchanged = (recipe.file_bytes, recipe.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    return recipe if unchanged else None


def _recipe_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _discard(path: Path) -> None:
    """Remove what a failed run left; after a stop or a kill it is kept instead, to go on with."""
    for suffix in DRAFTS:
        path.with_suffix(suffix).unlink(missing_ok=True)


def _make_room(store: VariantStore, needed: int, protected: Collection[str], draft: Path) -> None:
    """Remove variants of other models, least recently used first, until there is room.

    Raises:
        MachineError: `disk.full`.
    """
    done = draft.stat().st_size if draft.exists() else 0
    root = store.cache / "variants"
    kept = _kept_variants(root, draft)
    safe = {variant.path for variant in kept if str(Path(variant.path).parent) in protected}
    free = shutil.disk_usage(store.cache).free + done - store.free_reserve_bytes
    budget = min(store.disk_budget_bytes, sum(v.bytes for v in kept) + max(0, free))
    for variant in choose_evictions(kept, needed, budget, safe):
        for suffix in (".gguf", ".json", *DRAFTS):
            Path(variant.path).with_suffix(suffix).unlink(missing_ok=True)
        with suppress(OSError):
            Path(variant.path).parent.rmdir()
    left = budget - sum(v.bytes for v in _kept_variants(root, draft))
    if left < needed:
        raise MachineError(
            "disk.full",
            "there is no room for another quantization of the model",
            evidence=(
                f"{needed >> 20} MiB are needed, {max(0, left) >> 20} MiB may be used at {root}",
            ),
            remedies=(
                "raise trials.disk_budget, or free some space",
                "set ENGINEHOUSE_CACHE_DIR to another disk",
            ),
        )


def _kept_variants(root: Path, without: Path) -> list[KeptVariant]:
    """Return all variants and left drafts under a folder."""
    kept = []
    for path in (*root.glob("*/*.gguf"), *root.glob("*/*.draft")):
        with suppress(OSError):
            size = path.stat().st_size
            recipe = _recipe_path(path)
            used = recipe if path.suffix == ".gguf" and recipe.exists() else path
            if path != without:
                kept.append(KeptVariant(str(path), size, used.stat().st_mtime))
    return kept


@contextmanager
def _lock(folder: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold a folder's lock, so that two Enginehouses never write one draft."""
    with (folder / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if should_stop():
                    raise CancelledError from None
                time.sleep(LOCK_POLL_S)
        yield


def _named(problem: Exception, model: Model, quantization: str, needed: int) -> Exception:
    """Turn what went wrong into an error that says what to try."""
    if isinstance(problem, EnginehouseError):
        return problem
    text = str(problem)
    if "No space left" in text:
        return MachineError(
            "disk.full",
            f"the disk was full while {model.name} was quantized to {quantization}",
            evidence=(f"{needed >> 20} MiB are needed", text[-300:]),
            remedies=("free some space, or set ENGINEHOUSE_CACHE_DIR to another disk",),
        )
    return EngineError(
        "quantize.failed",
        f"{model.name} could not be quantized to {quantization}",
        evidence=(text[-600:],),
        remedies=("serve the file as it is: enginehouse find without re-quantization",),
    )
