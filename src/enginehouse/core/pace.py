"""Whether a candidate under measurement is so far behind the best that its rest is not worth it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from enginehouse.core.measurement import RequestSample

PATIENCE_SHARE = 0.4
"""No load is given up before this share of its time: a prefix's prefill pays off later."""
EARLY_SHARE, LATE_SHARE = 0.6, 0.75
"""A single stream is given up when what it made by then took the best less than this share of the
time, early and at its window's end. Times are compared, not texts: when the answer to a long prompt
begins, the best has a little text and who is 5 % slower has none. The machine's noise is a few
percent within one load and up to a fifth between two; the longer a load lasts, the less of a
shortfall noise can be."""
HOPELESS_SHARE = 0.75
"""Several streams are given up when even with all that they still owe they would have made less
than this share of the best's rate: many slots prefill all their prompts before they decode, so what
they made by a moment says little, but the time that they took cannot be had back."""


@dataclass(frozen=True)
class Pace:
    """How the best candidate's text came: characters made by each moment, in seconds.

    `ended_s` is when its load ended; `per_answer` is how many characters its whole answers have.
    """

    times_s: tuple[float, ...]
    characters: tuple[float, ...]
    streams: int = 1
    ended_s: float = 0.0
    per_answer: float = 0.0

    @staticmethod
    def of(samples: Sequence[RequestSample], streams: int = 1) -> Pace:
        """Return the pace of a load, each answer's text spread evenly over its chunks."""
        began = min((s.start_s for s in samples), default=0.0)
        ended = max((s.end_s for s in samples), default=0.0)
        arrivals = sorted(
            (at - began, len(s.text) / len(s.chunk_times_s))
            for s in samples
            for at in s.chunk_times_s
        )
        total, sums = 0.0, []
        for _, characters in arrivals:
            total += characters
            sums.append(total)
        whole = [len(s.text) for s in samples if not s.is_cut]
        per_answer = mean(whole) if whole else 0.0
        times = tuple(at for at, _ in arrivals)
        return Pace(times, tuple(sums), streams, ended - began, per_answer)

    @property
    def rate(self) -> float:
        """Characters a second over the whole load."""
        return self.characters[-1] / self.ended_s if self.characters and self.ended_s else 0.0

    def beyond_s(self, characters: float) -> float:
        """Return when more than so many characters had been made, infinity for never."""
        index = bisect_right(self.characters, characters)
        return self.times_s[index] if index < len(self.times_s) else math.inf

    def too_slow(self, elapsed_s: float, characters: int, window_s: float, answers: int = 0) -> str:
        """Say why to give a load up, empty to go on.

        `answers` is how many whole answers the load waits for, 0 for one of each stream.
        """
        if self.streams > 1:
            return self._is_hopeless(elapsed_s, characters, window_s, answers or self.streams)
        whole_s = min(window_s, self.times_s[-1]) if self.times_s else 0.0
        if not whole_s or elapsed_s < PATIENCE_SHARE * whole_s:
            return ""
        done = min(1.0, (elapsed_s / whole_s - PATIENCE_SHARE) / (1.0 - PATIENCE_SHARE))
        pace = self.beyond_s(characters) / elapsed_s
        if pace >= EARLY_SHARE + done * (LATE_SHARE - EARLY_SHARE):
            return ""
        return f"{pace:.0%} of the best candidate's pace after {elapsed_s:.1f} s"

    def _is_hopeless(self, elapsed_s: float, characters: int, window_s: float, answers: int) -> str:
        most = max(float(characters), answers * self.per_answer)
        is_early = elapsed_s < PATIENCE_SHARE * min(window_s, self.ended_s)
        if is_early or most >= HOPELESS_SHARE * self.rate * elapsed_s:
            return ""
        share = most / (self.rate * elapsed_s)
        return f"at most {share:.0%} of the best candidate's rate after {elapsed_s:.1f} s"
