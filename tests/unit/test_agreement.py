"""The pure parts of the comparison with an independent load generator."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from enginehouse.core.workload import Prompt
from enginehouse.trials.load import LoadShape

agreement: Any = importlib.import_module("benchmarks.agreement")


@pytest.mark.parametrize(
    ("mine", "theirs", "exact", "said"),
    [
        ([10.0, 10.0, 10.0], [10.2, 10.2, 10.2], False, "yes"),
        ([10.0, 10.0, 10.0], [11.0, 11.0, 11.0], False, "**no**"),
        ([10.0, 10.0, 12.0], [11.0, 11.0, 11.0], False, "yes"),
        ([10.0, 10.0, 14.0], [11.0, 11.0, 11.0], False, "too noisy to tell"),
        ([10.0, 10.0, 14.0], [20.0, 20.0, 20.0], False, "**no**"),
        ([10.0], [10.0], False, "too few rounds"),
        ([100.0, 100.0, 100.0], [101.0, 101.0, 101.0], True, "**no**"),
        ([100.0, 100.0, 100.0], [100.0, 100.0, 100.0], True, "yes"),
    ],
)
def test_noise_never_passes_for_agreement(
    mine: list[float], theirs: list[float], exact: bool, said: str
) -> None:
    """Agreement is said only of calm rounds, disagreement only beyond them, counts exactly."""
    assert agreement.verdict(mine, theirs, exact) == said


def test_a_row_holds_medians_ratio_and_spreads() -> None:
    """A row's ratio is that of the medians; a spread is (largest − smallest) ÷ median."""
    row = agreement.row("x", [10.0, 11.0, 10.5], [10.0, 10.0, 10.5])
    assert row == "| x | 10.5 | 10 | 1.050 | 10% | 5% | yes |"


def test_the_worst_round_speaks_for_a_definition() -> None:
    """The definition's ratio is the round furthest from 1, in bold above one per cent."""
    assert agreement.definition([1.0, 1.001], [1.0, 1.0]) == "1.0010"
    assert agreement.definition([1.0, 0.9], [1.0, 1.0]) == "**0.9000**"


def test_their_times_are_counted_by_our_definitions() -> None:
    """Two recorded requests give TTFT, TPOT, latency and rates worked out by hand."""
    request = {"prompt_tokens": 7, "output_tokens": 5}
    report = {
        "requests": {
            "successful": [
                {**request, "start_time": 0, "end_time": 2, **chunks(0.5, 1.5)},
                {**request, "start_time": 2, "end_time": 4, **chunks(3.5, 3.9)},
            ]
        }
    }
    figures = agreement.recount(report, 1)
    assert figures.ttft_s.mean == pytest.approx(1.0)
    assert figures.tpot_s.mean == pytest.approx((0.25 + 0.1) / 2)
    assert figures.latency_s.p50 == 2
    assert (figures.output_tok_per_s, figures.requests_per_s) == (2.5, 0.5)
    assert (figures.prompt_tokens, figures.output_tokens) == (14, 10)


def chunks(first: float, last: float) -> dict[str, float]:
    return {"first_token_time": first, "last_token_time": last}


def test_the_data_file_holds_our_prompts_and_the_length_of_the_answers() -> None:
    """Both clients send the same texts and ask for the same number of tokens."""
    load = agreement.Load(LoadShape("m", 32), (Prompt("", "Say “a”\nb"), Prompt("", "c")), 1)
    rows = [json.loads(line) for line in agreement.data_lines(load).splitlines()]
    assert rows == [
        {"prompt": "Say “a”\nb", "output_tokens_count": 32},
        {"prompt": "c", "output_tokens_count": 32},
    ]


def test_the_engine_is_heard_of_the_measured_requests_only() -> None:
    """Requests of another length are left out; a request's two lines are joined by its task."""
    log = """
0.01 I slot print_timing: id  1 | task 5 | prompt eval time =  900.00 ms /  90 tokens ( 10.00 ms per token, 1 tokens per second)
0.02 I slot print_timing: id  1 | task 5 |        eval time =   62.00 ms /  32 tokens (  2.00 ms per token, 1 tokens per second)
0.03 I slot print_timing: id  0 | task 7 | prompt eval time =  300.00 ms /  32 tokens (  9.40 ms per token, 1 tokens per second)
0.04 I slot print_timing: id  0 | task 7 |        eval time =    0.00 ms /   1 tokens (  0.00 ms per token, 1 tokens per second)
"""  # noqa: E501
    assert agreement.engine_times(log, 32) == [agreement.EngineTime(900.0, 2.0)]


def test_a_log_with_other_requests_is_refused() -> None:
    """Engine times are handed out only when the log holds exactly the requests that were sent."""
    sample = {"start_time": 0, "end_time": 2, "prompt_tokens": 7, "output_tokens": 5}
    figures = agreement.recount({"requests": {"successful": [{**sample, **chunks(1, 2)}]}}, 1)
    times = [agreement.EngineTime(float(n), 1.0) for n in range(5)]
    rounds = [agreement.Round(figures, {}, figures)] * 2
    handed = agreement.with_engine_times(rounds, times, 1)
    assert [(r.engine_ours[0].prompt_ms, r.engine_theirs[0].prompt_ms) for r in handed] == [
        (1.0, 2.0),
        (3.0, 4.0),
    ]
    with pytest.raises(ValueError, match="holds 4 requests"):
        agreement.with_engine_times(rounds, times[1:], 1)
