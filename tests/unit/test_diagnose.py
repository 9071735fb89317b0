"""A failure is explained by what is known, in the right order, or said to be unknown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.core.diagnose import BURST_BYTES, diagnose
from enginehouse.core.diagnose_facts import SIGNAL_NUMBERS, Facts
from enginehouse.core.diagnose_scan import scan
from enginehouse.core.diagnose_signature import Signature, When
from enginehouse.core.diagnose_verdict import EXCERPT_LINES, Verdict, judge
from enginehouse.core.machine import Machine
from enginehouse.core.trial import Diagnosis, MemorySample, Outcome, Stage
from enginehouse.knowledge.patterns import SignatureBook
from enginehouse.knowledge.signatures_loader import signature_of
from tests.unit.test_signature_schema import CAUSES, GOOD
from tests.unit.values import MACHINE

BOOM = signature_of("vllm", "boom", GOOD | {"stages": ["load"]}, CAUSES)
SHORT = (MemorySample(1.0, 300 << 20, 200 << 20, 100 << 20),)
PLENTY = (MemorySample(1.0, 300 << 20, None, BURST_BYTES + 1),)


def explain(
    log: Sequence[str] = (),
    *signatures: Signature,
    outcome: Outcome = Outcome.EXITED,
    exit_code: int | None = 1,
    signal: str | None = None,
    stage: Stage = Stage.LOAD,
    memory: Sequence[MemorySample] = (),
    machine: Machine = MACHINE,
    detail: str = "",
    kernel_says: str = "",
) -> Diagnosis:
    """Diagnose an engine that ended with exit code 1 while loading, unless told otherwise."""
    return diagnose(
        outcome=outcome,
        exit_code=None if signal else exit_code,
        signal=signal,
        stage=stage,
        log=log,
        memory=memory,
        machine=machine,
        book=SignatureBook(signatures),
        detail=detail,
        kernel_says=kernel_says,
    )


def test_a_signature_brings_its_cause_remedies_and_line() -> None:
    """A match carries all that the signature says and the numbered line that it rests on."""
    found = explain(("loading", "  boom 7 "), BOOM)
    assert (found.cause, found.title, found.signature) == (BOOM.cause, BOOM.title, "vllm/boom")
    assert (found.remedies, found.sources) == (BOOM.remedies, BOOM.sources)
    assert [(line.line, line.text) for line in found.evidence] == [(2, "boom 7")]


@pytest.mark.parametrize("outcome", [Outcome.MEASURED, Outcome.RUNNING])
def test_only_a_failed_trial_is_diagnosed(outcome: Outcome) -> None:
    """A log line of a trial that did not fail explains nothing."""
    with pytest.raises(ValueError, match="has not failed"):
        explain(("boom",), BOOM, outcome=outcome)


@pytest.mark.parametrize(
    ("outcome", "cause"),
    [
        (Outcome.GUARDED, "memory.host.insufficient"),
        (Outcome.TIMED_OUT, "runtime.load_timeout"),
        (Outcome.INTERRUPTED, None),
        (Outcome.BAD_ANSWER, None),
    ],
)
def test_what_we_did_ourselves_comes_before_any_text(outcome: Outcome, cause: str | None) -> None:
    """The guard, a deadline, Ctrl-C and our judgement of an answer are not explained by a log."""
    found = explain(("boom",), BOOM, outcome=outcome, detail="what we saw", memory=SHORT)
    assert (found.cause, found.signature) == (cause, "")


def test_a_signature_may_ask_to_explain_a_bad_answer() -> None:
    """A signature that names the outcome explains a bad answer."""
    bad = dataclasses.replace(BOOM, when=When(outcomes=(Outcome.BAD_ANSWER,)))
    assert explain(("boom",), bad, outcome=Outcome.BAD_ANSWER).signature == "vllm/boom"
    assert explain(("boom",), bad).signature == ""


def test_the_guard_is_named_with_its_figures() -> None:
    """A trial that the guard ended says what was available and what the engine held."""
    title = explain(outcome=Outcome.GUARDED, memory=SHORT).title
    assert "100 MiB was available" in title
    assert "200 MiB" in title
    assert "before the engine held any" in explain(outcome=Outcome.GUARDED).title


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        (Stage.START, "trials.start_deadline"),
        (Stage.LOAD, "trials.load_deadline"),
        (Stage.FIRST_TOKEN, "trials.first_token_deadline"),
        (Stage.MEASURE, "trials.measure_deadline"),
    ],
)
def test_a_deadline_names_its_setting(stage: Stage, setting: str) -> None:
    """A stage that took too long says which setting would give it more time."""
    found = explain(("slow",), outcome=Outcome.TIMED_OUT, stage=stage)
    assert setting in found.remedies[0]
    assert (found.cause is not None) == (stage is Stage.LOAD)
    assert found.evidence[-1].text == "slow"


def test_an_illegal_instruction_is_the_cpus_want_whatever_the_log_says() -> None:
    """SIGILL means that the build was made for another CPU."""
    assert explain(("boom",), BOOM, signal="SIGILL").cause == "cpu.isa_unsupported"


def test_sigkill_is_likely_a_lack_of_memory_and_says_only_likely() -> None:
    """A kill from outside with memory short, or unknown, is likely the kernel's, with figures."""
    found = explain(("boom",), BOOM, signal="SIGKILL", memory=SHORT)
    assert found.cause == "memory.host.oom_killed"
    assert "likely" in found.title
    assert "100 MiB was available" in found.title
    assert explain(signal="SIGKILL").cause == "memory.host.oom_killed"


def test_sigkill_with_plenty_of_memory_is_not_blamed_on_memory() -> None:
    """A kill while more was available than an engine can soon take came from outside."""
    found = explain(signal="SIGKILL", memory=PLENTY)
    assert (found.cause, found.confidence) == ("system.stopped_from_outside", "low")
    assert found.alternatives == ("memory.host.oom_killed",)
    assert "though memory was not short" in found.title


def test_sigkill_is_for_certain_the_kernels_when_the_cgroup_says_so() -> None:
    """The cgroup's own count of kills decides, whatever the machine had available."""
    said = "/sys/fs/cgroup/x/memory.events: oom_kill 0 before, 1 after"
    found = explain(signal="SIGKILL", memory=PLENTY, kernel_says=said)
    assert (found.cause, found.confidence) == ("memory.host.oom_killed", "certain")
    assert [line.text for line in found.evidence] == [said]
    assert explain(signal="SIGSEGV", memory=PLENTY, kernel_says=said).confidence != "certain"


def test_an_engine_that_never_started_is_explained_by_what_its_start_was_refused_with() -> None:
    """There is no log then; the refusal is read like one."""
    anywhere = dataclasses.replace(BOOM, when=When())
    found = explain((), anywhere, stage=Stage.START, detail="boom, says the kernel")
    assert found.cause == BOOM.cause


def test_sigkill_under_a_memory_limit_may_be_memory_although_much_was_available() -> None:
    """The machine's available memory says nothing about a container's limit."""
    limited = dataclasses.replace(MACHINE, memory_limit_bytes=1 << 30)
    found = explain(signal="SIGKILL", memory=PLENTY, machine=limited)
    assert found.cause == "memory.host.oom_killed"


def test_what_is_not_known_is_said_to_be_unknown_with_the_tail() -> None:
    """An unmatched failure has no cause and shows the log's last written lines, numbered."""
    found = explain([*(f"line {n}" for n in range(100)), "", " "], detail="ended with exit code 7")
    assert (found.cause, found.title) == (None, "ended with exit code 7")
    assert [line.line for line in found.evidence] == list(range(93, 101))
    assert explain(exit_code=7).title == "unknown: the engine ended with exit code 7"


def test_none_of_excludes() -> None:
    """A line that `none_of` names takes a signature out."""
    signature = dataclasses.replace(BOOM, none_of=("fine",))
    assert explain(("boom",), signature).cause == BOOM.cause
    assert explain(("boom", "all fine"), signature).cause is None


def test_all_of_wants_every_pattern() -> None:
    """A signature with two patterns needs a line for each; its evidence is in the log's order."""
    signature = dataclasses.replace(BOOM, all_of=("boom", "crash"))
    assert explain(("boom",), signature).cause is None
    found = explain(("crash", "boom"), signature)
    assert [line.text for line in found.evidence] == ["crash", "boom"]


def test_stage_signal_and_exit_code_are_conditions() -> None:
    """A signature holds only for the stages, signals and exit codes that it names."""
    assert explain(("boom",), BOOM, stage=Stage.MEASURE).cause is None
    aborted = dataclasses.replace(BOOM, when=When(signals=("SIGABRT",)))
    assert explain(("boom",), aborted).cause is None
    assert explain(("boom",), aborted, signal="SIGABRT").signature == "vllm/boom"
    missing = dataclasses.replace(BOOM, when=When(exit_codes=(127,)))
    assert explain(("boom",), missing).cause is None
    assert explain(("boom",), missing, exit_code=127).signature == "vllm/boom"
    killed = dataclasses.replace(BOOM, when=When(signals=("SIGKILL",)))
    assert explain(("boom",), killed, signal="SIGKILL").signature == "vllm/boom"


def test_the_first_line_in_time_wins_and_precedence_on_one_line() -> None:
    """Of two causes the first error wins; on one line the declared one; `overrides` everywhere."""
    early = dataclasses.replace(BOOM, id="early", all_of=("first",))
    late = dataclasses.replace(BOOM, id="late", all_of=("second",))
    log = ("first", "second")
    assert explain(log, late, early).signature == "vllm/early"
    special = dataclasses.replace(late, all_of=("second", "first"), precedence=1)
    assert explain(log, early, special).signature == "vllm/late"
    over = dataclasses.replace(late, overrides=("vllm/early",))
    assert explain(log, early, over).signature == "vllm/late"


def test_a_giant_line_is_matched_by_its_ends_and_cut_in_the_evidence() -> None:
    """A line of a megabyte is read at both ends, and does not fill the record."""
    found = explain(("boom " + "x" * 1_000_000,), BOOM)
    assert len(found.evidence[0].text) == 300
    assert explain(("x" * 1_000_000 + " boom",), BOOM).cause == BOOM.cause
    middle = "x" * 500_000
    assert explain((f"{middle} boom {middle}",), BOOM).cause is None


FAILED = [o for o in Outcome if o not in (Outcome.MEASURED, Outcome.RUNNING)]
ENDINGS = [(None, None), (0, None), (1, None), (137, None)] + [
    (None, name) for name in sorted(SIGNAL_NUMBERS.values())
]
LOGS = st.one_of(
    st.just(()),
    st.lists(st.text(max_size=60), max_size=12),
    st.lists(
        st.sampled_from(["boom", "Error: x", "Killed", "\x1b[31m", "\r", "ready"]), max_size=9
    ),
)


@settings(max_examples=20, deadline=None)
@given(log=LOGS)
def test_every_outcome_in_every_stage_has_an_answer(log: Sequence[str]) -> None:
    """Each outcome x stage x ending has a title; what is known has remedies, what is not none."""
    book = SignatureBook([BOOM])
    for outcome in FAILED:
        for stage in Stage:
            for code, signal in ENDINGS:
                for memory in ((), SHORT):
                    found = diagnose(
                        outcome=outcome, exit_code=code, signal=signal, stage=stage, log=log,
                        memory=memory, machine=None, book=book, detail="",
                    )  # fmt: skip
                    assert found.title.strip()
                    assert (found.cause is None) == (found.confidence in ("", "unknown")), found
                    assert found.cause is None or found.remedies


def verdict_on(log: str, *signatures: Signature, exit_code: int | None = None) -> Verdict:
    """Judge a log of which nothing else is known."""
    book = SignatureBook(signatures)
    return judge(book, scan([log.encode()], book), Facts(exit_code=exit_code))


BENIGN = "misleading.benign_warning"
HARMLESS = signature_of(
    "vllm",
    "harmless",
    {**GOOD, "kind": "benign", "all_of": ["looks bad"], "cause": BENIGN},
    CAUSES | {BENIGN},
)


def test_a_harmless_line_is_the_answer_only_where_it_is_the_question() -> None:
    """An excerpt around it asks what it means; in a whole run's log it is no diagnosis."""
    alone = verdict_on("W looks bad", HARMLESS)
    assert (alone.cause, alone.has_failed) == ("misleading.benign_warning", False)
    run = verdict_on("fine\n" * EXCERPT_LINES + "W looks bad", HARMLESS)
    assert (run.cause, run.has_failed, run.remedies) == (None, False, ())
    assert [line.says for line in run.misleading] == [HARMLESS.title]
    assert "harmless" in run.title


def test_a_harmless_line_explains_no_failure() -> None:
    """Where the ending or an error says that something failed, the harmless line is not it."""
    for log, code in (("W looks bad", 1), ("W looks bad\nRuntimeError: it broke", None)):
        found = verdict_on(log, HARMLESS, exit_code=code)
        assert (found.cause, found.has_failed) == (None, True)
        assert found.misleading


def test_a_line_that_speaks_of_trouble_is_shown_when_nothing_says_how_it_ended() -> None:
    """Neither called a failure nor called fine: the line is shown, and what would decide."""
    found = verdict_on("a\n" * 30 + "the widget failed: code 77\n" + "b\n" * 30)
    assert (found.cause, found.has_failed, found.may_have_failed) == (None, False, True)
    assert found.evidence[0].text == "the widget failed: code 77"
    assert "--exit-status" in found.notes[0]
    assert verdict_on("").notes
    assert verdict_on("all is fine").title == "the log shows no failure"
