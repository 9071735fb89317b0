"""Giving a load up: only what is clearly worse, by more than noise can be."""

from __future__ import annotations

from enginehouse.core.measurement import RequestSample
from enginehouse.core.pace import Pace
from enginehouse.core.workload import WORKLOADS


def answers(
    count: int, seconds: float, at_once: int = 1, characters: int = 100
) -> list[RequestSample]:
    """Answers of ten chunks each, `at_once` of them together, one group after another."""
    made = []
    for number in range(count):
        start = (number // at_once) * seconds
        times = tuple(start + seconds * (n + 1) / 10 for n in range(10))
        made.append(RequestSample(start, times[-1], times, 10, 0, 30, "x" * characters))
    return made


def pace(count: int, seconds: float, at_once: int = 1, streams: int = 1) -> Pace:
    return Pace.of(answers(count, seconds, at_once), streams)


def test_nothing_is_given_up_before_its_patience_is_over() -> None:
    """The first moments of a load say nothing: a prefix is computed then."""
    best = pace(5, 2.0)
    assert not best.too_slow(3.9, 0, 10.0)
    assert best.too_slow(4.1, 0, 10.0)


def test_a_single_stream_must_be_further_behind_early_than_late() -> None:
    """70 % of the best's text is noise at 4 s of 10, and a verdict at 9.9 s."""
    best = pace(5, 2.0)
    assert not best.too_slow(4.5, round(0.7 * 225), 10.0)
    assert best.too_slow(9.9, round(0.7 * 495), 10.0).startswith("71%")
    assert not best.too_slow(9.9, round(0.8 * 495), 10.0)


def test_a_long_prompt_that_takes_a_little_longer_is_no_reason_to_give_up() -> None:
    """The best's answer has just begun: who has no character yet may be a few percent behind."""
    times = tuple(4.0 + number / 10 for number in range(20))
    best = Pace.of([RequestSample(0.0, times[-1], times, 20, 0, 3000, "x" * 100)])
    assert not best.too_slow(4.05, 0, 6.0)
    assert not best.too_slow(5.0, 0, 6.0)
    assert best.too_slow(6.0, 0, 6.0).startswith("67%")


def test_several_streams_are_given_up_when_they_can_no_longer_catch_up() -> None:
    """16 slots that make nothing for long may still win; not once their time is spent."""
    best = pace(16, 8.0, at_once=16, streams=16)
    assert not best.too_slow(10.0, 0, 6.0)
    assert best.too_slow(10.8, 0, 6.0).startswith("at most 74%")


def test_a_load_of_fewer_answers_is_held_to_the_same_rate() -> None:
    """One slot that waits for two answers is hopeless as soon as their time is spent."""
    best = pace(16, 8.0, at_once=16, streams=16)
    assert not best.too_slow(2.3, 0, 6.0, answers=2)
    assert best.too_slow(2.5, 100, 6.0, answers=2)
    assert not best.too_slow(2.5, 400, 6.0, answers=2)


def test_without_a_best_nothing_is_given_up() -> None:
    """The first load of all has nobody to be behind."""
    assert not Pace((), ()).too_slow(99.0, 0, 6.0)
    assert not Pace((), (), 16).too_slow(99.0, 0, 6.0)


def test_exploring_keeps_the_streams_and_the_shape_of_requests() -> None:
    """A crowd's requests are a third as long, prompt and answer alike; nothing else changes."""
    crowd, short = WORKLOADS["crowd"], WORKLOADS["crowd"].shortened()
    assert (short.streams, short.requests, short.output_tokens) == (16, 32, 32)
    assert abs((short.prompt_tokens + 30) * 3 - (crowd.prompt_tokens + 30)) <= 2
    assert WORKLOADS["assistant"].shortened() == WORKLOADS["assistant"]
    assert WORKLOADS["chat"].shortened() == WORKLOADS["chat"]


def test_an_exploring_load_waits_for_twice_what_the_engine_makes_at_once() -> None:
    """One slot needs two answers of a crowd and not sixteen; a shared prefix needs a wave."""
    crowd, assistant = WORKLOADS["crowd"], WORKLOADS["assistant"]
    assert [crowd.answers_to_explore(slots) for slots in (0, 1, 4, 8, 16)] == [16, 2, 8, 16, 16]
    assert [assistant.answers_to_explore(slots) for slots in (1, 8)] == [8, 8]
    assert assistant.least_answers == 16
