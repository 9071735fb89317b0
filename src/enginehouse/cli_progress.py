"""Tell on stderr how things go: bars in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from enginehouse.edges.progress import within

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from enginehouse.core.trial import Trial
    from enginehouse.edges.progress import Progress

LINE_EVERY_S = 2.0
LINE_EVERY_SHARE = 0.1
SIGN_OF_LIFE_S = 30.0
"""A transfer so slow that no tenth was done meanwhile still gets a line this often."""


def say(text: str) -> None:
    """Write one line of talk to stderr."""
    click.echo(text, err=True)


def open_progress() -> Progress:
    """Return bars when stderr is a terminal, plain lines elsewhere.

    Bars are taken down when the command ends, however it ends: they hide the cursor, and an error
    or Ctrl-C in the middle of a transfer must not leave it hidden.
    """
    if not sys.stderr.isatty():
        return LineProgress(say, time.monotonic)
    bars = BarProgress()
    click.get_current_context().call_on_close(bars.end)
    return bars


class LineProgress:
    """Shows a transfer as lines: one a tenth, but not more often than every two seconds."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._label = self._unit = ""
        self._total: int | None = None
        self._done = self._shown = 0
        self._shown_at = 0.0

    def begin(self, label: str, total: int | None, unit: str = "") -> None:
        """Take the start of a piece of work and its size, in bytes by default."""
        self._label, self._total, self._unit = label, total, unit
        self._done = self._shown = 0
        self._shown_at = self._clock()
        self._write(f"{label}{f' ({self._size(total)})' if total else ''}")

    def advance_to(self, done: int) -> None:
        """Take how much is done."""
        self._done = done = within(done, self._total)
        waited_s = self._clock() - self._shown_at
        advanced = done - self._shown >= LINE_EVERY_SHARE * (self._total or 0)
        if waited_s >= LINE_EVERY_S and (advanced or waited_s >= SIGN_OF_LIFE_S):
            self._shown, self._shown_at = done, self._clock()
            self._write(f"{self._label}: {self._so_far()}")

    def end(self) -> None:
        """Take the end."""
        self._write(f"{self._label}: done ({self._size(self._done)})")

    def _so_far(self) -> str:
        if not self._total:
            return self._size(self._done)
        return f"{self._done / self._total:.0%} of {self._size(self._total)}"

    def _size(self, amount: int) -> str:
        return f"{amount} {self._unit}" if self._unit else mib(amount)


class BarProgress:
    """Shows a transfer as a bar that rich draws on stderr."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._total: int | None = None
        self._task: TaskID | None = None

    def begin(self, label: str, total: int | None, unit: str = "") -> None:
        """Take the start of a piece of work and its size, in bytes by default."""
        from rich import progress
        from rich.console import Console

        amounts = (
            (progress.MofNCompleteColumn(),)
            if unit
            else (progress.DownloadColumn(binary_units=True), progress.TransferSpeedColumn())
        )
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            *amounts,
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._bars.start()
        self._total = total
        self._task = self._bars.add_task(label, total=total)

    def advance_to(self, done: int) -> None:
        """Take how much is done."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=within(done, self._total))

    def end(self) -> None:
        """Take the end."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class SearchTalk:
    """Tells how a search goes, a line at a time.

    Nothing is animated while a trial runs: drawing would take CPU time from what is measured.
    """

    def __init__(self, write: Callable[[str], None] = say) -> None:
        self._write = write
        self._number = 0
        self._so_far = ""

    def on_step(self, text: str) -> None:
        """Take one sentence on what happens next or was refused."""
        self._write(text)

    def on_trial_start(self, label: str, number: int) -> None:
        """Take the start of a trial."""
        self._number = number
        self._write(f"trial {number}: {label} …{self._so_far}")
        self._so_far = ""

    def on_progress(self, left_s: float, best: str, tok_per_s: float) -> None:
        """Take how much time is left and the best so far, to be told with the next trial."""
        left = f"{max(0.0, left_s):.0f} s left" if left_s < 600 else f"{left_s / 60:.0f} min left"
        shown = f"; best so far {tok_per_s:.1f} tok/s: {best}" if best else ""
        self._so_far = f" [{left}{shown}]"

    def on_trial_end(self, trial: Trial, label: str) -> None:
        """Take a trial's record."""
        self._write(f"trial {self._number}: {label}: {outcome_of(trial)}")


def outcome_of(trial: Trial) -> str:
    """Say in a few words what came of a trial."""
    if trial.measurement is not None and trial.has_measurement:
        disturbed = trial.conditions.disturbance if trial.conditions is not None else ""
        rate = f"{trial.measurement.output_tok_per_s:.1f} tok/s"
        return f"{rate} ({disturbed})" if disturbed else rate
    why = (trial.diagnosis.title if trial.diagnosis is not None else "") or trial.detail
    outcome = trial.outcome.value
    return f"{outcome}: {why}" if why and why != outcome else outcome


def mib(size: int) -> str:
    """Show a size in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
