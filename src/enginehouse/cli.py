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
    generate_option,
    host_option,
    limit_options,
    model_argument,
    port_option,
    prefer_option,
    set_option,
    workload_option,
    workloads_option,
)
from enginehouse.cli_doctor import doctor
from enginehouse.cli_engines import engines
from enginehouse.cli_engines_install import register as register_installers
from enginehouse.cli_explain import register as register_explain
from enginehouse.cli_find import Found, find_document, goal_of, search, show_command, show_plan
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
    from enginehouse.core.choice import Choice


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
@workloads_option
@prefer_option
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
@generate_option
@dry_run_option
def up(
    call: Call, model: str | None, prefer: str | None, context: int | None,
    wanted: tuple[str, ...], also: tuple[str, ...], again: bool, improve: bool, generate: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Find the best way to serve MODEL here, and serve it.

    A stored choice that still holds is served at once. With several workloads the choice for the
    first one is served, or for the one that --prefer names.

    MODEL is a file, hf:owner/repo[/file], ollama:name, pypi:package, or a name from `models list`;
    without it, the small demo model.
    """
    with call.house() as house:
        asked = house.asked(wanted, context)
        workloads, workload = goal_of(call, house, prefer)
        if improve and len(workloads) > 1:
            raise click.UsageError("--improve searches under one workload")
        if dry_run:
            show_plan(call, house, house.model(model, open_progress()), workloads, asked)
            return
        if not generate:
            house.check_port()
        found = house.model(model, open_progress())
        choice, stale = house.choice_for(found, workload, asked, workloads)
        for reason in stale:
            say(f"the stored choice no longer holds: {reason}")
        if generate:
            if choice is None:
                raise _no_choice(f"{found.name} under {workload}", f"{model or 'demo'}")
            show_command(call, house, choice, found)
            return
        result: Found | None = None
        if choice is None or stale or again:
            if improve:
                result = house.find_first(found, workload, SearchTalk(), asked)
            else:
                result = search(call, house, found, prefer, asked, also)
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
@workloads_option
@prefer_option
@budget_option
@limit_options
@context_option
@set_option
@also_option
@click.option("--fresh", is_flag=True, help="Do not go on from what earlier searches measured.")
@click.option(
    "--watch", is_flag=True, help="On a terminal, draw the leaderboard so far after each trial."
)
@dry_run_option
def find(
    call: Call, model: str, prefer: str | None, context: int | None, wanted: tuple[str, ...],
    also: tuple[str, ...], fresh: bool, watch: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Try, measure and choose, without serving.

    The choice is stored for `serve` and `up`. With several workloads each is searched in its share
    of the budget, and who is best at none but beaten by nobody is shown too: the Pareto front.
    """
    with call.house() as house:
        asked = house.asked(wanted, context)
        workloads, _ = goal_of(call, house, prefer)
        found = house.model(model, open_progress())
        if dry_run:
            show_plan(call, house, found, workloads, asked)
            return
        result = search(call, house, found, prefer, asked, also, fresh, watch)
        say_unmet(result.require_choice())
        if call.as_json:
            from enginehouse.cli_render import show_json

            show_json(find_document(result))


@command(cli, "serve", "enginehouse serve smollm2-135m --port 8080")
@model_argument
@workload_option
@port_option
@host_option
@generate_option
def serve(call: Call, model: str | None, generate: bool) -> None:
    """Serve MODEL by its stored choice.

    Without MODEL, the newest choice is served.
    """
    with call.house() as house:
        if not generate:
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
        if generate:
            show_command(call, house, choice, found)
            return
        house.serve(choice, found, _announce(call, found.name, None))


def say_unmet(choice: Choice) -> None:
    """Say what of the settings that were asked for a remedy had to change."""
    from enginehouse.app_find import unmet
    from enginehouse.core.candidate import show_setting

    for name, asked, held in unmet(choice.asked, choice.candidate):
        say(
            f"{name} {show_setting(asked)} was asked for and failed here; "
            f"the choice has {show_setting(held)} (`{PROGRAM} trials show {choice.trial_id}`)"
        )


def _announce(call: Call, name: str, result: Found | None) -> Callable[[str], None]:
    from enginehouse.cli_render import curl_example, show_json

    def announce(url: str) -> None:
        if call.as_json:
            searched = find_document(result) if result is not None else None
            show_json({"serving": name, "endpoint": url, "find": searched})
            return
        click.echo(f"serving {name} at {url}")
        sys.stdout.flush()
        say(f"try it:\n  {curl_example(url, name)}\nCtrl-C ends it")

    return announce


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
