"""When an engine has to be ended for the machine's sake."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.guard import (
    GIB,
    LOOK_LATE_S,
    LOOK_SOON_S,
    MIB,
    Reading,
    judge,
    look_again_s,
)

RESERVE = 512 * MIB


def falling(start: float, per_s: float, count: int, step_s: float = 0.05) -> list[Reading]:
    """Available memory that falls evenly, in bytes a second."""
    return [Reading(i * step_s, int(start - i * step_s * per_s)) for i in range(count)]


def test_memory_under_the_reserve_ends_the_engine() -> None:
    """One reading is enough, and the reason names both sizes."""
    said = judge([Reading(0.0, 400 * MIB)], RESERVE)
    assert "400 MiB" in said
    assert "512 MiB" in said


def test_a_fast_fall_is_met_before_the_reserve_is_reached() -> None:
    """At 4 GiB a second the engine ends with 900 MiB left, above a reserve of 512 MiB."""
    readings = falling(1.7 * GIB, 4 * GIB, 5)
    assert readings[-1].available_bytes > RESERVE
    assert "falls by" in judge(readings, RESERVE)


def test_a_slow_fall_is_let_go_on() -> None:
    """Loading a model at 200 MiB a second is no danger while there is room."""
    assert judge(falling(1.0 * GIB, 200 * MIB, 20), RESERVE) == ""


def test_a_machine_that_stands_still_for_memory_is_freed() -> None:
    """Half of two seconds waiting for memory is enough, less is not."""

    def stalled(share: float) -> str:
        readings = [Reading(i * 0.5, 8 * GIB, share * i * 0.5) for i in range(6)]
        return judge(readings, RESERVE)

    assert "stood still" in stalled(0.6)
    assert stalled(0.2) == ""


def test_a_swap_storm_is_stopped_and_a_little_swapping_is_not() -> None:
    """100 MiB a second for two seconds ends the engine, 10 MiB a second does not."""

    def swapping(per_s: float) -> str:
        readings = [Reading(i * 0.5, 8 * GIB, None, int(per_s * i * 0.5)) for i in range(6)]
        return judge(readings, RESERVE)

    assert "swapped" in swapping(100 * MIB)
    assert swapping(10 * MIB) == ""


def test_a_kernel_that_says_little_is_guarded_by_what_it_says() -> None:
    """Without pressure and swap figures only available memory counts."""
    assert judge([Reading(i * 0.5, 8 * GIB) for i in range(6)], RESERVE) == ""


@given(st.floats(0.0, 0.05), st.floats(0.1, 8.0), st.floats(1.0, 24.0), st.integers(256, 2048))
def test_an_eater_is_always_ended_before_memory_is_gone(
    late_s: float, gib_per_s: float, start_gib: float, reserve_mib: int
) -> None:
    """Whatever the speed up to 8 GiB/s, the verdict leaves 0.05 s of its eating before nothing is
    left, if there was any time to look twice; each look comes up to 0.05 s late.
    """
    reserve, per_s = reserve_mib * MIB, gib_per_s * GIB
    readings: list[Reading] = []
    at_s, step_s = 0.0, 0.0
    for _ in range(100_000):
        available = start_gib * GIB - at_s * per_s
        readings.append(Reading(at_s, int(max(0.0, available))))
        if judge(readings[-60:], reserve):
            break
        step_s = look_again_s(readings[-1], reserve) + late_s
        at_s += step_s
    if len(readings) > 2:
        assert available >= 0.0 or per_s * step_s > reserve
    if per_s * 0.2 > reserve / 2 and len(readings) > 3:
        assert available + per_s * step_s >= min(reserve / 2, start_gib * GIB / 2)


def test_looks_are_frequent_only_while_the_reserve_could_be_reached_before_the_next() -> None:
    """With 10 GiB of room the guard looks five times a second, with none twenty times."""
    assert look_again_s(Reading(0, 11 * GIB), GIB) == LOOK_LATE_S
    assert look_again_s(Reading(0, 3 * GIB), GIB) == pytest.approx(0.1, rel=0.01)
    assert look_again_s(Reading(0, GIB), GIB) == LOOK_SOON_S


def test_a_late_look_still_sees_a_fall() -> None:
    """Two readings as far apart as looks may be say how fast memory falls."""
    readings = (Reading(0, 10 * GIB), Reading(LOOK_LATE_S, 6 * GIB))
    assert "falls by 20.00 GiB a second" in judge(readings, 5 * GIB)
