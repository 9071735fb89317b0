"""What the rooflines rest on: the bandwidth that is kept, and the products' own rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.app import House
from enginehouse.edges import bandwidth
from enginehouse.edges.rates import measure_rates
from enginehouse.edges.settings_file import load_settings


def test_the_highest_bandwidth_counts_until_all_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A probe in a bad minute lowers no roofline and does not stay; `again` starts anew."""
    monkeypatch.setattr("enginehouse.edges.compute.measure_compute", lambda threads: 1e9)
    kept = []
    with House(load_settings(None, {}), tmp_path) as house:
        for found, again in ((30e9, False), (20e9, False), (48e9, False), (25e9, True)):
            monkeypatch.setattr(bandwidth, "measure_memory_bandwidth", lambda threads, f=found: f)
            kept.append(house.measure(again=again).memory_bandwidth_bytes_per_s)
    assert kept == [30e9, 30e9, 48e9, 25e9]


def test_without_room_for_the_probe_what_is_known_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring may not push a full machine over: the first figure is needed, the next is not."""
    monkeypatch.setattr("enginehouse.edges.compute.measure_compute", lambda threads: 1e9)
    monkeypatch.setattr("enginehouse.app_inventory.PROBE_ROOM", 1 << 40)
    with House(load_settings(None, {}), tmp_path) as house:
        monkeypatch.setattr(bandwidth, "measure_memory_bandwidth", lambda threads: 30e9)
        house.measure()
        monkeypatch.setattr(bandwidth, "measure_memory_bandwidth", lambda threads: 48e9)
        assert house.measure().memory_bandwidth_bytes_per_s == 30e9


def test_products_are_measured_from_memory_and_from_cache() -> None:
    """The wheel's own products, by name; a type that nobody knows is left out."""
    found = measure_rates(("Q8_0", "Q8_0 in cache", "Q9_X in cache"), 1)
    assert found.keys() == {"Q8_0", "Q8_0 in cache"}
    assert all(rate > 0 for pair in found.values() for rate in pair)
