"""What counts as throttling is told by what a kernel shows, and fans do not count."""

from __future__ import annotations

import dataclasses

import pytest

from enginehouse.core.conditions_of_trial import Conditions
from enginehouse.core.throttling import CoolDown, Signs, Zone, throttling

COOL = Signs(
    (Zone("x86_pkg_temp", 61.0, 95.0), Zone("acpitz", 20.0)),
    (("Processor", 0), ("Fan", 0)),
    {"cpu0 core_throttle_count": 7},
)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cpufreq-cpu0", "cpufreq-cpu0 slows the machine down (step 3)"),
        ("Processor", "Processor slows the machine down (step 3)"),
        ("devfreq-17000000.gpu", "devfreq-17000000.gpu slows the machine down (step 3)"),
        ("gpu-throttle-alert", "gpu-throttle-alert slows the machine down (step 3)"),
        ("Fan", ""),
        ("pwm-fan", ""),
        ("TCC Offset", ""),
    ],
)
def test_a_cooling_device_that_slows_down_is_throttling(name: str, says: str) -> None:
    """A turning fan, or a state that is a setting, is none."""
    assert throttling(dataclasses.replace(COOL, devices=((name, 3),))) == says


def test_a_zone_at_its_passive_trip_point_is_throttling() -> None:
    """A zone without such a point is never."""
    assert throttling(COOL) == ""
    hot = dataclasses.replace(COOL, zones=(Zone("cpu-thermal", 96.5, 95.0),))
    assert throttling(hot) == "cpu-thermal is at 96 °C, and the kernel slows down from 95 °C"
    assert throttling(dataclasses.replace(COOL, zones=(Zone("acpitz", 120.0),))) == ""


def test_counts_tell_only_since_an_earlier_look() -> None:
    """What happened before the first look, or on a processor that was not there, is not told."""
    later = dataclasses.replace(
        COOL, counts={"cpu0 core_throttle_count": 12, "cpu1 core_throttle_count": 4}
    )
    assert throttling(later) == ""
    assert throttling(later, COOL) == "the processor was throttled 5 times since the last look"
    assert throttling(later, later) == ""


def test_it_is_told_in_words() -> None:
    """A record says how long, why, and whether it was over; a throttled load is disturbed."""
    why = "Processor slows the machine down (step 3)"
    assert CoolDown(12.2, why, True).describe() == f"waited 12 s before it: {why}"
    assert "60 s before it, and it was not over then" in CoolDown(60.0, why, False).describe()
    load = Conditions(10.0, 1.0, 0.0, throttling=why)
    assert load.disturbance == f"the machine throttled: {why}"
