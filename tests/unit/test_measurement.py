"""The figures of a load, against figures worked out by hand."""

from __future__ import annotations

import pytest

from enginehouse.core.measurement import (
    RequestSample,
    measure,
    percentiles_of,
    repeated_ngram_share,
)


def sample(start: float, chunks: tuple[float, ...], tokens: int, error: str = "") -> RequestSample:
    end = chunks[-1] if chunks else start
    return RequestSample(start, end, chunks, 10, 2, tokens, "a b c d e", error)


def test_figures_of_two_requests() -> None:
    """TTFT, ITL, TPOT and throughput follow their definitions; failures count only as failed."""
    figures = measure(
        "chat",
        [
            sample(0.0, (0.5, 0.6, 0.8), 3),
            sample(1.0, (1.25, 1.5), 5),
            sample(1.0, (), 0, "HTTP 500"),
        ],
        streams=1,
        bytes_per_token=1000,
        memory_bandwidth_bytes_per_s=20_000.0,
    )
    assert (figures.requests, figures.failed, figures.first_error) == (2, 1, "HTTP 500")
    assert figures.duration_s == 1.5
    assert figures.output_tok_per_s == pytest.approx(8 / 1.5)
    assert figures.requests_per_s == pytest.approx(2 / 1.5)
    assert (figures.prompt_tokens, figures.cached_tokens, figures.output_tokens) == (20, 4, 8)
    assert figures.ttft_s.p50 == 0.25
    assert figures.ttft_s.p99 == 0.5
    assert figures.itl_s.samples == 3
    assert figures.tpot_s.p50 == pytest.approx(0.0625)
    assert figures.roofline_share == pytest.approx(1000 / 0.0625 / 20_000)


def test_no_roofline_share_for_several_streams() -> None:
    """With several streams one read of the weights serves many tokens: no share is claimed."""
    figures = measure(
        "crowd",
        [sample(0.0, (0.5, 0.6), 2)],
        streams=2,
        bytes_per_token=1000,
        memory_bandwidth_bytes_per_s=1.0,
    )
    assert figures.roofline_share is None


def test_percentiles_are_nearest_rank() -> None:
    """A percentile is a value that was seen."""
    p = percentiles_of(float(n) for n in range(1, 101))
    assert (p.samples, p.p50, p.p90, p.p99) == (100, 50.0, 90.0, 99.0)
    assert percentiles_of(()).samples == 0


def test_text_that_loops_is_seen() -> None:
    """The share of repeated n-grams is 0 for prose without repeats and near 1 for a loop."""
    assert repeated_ngram_share(["one two three four five six"]) == 0.0
    assert repeated_ngram_share(["again and again and " * 50]) > 0.95
    assert repeated_ngram_share([]) == 0.0
