"""The command groups that show records and settings: trials, config."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import PROGRAM, Call, command
from enginehouse.core.errors import UserError

if TYPE_CHECKING:
    from enginehouse.core.trial import Trial


@click.group(epilog="\b\nExample:\n  enginehouse trials list")
def trials() -> None:
    """Show the records of trials."""


@command(trials, "list", "enginehouse trials list --limit 10")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
def trials_list(call: Call, limit: int) -> None:
    """List trials, the newest first."""
    from enginehouse.cli_render import trials_text

    with call.house() as house:
        newest = house.trials(limit)
    call.show({"trials": newest}, lambda: trials_text(newest))


@command(trials, "show", "enginehouse trials show 7")
@click.argument("trial_id", metavar="ID", type=int)
def trials_show(call: Call, trial_id: int) -> None:
    """Show one trial's record."""
    from enginehouse.cli_render import trial_text

    record = _trial(call, trial_id)
    call.show(record, lambda: trial_text(record))


@command(trials, "log", "enginehouse trials log 7")
@click.argument("trial_id", metavar="ID", type=int)
def trials_log(call: Call, trial_id: int) -> None:
    """Print what the engine wrote during one trial."""
    record = _trial(call, trial_id)
    try:
        text = Path(record.log_path).read_text(errors="replace")
    except OSError as problem:
        raise UserError(
            "trial.no_log",
            f"the log of trial {trial_id} cannot be read",
            evidence=(str(problem),),
            remedies=(f"{PROGRAM} trials show {trial_id}",),
        ) from problem
    document = {"id": trial_id, "log_path": record.log_path, "log": text}
    call.show(document, lambda: text.removesuffix("\n"))


def _trial(call: Call, trial_id: int) -> Trial:
    with call.house() as house:
        record = house.trial(trial_id)
    if record is None:
        raise UserError(
            "trial.unknown",
            f"there is no trial {trial_id}",
            evidence=("the records hold no trial of that number",),
            remedies=(f"see `{PROGRAM} trials list`",),
        )
    return record


@click.group(epilog="\b\nExample:\n  enginehouse config show")
def config() -> None:
    """Show settings and where they come from."""


@command(config, "show", "enginehouse config show --json")
def config_show(call: Call) -> None:
    """Show every setting's value and its origin."""
    from enginehouse.cli_render import settings_rows, table

    rows = settings_rows(call.settings())
    call.show(
        {"file": str(call.config_path()), "settings": rows},
        lambda: table(
            ("SETTING", "VALUE", "ORIGIN"),
            [(str(row["key"]), str(row["value"]), str(row["origin"])) for row in rows],
        ),
    )


@command(config, "path", "enginehouse config path")
def config_path(call: Call) -> None:
    """Print the path of the settings file; it need not exist."""
    path = call.config_path()
    call.show({"path": str(path), "exists": path.exists()}, lambda: str(path))
