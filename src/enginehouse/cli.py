"""The command line: parse, call the house, render, exit; it decides nothing."""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from enginehouse.cli_progress import SearchTalk, open_progress, say
from enginehouse.core.errors import (
    EXIT_CODES,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USER,
    EnginehouseError,
    ErrorReport,
    InternalError,
    MachineError,
    UserError,
)
from enginehouse.core.workload import WORKLOADS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from enginehouse.app import FindResult, House
    from enginehouse.core.model import Model
    from enginehouse.core.settings import Settings

PROGRAM = "enginehouse"
COMPLETION_VARIABLE = "_ENGINEHOUSE_COMPLETE"


@dataclass
class Call:
    """What the command line gave: the settings file, settings by key, and the form of output."""

    config: Path | None = None
    given: dict[str, str] = field(default_factory=dict)
    as_json: bool = False

    def settings(self) -> Settings:
        """Resolve the settings."""
        from enginehouse.edges.settings_file import load_settings

        return load_settings(self.config, self.given)

    @contextmanager
    def house(self) -> Iterator[House]:
        """Open the house, and say what was left over from an Enginehouse that died."""
        from enginehouse.app import open_house

        with open_house(self.settings()) as house:
            for sentence in house.cleared:
                say(f"cleared: {sentence}")
            yield house

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


def complete_model(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a model: names that can be fetched, else files."""
    from click.shell_completion import CompletionItem

    from enginehouse.knowledge.models import load_models

    names = [known.name for known in load_models() if known.name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Keep an option that stands for a setting under the setting's key, to be resolved there."""
    keys = {"budget": "find.budget", "port": "gateway.port", "host": "gateway.host",
            "workload": "find.workload"}  # fmt: skip
    if value is not None:
        context.find_object(Call).given[keys[parameter.name or ""]] = value  # type: ignore[union-attr]
    return value


def _keep_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_object(Call).as_json = True  # type: ignore[union-attr]


workload_option = click.option(
    "--workload", type=WorkloadName(list(WORKLOADS)), callback=_keep, expose_value=False,
    help="What to find for.",
)  # fmt: skip
budget_option = click.option(
    "--budget", metavar="TIME", callback=_keep, expose_value=False,
    help='Time for the trials, such as "90s" or "5m".',
)  # fmt: skip
port_option = click.option(
    "--port", metavar="PORT", callback=_keep, expose_value=False, help="Port of the endpoint."
)
host_option = click.option(
    "--host", metavar="HOST", callback=_keep, expose_value=False, help="Address of the endpoint."
)
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show what would be tried, with the exact argv; start nothing."
)
model_argument = click.argument("model", required=False, shell_complete=complete_model)


@click.group(
    PROGRAM,
    epilog="\b\nExit codes:\n"
    + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    + "\n\n\b\nExample:\n  enginehouse up",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings file to read."
)
@click.version_option(package_name="enginehouse", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """Find out, by measured trials on this machine, how to serve an LLM best, and serve it.

    stdout is data, stderr is talk; every command takes --json.
    """
    context.obj = Call(config)


def command(
    group: click.Group, name: str, example: str
) -> Callable[[Callable[..., None]], click.Command]:
    """Register a command that takes `--json` and shows an example in its help."""

    def register(function: Callable[..., None]) -> click.Command:
        with_json = click.option(
            "--json", is_flag=True, callback=_keep_json, expose_value=False,
            help="Write one JSON document to stdout.",
        )(click.pass_obj(function))  # fmt: skip
        return group.command(name, epilog=f"\b\nExample:\n  {example}")(with_json)

    return register


@command(cli, "up", "enginehouse up smollm2-135m-instruct --workload chat --budget 3m")
@model_argument
@workload_option
@budget_option
@port_option
@host_option
@click.option("--again", is_flag=True, help="Search although a stored choice holds.")
@dry_run_option
def up(call: Call, model: str | None, again: bool, dry_run: bool) -> None:
    """Find the best way to serve MODEL here, unless that is known, and serve it.

    MODEL is a GGUF file, hf:owner/repo[/file], pypi:package, or a name from `models list`;
    without it, the small demo model.
    """
    with call.house() as house:
        if dry_run:
            _show_plan(call, house, house.model(model, open_progress()))
            return
        house.check_port()
        found = house.model(model, open_progress())
        choice, stale = house.choice_for(found, house.settings.text("find.workload"))
        for reason in stale:
            say(f"the stored choice no longer holds: {reason}")
        result = None
        if choice is None or stale or again:
            result = _search(call, house, found)
            choice = result.require_choice()
        house.serve(choice, found, _announce(call, found.name, result))


@command(cli, "find", "enginehouse find ./model.gguf --workload crowd --budget 5m")
@click.argument("model", shell_complete=complete_model)
@workload_option
@budget_option
@dry_run_option
def find(call: Call, model: str, dry_run: bool) -> None:
    """Try, measure and choose, without serving; the choice is stored for `serve` and `up`."""
    with call.house() as house:
        found = house.model(model, open_progress())
        if dry_run:
            _show_plan(call, house, found)
            return
        result = _search(call, house, found)
        result.require_choice()
        if call.as_json:
            from enginehouse.cli_render import show_json

            show_json(_find_document(result))


@command(cli, "serve", "enginehouse serve smollm2-135m-instruct --port 8080")
@model_argument
@workload_option
@port_option
@host_option
def serve(call: Call, model: str | None) -> None:
    """Serve MODEL by its stored choice; without MODEL, by the newest choice."""
    with call.house() as house:
        house.check_port()
        newest = house.newest_choice() if model is None else None
        name = newest.model_name if newest is not None else model
        if name is None:
            raise _no_choice("any model", "demo")
        if newest is not None and "find.workload" not in call.given:
            workload = newest.workload
        else:
            workload = house.settings.text("find.workload")
        found = house.model(name, open_progress())
        choice, stale = house.choice_for(found, workload)
        if choice is None:
            raise _no_choice(f"{found.name} under {workload}", f"{name} --workload {workload}")
        for reason in stale:
            say(f"the stored choice is served although {reason}; `{PROGRAM} up` searches again")
        house.serve(choice, found, _announce(call, found.name, None))


def _search(call: Call, house: House, model: Model) -> FindResult:
    from enginehouse.cli_render import leaderboard

    settings = house.settings
    result = house.find(
        model, settings.text("find.workload"), settings.seconds("find.budget"), SearchTalk()
    )
    if not call.as_json and result.rows:
        click.echo(leaderboard(result))
        sys.stdout.flush()
    return result


def _find_document(result: FindResult) -> dict[str, object]:
    return {
        "run_id": result.run_id,
        "model": result.model,
        "workload": result.workload,
        "choice": result.choice,
        "leaderboard": [
            {"place": place, "reason": reason, "trial": trial}
            for place, (trial, reason) in enumerate(result.rows, start=1)
        ],
    }


def _announce(call: Call, name: str, result: FindResult | None) -> Callable[[str], None]:
    from enginehouse.cli_render import curl_example, show_json

    def announce(url: str) -> None:
        if call.as_json:
            searched = _find_document(result) if result is not None else None
            show_json({"serving": name, "endpoint": url, "find": searched})
            return
        click.echo(f"serving {name} at {url}")
        sys.stdout.flush()
        say(f"try it:\n  {curl_example(url, name)}\nCtrl-C ends it")

    return announce


def _show_plan(call: Call, house: House, model: Model) -> None:
    from enginehouse.cli_render import command_line

    workload = house.settings.text("find.workload")
    plan = house.dry_run(model, workload)
    document = {
        "model": model.name,
        "workload": workload,
        "candidates": [
            {"label": label, "argv": argv, "candidate": candidate}
            for candidate, label, argv in plan
        ],
    }
    call.show(document, lambda: "\n".join(f"{label}\n  {command_line(a)}" for _, label, a in plan))


def _no_choice(what: str, arguments: str) -> UserError:
    return UserError(
        "serve.no_choice",
        f"there is no stored choice for {what}",
        evidence=("`serve` starts only what a search has chosen",),
        remedies=(f"{PROGRAM} up {arguments}", f"{PROGRAM} find {arguments}"),
    )


def main() -> NoReturn:
    """Run the command line and exit with a documented code."""
    import enginehouse.cli_records  # noqa: F401  registers the commands that only look

    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    """Run and turn whatever was raised into words and an exit code."""
    as_json = "--json" in arguments
    try:
        return _invoke(list(arguments))
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as problem:
        return _show_usage_error(problem, as_json)
    except (KeyboardInterrupt, click.Abort):
        report = ErrorReport("interrupted", "interrupted; nothing was lost", turn="user")
        if as_json:
            _show(report, as_json)
        else:
            say(report.what)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_OK
    except EnginehouseError as problem:
        _show(problem.report, as_json)
        return problem.exit_code
    except Exception as problem:  # noqa: BLE001  the outermost handler: no traceback for users
        return _show_fault(problem, as_json)
