"""From a place to a model's facts, reading headers only: a file, a folder, a store, a URL."""

from __future__ import annotations

import dataclasses
import posixpath
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from enginehouse.core.chat_template import template_of
from enginehouse.core.errors import UserError
from enginehouse.core.model import Model, Part
from enginehouse.core.model_facts import model_of
from enginehouse.core.ollama_store import TRANSLATED
from enginehouse.core.safetensors_facts import model_of_checkpoint
from enginehouse.edges.byte_sources import RemoteFile, file_error
from enginehouse.edges.checkpoint_folder import read_checkpoint
from enginehouse.edges.gguf_parts import Open, part_paths, read_model_header, read_parts
from enginehouse.edges.hub_cache import is_cache_folder, snapshot_of
from enginehouse.edges.model_folders import LocalFolder, RemoteFolder
from enginehouse.edges.ollama_store import OllamaModel, is_manifest, read_ollama_model


def read_place(path: Path, name: str = "", source: str = "file") -> Model:
    """Read the facts of a model at a path; `digest` stays empty.

    The path may be a GGUF file or a part of one, a safetensors file, a checkpoint's folder, a
    folder of the Hugging Face cache, or a manifest of Ollama's store.

    Raises:
        UserError: `model.file.*`, `model.folder.which_file`.
    """
    if path.is_dir():
        return _read_folder(path, name, source)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, name, source)
    if is_manifest(path):
        return read_ollama(path)
    return _read_gguf(path, name, source)


def read_ollama(manifest: Path) -> Model:
    """Read the facts of a model of Ollama's store.

    Raises:
        UserError: `model.file.*`.
    """
    stored = read_ollama_model(manifest)
    model = _read_gguf(stored.weights, stored.name, f"ollama:{stored.name}")
    template = template_of(stored.template, "Ollama's template layer")
    return dataclasses.replace(
        model,
        parts=stored.parts,
        template=template or model.template,
        has_chat_template=template is not None or model.has_chat_template,
        license=model.license or stored.license,
        notes=model.notes + ollama_notes(model, stored),
    )


def ollama_notes(model: Model, stored: OllamaModel) -> tuple[str, ...]:
    """Say what of an Ollama model other engines may stumble over."""
    notes = []
    if model.architecture in TRANSLATED:
        notes.append(
            f"Ollama translates its {model.architecture} blobs while it loads them; llama.cpp "
            "itself may refuse this file, or run it wrongly: a GGUF made for llama.cpp is safe"
        )
    if stored.template:
        notes.append("its template is in Ollama's Go form; llama.cpp takes the one in the file")
    if any(part.role == "adapter" for part in stored.parts):
        notes.append("it is to be run with the adapter beside it")
    return tuple(notes)


def read_url(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    is_hub: bool = False,
    source: str = "",
    known: tuple[str, ...] = (),
) -> Model:
    """Read the facts of a remote model; only headers travel, and only from the URL's host.

    Raises:
        UserError: `model.url.*`, `model.file.*`.
        MachineError: `network.unreachable`.
    """
    parts = urllib.parse.urlsplit(url)
    file_name = urllib.parse.unquote(posixpath.basename(parts.path))
    base = urllib.parse.urlunsplit(
        (parts.scheme, parts.netloc, posixpath.dirname(parts.path), "", "")
    )
    if file_name.endswith(".safetensors"):
        folder = RemoteFolder(base, known, headers, is_hub)
        return read_remote_checkpoint(folder, file_name, source or url)

    def open_part(name: str) -> RemoteFile:
        if name == file_name:
            return RemoteFile(url, headers, is_hub)
        return RemoteFile(f"{base}/{urllib.parse.quote(name)}", headers, is_hub)

    return _gguf_model(file_name, open_part, url, source or url)


def read_remote_checkpoint(folder: RemoteFolder, only: str, source: str) -> Model:
    """Read the facts of a checkpoint behind HTTP."""
    return model_of_checkpoint(
        read_checkpoint(folder, only),
        name=folder.name.lower(),
        path=folder.place,
        source=source,
        digest="",
    )


def _gguf_model(file_name: str, open_part: Open, path: str, source: str) -> Model:
    header, parts = read_parts(file_name, open_part)
    stem = file_name.removesuffix(".gguf").lower()
    model = model_of(header, name=stem, path=path, source=source, digest="")
    return dataclasses.replace(model, parts=parts)


def _read_gguf(path: Path, name: str, source: str) -> Model:
    header, parts = read_model_header(path)
    first = part_paths(path)[0]
    model = model_of(
        header,
        name=name or (path.stem.lower() if path.suffix == ".gguf" else path.name.lower()),
        path=str(first),
        source=source,
        digest="",
    )
    return dataclasses.replace(model, parts=(*parts, *_projectors_beside(first, model)))


def _projectors_beside(path: Path, model: Model) -> tuple[Part, ...]:
    """Return the mmproj files in a folder that holds no other model they could belong to."""
    if model.role != "model" or path.suffix != ".gguf":
        return ()
    try:
        files = [file for file in path.parent.glob("*.gguf") if file.is_file()]
        models = {part_paths(file)[0] for file in files if "mmproj" not in file.name}
        if len(models) > 1:
            return ()
        found = sorted(file for file in files if "mmproj" in file.name)[:4]
        return tuple(Part(str(file), file.stat().st_size, "projector") for file in found)
    except OSError:
        return ()


def _read_folder(path: Path, name: str, source: str) -> Model:
    if is_cache_folder(path):
        repository = path.name.removeprefix("models--").replace("--", "/", 1)
        return _read_folder(snapshot_of(path), name or repository.lower(), f"hf:{repository}")
    folder = LocalFolder(path)
    names = folder.names()
    if any(file.endswith(".safetensors") for file in names):
        return model_of_checkpoint(
            read_checkpoint(folder),
            name=name or path.name.lower(),
            path=str(path),
            source=source,
            digest="",
        )
    return _read_gguf(path / only_gguf(path, names), name, source)


def only_gguf(path: Path, names: tuple[str, ...]) -> str:
    """Return the one model among a folder's GGUF files.

    Raises:
        UserError: `model.folder.which_file`, `model.file.missing`.
    """
    files = [name for name in names if name.endswith(".gguf") and "mmproj" not in name]
    firsts = dict.fromkeys(part_paths(Path(name))[0].name for name in files)
    if len(firsts) == 1:
        return next(iter(firsts))
    if not firsts:
        what = "the folder holds neither GGUF nor safetensors"
        raise file_error(path.name, str(path), "missing", what)
    raise UserError(
        "model.folder.which_file",
        f"the folder {path.name} holds {len(firsts)} GGUF models",
        evidence=tuple(firsts)[:10],
        remedies=tuple(f"enginehouse models show {path / file}" for file in list(firsts)[:3]),
    )


def _read_safetensors(path: Path, name: str, source: str) -> Model:
    if not path.exists():
        raise file_error(path.name, str(path), "missing", "there is no such file")
    checkpoint = read_checkpoint(LocalFolder(path.parent), only=path.name)
    whole = len(checkpoint.parts) > 1 or path.name == "model.safetensors"
    return model_of_checkpoint(
        checkpoint,
        name=name or (path.parent.name if whole else path.stem).lower(),
        path=str(path.parent if whole else path),
        source=source,
        digest="",
    )
