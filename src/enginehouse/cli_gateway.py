"""Commands about the endpoint: API keys, and the log of requests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import PROGRAM, Call, command
from enginehouse.cli_progress import say
from enginehouse.core.errors import UserError
from enginehouse.core.settings import parse_duration

if TYPE_CHECKING:
    from enginehouse.core.keys import ApiKey
    from enginehouse.edges.request_log import RequestRow

LONGEST_NAME = 64
MOST = 1_000_000_000


@click.group(epilog=f"\b\nExample:\n  {PROGRAM} keys create home-assistant --rate 60")
def keys() -> None:
    """Make and revoke API keys.

    Once there is a key, every request needs one.
    """


@command(keys, "create", f"{PROGRAM} keys create home-assistant --rate 60 --priority 5")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["use", "admin"]),
    default="use",
    show_default=True,
    help="What it may: ask models, or change them too (pull, copy, delete).",
)
@click.option(
    "--priority",
    type=click.IntRange(-1000, 1000),
    default=0,
    help="Requests of higher ones come first.",
)
@click.option("--rate", type=click.IntRange(1, MOST), help="Requests a minute.")
@click.option("--tokens", type=click.IntRange(1, MOST), help="Tokens a minute.")
@click.option("--expires", metavar="DURATION", help="Time until it is good for nothing: 720h.")
def keys_create(
    call: Call, name: str, scope: str, priority: int, rate: int | None, tokens: int | None,
    expires: str | None,
) -> None:  # fmt: skip
    """Make a key and print it; it is shown this once and never kept."""
    from enginehouse.core.keys import ApiKey

    _check_name(name)
    seconds = 0.0 if expires is None else parse_duration(expires)
    if seconds is None or (expires is not None and not seconds):
        raise UserError(
            "keys.expires",
            f"--expires cannot be {expires}",
            evidence=("it is no duration" if seconds is None else "it would be over at once",),
            remedies=("write 720h, or 30m", "leave it out for a key that is good for ever"),
        )
    wanted = ApiKey(
        "", name, "", "", scope, priority, rate or 0, tokens or 0,
        expires_at=time.time() + seconds if seconds else 0.0,
    )  # fmt: skip
    text, made = call.keys_file().create(wanted)
    say("keep this key: it is not shown again, and every request needs one from now on")
    call.show({"key": text, "id": made.id, "name": made.name, "scope": made.scope}, lambda: text)


@command(keys, "list", f"{PROGRAM} keys list")
def keys_list(call: Call) -> None:
    """List the keys, without what they are."""
    kept = tuple(call.keys_file().keys().values())
    shown = [
        {
            "id": key.id, "name": key.name, "scope": key.scope, "priority": key.priority,
            "requests_per_min": key.requests_per_min, "tokens_per_min": key.tokens_per_min,
            "created_at": key.created_at, "expires_at": key.expires_at or None,
            "revoked_at": key.revoked_at or None, "state": _state(key),
        }
        for key in kept
    ]  # fmt: skip
    call.show({"keys": shown}, lambda: _keys_text(kept))


@command(keys, "revoke", f"{PROGRAM} keys revoke home-assistant")
@click.argument("wanted", metavar="ID|NAME")
def keys_revoke(call: Call, wanted: str) -> None:
    """Revoke a key at once, in a running server too."""
    revoked = call.keys_file().revoke(wanted)
    call.show(
        {"id": revoked.id, "name": revoked.name, "revoked_at": revoked.revoked_at},
        lambda: f"the key {revoked.name} ({revoked.id}) is revoked",
    )


def _check_name(name: str) -> None:
    """Refuse what a list of keys could not show.

    Raises:
        UserError: `keys.name`.
    """
    if name.strip() != name or not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        raise UserError(
            "keys.name",
            f"a key cannot be named {name[:LONGEST_NAME]!r}",
            evidence=(f"a name is one line of 1 to {LONGEST_NAME} characters",),
            remedies=("name it after who uses it, such as home-assistant",),
        )


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return "revoked"
    return "expired" if key.expires_at and key.expires_at <= time.time() else "good"


def _keys_text(kept: tuple[ApiKey, ...]) -> str:
    if not kept:
        return "no keys: everybody may ask who reaches the endpoint"
    now = time.time()
    lines = [f"{'ID':<10}{'NAME':<24}{'SCOPE':<8}{'PRIORITY':>8}{'RATE':>8}  STATE"]
    lines += [
        f"{key.id:<10}{key.name[:22]:<24}{key.scope:<8}{key.priority:>8}"
        f"{key.requests_per_min or '-':>8}  {_state(key)}{_until(key, now)}"
        for key in kept
    ]
    return "\n".join(lines)


def _until(key: ApiKey, now: float) -> str:
    if key.revoked_at or key.expires_at <= now:
        return ""
    return time.strftime(" until %Y-%m-%d %H:%M", time.localtime(key.expires_at))


@click.group(epilog=f"\b\nExample:\n  {PROGRAM} requests list --limit 20")
def requests() -> None:
    """Show the log of requests."""


@command(requests, "list", f"{PROGRAM} requests list --model smollm2-135m --since 1h")
@click.option("--limit", type=click.IntRange(1, MOST), default=50, show_default=True)
@click.option("--model", default="", help="Only requests to this model.")
@click.option("--since", metavar="DURATION", help="Only requests of the last so long.")
def requests_list(call: Call, limit: int, model: str, since: str | None) -> None:
    """List requests, the newest first."""
    from enginehouse.edges.request_log import read_log

    seconds = 0.0 if since is None else parse_duration(since)
    if seconds is None:
        raise UserError(
            "requests.since", f"--since cannot be {since}",
            evidence=("it is no duration",), remedies=("write 1h",),
        )  # fmt: skip
    rows = read_log(
        call.request_log_path(), limit, model, time.time() - seconds if seconds else 0.0
    )
    call.show({"requests": rows}, lambda: _rows_text(rows))


def _rows_text(rows: tuple[RequestRow, ...]) -> str:
    if not rows:
        return "no requests are logged"
    lines = [
        f"{'AT':<20}{'DIALECT':<10}{'OPERATION':<13}{'MODEL':<22}{'STATUS':>6}{'IN':>7}{'OUT':>6}"
        f"{'TTFT':>9}{'TOTAL':>9}  OUTCOME"
    ]
    for row in rows:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row.at))
        outcome = row.outcome + (f" ({row.error})" if row.error else "")
        lines.append(
            f"{at:<20}{row.dialect:<10}{row.operation[:12]:<13}{row.model[:20]:<22}"
            f"{row.status:>6}{row.prompt_tokens:>7}{row.output_tokens:>6}"
            f"{row.first_byte_s * 1e3:>6.0f} ms{row.total_s:>7.2f} s  {outcome}"
        )
    return "\n".join(lines)
