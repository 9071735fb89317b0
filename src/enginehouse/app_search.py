"""A search between its preparation and its conclusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from enginehouse.app_find import Noted
from enginehouse.core.machine import Machine

if TYPE_CHECKING:
    from enginehouse.trials.lab import BenchLab
    from enginehouse.trials.run import Bench
    from enginehouse.trials.search import Hunt


@dataclass(frozen=True)
class Search:
    """What one search is made of; `hunt.run()` carries it out."""

    bench: Bench
    lab: BenchLab
    hunt: Hunt
    machine: Machine
    noted: Noted
