"""`enginehouse recheck`: the register of blocks, and what has lifted since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import Call

if TYPE_CHECKING:
    from enginehouse.core.block import Standing

FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


@click.option("--snapshot", type=FOLDER, metavar="DIR", help="Look at a recorded machine.")
@click.option("--all", "shows_all", is_flag=True, help="Blocks of other machines too.")
def recheck(call: Call, snapshot: Path | None, shows_all: bool) -> None:
    """Say which blocks are in force on this machine, which have lifted, and what to try again.

    Blocks are known ones, and builds here of which no trial of a model has worked.
    """
    from enginehouse.core.block import State

    with call.house() as house:
        standings = house.recheck(snapshot)
    shown = [s for s in standings if shows_all or s.state is not State.ELSEWHERE]
    call.show({"blocks": [document_of(s) for s in shown]}, lambda: text_of(shown))


def document_of(standing: Standing) -> dict[str, object]:
    """Return a block and where it stands, as plain data."""
    block = standing.block
    return {
        "id": block.id,
        "state": standing.state.value,
        "engine": block.engine,
        "cause": block.cause,
        "what": block.what,
        "evidence": block.evidence,
        "since": block.since,
        "trial": block.trial_id or None,
        "fired": standing.fired or None,
        "lifted_by": [trigger.says for trigger in block.lifted_by],
        "seen": list(standing.seen),
        "again": block.again,
        "sources": list(block.sources),
        "status": block.status,
    }


def text_of(standings: list[Standing]) -> str:
    """Return the register for a reader: what lifted first."""
    from enginehouse.core.block import State

    if not standings:
        return "nothing that is known to be blocked concerns this machine"
    order = (State.LIFTED, State.IN_FORCE, State.ELSEWHERE)
    ordered = sorted(standings, key=lambda standing: order.index(standing.state))
    return "\n\n".join("\n".join(_lines(standing)) for standing in ordered)


def _lines(standing: Standing) -> list[str]:
    from enginehouse.core.block import State

    block = standing.block
    lines = [
        f"{standing.state.value}: {block.id}",
        f"  what       {block.what}",
        f"  cause      {block.cause}",
        f"  evidence   {block.evidence}",
    ]
    lines += [f"  seen       {seen}" for seen in standing.seen]
    if standing.state is State.LIFTED:
        lines += [f"  lifted by  {standing.fired}", f"  try again  {block.again}"]
    else:
        lines += [f"  lifted if  {trigger.says}" for trigger in block.lifted_by]
        lines += [f"  then       {block.again}"]
    return [*lines, *(f"  source     {source}" for source in block.sources)]
