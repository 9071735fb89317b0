"""Read a Hugging Face checkpoint: the headers of its safetensors and its small files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from enginehouse.core.errors import UserError
from enginehouse.core.model import Part
from enginehouse.core.safetensors_facts import Checkpoint
from enginehouse.core.safetensors_header import HeaderError, SafeTensor
from enginehouse.edges.byte_sources import file_error
from enginehouse.edges.model_folders import Folder, read_small
from enginehouse.edges.safetensors_file import parse_json, read_safetensors

INDEX = "model.safetensors.index.json"
MOST_JSON_BYTES, MOST_INDEX_BYTES, MOST_TEMPLATE_BYTES = 4 << 20, 16 << 20, 1 << 20
MOST_PARTS, MOST_TENSORS, CARD_BYTES = 1024, 200_000, 4 << 20
_PART_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*\.safetensors")
_LICENSE = re.compile(r"^license(?:_name)?:[ \t]*['\"]?([\w.+-]+)", re.M)
POOLING_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


def read_checkpoint(folder: Folder, only: str = "") -> Checkpoint:
    """Read a checkpoint's facts; `only` names the one weights file to read.

    Raises:
        UserError: `model.file.*`: no weights, a part missing, damaged.
        MachineError: `network.unreachable`.
    """
    config = _json(folder, "config.json")
    adapter = _json(folder, "adapter_config.json")
    names = weight_files(folder, only)
    tensors: list[SafeTensor] = []
    parts, digests = [], []
    for name in names:
        source = folder.open(name)
        try:
            header = read_safetensors(source)
        finally:
            source.close()
        tensors += header.tensors
        parts.append(Part(source.place, source.size))
        digests.append(header.digest)
        if len(tensors) > MOST_TENSORS:
            raise file_error(folder.name, folder.place, "damaged", "more than 200,000 tensors")
    _check_unique(folder, tensors)
    tokenizer = _json(folder, "tokenizer_config.json")
    template, origin = _template(folder, tokenizer)
    return Checkpoint(
        config=config,
        tensors=tuple(tensors),
        parts=tuple(parts),
        digests=tuple(digests),
        tokenizer=tokenizer,
        template=template,
        template_origin=origin,
        license=_license(folder),
        adapter=adapter,
        pooling=_pooling(folder),
        notes=() if config or adapter else ("no config.json beside it: the layers are unknown",),
    )


def weight_files(folder: Folder, only: str = "") -> tuple[str, ...]:
    """Return the names of the files with the weights, in order.

    Raises:
        UserError: `model.file.split`, `model.file.damaged`, `model.file.missing`.
    """
    listed = folder.names()
    index = read_small(folder, INDEX, MOST_INDEX_BYTES)
    if index:
        named = _indexed(folder, index)
        if not only or only in named:
            missing = [name for name in named if listed and name not in listed]
            if missing:
                shown = ", ".join(missing[:3]) + (" …" if len(missing) > 3 else "")
                what = f"of its {len(named)} parts {len(missing)} are missing: {shown}"
                raise file_error(folder.name, folder.place, "split", what)
            return named
    if only:
        return (only,)
    found = [name for name in listed if name.endswith(".safetensors")]
    usual = [name for name in found if not name.startswith("consolidated")]
    if not found:
        raise file_error(folder.name, folder.place, "missing", "no file in it is safetensors")
    return tuple(usual or found)[:MOST_PARTS]


def _indexed(folder: Folder, text: bytes) -> tuple[str, ...]:
    try:
        names = sorted(set(parse_json(text, dict[str, Any]).get("weight_map", {}).values()))
    except (HeaderError, AttributeError, TypeError) as problem:
        raise file_error(INDEX, folder.place, "damaged", str(problem)) from problem
    for name in names:
        if not isinstance(name, str) or not _PART_NAME.fullmatch(name):
            what = f"it names {str(name)[:80]!r} as a part, which is no file of this folder"
            raise file_error(INDEX, folder.place, "damaged", what)
    if not 0 < len(names) <= MOST_PARTS:
        raise file_error(INDEX, folder.place, "damaged", f"it names {len(names)} parts")
    return tuple(names)


def _check_unique(folder: Folder, tensors: Sequence[SafeTensor]) -> None:
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise file_error(folder.name, folder.place, "split", "a tensor is in two parts")


def _json(folder: Folder, name: str) -> dict[str, Any]:
    text = read_small(folder, name, MOST_JSON_BYTES)
    if not text:
        return {}
    try:
        document: dict[str, Any] = parse_json(text, dict[str, Any])
        return document
    except HeaderError as problem:
        raise file_error(name, folder.place, "damaged", str(problem)) from problem


def _template(folder: Folder, tokenizer: dict[str, Any]) -> tuple[str, str]:
    text = read_small(folder, "chat_template.jinja", MOST_TEMPLATE_BYTES)
    if text:
        return text.decode(errors="replace"), "chat_template.jinja"
    for name, table in (
        ("tokenizer_config.json", tokenizer),
        ("chat_template.json", _json(folder, "chat_template.json")),
    ):
        stated = table.get("chat_template")
        if isinstance(stated, list):  # several, by name
            by_name = {
                str(entry.get("name")): entry.get("template")
                for entry in stated
                if isinstance(entry, dict)
            }
            stated = by_name.get("tool_use") or by_name.get("default")
        if isinstance(stated, str) and stated:
            return stated[:MOST_TEMPLATE_BYTES], name
    return "", ""


def _license(folder: Folder) -> str:
    text = read_small(folder, "README.md", CARD_BYTES)[:16384].decode(errors="replace")
    if not text.startswith("---"):
        return ""
    found = _LICENSE.findall(text.split("\n---", 1)[0])
    return next((name for name in found if name != "other"), found[0] if found else "")


def _pooling(folder: Folder) -> str:
    if "modules.json" not in folder.names():
        return ""
    table = _json_below(folder, "1_Pooling/config.json")
    return next((mode for key, mode in POOLING_MODES.items() if table.get(key) is True), "")


def _json_below(folder: Folder, name: str) -> dict[str, Any]:
    try:
        source = folder.open(name)
    except UserError:
        return {}
    try:
        table: dict[str, Any] = parse_json(source.read_at(0, 1 << 16), dict[str, Any])
        return table
    except HeaderError:
        return {}
    finally:
        source.close()
