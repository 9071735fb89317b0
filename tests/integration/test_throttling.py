"""The cool-down on trees of files that imitate sysfs: no machine of ours shows throttling."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from enginehouse.cli_render import trial_text
from enginehouse.core.contest import EXPLORE
from enginehouse.core.propose import Proposal
from enginehouse.edges.records import Records
from enginehouse.edges.throttling import Cooler, read_signs
from enginehouse.trials.lab import BenchLab
from tests.integration.test_search import Talk
from tests.integration.test_trials import CANDIDATE, bench_of
from tests.unit.values import WHEEL


class Tree:
    """A fake sysfs with one zone, two cooling devices and one processor's counts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("class/thermal/thermal_zone0/type", "cpu-thermal")
        self.write("class/thermal/thermal_zone0/trip_point_0_type", "active")
        self.write("class/thermal/thermal_zone0/trip_point_0_temp", "50000")
        self.write("class/thermal/thermal_zone0/trip_point_1_type", "passive")
        self.write("class/thermal/thermal_zone0/trip_point_1_temp", "95000")
        self.write("class/thermal/thermal_zone0/trip_point_2_type", "passive")
        self.write("class/thermal/thermal_zone0/trip_point_2_temp", "0")
        self.write("class/thermal/cooling_device0/type", "pwm-fan")
        self.write("class/thermal/cooling_device0/cur_state", "4")
        self.write("class/thermal/cooling_device1/type", "cpufreq-cpu0")
        self.heat(71, 0)
        self.count(0)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def heat(self, celsius: int, step: int) -> None:
        self.write("class/thermal/thermal_zone0/temp", str(1000 * celsius))
        self.write("class/thermal/cooling_device1/cur_state", str(step))

    def count(self, times: int) -> None:
        self.write("devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", str(times))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A fake sysfs of a machine that is warm and does not throttle."""
    return Tree(tmp_path)


async def test_a_cool_machine_is_not_waited_for(tree: Tree) -> None:
    """Nothing is said, and the trial begins at once; so it does on a machine that shows nothing."""
    said: list[str] = []
    assert await Cooler(60.0, tree.root).wait(said.append) is None
    assert await Cooler(60.0, tree.root / "nothing").wait(said.append) is None
    assert said == []


async def test_the_wait_ends_when_throttling_does(tree: Tree) -> None:
    """It is said before, and the record has how long and why."""
    tree.heat(96, 2)
    said: list[str] = []
    begun = asyncio.Event()

    def hear(text: str) -> None:
        said.append(text)
        begun.set()

    waiting = asyncio.ensure_future(Cooler(60.0, tree.root, 0.01).wait(hear))
    await begun.wait()
    assert not waiting.done()
    tree.heat(96, 0)  # the zone alone still tells
    await asyncio.sleep(0.05)
    assert not waiting.done()
    tree.heat(80, 0)
    cooled = await waiting
    assert cooled is not None
    assert cooled.is_over
    assert 0.05 <= cooled.seconds < 60
    assert cooled.why == "cpufreq-cpu0 slows the machine down (step 2)"
    assert said == [
        "waiting 60 s at most until the machine has cooled down: "
        "cpufreq-cpu0 slows the machine down (step 2)"
    ]


async def test_the_wait_is_bounded_and_can_be_left_out(tree: Tree) -> None:
    """A machine that stays hot is tried all the same, and the record says that it was not over."""
    tree.heat(99, 5)
    cooled = await Cooler(0.05, tree.root, 0.01).wait(lambda said: None)
    assert cooled is not None
    assert not cooled.is_over
    assert await Cooler(0.0, tree.root).wait(lambda said: None) is None


async def test_counts_that_rose_since_the_last_trial_are_waited_for(tree: Tree) -> None:
    """One more look tells whether they still rise."""
    cooler = Cooler(60.0, tree.root, 0.01)
    assert await cooler.wait(lambda said: None) is None
    tree.count(3)
    cooled = await cooler.wait(lambda said: None)
    assert cooled is not None
    assert cooled.why == "the processor was throttled 3 times since the last look"
    assert await cooler.wait(lambda said: None) is None


def test_trip_points_that_are_not_set_do_not_count(tree: Tree) -> None:
    """A passive point of 0 is one that the firmware left empty; an active one turns a fan."""
    (zone,) = read_signs(tree.root).zones
    assert (zone.name, zone.celsius, zone.passive_celsius) == ("cpu-thermal", 71.0, 95.0)


async def test_a_trial_on_a_hot_machine_says_so_in_its_record(tree: Tree, tmp_path: Path) -> None:
    """The wait is told before the trial, kept with it, and no part of its times."""
    tree.heat(99, 5)
    with Records(tmp_path / "records.sqlite").opened() as records:
        bench = dataclasses.replace(
            bench_of(records, tmp_path, ("--fail", "it broke")), cooler=Cooler(0.2, tree.root, 0.05)
        )
        talk = Talk()
        trial = await BenchLab(bench, talk).run(
            Proposal(CANDIDATE, "it is tried"), WHEEL, 1.0, EXPLORE
        )
        stored = records.trial(trial.id)
    assert stored is not None
    assert stored.cool_down == trial.cool_down
    assert stored.cool_down is not None
    assert not stored.cool_down.is_over
    assert "cool-down  waited 0 s before it, and it was not over then" in trial_text(stored)
    assert talk.said[0].startswith("waiting 0 s at most until the machine has cooled down")
