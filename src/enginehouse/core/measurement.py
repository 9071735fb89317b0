"""What a load showed: samples of requests, and the figures made of them.

The definitions follow the field's own load generators (GuideLLM, `vllm bench serve`) and stand in
`docs/measuring.md` with their sources. Times are seconds on one monotonic clock.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

LEAST_GAPS = 8
"""Fewer gaps between the pieces of one answer tell nothing of its pace."""


@dataclass(frozen=True)
class RequestSample:
    """One request as its client saw it.

    `chunk_times_s` holds the arrival of every chunk that carried text, the first one included;
    token counts are the engine's own. `error` is empty when the answer was whole, or when the load
    ended before it was (`is_cut`), which leaves the output tokens unknown (0).
    """

    start_s: float
    end_s: float
    chunk_times_s: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    text: str = ""
    error: str = ""
    is_cut: bool = False


@dataclass(frozen=True)
class Percentiles:
    """A distribution by its percentiles (nearest rank) with the number of samples behind them."""

    samples: int
    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Measurement:
    """The figures of one load on one live endpoint.

    `repeated_ngram_share` is the share of 4-word n-grams in the outputs that repeat an earlier one
    of the same output: text that loops flatters speculation. `roofline_share` is output tok/s of a
    single stream while decoding ÷ (memory bandwidth ÷ bytes read per token); None with several
    streams, where one read serves many, and where the bandwidth has not been measured.
    `cut` counts requests that the end of the load's time cut off: `requests` are the whole ones,
    and the tokens of the others are estimated by their text. `goodput_tok_per_s` counts only
    requests within the limits that were asked for, None when none were. `is_short` says that the
    requests were the shorter ones that a search explores with (`Workload.shortened`).
    """

    workload: str
    requests: int
    failed: int
    duration_s: float
    output_tok_per_s: float
    requests_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    ttft_s: Percentiles
    itl_s: Percentiles
    tpot_s: Percentiles
    latency_s: Percentiles
    repeated_ngram_share: float
    peak_memory_bytes: int = 0
    roofline_share: float | None = None
    first_error: str = ""
    cut: int = 0
    goodput_tok_per_s: float | None = None
    is_short: bool = False

    @property
    def score_tok_per_s(self) -> float:
        """What candidates are ranked by: goodput where limits were asked for, else throughput."""
        good = self.goodput_tok_per_s
        return self.output_tok_per_s if good is None else good


@dataclass(frozen=True)
class Limits:
    """What a request must keep to count as good, in seconds; None is no limit.

    `itl_s` bounds the mean time between a request's tokens (its TPOT), as SLOs of the field do.
    """

    ttft_s: float | None = None
    itl_s: float | None = None

    def keeps(self, sample: RequestSample) -> bool:
        """Whether a request kept the limits."""
        times = sample.chunk_times_s
        if not times:
            return False
        if self.ttft_s is not None and times[0] - sample.start_s > self.ttft_s:
            return False
        tokens = sample.output_tokens
        return self.itl_s is None or tokens < 2 or tpot_s(sample) <= self.itl_s


def percentiles_of(values: Iterable[float]) -> Percentiles:
    """Summarise values by nearest-rank percentiles; all zero when there are none."""
    ordered = sorted(values)
    if not ordered:
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0)

    def at(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return Percentiles(len(ordered), sum(ordered) / len(ordered), at(0.50), at(0.90), at(0.99))


def measure(
    workload: str,
    samples: Sequence[RequestSample],
    *,
    streams: int,
    bytes_per_token: int = 0,
    memory_bandwidth_bytes_per_s: float | None = None,
    peak_memory_bytes: int = 0,
    limits: Limits | None = None,
    is_short: bool = False,
) -> Measurement:
    """Make a load's figures of its samples; failed requests count only as failed.

    The duration runs from the first request's start to the last answer's end, or to the load's.
    """
    counted = with_estimates([sample for sample in samples if not sample.error])
    good = [sample for sample in counted if not sample.is_cut]
    duration_s = 0.0
    if counted:
        duration_s = max(s.end_s for s in counted) - min(s.start_s for s in counted)
    output_tokens = sum(s.output_tokens for s in counted)
    tpot = percentiles_of(tpot_s(s) for s in good if s.output_tokens > 1 and s.chunk_times_s)
    return Measurement(
        workload=workload,
        requests=len(good),
        failed=len(samples) - len(counted),
        duration_s=duration_s,
        output_tok_per_s=output_tokens / duration_s if duration_s else 0.0,
        requests_per_s=len(good) / duration_s if duration_s else 0.0,
        prompt_tokens=sum(s.prompt_tokens for s in good),
        cached_tokens=sum(s.cached_tokens for s in good),
        output_tokens=output_tokens,
        ttft_s=percentiles_of(s.chunk_times_s[0] - s.start_s for s in counted if s.chunk_times_s),
        itl_s=percentiles_of(
            later - earlier
            for s in counted
            for earlier, later in zip(s.chunk_times_s, s.chunk_times_s[1:], strict=False)
        ),
        tpot_s=tpot,
        latency_s=percentiles_of(s.end_s - s.start_s for s in good),
        repeated_ngram_share=repeated_ngram_share(s.text for s in good),
        peak_memory_bytes=peak_memory_bytes,
        roofline_share=roofline_share(
            tpot.p50 if streams == 1 else 0.0, bytes_per_token, memory_bandwidth_bytes_per_s
        ),
        first_error=next((s.error for s in samples if s.error), ""),
        cut=len(counted) - len(good),
        goodput_tok_per_s=goodput(counted, limits, duration_s) if limits else None,
        is_short=is_short,
    )


def scaled(figures: Measurement, factor: float) -> Measurement:
    """Return a measurement with its rates multiplied, for an engine that is supposed faster."""
    good = figures.goodput_tok_per_s
    return replace(
        figures,
        output_tok_per_s=factor * figures.output_tok_per_s,
        goodput_tok_per_s=None if good is None else factor * good,
    )


def goodput(samples: Sequence[RequestSample], limits: Limits, duration_s: float) -> float:
    """Return output tokens per second of the requests that kept the limits."""
    tokens = sum(s.output_tokens for s in samples if limits.keeps(s))
    return tokens / duration_s if duration_s else 0.0


def with_estimates(samples: Sequence[RequestSample]) -> list[RequestSample]:
    """Give requests that were cut off the tokens that their text is likely to hold.

    Tokens per character are those of the whole answers; without any, a chunk counts as a token.
    """
    whole = [s for s in samples if not s.is_cut]
    characters = sum(len(s.text) for s in whole)
    rate = sum(s.output_tokens for s in whole) / characters if characters else 0.0
    return [
        replace(s, output_tokens=round(rate * len(s.text)) if rate else len(s.chunk_times_s))
        if s.is_cut
        else s
        for s in samples
    ]


def steady_rate(sample: RequestSample) -> float:
    """Return the median pace of one answer's pieces, per second; 0 for a short one."""
    times = sample.chunk_times_s
    gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
    middle = gaps[len(gaps) // 2] if len(gaps) >= LEAST_GAPS else 0.0
    return 1.0 / middle if middle else 0.0


def tpot_s(sample: RequestSample) -> float:
    """Return time per output token: (last chunk − first chunk) ÷ (output tokens − 1)."""
    return (sample.chunk_times_s[-1] - sample.chunk_times_s[0]) / (sample.output_tokens - 1)


def roofline_share(
    tpot: float, bytes_per_token: int, bandwidth_bytes_per_s: float | None
) -> float | None:
    """Return the share of the decode roofline that `tpot` seconds a token reach, None if unknown.

    One decoded token reads every weight once, so tok/s ≤ bandwidth ÷ bytes read per token.
    """
    if not (tpot and bytes_per_token and bandwidth_bytes_per_s):
        return None
    return bytes_per_token / tpot / bandwidth_bytes_per_s


def repeated_ngram_share(texts: Iterable[str], n: int = 4) -> float:
    """Return the share of n-word n-grams that repeat an earlier one of the same text, 0 to 1."""
    repeated = total = 0
    for text in texts:
        words = text.split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        total += len(grams)
        repeated += len(grams) - len(set(grams))
    return repeated / total if total else 0.0
