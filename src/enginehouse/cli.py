"""The command line: parse, call the house, render, exit; it decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from enginehouse.cli_call import (
    COMPLETION_VARIABLE,
    PROGRAM,
    Call,
    also_option,
    budget_option,
    command,
    complete_model,
    context_option,
    dry_run_option,
    host_option,
    limit_options,
    model_argument,
    port_option,
    set_option,
    workload_option,
)
from enginehouse.cli_doctor import doctor
from enginehouse.cli_engines import engines
from enginehouse.cli_engines_install import register as register_installers
from enginehouse.cli_explain import register as register_explain
from enginehouse.cli_fit import fit
from enginehouse.cli_gateway import keys, requests
from enginehouse.cli_groups import config, trials
from enginehouse.cli_models import models
from enginehouse.cli_progress import SearchTalk, open_progress, say
from enginehouse.cli_recheck import recheck
from enginehouse.cli_report import report
from enginehouse.cli_top import top
from enginehouse.core.errors import EXIT_CODES, UserError

if TYPE_CHECKING:
    from enginehouse.app import House
    from enginehouse.app_find import FindResult
    from enginehouse.core.candidate import Settings
    from enginehouse.core.choice import Choice
    from enginehouse.core.model import Model


@click.group(
    PROGRAM,
    epilog="\b\nExit codes:\n"
    + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
    + "\n\n\b\nExample:\n  enginehouse up",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Settings file to read.",
)
@click.version_option(package_name="enginehouse", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, config_file: Path | None) -> None:
    """Find out, by measured trials on this machine, how to serve an LLM best, and serve it.

    stdout is data, stderr is talk; every command takes --json.
    """
    context.obj = Call(config_file)


@command(cli, "up", "enginehouse up smollm2-135m --workload chat --budget 3m")
@model_argument
@workload_option
@budget_option
@limit_options
@port_option
@host_option
@context_option
@set_option
@also_option
@click.option("--again", is_flag=True, help="Search although a stored choice holds.")
@click.option(
    "--improve", is_flag=True,
    help="Serve the first good candidate now and search on while no request is in flight; what is "
    "found is used at the next start.",
)  # fmt: skip
@dry_run_option
def up(
    call: Call, model: str | None, context: int | None, wanted: tuple[str, ...],
    also: tuple[str, ...], again: bool, improve: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Find the best way to serve MODEL here, and serve it.

    A stored choice that still holds is served at once.

    MODEL is a file, hf:owner/repo[/file], ollama:name, pypi:package, or a name from `models list`;
    without it, the small demo model.
    """
    with call.house() as house:
        asked = house.asked(wanted, context)
        if dry_run:
            _show_plan(call, house, house.model(model, open_progress()), asked)
            return
        house.check_port()
        found = house.model(model, open_progress())
        choice, stale = house.choice_for(found, house.settings.text("find.workload"), asked)
        for reason in stale:
            say(f"the stored choice no longer holds: {reason}")
        result = None
        workload = house.settings.text("find.workload")
        if choice is None or stale or again:
            if improve:
                result = house.find_first(found, workload, SearchTalk(), asked)
            else:
                result = _search(call, house, found, asked, also)
            choice = result.require_choice()
        say_unmet(choice)
        beside = None
        if improve:
            forms = tuple(house.model(spec, open_progress()) for spec in also)
            budget_s = house.settings.seconds("find.budget")
            beside = house.improvement(found, workload, budget_s, SearchTalk(), asked, forms)
        house.serve(choice, found, _announce(call, found.name, result), beside)


@command(cli, "find", "enginehouse find ./model.gguf --workload crowd --budget 5m")
@click.argument("model", shell_complete=complete_model)
@workload_option
@budget_option
@limit_options
@context_option
@set_option
@also_option
@click.option("--fresh", is_flag=True, help="Do not go on from what earlier searches measured.")
@dry_run_option
def find(
    call: Call, model: str, context: int | None, wanted: tuple[str, ...], also: tuple[str, ...],
    fresh: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Try, measure and choose, without serving.

    The choice is stored for `serve` and `up`.
    """
    with call.house() as house:
        asked = house.asked(wanted, context)
        found = house.model(model, open_progress())
        if dry_run:
            _show_plan(call, house, found, asked)
            return
        result = _search(call, house, found, asked, also, fresh)
        say_unmet(result.require_choice())
        if call.as_json:
            from enginehouse.cli_render import show_json

            show_json(_find_document(result))


@command(cli, "serve", "enginehouse serve smollm2-135m --port 8080")
@model_argument
@workload_option
@port_option
@host_option
def serve(call: Call, model: str | None) -> None:
    """Serve MODEL by its stored choice.

    Without MODEL, the newest choice is served.
    """
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


def _search(
    call: Call, house: House, model: Model, asked: Settings, also: tuple[str, ...] = (),
    fresh: bool = False,
) -> FindResult:  # fmt: skip
    from enginehouse.cli_render import leaderboard

    settings = house.settings
    forms = tuple(house.model(spec, open_progress()) for spec in also)
    result = house.find(
        model, settings.text("find.workload"), settings.seconds("find.budget"), SearchTalk(),
        asked, forms, fresh,
    )  # fmt: skip
    if not call.as_json and result.rows:
        click.echo(leaderboard(result))
        sys.stdout.flush()
    return result


def say_unmet(choice: Choice) -> None:
    """Say what of the settings that were asked for a remedy had to change."""
    from enginehouse.app_find import unmet
    from enginehouse.core.candidate import show_setting

    for name, asked, held in unmet(choice.asked, choice.candidate):
        say(
            f"{name} {show_setting(asked)} was asked for and failed here; "
            f"the choice has {show_setting(held)} (`{PROGRAM} trials show {choice.trial_id}`)"
        )


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


def _show_plan(call: Call, house: House, model: Model, asked: Settings) -> None:
    from enginehouse.cli_render import command_line

    workload = house.settings.text("find.workload")
    plan = house.dry_run(model, workload, asked)
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


for group in (models, engines, trials, config, keys, requests):
    cli.add_command(group)
command(cli, "doctor", "enginehouse doctor --measure")(doctor)
command(cli, "fit", "enginehouse fit smollm2-135m --context 8192 --sequences 4")(fit)
command(cli, "recheck", "enginehouse recheck --snapshot orin-nx")(recheck)
command(cli, "report", "enginehouse report smollm2-135m --output report.html")(report)
command(cli, "top", "enginehouse top --interval 5s")(top)
register_explain(cli)
register_installers()


@command(cli, "completion", 'eval "$(enginehouse completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(call: Call, shell: str) -> None:
    """Print the script that completes in SHELL."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click cannot complete in {shell}")
    script = kind(cli, {}, PROGRAM, COMPLETION_VARIABLE).source()
    call.show({"shell": shell, "script": script}, lambda: script)


@command(cli, "version", "enginehouse version --json")
def version(call: Call) -> None:
    """Print the version."""
    from importlib.metadata import version as version_of

    number = version_of("enginehouse")
    call.show({"version": number}, lambda: f"{PROGRAM} {number}")


def main() -> NoReturn:
    """Run the command line and exit with a documented code."""
    from enginehouse.cli_run import run

    sys.exit(run(cli, sys.argv[1:]))
