"""Show the served models as Ollama's `tags`, `ps` and `show` do."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from enginehouse.core.catalog import Served, tagged_name
from enginehouse.dialects.ollama.voice import stamp

FOR_EVER_DAYS = 365 * 100
SHOWN_ELSEWHERE = ("tokenizer.chat_template", "general.name")
"""What `show` leaves out of `model_info`, as Ollama does: the template has a field of its own."""


def show_tags(catalog: tuple[Served, ...]) -> dict[str, Any]:
    """Return `GET /api/tags`."""
    models = []
    for served in catalog:
        for name in (served.name, *served.aliases):
            models.append(
                {
                    "name": tagged_name(name),
                    "model": tagged_name(name),
                    "modified_at": stamp(served.modified_at),
                    "size": served.bytes,
                    "digest": served.digest,
                    "details": _details(served),
                    "capabilities": list(served.capabilities),
                }
            )
    return {"models": models}


def show_running(catalog: tuple[Served, ...], now: float) -> dict[str, Any]:
    """Return `GET /api/ps`: the models that are loaded."""
    return {
        "models": [
            {
                "name": tagged_name(served.name),
                "model": tagged_name(served.name),
                "size": served.memory_bytes,
                "digest": served.digest,
                "details": _details(served),
                "expires_at": _expiry(served.expires_at, now),
                "size_vram": 0,
                "context_length": served.served_context,
            }
            for served in catalog
            if served.is_loaded
        ]
    }


def _expiry(at: float | None, now: float) -> str:
    """Return a time that Python 3.10's `datetime.fromisoformat` parses too: no Z."""
    moment = datetime.fromtimestamp(now if at is None else at, timezone.utc)
    if at is None:
        moment += timedelta(days=FOR_EVER_DAYS)
    return moment.isoformat(timespec="microseconds")


def show_model(served: Served, is_verbose: bool) -> dict[str, Any]:
    """Return `POST /api/show`."""
    info: dict[str, Any] = {
        name: value
        for name, value in served.metadata.items()
        if name not in SHOWN_ELSEWHERE and (is_verbose or not isinstance(value, list | tuple))
    }
    arch = served.family or "unknown"
    info.setdefault("general.architecture", arch)
    info.setdefault("general.parameter_count", served.parameters)
    info.setdefault(f"{arch}.context_length", served.context_length)
    if served.embedding_length:
        info.setdefault(f"{arch}.embedding_length", served.embedding_length)
    parameters = [f"num_ctx {served.served_context}"] if served.served_context else []
    parameters += [f"{name} {value}" for name, value in served.settings]
    name = tagged_name(served.name)
    modelfile = "\n".join(
        [
            "# Modelfile made by Enginehouse",
            f"FROM {name}",
            *([f'TEMPLATE """{template_of(served)}"""'] if template_of(served) else []),
            *(f"PARAMETER {line}" for line in parameters),
        ]
    )
    shown = {
        "modelfile": modelfile,
        "parameters": "\n".join(f"{line.partition(' ')[0]:<31}{line.partition(' ')[2]}"
                                for line in parameters),
        "template": template_of(served),
        "details": _details(served),
        "model_info": info,
        "capabilities": list(served.capabilities),
        "modified_at": stamp(served.modified_at),
    }  # fmt: skip
    return {**shown, "license": served.license} if served.license else shown


def _details(served: Served) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": served.format,
        "family": served.family,
        "families": [served.family] if served.family else [],
        "parameter_size": size_label(served.parameters),
        "quantization_level": served.quantization,
        "context_length": served.context_length,
        "embedding_length": served.embedding_length,
    }


def size_label(parameters: int) -> str:
    """Return a number of parameters as Ollama writes it: 134.52M, 3.2B."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            digits = 2 if unit in "MK" else 1
            return f"{parameters / size:.{digits}f}{unit}"
    return str(parameters)


def template_of(served: Served) -> str:
    """Return a model's chat template, from its file's metadata where it is not given."""
    return served.template or str(served.metadata.get("tokenizer.chat_template") or "")
