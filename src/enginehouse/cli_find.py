"""What `find` and `up` share: the goal, the search, what is shown of it and of a dry run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import Call
from enginehouse.cli_progress import open_progress
from enginehouse.cli_watch import open_board
from enginehouse.core.workload import together

if TYPE_CHECKING:
    from enginehouse.app import House
    from enginehouse.app_find import FindResult
    from enginehouse.app_search import FrontResult
    from enginehouse.core.candidate import Settings
    from enginehouse.core.choice import Choice
    from enginehouse.core.model import Model

    Found = FindResult | FrontResult
else:
    Found = object


def goal_of(call: Call, house: House, prefer: str | None) -> tuple[tuple[str, ...], str]:
    """Return the workloads that are asked for, and the one whose choice is served."""
    workloads = call.workloads or (house.settings.text("find.workload"),)
    if prefer is not None and prefer not in workloads:
        raise click.UsageError(
            f"--prefer {prefer}: it is not among the workloads ({', '.join(workloads)})"
        )
    return workloads, prefer or workloads[0]


def search(
    call: Call, house: House, model: Model, prefer: str | None, asked: Settings,
    also: tuple[str, ...] = (), fresh: bool = False, watch: bool = False,
) -> Found:  # fmt: skip
    """Search under the workloads that are asked for, and show the leaderboard of each.

    With `watch` the leaderboard so far is drawn after each trial, where there is a terminal.
    """
    from enginehouse.cli_render import front_text, leaderboard

    forms = tuple(house.model(spec, open_progress()) for spec in also)
    workloads, preferred = goal_of(call, house, prefer)
    budget_s = house.settings.seconds("find.budget")
    if len(workloads) == 1:
        with open_board(watch, budget_s) as talk:
            result = house.find(model, workloads[0], budget_s, talk, asked, forms, fresh)
        _show(call, [leaderboard(result)] if result.rows else [])
        return result
    with open_board(watch, budget_s / len(workloads)) as talk:
        results = house.find_front(model, workloads, preferred, budget_s, talk, asked, forms, fresh)
    texts = [leaderboard(one) for one in results.results if one.rows]
    _show(call, [*texts, front_text(results)] if results.front else texts)
    return results


def _show(call: Call, texts: Sequence[str]) -> None:
    if not call.as_json and texts:
        click.echo("\n\n".join(texts))
        sys.stdout.flush()


def find_document(result: Found) -> dict[str, object]:
    """Return what `--json` writes of a search."""
    from enginehouse.app_search import FrontResult

    if not isinstance(result, FrontResult):
        return _document(result)
    return {
        "run_id": result.preferred.run_id,
        "model": result.model,
        "workloads": [one.workload for one in result.results],
        "prefer": result.prefer,
        "choice": result.preferred.choice,
        "front": result.front,
        "searches": [_document(one) for one in result.results],
    }


def _document(result: FindResult) -> dict[str, object]:
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


def show_command(call: Call, house: House, choice: Choice, model: Model) -> None:
    """Show the exact command of a choice; nothing is started."""
    from enginehouse.app_generate import command_of

    command = command_of(choice, model, house.look())
    document = {
        "model": model.name,
        "workload": choice.workload,
        "build": choice.build.label,
        "argv": command.argv,
        "env": dict(command.env),
        "folder": command.folder,
        "listens_on": command.listens_on,
        "shell": command.shell,
    }
    call.show(document, lambda: command.shell)


def show_plan(
    call: Call, house: House, model: Model, workloads: Sequence[str], asked: Settings
) -> None:
    """Show what a search could try under each workload, with the exact argv."""
    from enginehouse.cli_render import command_line

    plans, texts = [], []
    for workload in together(workloads):
        plan = house.dry_run(model, workload, asked)
        plans.append(
            {
                "model": model.name,
                "workload": workload.name,
                "candidates": [
                    {"label": label, "argv": argv, "candidate": candidate}
                    for candidate, label, argv in plan
                ],
            }
        )
        texts += [f"under {workload.name}:"] if len(workloads) > 1 else []
        texts += [f"{label}\n  {command_line(argv)}" for _, label, argv in plan]
    several = {"model": model.name, "workloads": list(workloads), "plans": plans}
    call.show(plans[0] if len(plans) == 1 else several, lambda: "\n".join(texts))
