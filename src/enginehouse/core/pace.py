"""Whether a candidate under measurement is so far behind the best that its rest is not worth it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.measurement import RequestSample

GIVE_UP_SHARE = 0.5
"""A single stream is given up when it made less than this share of what the best had by then."""
PATIENCE_SHARE = 0.4
"""No load is given up before this share of its time: a prefix's prefill pays off later."""
OVERTIME = 1.7
"""Several streams are given up when they take this many times as long as the best took: many slots
prefill all their prompts before they decode, so what they made by a moment says little."""


@dataclass(frozen=True)
class Pace:
    """How the best candidate's text came: characters made by each moment, in seconds.

    `ended_s` is when its load had done what every load of the search does.
    """

    times_s: tuple[float, ...]
    characters: tuple[float, ...]
    streams: int = 1
    ended_s: float = 0.0

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
        return Pace(tuple(at for at, _ in arrivals), tuple(sums), streams, ended - began)

    def made_by(self, elapsed_s: float) -> float:
        """Return the characters made by a moment."""
        index = bisect_right(self.times_s, elapsed_s)
        return self.characters[index - 1] if index else 0.0

    def too_slow(self, elapsed_s: float, characters: int, window_s: float) -> str:
        """Say why to give a load up, empty to go on."""
        if self.streams > 1:
            if not self.ended_s or elapsed_s < OVERTIME * self.ended_s:
                return ""
            return f"not done after {elapsed_s:.1f} s, the best was after {self.ended_s:.1f} s"
        if not self.times_s or elapsed_s < PATIENCE_SHARE * min(window_s, self.times_s[-1]):
            return ""
        best = self.made_by(elapsed_s)
        if characters >= GIVE_UP_SHARE * best:
            return ""
        return f"{characters / best:.0%} of the best candidate's pace after {elapsed_s:.1f} s"
