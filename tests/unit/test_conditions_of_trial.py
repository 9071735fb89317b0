"""Whether something else disturbed a measurement."""

from __future__ import annotations

from enginehouse.core.conditions_of_trial import Conditions, other_cores


def test_others_are_what_is_busy_and_not_ours() -> None:
    """Of 15 busy seconds in 10, 12 of them ours, others used 0.3 cores; never less than none."""
    assert abs(other_cores(15.0, 12.0, 10.0) - 0.3) < 1e-9
    assert other_cores(11.0, 12.0, 10.0) == 0.0
    assert other_cores(1.0, 0.0, 0.0) == 0.0


def test_a_disturbed_measurement_names_who_it_was() -> None:
    """A fifth of a core and more is said, with the busiest process; less is not."""
    disturbed = Conditions(10.0, 2.0, 0.8, "python3 (pid 123)")
    assert "0.8 cores" in disturbed.disturbance
    assert "python3 (pid 123)" in disturbed.disturbance
    assert Conditions(10.0, 1.0, 0.05).disturbance == ""
