"""What `top` makes of two looks at an endpoint: percentiles, growth, resets, and nothing at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.cli_top import Seen, default_url, lines_of, text_of
from enginehouse.core.buckets import Spread, percentile, spread_of
from enginehouse.core.chat import Usage
from enginehouse.core.errors import UserError
from enginehouse.core.settings import Given, given_by_environment, resolve
from enginehouse.core.top import (
    Health,
    Key,
    Look,
    Running,
    Series,
    is_enginehouse,
    read_health,
    read_running,
    since,
    view_of,
)
from enginehouse.edges.endpoint import parse_endpoint, parse_metrics
from enginehouse.gateway.journey import Journey
from enginehouse.gateway.metrics import BUCKETS_S, Metrics
from enginehouse.gateway.router import Router

INF = math.inf
HEALTH = Health("tiny", "ready", "", {"tiny": "ready"})


def look(text: str, at_s: float = 0.0, health: Health = HEALTH) -> Look:
    """Return a look that found this text."""
    return Look(at_s, 1000.0, parse_metrics(text), health)


def key(name: str, **labels: str) -> Key:
    """Return a series' key."""
    return name, tuple(sorted(labels.items()))


def counted(journeys: list[Journey], metrics: Metrics | None = None) -> Metrics:
    """Return the gateway's own metrics after these requests."""
    router = cast(Router, SimpleNamespace(servers={}, on_fallback=None))
    metrics = metrics or Metrics(router)
    for journey in journeys:
        metrics.ended(journey)
    return metrics


def journey(model: str = "tiny", outcome: str = "served", **facts: object) -> Journey:
    """Return a request that has ended."""
    made = Journey("openai", "chat", model=model, engine="llama_cpp", outcome=outcome)
    made.began -= 3.0
    for name, value in facts.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, (None, False)),
        ({1.0: 0, INF: 0}, 0.5, (None, False)),
        ({1.0: 10, INF: 10}, 0.5, (0.5, False)),
        ({1.0: 0, 2.0: 10, INF: 10}, 0.5, (1.5, False)),
        ({1.0: 5, 2.0: 5, 4.0: 10, INF: 10}, 0.95, (3.8, False)),
        ({1.0: 5, 2.0: 10, INF: 10}, 0.5, (1.0, False)),
        ({1.0: 1, 2.0: 1, INF: 10}, 0.5, (2.0, True)),
        ({INF: 3}, 0.5, (None, False)),
    ],
)
def test_a_percentile_lies_within_its_bucket(
    buckets: Mapping[float, float], share: float, expected: tuple[float | None, bool]
) -> None:
    """Samples lie evenly within a bucket; beyond the last bound only that bound is known."""
    value, is_least = percentile(buckets, share)
    assert is_least is expected[1]
    assert value == (None if expected[0] is None else pytest.approx(expected[0]))


@given(st.lists(st.floats(0.0, 200.0), min_size=1, max_size=50))
def test_a_percentile_is_in_the_bucket_of_the_true_one(values: list[float]) -> None:
    """The estimate never leaves the bucket in which the nearest-rank percentile lies."""
    buckets = {b: float(sum(v <= b for v in values)) for b in (*BUCKETS_S, INF)}
    spread = spread_of(buckets, sum(values))
    assert spread.samples == len(values)
    for share, found in ((0.5, spread.p50_s), (0.95, spread.p95_s)):
        true = sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
        upper = min(b for b in (*BUCKETS_S, INF) if true <= b)
        lower = max([0.0, *(b for b in BUCKETS_S if b < true)])
        assert found is not None
        assert lower <= found <= upper


def test_the_gateways_own_metrics_are_understood() -> None:
    """Every figure comes out of what the gateway's metrics print, over dialects and operations."""
    metrics = counted([journey(first_byte_s=0.2, usage=Usage(10, 5, 4), chunks=4)])
    earlier = look(metrics.render().decode(), 10.0)
    later = [
        journey(first_byte_s=0.02, usage=Usage(30, 20, 6), chunks=19, is_truncated=True),
        journey(outcome="rejected"),
        journey("", "rejected"),
        Journey("ollama", "ps", outcome="served"),
        Journey("ollama", "embed", model="tiny", engine="llama_cpp", outcome="served"),
    ]
    counted(later, metrics)
    metrics.fallbacks.labels("tiny", "smaller").inc()
    view = view_of(look(metrics.render().decode(), 12.0), earlier)
    [tiny] = view.models
    assert tiny.interval is not None
    assert (tiny.model, tiny.engine, tiny.state) == ("tiny", "llama_cpp", "ready")
    assert dict(tiny.interval.requests) == {"served": 2, "rejected": 1}
    assert dict(tiny.total.requests) == {"served": 3, "rejected": 1}
    assert (tiny.interval.prompt_tokens, tiny.interval.output_tokens) == (30, 20)
    assert tiny.interval.output_tok_per_s == pytest.approx(10.0)
    assert tiny.interval.cached_prompt_share == pytest.approx(0.2)
    assert tiny.total.output_tok_per_s is None
    assert (tiny.interval.truncations, tiny.interval.fallbacks) == (1, 1)
    assert tiny.interval.ttft.samples == 1
    assert tiny.interval.ttft.p50_s == pytest.approx(0.0175)  # the middle of 10 to 25 ms
    assert tiny.total.ttft.samples == 2
    assert tiny.interval.itl.samples == 1
    assert dict(view.other_requests) == {"rejected": 1}  # our own looks are no traffic


def test_cached_tokens_are_a_share_of_the_prompts() -> None:
    """The share is that of the interval's prompts; without any there is none."""
    one = 'enginehouse_prompt_tokens_total{model="tiny"} %d\n'
    two = 'enginehouse_cached_prompt_tokens_total{model="tiny"} %d\n'
    earlier = look(one % 100 + two % 10)
    view = view_of(look(one % 200 + two % 60, 1.0), earlier)
    assert view.models[0].interval is not None
    assert view.models[0].interval.cached_prompt_share == pytest.approx(0.5)
    assert view.models[0].total.cached_prompt_share == pytest.approx(0.3)
    still = view_of(earlier, earlier).models[0].interval
    assert still is not None
    assert still.cached_prompt_share is None


@pytest.mark.parametrize(
    ("before", "after", "grown"),
    [
        ({}, {key("a_total"): 3.0}, {key("a_total"): 3.0}),
        ({key("a_total"): 2.0}, {key("a_total"): 3.0}, {key("a_total"): 1.0}),
        ({key("a_total"): 5.0}, {key("a_total"): 3.0}, {key("a_total"): 3.0}),
        ({key("a_total"): 5.0}, {}, {}),
        ({key("a"): 1.0}, {key("a"): 3.0}, {}),
        (
            {key("a_total"): 3.0, key("a_created"): 1.0},
            {key("a_total"): 4.0, key("a_created"): 2.0},
            {key("a_total"): 4.0},
        ),
        (
            {key("h_bucket", le="1.0"): 1.0, key("h_bucket", le="+Inf"): 9.0},
            {key("h_bucket", le="1.0"): 3.0, key("h_bucket", le="+Inf"): 4.0},
            {key("h_bucket", le="1.0"): 3.0, key("h_bucket", le="+Inf"): 4.0},
        ),
    ],
    ids=["new", "grown", "fell", "gone", "gauge", "made anew", "histogram as a whole"],
)
def test_growth_begins_at_zero_after_a_reset(before: Series, after: Series, grown: Series) -> None:
    """A counter that fell, is new or was made anew has grown from 0; never is anything negative."""
    assert since(after, before) == grown


COUNTS = st.dictionaries(
    st.tuples(st.sampled_from(["a_total", "h_bucket", "h_count", "a_created"]),
              st.sampled_from([(), (("le", "1.0"),), (("model", "x"),)])),
    st.floats(0, 1e6),
)  # fmt: skip


@given(COUNTS, COUNTS)
def test_nothing_grows_by_less_than_nothing(before: Series, after: Series) -> None:
    """Whatever two looks held, growth is at least 0 and at most what there is now."""
    for series, value in since(after, before).items():
        assert 0 <= value <= after[series]


def test_a_first_look_has_no_interval_and_an_empty_endpoint_no_models() -> None:
    """Without an earlier look figures of the interval are absent; without metrics all is empty."""
    view = view_of(look('enginehouse_requests_total{model="tiny",outcome="served"} 2\n'))
    assert view.interval_s is None
    assert view.models[0].interval is None
    assert dict(view.models[0].total.requests) == {"served": 2}
    assert view.models[0].total.ttft == Spread()
    empty = view_of(look("", health=Health("", "empty")))
    assert empty.models == ()
    assert "0 of 0 models ready" in text_of(Seen("http://h", empty))
    assert lines_of(empty) == []


def test_a_model_that_is_not_loaded_is_shown_with_what_it_served() -> None:
    """Models of `/health`, `/api/ps` and the counters are all there, the first and loaded ahead."""
    series = parse_metrics(
        'enginehouse_requests_total{model="a",engine="vllm",outcome="served"} 2\n'
        'enginehouse_engine_ready{model="c",engine="llama_cpp"} 1\n'
    )
    health = Health("z", "idle", "", {"c": "ready"})
    running = {"c": Running(4096, 2048, 1090.0)}
    view = view_of(Look(0.0, 1000.0, series, health, running))
    assert [(m.model, m.engine, m.state) for m in view.models] == [
        ("z", "", "unloaded"), ("c", "llama_cpp", "ready"), ("a", "vllm", "unloaded"),
    ]  # fmt: skip
    loaded = view.models[1]
    assert (loaded.memory_bytes, loaded.context_tokens, loaded.unloads_in_s) == (4096, 2048, 90.0)
    assert "1:30" in text_of(Seen("http://h", view))


def test_health_and_running_are_read_or_refused() -> None:
    """`ok` is ready; what is not an Enginehouse's answer is none; odd entries are left away."""
    health = read_health({"status": "ok", "model": "a", "models": {"a": {"status": "ok"}, "b": 1}})
    assert health == Health("a", "ready", "", {"a": "ready"})
    strangers: tuple[object, ...] = (
        None,
        [],
        {"status": "ok"},
        {"models": []},
        "Ollama is running",
    )
    for stranger in strangers:
        assert read_health(stranger) is None
    ps = {"models": [{"name": "a:latest", "size": 5, "expires_at": "never"}, 7]}
    assert read_running(ps) == {"a": Running(5)}
    assert read_running("no") == read_running({}) == {}
    far = {"models": [{"name": "a", "expires_at": "2126-01-01T00:00:00.000000+00:00"}]}
    view = view_of(Look(0.0, 1000.0, {}, HEALTH, {"tiny": read_running(far)["a"]}))
    assert view.models[0].unloads_in_s is None


@pytest.mark.parametrize("text", ["", "<html>", "llamacpp:x_total 1\n", 'a{b="c} 1\n', "a b c d\n"])
def test_what_is_not_ours_is_known_as_such(text: str) -> None:
    """Metrics of another program, and what is no metrics at all, are not an Enginehouse's."""
    assert not is_enginehouse(parse_metrics(text))


def test_a_terminal_is_not_told_what_to_do() -> None:
    """Names from an endpoint lose what a terminal would act on."""
    view = view_of(look("", health=Health("a\x1b[2J", "ready", "\x07", {})))
    assert not set(text_of(Seen("http://h", view))) & {"\x1b", "\x07"}


def test_a_time_beyond_the_last_bucket_is_told_as_such() -> None:
    """A request slower than all buckets is shown as more than the last bound."""
    metrics = counted([journey(first_byte_s=500.0)])
    view = view_of(look(metrics.render().decode()))
    assert ">120.00 s" in text_of(Seen("http://h", view))


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("localhost:1", "http://localhost:1"),
        ("https://home.lan/llm/", "https://home.lan/llm"),
        ("http://[::1]:80", "http://[::1]:80"),
        *((bad, "") for bad in ("", "ftp://h", "http://", "http://h:x", "http://u:p@h", "h?q")),
    ],
)
def test_an_address_is_taken_or_refused(url: str, parsed: str) -> None:
    """A scheme may be left away; a user, a query or nonsense is refused, without the password."""
    if parsed:
        assert parse_endpoint(url) == parsed
        return
    with pytest.raises(UserError) as refused:
        parse_endpoint(url)
    assert refused.value.report.id == "endpoint.bad_url"
    assert "u:p" not in refused.value.report.what


@pytest.mark.parametrize(
    ("given_", "url"),
    [
        ({}, "http://127.0.0.1:11434"),
        ({"gateway.host": "0.0.0.0", "gateway.port": "8080"}, "http://127.0.0.1:8080"),
        ({"gateway.host": "::1"}, "http://[::1]:11434"),
        ({"gateway.host": "h", "gateway.tls_certificate": "c.pem"}, "https://h:11434"),
    ],
)
def test_the_settings_say_where_to_look(given_: Mapping[str, str], url: str) -> None:
    """Without --url the endpoint of the settings is looked at, as this machine reaches it."""
    assert default_url(resolve(tuple(Given(k, v, "test") for k, v in given_.items()))) == url


def test_the_keys_variable_is_no_unknown_setting() -> None:
    """ENGINEHOUSE_API_KEY may be set for all commands."""
    assert given_by_environment({"ENGINEHOUSE_API_KEY": "eh-x"}) == ()
