"""`enginehouse top`: what a running endpoint does, looked at again and again."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import Call
from enginehouse.cli_progress import mib, say
from enginehouse.core.errors import EnginehouseError, UserError, error_text
from enginehouse.core.settings import parse_duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from enginehouse.core.buckets import Spread
    from enginehouse.core.settings import Settings
    from enginehouse.core.top import ModelView, Traffic, View

SHORTEST_INTERVAL_S = 0.1
LONGEST_INTERVAL_S = 86400.0
OUTCOMES = {
    "served": "SERVED", "held-then-served": "HELD", "rejected": "REJECTED", "failed": "FAILED",
    "cancelled": "CANCELLED",
}  # fmt: skip
"""Their columns; an outcome that is not here gets one of its own."""
EVERYWHERE = ("0.0.0.0", "::", "")
KEY_VARIABLE = "ENGINEHOUSE_API_KEY"
STYLES = {"ready": "green", "failed": "bold red", "unloaded": "dim"}
NAMES = ("MODEL", "ENGINE")
"""Columns that are shortened where a terminal is narrow; figures never are."""
NONE = "-"


@dataclass(frozen=True)
class Section:
    """A table of the view; its last column is ragged."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@click.option("--url", metavar="URL", help="The endpoint; by default that of the settings, here.")
@click.option(
    "--key", metavar="KEY", envvar=KEY_VARIABLE, default="", show_envvar=True,
    help="An API key, where the endpoint needs one; others see what is on a command line.",
)  # fmt: skip
@click.option("--interval", metavar="TIME", default="1s", show_default=True, help="Between looks.")
@click.option("--once", is_flag=True, help="Show one interval as plain text, and end.")
def top(call: Call, url: str | None, key: str, interval: str, once: bool) -> None:
    """Watch a running endpoint: its models, their requests, tokens and times.

    In a terminal the view is drawn anew at each look; elsewhere each look is a line a model. Ctrl-C
    ends it. With --json it is one interval, as one document.

    A request's tokens and times count when it ends: a long answer shows only then.
    """
    seconds = _seconds(interval)
    address = url or default_url(call.settings())
    ends = () if once or call.as_json else (KeyboardInterrupt,)  # the only way to end the view
    with suppress(*ends):
        asyncio.run(_run(call, address, key, seconds, once))


@dataclass(frozen=True)
class Seen:
    """A view of an endpoint; after a look that failed, the view before it and what was wrong."""

    url: str
    view: View
    trouble: str = ""


async def _run(call: Call, url: str, key: str, interval_s: float, once: bool) -> None:
    from rich.console import Console

    is_single = once or call.as_json
    console = Console()
    async with aclosing(_watch(url, key, interval_s, not is_single)) as watching:
        if is_single:
            _show(call, [seen async for seen in _first(watching, 2)][-1])
        elif console.is_terminal and not console.is_dumb_terminal:
            await _draw(watching, console)
        else:
            await _write(watching)


async def _watch(url: str, key: str, interval_s: float, is_patient: bool) -> AsyncGenerator[Seen]:
    """Look again and again; with patience, an endpoint that was seen may be away for a while."""
    from enginehouse.core.top import view_of
    from enginehouse.edges.endpoint import PASSING, EndpointReader

    async with EndpointReader(url, key) as reader:
        earlier, view = None, None
        while True:
            began, trouble = time.monotonic(), ""
            try:
                look = await reader.look()
                earlier, view = look, view_of(look, earlier)
            except EnginehouseError as problem:
                if view is None or not is_patient or problem.report.id not in PASSING:
                    raise
                trouble = error_text(problem.report)
            yield Seen(reader.url, view, trouble)
            await asyncio.sleep(max(0.0, began + interval_s - time.monotonic()))


async def _first(watching: AsyncIterator[Seen], wanted: int) -> AsyncIterator[Seen]:
    async for seen in watching:
        yield seen
        wanted -= 1
        if not wanted:
            return


def _show(call: Call, seen: Seen) -> None:
    view = {part.name: getattr(seen.view, part.name) for part in fields(seen.view)}
    call.show({"url": seen.url, "at": time.time(), **view}, lambda: text_of(seen))


async def _draw(watching: AsyncIterator[Seen], console: Console) -> None:
    """Draw each view over the whole terminal; the last one is left there as text."""
    from rich.live import Live

    seen = None
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            async for seen in watching:
                live.update(drawing_of(seen), refresh=True)
    finally:
        if seen is not None:
            click.echo(text_of(seen))


async def _write(watching: AsyncIterator[Seen]) -> None:
    """Write each interval as a line a model; what is wrong is said once."""
    trouble = ""
    async for seen in watching:
        if seen.trouble != trouble:
            say(seen.trouble or f"{seen.url} answers again")
            trouble = seen.trouble
        if not trouble and seen.view.interval_s is not None:
            at = time.strftime("%H:%M:%S")
            for line in lines_of(seen.view):
                click.echo(f"{at} {line}")
            sys.stdout.flush()


def _seconds(interval: str) -> float:
    seconds = parse_duration(interval)
    if seconds is None or not SHORTEST_INTERVAL_S <= seconds <= LONGEST_INTERVAL_S:
        raise UserError(
            "top.interval",
            f"--interval cannot be {interval}",
            evidence=(f"it is no duration from {SHORTEST_INTERVAL_S:g} s to a day",),
            remedies=("write 1s, 500ms or 5m",),
        )
    return seconds


def default_url(settings: Settings) -> str:
    """Return the URL of the endpoint that the settings describe, as this machine reaches it."""
    host = settings.text("gateway.host")
    host = "127.0.0.1" if host in EVERYWHERE else host
    scheme = "https" if settings.text("gateway.tls_certificate") else "http"
    port = settings.integer("gateway.port")
    return f"{scheme}://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{port}"


# what is shown


def sections_of(view: View) -> tuple[Section, ...]:
    """Return the view's tables: how models are, what passed, how long it took."""
    if not view.models:
        return ()
    names = {name for model in view.models for name in model.total.requests}
    outcomes = (*OUTCOMES, *sorted(names - set(OUTCOMES)))
    spans = [
        (plain(model.model), span, traffic)
        for model in view.models
        for span, traffic in ((_span(view), model.interval), ("all", model.total))
        if traffic is not None
    ]
    return (
        Section(
            ("MODEL", "ENGINE", "STATE", "MEMORY", "UNLOADS", "IN FLIGHT", "QUEUED", "RESTARTS",
             "FELL BACK"),
            tuple(_standing(model) for model in view.models),
        ),
        Section(
            ("MODEL", "LAST", *(OUTCOMES.get(name, plain(name).upper()) for name in outcomes),
             "TRUNCATED"),
            tuple(
                (name, span, *(str(t.requests.get(one, 0)) for one in outcomes), str(t.truncations))
                for name, span, t in spans
            ),
        ),
        Section(
            ("MODEL", "LAST", "TOKENS", "TOK/S", "CACHED", "TTFT P50", "TTFT P95", "ITL P50",
             "ITL P95"),
            tuple(
                (name, span, str(t.output_tokens), _rate(t), _share(t), *_times(t.ttft),
                 *_times(t.itl))
                for name, span, t in spans
            ),
        ),
    )  # fmt: skip


def head_of(seen: Seen) -> str:
    """Return the line above the tables."""
    view = seen.view
    rates = [m.interval.output_tok_per_s or 0.0 for m in view.models if m.interval is not None]
    parts = [
        f"{seen.url} {plain(view.status)}" + (f" ({plain(view.reason)})" if view.reason else ""),
        f"{sum(m.state == 'ready' for m in view.models)} of {len(view.models)} models ready",
        f"{sum(m.in_flight for m in view.models)} in flight",
        f"{sum(m.queued for m in view.models)} queued",
    ]
    if rates:
        parts.append(f"{sum(rates):.1f} tok/s")
    return ", ".join(parts)


def foot_of(seen: Seen) -> str:
    """Return the line below the tables, empty when there is nothing to say."""
    others = ", ".join(f"{n} {plain(name)}" for name, n in seen.view.other_requests.items())
    return f"requests that reached no model: {others}" if others else ""


def text_of(seen: Seen) -> str:
    """Return a view as plain text."""
    from enginehouse.cli_render import table

    tables = [table(section.header, section.rows) for section in sections_of(seen.view)]
    return "\n\n".join(filter(None, (head_of(seen), *tables, foot_of(seen), seen.trouble)))


def drawing_of(seen: Seen) -> RenderableType:
    """Return a view as rich draws it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(head_of(seen), style="bold")]
    for section in sections_of(seen.view):
        drawn = Table(box=None, pad_edge=False, header_style="dim")
        for name in section.header:
            drawn.add_column(
                name.replace(" ", "\n"),
                justify="left" if name in (*NAMES, "STATE", "LAST") else "right",
                no_wrap=name not in NAMES,
                overflow="ellipsis",
            )
        for row in section.rows:
            drawn.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
        parts += [Text(""), drawn]
    parts += [Text(""), Text(foot_of(seen)), Text(plain(seen.trouble), style="red")]
    return Group(*parts)


def lines_of(view: View) -> list[str]:
    """Return an interval as one line a model, of name=value pairs."""
    return [_line(model, model.interval) for model in view.models if model.interval is not None]


def _line(model: ModelView, traffic: Traffic) -> str:
    pairs = {
        "model": plain(model.model),
        "engine": plain(model.engine) or NONE,
        "state": plain(model.state),
        "memory": _memory(model),
        "in_flight": model.in_flight,
        "queued": model.queued,
        **{plain(name): number for name, number in sorted(traffic.requests.items())},
        "tok/s": _rate(traffic),
        "ttft": "/".join(_times(traffic.ttft)),
        "itl": "/".join(_times(traffic.itl)),
        "cached": _share(traffic),
        "truncated": traffic.truncations,
        "fallbacks": traffic.fallbacks,
        "restarts": model.total.restarts,
    }
    return "  ".join(f"{name}={str(value).replace(' ', '')}" for name, value in pairs.items())


def _standing(model: ModelView) -> tuple[str, ...]:
    left_s = model.unloads_in_s
    return (
        plain(model.model),
        plain(model.engine) or NONE,
        plain(model.state),
        _memory(model),
        NONE if left_s is None else f"{left_s // 60:.0f}:{left_s % 60:02.0f}",
        str(model.in_flight),
        str(model.queued),
        str(model.total.restarts),
        str(model.total.fallbacks),
    )


def _span(view: View) -> str:
    return NONE if view.interval_s is None else f"{view.interval_s:.1f} s"


def _memory(model: ModelView) -> str:
    return NONE if model.memory_bytes is None else mib(model.memory_bytes)


def _rate(traffic: Traffic) -> str:
    rate = traffic.output_tok_per_s
    return NONE if rate is None else f"{rate:.1f}"


def _share(traffic: Traffic) -> str:
    share = traffic.cached_prompt_share
    return NONE if share is None else f"{share:.0%}"


def _times(spread: Spread) -> tuple[str, str]:
    return _time(spread.p50_s, spread.p50_is_least), _time(spread.p95_s, spread.p95_is_least)


def _time(seconds: float | None, is_least: bool) -> str:
    if seconds is None:
        return NONE
    digits = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
    return f">{digits}" if is_least else digits


def plain(text: str) -> str:
    """Return a text from elsewhere without signs that a terminal would act on."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
