"""The quality gate over real sockets, against servers that answer in every form that is in use."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from enginehouse.core.engine import Endpoint
from enginehouse.core.quality import TOP_TOKENS, QualityLimits, compare
from enginehouse.knowledge.exam import Exam, ExamText, load_exam
from enginehouse.trials.quality import Examined, QualityError, measure_quality

SAYING = "the old mill by the river turns only when it rains and nobody knows why it does"
WORDS = SAYING.split()
EXAM = Exam(7, tuple(ExamText(f"d{n}", " ".join(WORDS * 4)) for n in range(3)), ("Why?", "How?"),
            "Go on:", places=10)  # fmt: skip


@dataclass
class FakeModel:
    """A model that always goes on with WORDS, in a chosen wire form.

    `certainty` is the probability of the right word; `drafted` is what it writes when it may write
    more than one token, as speculation would. With `misreads_whole` it understands nothing of a
    prompt of which it has computed all but a few words for the first time.
    """

    form: str = "llama"
    certainty: float = 0.6
    drafted: str = ""
    misreads_whole: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    busy: int = 0
    most_busy: int = 0

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        await asyncio.sleep(0.001)
        self.busy -= 1
        if self.form == "broken":
            return web.Response(status=500, text="no kernel image")
        if body["max_tokens"] > 1:
            text = self.drafted or " " + " ".join(self.following(body["prompt"], 20))
            return web.json_response({"choices": [{"text": text, "finish_reason": "length"}]})
        word = " " + self.following(body["prompt"], 1)[0]
        likely = {word: self.certainty, " else": 1 - self.certainty - 0.01}
        if self.misreads_whole and self.is_new(body["prompt"]):
            likely = {" else": 0.5, word: 0.3}
        told = dict(list(likely.items())[: body["logprobs"]])
        whole = 2 - sum(told.values()) if self.form == "doubled" else 1.0
        pairs = [(token, math.log(p / whole)) for token, p in told.items()]
        return web.json_response({"choices": [{"text": word, "logprobs": self.told(pairs)}]})

    def is_new(self, prompt: str) -> bool:
        """Whether more than three words of it come behind all that was asked before."""
        asked = [body.get("prompt", "") for body in self.bodies[:-1]]
        known = max(shared(one.split(), prompt.split()) for one in ("", *asked))
        return len(prompt.split()) - known > 3

    def told(self, pairs: Sequence[tuple[str, float | None]]) -> Any:
        if self.form == "vllm":
            return {"tokens": [pairs[0][0]], "top_logprobs": [dict(reversed(pairs))]}
        if self.form == "nan":
            pairs = [(token, None) for token, _ in pairs]
        if self.form == "silent":
            return None
        tops = [
            {"id": 1, "token": "�", "bytes": list(token.encode()), "logprob": logprob}
            for token, logprob in pairs
        ]
        return {"content": [{"id": 1, "logprob": pairs[0][1], "top_logprobs": tops}]}

    def following(self, prompt: str, count: int) -> list[str]:
        said = len(prompt.split())
        return [WORDS[(said + n) % len(WORDS)] for n in range(count)]

    async def chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        message = {"content": "Because it " + body["messages"][0]["content"]}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}]})


def shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many words two texts begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


Serve = Callable[[FakeModel], Any]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Serves a fake model on a unix socket."""

    @asynccontextmanager
    async def start(model: FakeModel) -> AsyncIterator[Endpoint]:
        app = web.Application()
        app.router.add_post("/v1/completions", model.complete)
        app.router.add_post("/v1/chat/completions", model.chat)
        runner = web.AppRunner(app)
        await runner.setup()
        path = tmp_path / "s"
        await web.UnixSite(runner, str(path)).start()
        try:
            yield Endpoint(socket_path=str(path))
        finally:
            await runner.cleanup()

    return start


@pytest.mark.parametrize("form", ["llama", "vllm"])
async def test_both_forms_of_log_probabilities_are_read(serve: Serve, form: str) -> None:
    """Places by domain and offset, the most likely token first, and the answers."""
    async with serve(FakeModel(form)) as endpoint:
        trace = await measure_quality(Examined(endpoint, "m"), EXAM)
    assert len(trace.positions) == 30
    assert len({place for place, _ in trace.positions}) == 30
    for place, position in trace.positions:
        text = EXAM.texts[0].text
        following = text[int(place.split("/")[1]) :].split()[0]
        assert position.best == f" {following}"
    assert [answer.text for answer in trace.answers] == ["Because it Why?", "Because it How?"]
    assert trace.problem == ""
    assert compare(trace, trace, QualityLimits()).kl_mean == 0


async def test_an_engines_own_fields_go_with_what_is_likely_only(serve: Serve) -> None:
    """They are for the walk through the texts: answers and drafts are asked for as by users."""
    model = FakeModel()
    async with serve(model) as endpoint:
        fields = {"grammar": "a sign"}
        await measure_quality(Examined(endpoint, "m", drafts=True, fields=fields), EXAM)
    walks = [body for body in model.bodies if "logprobs" in body]
    assert walks
    assert all(("grammar" in body) is (body in walks) for body in model.bodies)


async def test_a_kernel_that_misreads_whole_prompts_is_refused(serve: Serve) -> None:
    """The walk goes a word at a time and would never see it; users' prompts come whole."""
    traces = []
    turned = [" ".join((WORDS[n:] + WORDS[:n]) * 4) for n in range(3)]
    texts = tuple(replace(one, text=text) for one, text in zip(EXAM.texts, turned, strict=True))
    for misreads in (False, True):
        async with serve(FakeModel(misreads_whole=misreads)) as endpoint:
            traces.append(
                await measure_quality(Examined(endpoint, "m"), replace(EXAM, texts=texts))
            )
    honest, broken = traces
    assert honest.whole_kl == pytest.approx(0)
    assert compare(honest, honest, QualityLimits()).passes
    found = compare(honest, broken, QualityLimits())
    assert not found.passes
    assert "read at once" in found.why


async def test_a_tail_that_is_counted_twice_is_counted_once(serve: Serve) -> None:
    """The exam hears from an engine that adds the untold tokens up twice what others say."""
    traces = []
    for form in ("llama", "doubled"):
        async with serve(FakeModel(form)) as endpoint:
            traces.append(await measure_quality(Examined(endpoint, "m"), EXAM))
    for (_, honest), (_, mended) in zip(*(t.positions for t in traces), strict=True):
        assert [token for token, _ in honest.tokens] == [token for token, _ in mended.tokens]
        assert [lp for _, lp in mended.tokens] == pytest.approx([lp for _, lp in honest.tokens])


async def test_each_request_extends_the_last_and_asks_for_one_token(serve: Serve) -> None:
    """So a prefix cache serves all but the last word, behind the whole text; nothing is sampled."""
    model = FakeModel()
    async with serve(model) as endpoint:
        await measure_quality(Examined(endpoint, "m"), EXAM)
    asked = [body for body in model.bodies if "prompt" in body]
    assert [body["logprobs"] for body in asked[:2]] == [TOP_TOKENS, 1]  # how it counts
    bodies = asked[2:]
    assert all((b["max_tokens"], b["temperature"], b["logprobs"]) == (1, 0, TOP_TOKENS)
               for b in bodies)  # fmt: skip
    whole, *walk = [body["prompt"] for body in bodies[: 1 + EXAM.places]]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(walk))
    assert walk[-1] == whole


async def test_no_more_requests_are_under_way_than_the_candidate_serves(serve: Serve) -> None:
    """Slots are filled, not overrun."""
    for streams in (1, 3):
        model = FakeModel()
        async with serve(model) as endpoint:
            await measure_quality(Examined(endpoint, "m", streams), EXAM)
        assert model.most_busy == streams


async def test_another_certainty_is_seen_as_divergence(serve: Serve) -> None:
    """The same best word, but 60 % against 30 %."""
    traces = []
    for certainty in (0.6, 0.3):
        async with serve(FakeModel(certainty=certainty)) as endpoint:
            traces.append(await measure_quality(Examined(endpoint, "m"), EXAM))
    found = compare(traces[0], traces[1], QualityLimits())
    expected = 0.6 * math.log(0.6 / 0.3) + 0.39 * math.log(0.39 / 0.69)
    assert found.kl_mean == pytest.approx(expected, abs=1e-6)


async def test_a_draft_is_checked_against_single_tokens(serve: Serve) -> None:
    """Speculation that writes other words than the model says is found; the right ones pass."""
    async with serve(FakeModel()) as endpoint:
        honest = await measure_quality(Examined(endpoint, "m", drafts=True), EXAM)
    async with serve(FakeModel(drafted=" these are words that it never says")) as endpoint:
        wrong = await measure_quality(Examined(endpoint, "m", drafts=True), EXAM)
    assert honest.draft is not None
    assert (honest.draft.positions, honest.draft.off) == (19, 0)
    assert compare(honest, honest, QualityLimits()).passes
    found = compare(honest, wrong, QualityLimits())
    assert not found.passes
    assert "drafting changed the text" in found.why


async def test_an_engine_that_tells_none_is_still_asked_for_answers(serve: Serve) -> None:
    """No log-probabilities are a fact about the engine, not a failure of the trial."""
    async with serve(FakeModel("silent")) as endpoint:
        trace = await measure_quality(Examined(endpoint, "m", drafts=True), EXAM)
    assert (trace.positions, trace.draft) == ((), None)
    assert "no logprobs" in trace.problem
    assert len(trace.answers) == 2


async def test_logits_that_are_no_numbers_are_a_fault_of_the_candidate(serve: Serve) -> None:
    """A damaged file, or a broken kernel, answers at full speed with null for a logarithm."""
    async with serve(FakeModel("nan")) as endpoint:
        trace = await measure_quality(Examined(endpoint, "m"), EXAM)
    assert trace.is_broken
    found = compare(trace, trace, QualityLimits())
    assert (found.passes, found.why) == (False, "the model's logits are not numbers")


async def test_an_endpoint_without_completions_says_so(serve: Serve) -> None:
    """What it answered is the reason why nothing was compared."""
    async with serve(FakeModel("broken")) as endpoint:
        trace = await measure_quality(Examined(endpoint, "m"), EXAM)
    assert "HTTP 500" in trace.problem
    assert "no kernel image" in trace.problem


async def test_a_dead_endpoint_is_an_error(tmp_path: Path) -> None:
    """A request for an answer that fails is a result of the trial."""
    with pytest.raises(QualityError):
        await measure_quality(Examined(Endpoint(socket_path=str(tmp_path / "none")), "m"), EXAM)


def test_the_exam_holds_several_kinds_of_text() -> None:
    """Code, dialogue and numbers among them; each gives all of its places."""
    from enginehouse.core.quality import word_ends

    exam = load_exam()
    assert {"code", "dialogue", "numbers", "story"} <= {text.domain for text in exam.texts}
    for text in exam.texts:
        assert len(word_ends(text.text, exam.places)) == exam.places
    assert exam.drafted.strip()
    assert len(exam.questions) >= 3
