"""The `models` commands, and how they show a model."""

from __future__ import annotations

import dataclasses
import difflib

import click

from enginehouse.cli_call import PROGRAM, Call, command, complete_model
from enginehouse.cli_progress import open_progress
from enginehouse.core.errors import UserError


@click.group(epilog="\b\nExample:\n  enginehouse models list")
def models() -> None:
    """List, show, add and remove models."""


@command(models, "list", "enginehouse models list")
def models_list(call: Call) -> None:
    """List models: those here and those to fetch."""
    from enginehouse.cli_render import models_text

    with call.house() as house:
        registered, known = house.models(), house.known_models()
    document = {
        "registered": registered,
        "known": [{"name": name, "source": source, "note": note} for name, source, note in known],
    }
    call.show(document, lambda: models_text(registered, known))


@command(models, "show", "enginehouse models show smollm2-135m")
@click.argument("model", shell_complete=complete_model)
@click.option("--layers", is_flag=True, help="Show every layer on a line of its own.")
def models_show(call: Call, model: str, layers: bool) -> None:
    """Show a model's facts, read from its headers alone.

    MODEL is a file, a folder, a name, hf:owner/repo[/file], ollama:name[:tag], or a URL. Of what is
    not here only the headers travel. A model named in `models list` is not fetched for this.
    """
    from enginehouse.cli_model_text import layers_text, model_text
    from enginehouse.cli_render import known_model_text
    from enginehouse.core.serving import servable_by

    with call.house() as house:
        here = {registered.name for registered in house.models()}
        known = {row[0]: row for row in house.known_models() if row[0] not in here}
        if model in known:
            name, source, note = known[model]
            brief = {"name": name, "source": source, "note": note}
            call.show(brief, lambda: known_model_text(name, source, note))
            return
        found = house.inspect_model(model, open_progress())
    document = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    document |= {
        "bytes_by_class": found.bytes_by_class(),
        "bytes_by_type": found.bytes_by_type(),
        "state_bytes": found.state_bytes,
        "servable_by": servable_by(found),
    }
    text = layers_text if layers else model_text
    call.show(document, lambda: text(found))


@command(models, "add", "enginehouse models add hf:owner/repo/model.gguf")
@click.argument("model", shell_complete=complete_model)
def models_add(call: Call, model: str) -> None:
    """Fetch or read a model, and remember it."""
    with call.house() as house:
        found = house.model(model, open_progress())
    call.show(found, lambda: f"added {found.name}: {found.path}")


@command(models, "remove", "enginehouse models remove smollm2-135m")
@click.argument("name")
def models_remove(call: Call, name: str) -> None:
    """Forget a model; its file stays."""
    with call.house() as house:
        names = [model.name for model in house.models()]
        removed = house.remove_model(name)
    if not removed:
        nearest = difflib.get_close_matches(name, names, 3, cutoff=0.4)
        raise UserError(
            "model.unknown",
            f"there is no registered model {name}",
            evidence=(f"registered: {', '.join(names) or 'none'}",),
            remedies=tuple(f"did you mean {near}?" for near in nearest)
            or (f"see `{PROGRAM} models list`",),
        )
    call.show({"removed": name}, lambda: f"removed {name}; its file stays")
