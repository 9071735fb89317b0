"""`find --watch`: the leaderboard so far on a terminal, drawn anew when something has happened."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from enginehouse.cli_progress import SearchTalk, outcome_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

    from enginehouse.core.trial import Trial
    from enginehouse.trials.contracts import Watch

OTHER_LINES = 9
"""Lines of the view that are not rows: title, header, the trial under way, what was said."""
SAID = 3
BAR_WIDTH = 30


@dataclass
class Standing:
    """What was seen of one candidate: its rates in tokens per second, and its last outcome."""

    rates: list[float] = field(default_factory=list)
    trials: int = 0
    last: str = ""

    @property
    def rate(self) -> float:
        """The median of what it measured, 0 where it measured nothing."""
        return median(self.rates) if self.rates else 0.0


class SearchBoard:
    """Keeps what a search has said and draws it; nothing moves while a trial is measured."""

    def __init__(self, live: Live, budget_s: float) -> None:
        self._live = live
        self._budget_s = self._left_s = budget_s
        self._standings: dict[str, Standing] = {}
        self._said: list[str] = []
        self._now = self._best = ""

    def on_step(self, text: str) -> None:
        """Take one sentence on what happens next or was refused."""
        self._said = [*self._said, text][-SAID:]
        self._draw()

    def on_progress(self, left_s: float, best: str, tok_per_s: float) -> None:
        """Take how much time is left and the best so far."""
        self._left_s = left_s
        self._best = f"{tok_per_s:.1f} tok/s: {best}" if best else ""

    def on_trial_start(self, label: str, number: int) -> None:
        """Take the start of a trial."""
        self._now = f"trial {number}: {label} …"
        self._draw()

    def on_trial_end(self, trial: Trial, label: str) -> None:
        """Take a trial's record."""
        standing = self._standings.setdefault(label, Standing())
        standing.trials += 1
        standing.last = "" if trial.has_measurement else outcome_of(trial)
        if trial.measurement is not None and trial.has_measurement:
            standing.rates.append(trial.measurement.output_tok_per_s)
        self._now = ""
        self._draw()

    def _draw(self) -> None:
        self._live.update(self.view(self._live.console), refresh=True)

    def view(self, console: Console) -> RenderableType:
        """Return the view: the best first, as many as fit, the trial under way, what was said."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        ordered = sorted(self._standings.items(), key=lambda pair: -pair[1].rate)
        fitting = max(3, console.height - OTHER_LINES)
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        for name in ("#", "TOK/S", "OF BEST", "TRIALS"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("CANDIDATE", ratio=1, no_wrap=True, overflow="ellipsis")
        best = ordered[0][1].rate if ordered else 0.0
        for place, (label, seen) in enumerate(ordered[:fitting], start=1):
            rate = f"{seen.rate:.1f}" if seen.rate else "-"
            share = f"{seen.rate / best:.0%}" if seen.rate else "-"
            said = Text(f"{label}  {seen.last}".rstrip(), style="" if seen.rate else "dim")
            table.add_row(str(place), rate, share, str(seen.trials), said)
        hidden = len(ordered) - fitting
        lines: list[RenderableType] = [
            Text(self._time_line(), no_wrap=True, overflow="ellipsis"),
            table,
        ]
        lines += [Text(f"and {hidden} more", style="dim")] if hidden > 0 else []
        shown = [line for line in (self._now, *self._said) if line]
        lines += [Text(line, no_wrap=True, overflow="ellipsis") for line in shown]
        return Group(*lines)

    def _time_line(self) -> str:
        left_s = max(0.0, self._left_s)
        used = 1.0 - left_s / self._budget_s if self._budget_s else 1.0
        full = round(BAR_WIDTH * min(1.0, max(0.0, used)))
        bar = "█" * full + "░" * (BAR_WIDTH - full)
        best = f"; best so far {self._best}" if self._best else ""
        return f"{bar} {left_s:.0f} of {self._budget_s:.0f} s left{best}"


@contextmanager
def open_board(is_wanted: bool, budget_s: float) -> Iterator[Watch]:
    """Yield the board where it is wanted and stderr is a terminal, else who tells line by line.

    The board is taken down at the end, however that comes: the leaderboard stands in its place.
    """
    if not is_wanted or not sys.stderr.isatty():
        yield SearchTalk()
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        yield SearchBoard(live, budget_s)
