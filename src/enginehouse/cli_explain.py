"""`enginehouse explain`: what a log says of a failure."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import PROGRAM, Call
from enginehouse.core.errors import UserError

if TYPE_CHECKING:
    from enginehouse.core.diagnose_facts import Facts
    from enginehouse.core.diagnose_scan import Digest
    from enginehouse.core.diagnose_verdict import Verdict

FOLLOWED = "enginehouse.followed"


class ExplainCommand(click.Command):
    """A command whose `--follow` takes all that comes after it as another command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Set the followed command aside before click looks for options in it."""
        own = args.index("--") if "--" in args else len(args)
        if "--follow" in args[:own]:
            place = args.index("--follow")
            rest = args[place + 1 :]
            ctx.meta[FOLLOWED] = rest[1:] if rest[:1] == ["--"] else rest
            args = args[: place + 1]
        return super().parse_args(ctx, args)


machine_option = click.option(
    "--machine",
    metavar="SNAPSHOT",
    type=click.Path(exists=True, path_type=Path),
    help="The machine it ran on: a folder with its /proc, /sys and /etc, or `doctor --json`.",
)
platform_option = click.option(
    "--platform", metavar="TEXT", help='The platform in words: "Jetson Orin NX 16GB (L4T 36.4.7)".'
)
here_option = click.option("--here", is_flag=True, help="It ran on this machine.")
status_option = click.option(
    "--exit-status", metavar="STATUS", help='How it ended: 1, 137, SIGILL, "139 (SIGSEGV)".'
)
cause_option = click.option(
    "--cause", metavar="CAUSE", help="Read the catalogue's page of a cause, or list a domain's."
)
follow_option = click.option(
    "--follow", is_flag=True, help="Run the COMMAND that comes after it, and explain its end."
)


def explain(
    call: Call,
    logs: tuple[str, ...],
    machine: Path | None,
    platform: str | None,
    here: bool,
    exit_status: str | None,
    follow: bool,
    cause: str | None,
) -> None:
    """Explain a log: the cause of a failure, its evidence, and what to try.

    LOG is a file, `-` for the standard input, or the number of a trial. Several logs give one
    JSON object a line. A log of a start that went well has no cause.
    """
    from enginehouse.core.diagnose_facts import ending_of

    if cause is not None:
        if logs or follow:
            raise click.UsageError("--cause reads the catalogue; it takes no log")
        show_cause(call, cause)
        return
    facts = known_facts(machine, platform, here or follow)
    if exit_status is not None:
        code, signal = ending_of(exit_status)
        if code is None and not signal:
            raise click.UsageError(f"--exit-status {exit_status!r}: give 137, SIGILL or the like")
        facts = replace(facts, exit_code=code, signal=signal)
    if follow:
        _explain_command(call, facts)
        return
    if not logs:
        raise click.UsageError("name a log: a file, `-`, or the number of a trial")
    if len(logs) > 1:
        _explain_many(call, logs, facts)
        return
    digest, own_facts = _read(call, logs[0], facts)
    show(call, _judge(digest, own_facts), logs[0], False)


def _explain_many(call: Call, logs: tuple[str, ...], facts: Facts) -> None:
    """Explain each log; one that cannot be read is reported in its place, and the others go on."""
    import msgspec

    from enginehouse.cli_render import show_error

    exit_code = 0
    for place, log in enumerate(logs):
        if place and not call.as_json:
            click.echo()
        try:
            digest, own_facts = _read(call, log, facts)
        except UserError as problem:
            exit_code = problem.exit_code
            if call.as_json:
                document = {"log": log, "error": problem.report}
                click.echo(msgspec.json.encode(document).decode())
            else:
                show_error(problem.report, False)
            continue
        show(call, _judge(digest, own_facts), log, True)
    click.get_current_context().exit(exit_code)


def show_cause(call: Call, cause: str) -> None:
    """Show a cause's page, or the causes of a domain such as `memory` or `memory.jetson`.

    Raises:
        UserError: `cause.unknown`.
    """
    from enginehouse.core.diagnose_catalogue import page_document, page_markdown
    from enginehouse.core.diagnose_document import page_of
    from enginehouse.knowledge.causes import load_pages

    pages = load_pages()
    if page := pages.get(cause):
        document = page_document(page) | {"page": page_of(cause)}
        call.show(document, lambda: page_markdown(page, is_linked=False).rstrip())
        return
    listed = [page for name, page in pages.items() if name.startswith(cause.rstrip(".") + ".")]
    if not listed:
        near = difflib.get_close_matches(cause, pages, 3, cutoff=0.5)
        raise UserError(
            "cause.unknown",
            f"there is no cause {cause}",
            evidence=(f"the catalogue has {len(pages)} causes",),
            remedies=tuple(f"{PROGRAM} explain --cause {name}" for name in near or ("memory",)),
        )
    width = max(len(page.cause) for page in listed)
    call.show(
        [{"cause": page.cause, "meaning": page.prose.meaning} for page in listed],
        lambda: "\n".join(f"{page.cause:<{width}}  {page.prose.meaning}" for page in listed),
    )


def known_facts(machine: Path | None, platform: str | None, is_here: bool) -> Facts:
    """Return what the options tell of the machine; what the user says comes before what is seen."""
    from enginehouse.core.diagnose_facts import Facts, facts_of_machine, facts_of_text

    seen = Facts()
    if machine is not None:
        seen = _facts_of_snapshot(machine)
    elif is_here and platform is None:
        from enginehouse.edges.probes import look_at_machine

        seen = facts_of_machine(look_at_machine())
    if platform is None:
        return seen
    told = facts_of_text(platform)
    return replace(told, l4t=told.l4t or seen.l4t).with_tags(seen.tags)


def _facts_of_snapshot(path: Path) -> Facts:
    import msgspec

    from enginehouse.core.diagnose_facts import facts_of_machine, facts_of_text
    from enginehouse.core.machine import Machine
    from enginehouse.edges.examination import examine_recording

    if path.is_dir():
        return facts_of_machine(examine_recording(path).machine)
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        document = msgspec.json.decode(text.encode())
    except msgspec.DecodeError:
        return facts_of_text(text)
    inner = document.get("machine", document) if isinstance(document, dict) else document
    try:
        return facts_of_machine(msgspec.convert(inner, Machine))
    except msgspec.ValidationError as problem:
        raise UserError(
            "machine.bad_snapshot",
            f"{path} does not describe a machine",
            evidence=(str(problem),),
            remedies=(f"make one with `{PROGRAM} doctor --json`",),
        ) from problem


def _read(call: Call, log: str, facts: Facts) -> tuple[Digest, Facts]:
    """Read a log; a trial's number brings the trial's own ending and machine."""
    from enginehouse.core.diagnose_scan import scan
    from enginehouse.edges.log_sources import read_log
    from enginehouse.knowledge.patterns import load_book

    path = log
    if log.isdigit() and not Path(log).exists():
        path, facts = _trial(call, int(log), facts)
    return scan(_text_of(log, read_log(path)), load_book()), facts


def _text_of(log: str, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Hand on a log's blocks, unless the first one shows that it is no text."""
    from enginehouse.core.diagnose_lines import is_binary

    first = next(blocks, b"")
    if is_binary(first):
        raise UserError(
            "log.binary",
            f"{log} is not a log: it is a binary file",
            evidence=(f"it begins with {first[:8]!r}",),
            remedies=("give what the engine wrote: its output, its log file, or the journal",),
        )
    yield first
    yield from blocks


def _trial(call: Call, trial_id: int, facts: Facts) -> tuple[str, Facts]:
    from enginehouse.core.diagnose_facts import facts_of_machine

    with call.house() as house:
        trial = house.trial(trial_id)
    if trial is None:
        raise UserError(
            "trial.unknown",
            f"there is no trial {trial_id}",
            evidence=("the records hold no trial of that number",),
            remedies=(f"see `{PROGRAM} trials list`",),
        )
    if trial.machine_before is not None and not facts.tags:
        facts = facts_of_machine(trial.machine_before)
    facts = replace(
        facts,
        exit_code=trial.exit_code,
        signal=trial.signal or "",
        outcome=trial.outcome,
        stage=trial.last_stage,
    )
    return trial.log_path, facts


def _judge(digest: Digest, facts: Facts) -> Verdict:
    from enginehouse.core.diagnose_verdict import judge
    from enginehouse.knowledge.patterns import load_book

    return judge(load_book(), digest, facts)


def _explain_command(call: Call, facts: Facts) -> None:
    """Run the command, show what it writes on stderr, explain it, and end as it ended."""
    from enginehouse.core.diagnose_scan import Scanner
    from enginehouse.edges.log_sources import follow
    from enginehouse.knowledge.patterns import load_book

    command = click.get_current_context().meta.get(FOLLOWED) or []
    if not command:
        raise click.UsageError("--follow wants a command after it")
    scanner = Scanner(load_book())

    def take(data: bytes) -> None:
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
        scanner.feed(data)

    ended = follow(command, take)
    facts = replace(facts, exit_code=ended.exit_code, signal=ended.signal)
    show(call, _judge(scanner.finish(), facts), " ".join(command), False)
    click.get_current_context().exit(ended.status)


def show(call: Call, verdict: Verdict, log: str, is_many: bool) -> None:
    """Write a verdict to stdout: as text, as one JSON document, or as one line of several."""
    import msgspec

    from enginehouse.core.diagnose_document import as_document, as_text
    from enginehouse.knowledge.causes import meaning_of

    today = date.today().isoformat()
    meaning = meaning_of(verdict.cause)
    document = as_document(verdict, log, today, meaning)
    if call.as_json and is_many:
        click.echo(msgspec.json.encode(document).decode())
    else:
        call.show(document, lambda: as_text(verdict, log, today, meaning))


def register(group: click.Group) -> None:
    """Add the command to the command line."""
    from enginehouse.cli_call import command

    function = explain
    for option in (
        follow_option, cause_option, status_option, here_option, platform_option, machine_option,
        click.argument("logs", nargs=-1, metavar="[LOG]..."),
    ):  # fmt: skip
        function = option(function)
    command(group, "explain", "enginehouse explain engine.log --exit-status 137", ExplainCommand)(
        function
    )
