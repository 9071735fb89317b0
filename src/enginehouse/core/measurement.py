"""What a load showed: samples of requests, and the figures made of them.

The definitions follow the field's own load generators (GuideLLM, `vllm bench serve`) and stand in
`docs/measuring.md` with their sources. Times are seconds on one monotonic clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RequestSample:
    """One request as its client saw it.

    `chunk_times_s` holds the arrival of every chunk that carried text, the first one included;
    token counts are the engine's own. `error` is empty when the answer was whole.
    """

    start_s: float
    end_s: float
    chunk_times_s: tuple[float, ...]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    text: str = ""
    error: str = ""


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
) -> Measurement:
    """Make a load's figures of its samples; failed requests count only as failed.

    The duration runs from the first request's start to the last answer's end.
    """
    good = [sample for sample in samples if not sample.error]
    duration_s = 0.0
    if good:
        duration_s = max(s.end_s for s in good) - min(s.start_s for s in good)
    output_tokens = sum(s.output_tokens for s in good)
    tpot = percentiles_of(tpot_s(s) for s in good if s.output_tokens > 1 and s.chunk_times_s)
    return Measurement(
        workload=workload,
        requests=len(good),
        failed=len(samples) - len(good),
        duration_s=duration_s,
        output_tok_per_s=output_tokens / duration_s if duration_s else 0.0,
        requests_per_s=len(good) / duration_s if duration_s else 0.0,
        prompt_tokens=sum(s.prompt_tokens for s in good),
        cached_tokens=sum(s.cached_tokens for s in good),
        output_tokens=output_tokens,
        ttft_s=percentiles_of(s.chunk_times_s[0] - s.start_s for s in good if s.chunk_times_s),
        itl_s=percentiles_of(
            later - earlier
            for s in good
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
    )


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
