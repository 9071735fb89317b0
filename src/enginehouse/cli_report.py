"""`enginehouse report`: what a search found, as Markdown, JSON or one HTML file."""

from __future__ import annotations

from pathlib import Path

import click

from enginehouse.cli_call import Call, complete_model, workload_option
from enginehouse.cli_progress import say

FORMATS = ("md", "json", "html")


@click.argument("model", required=False, shell_complete=complete_model)
@workload_option
@click.option("--run", "run_id", metavar="ID", help="The search's id, from `find --json`.")
@click.option(
    "--format", "kind", type=click.Choice(FORMATS),
    help="Format; by default what --output's name says, else md.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Write there instead of to stdout.",
)  # fmt: skip
def report(
    call: Call, model: str | None, run_id: str | None, kind: str | None, output: Path | None
) -> None:
    """Tell of the newest search, or the newest of MODEL.

    Only records are read: it works while a search runs, and when the model's file is gone.
    """
    with call.house() as house:
        workload = house.settings.text("find.workload") if "find.workload" in call.given else None
        found = house.report(model, workload, run_id)
        by_name = output.suffix.lstrip(".") if output is not None else ""
        chosen = "json" if call.as_json else kind or (by_name if by_name in FORMATS else "md")
        text = house.render(found, chosen)
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
        say(f"wrote {output}")
