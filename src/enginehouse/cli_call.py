"""What all commands share: the call's settings and form, their options, their help."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from enginehouse.cli_progress import say
from enginehouse.core.workload import WORKLOADS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from enginehouse.app import House
    from enginehouse.core.settings import Settings
    from enginehouse.edges.keys_file import KeysFile

PROGRAM = "enginehouse"
COMPLETION_VARIABLE = "_ENGINEHOUSE_COMPLETE"
KEYS = {
    "workload": "find.workload",
    "budget": "find.budget",
    "port": "gateway.port",
    "host": "gateway.host",
    "ttft_limit": "find.ttft_limit",
    "itl_limit": "find.itl_limit",
}
"""Options that stand for a setting."""


@dataclass
class Call:
    """What the command line gave: the settings file, settings by key, and the form of output.

    `workloads` are all that were given, where a command takes several; the first is in `given` too.
    """

    config: Path | None = None
    given: dict[str, str] = field(default_factory=dict)
    as_json: bool = False
    workloads: tuple[str, ...] = ()

    def settings(self) -> Settings:
        """Resolve the settings."""
        from enginehouse.edges.settings_file import load_settings

        return load_settings(self.config, self.given)

    def config_path(self) -> Path:
        """Return the settings file that is read, whether or not it exists."""
        from enginehouse.edges.paths import config_dir

        return self.config or config_dir() / "config.toml"

    @contextmanager
    def house(self) -> Iterator[House]:
        """Open the house, and say what was left over from an Enginehouse that died."""
        from enginehouse.app import open_house

        with open_house(self.settings()) as house:
            for sentence in house.cleared:
                say(f"cleared: {sentence}")
            yield house

    def keys_file(self) -> KeysFile:
        """Return the API keys of this state folder."""
        from enginehouse.edges.keys_file import KeysFile
        from enginehouse.edges.paths import KEYS_NAME, state_dir

        return KeysFile(state_dir() / KEYS_NAME)

    def request_log_path(self) -> Path:
        """Return the request log of this state folder, whether or not it exists."""
        from enginehouse.edges.paths import REQUEST_LOG_NAME, state_dir

        return state_dir() / REQUEST_LOG_NAME

    def show(self, document: object, render: Callable[[], str]) -> None:
        """Write the answer to stdout: the document as JSON, or its text."""
        from enginehouse.cli_render import show_json

        if self.as_json:
            show_json(document)
        else:
            click.echo(render())


class WorkloadName(click.Choice[str]):
    """A workload's name; an unknown one is answered with the nearest."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name, or fail with the names there are."""
        nearest = difflib.get_close_matches(str(value), self.choices, 1, cutoff=0.4)
        if value not in self.choices and nearest:
            names = ", ".join(self.choices)
            self.fail(f"{value!r} is not one of {names}. Did you mean {nearest[0]!r}?", param, ctx)
        return super().convert(value, param, ctx)


class WorkloadNames(click.ParamType[tuple[str, ...]]):
    """One workload's name, or several with commas between."""

    name = "workloads"
    one = WorkloadName(list(WORKLOADS))

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the names, or fail with the names there are."""
        return tuple(self.one.convert(part.strip(), param, ctx) for part in str(value).split(","))

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Show the names in the help."""
        return f"[{'|'.join(WORKLOADS)}],…"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete the name after the last comma."""
        from click.shell_completion import CompletionItem

        head, comma, last = incomplete.rpartition(",")
        names = [name for name in WORKLOADS if name.startswith(last)]
        return [CompletionItem(f"{head}{comma}{name}") for name in names]


def complete_model(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a model: names that can be fetched, else files."""
    from click.shell_completion import CompletionItem

    from enginehouse.knowledge.models import load_models

    names = [known.name for known in load_models() if known.name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Keep an option's value under its setting's key; the settings parse and check it."""
    if value is not None:
        _call(context).given[KEYS[str(parameter.name)]] = value


def _keep_workloads(
    context: click.Context, _: click.Parameter, values: tuple[tuple[str, ...], ...]
) -> None:
    """Keep the workloads, each once; the first one is what the setting holds."""
    names = tuple(dict.fromkeys(name for value in values for name in value))
    if names:
        _call(context).workloads = names
        _call(context).given[KEYS["workload"]] = names[0]


def _keep_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    _call(context).as_json |= value


def _call(context: click.Context) -> Call:
    return context.ensure_object(Call)


workload_option = click.option(
    "--workload", type=WorkloadName(list(WORKLOADS)), callback=_keep, expose_value=False,
    help="What to find for.",
)  # fmt: skip
workloads_option = click.option(
    "--workload", type=WorkloadNames(), multiple=True, callback=_keep_workloads, expose_value=False,
    help="What to find for; several times, or with commas, for several at once.",
)  # fmt: skip
prefer_option = click.option(
    "--prefer", type=WorkloadName(list(WORKLOADS)), metavar="WORKLOAD",
    help="Of several workloads, the one whose choice is served; by default the first.",
)  # fmt: skip
budget_option = click.option(
    "--budget", metavar="TIME", callback=_keep, expose_value=False,
    help='Time for the trials, such as "90s" or "5m"; where trials are long, at most twice that.',
)  # fmt: skip


def limit_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the limits that a request must keep to count."""
    for name, what in (("ttft", "to its first token"), ("itl", "per token after it")):
        function = click.option(
            f"--{name}-limit", metavar="TIME", callback=_keep, expose_value=False,
            help=f"Rank by goodput: only requests that take at most TIME {what} count.",
        )(function)  # fmt: skip
    return function


port_option = click.option(
    "--port", metavar="PORT", callback=_keep, expose_value=False, help="Port of the endpoint."
)
host_option = click.option(
    "--host", metavar="HOST", callback=_keep, expose_value=False, help="Address of the endpoint."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be tried, with the exact argv; start nothing."
)
generate_option = click.option(
    "--generate", is_flag=True,
    help="Print the exact command of the stored choice for a shell, environment and all; start "
    "nothing.",
)  # fmt: skip
context_option = click.option(
    "--context", type=click.IntRange(min=256), metavar="TOKENS",
    help="Context that one request shall get; by default, what the workload needs.",
)  # fmt: skip
set_option = click.option(
    "--set", "wanted", multiple=True, metavar="NAME=VALUE",
    help="A setting that every candidate shall hold, such as kv_type=q8_0.",
)  # fmt: skip
also_option = click.option(
    "--also", multiple=True, metavar="MODEL",
    help="Another form of the same model, such as its safetensors folder beside a GGUF file.",
)  # fmt: skip
model_argument = click.argument("model", required=False, shell_complete=complete_model)


def command(
    group: click.Group, name: str, example: str, kind: type[click.Command] = click.Command
) -> Callable[[Callable[..., None]], click.Command]:
    """Register a command that takes `--json` and shows an example in its help."""

    def register(function: Callable[..., None]) -> click.Command:
        with_json = click.option(
            "--json", is_flag=True, callback=_keep_json, expose_value=False,
            help="Write one JSON document to stdout.",
        )(click.pass_obj(function))  # fmt: skip
        return group.command(name, kind, epilog=f"\b\nExample:\n  {example}")(with_json)

    return register
