"""Remedies act: each action is a pure change, a retry, or said to be somebody else's."""

from __future__ import annotations

import dataclasses

import pytest

from enginehouse.core.builds import following_build
from enginehouse.core.candidate import Candidate, Setting, settings_of
from enginehouse.core.choose import choose
from enginehouse.core.engine import Tunable, without_flags
from enginehouse.core.forms import Forms
from enginehouse.core.machine import Gpu
from enginehouse.core.propose import Place, Proposal, base_of, propose
from enginehouse.core.remedies import (
    ACTIONS,
    CHANGES,
    ELSEWHERE,
    NEXT_BUILD,
    RETRIES,
    Situation,
    remedied,
)
from enginehouse.core.trial import Diagnosis, Evidence, Outcome, Trial
from enginehouse.core.workload import WORKLOADS
from enginehouse.engines.llama_cpp import ENGINE, TUNABLES
from tests.unit.values import MACHINE, MODEL, WHEEL, trial

CHAT = WORKLOADS["chat"]
MINIMAL = ENGINE.minimal(WHEEL, MODEL, CHAT)
SITUATION = Situation(TUNABLES, CHAT.context_tokens, 8192)
VLLM_LIKE = Situation(
    (
        Tunable("gpu_memory_utilization", "share of the GPU's memory", "--gpu-memory-utilization"),
        Tunable("enforce_eager", "no CUDA graphs", "--enforce-eager"),
        Tunable("dtype", "type of the weights", "--dtype"),
        Tunable("tensor_parallel_size", "GPUs", "--tensor-parallel-size"),
    ),
    CHAT.context_tokens,
    8192,
)


def candidate(**settings: Setting) -> Candidate:
    return Candidate("llama.cpp", WHEEL.digest, settings_of(settings))


def test_every_action_is_taken_by_exactly_one() -> None:
    """An action that a signature may name changes a candidate, retries it, or is another's."""
    kinds = (set(CHANGES), set(RETRIES), set(ELSEWHERE))
    assert set().union(*kinds) == set(ACTIONS)
    assert sum(map(len, kinds)) == len(ACTIONS)
    assert set(NEXT_BUILD) <= set(ELSEWHERE)


@pytest.mark.parametrize(
    ("action", "before", "changed"),
    [
        ("shorter-context", {"context": 8192}, {"context": 4096}),
        ("shorter-context", {"context": 600}, {"context": CHAT.context_tokens}),
        ("longer-context", {"context": 1024}, {"context": 2048}),
        ("longer-context", {"context": 6000}, {"context": 8192}),
        ("fewer-sequences", {"slots": 16}, {"slots": 8}),
        ("smaller-batch", {}, {"ubatch": 256, "batch": 256}),
        ("quantized-kv", {"flash_attention": "off"}, {"flash_attention": None, "kv_type": "q8_0"}),
        ("full-kv", {"kv_type": "q8_0"}, {"kv_type": None}),
        ("flash-attention-on", {"flash_attention": "off"}, {"flash_attention": "on"}),
        ("flash-attention-off", {"kv_type": "q8_0"}, {"flash_attention": "off", "kv_type": None}),
        ("fewer-gpu-layers", {}, {"gpu_layers": 32}),
        ("fewer-gpu-layers", {"gpu_layers": 32}, {"gpu_layers": 16}),
        ("cpu-only", {"gpu_layers": 32}, {"gpu_layers": 0}),
        ("no-mmap", {}, {"mmap": "off"}),
        ("use-mmap", {"mmap": "off"}, {"mmap": None}),
        ("no-mlock", {"mlock": "on"}, {"mlock": None}),
        ("no-prompt-cache", {"prompt_cache_mib": 256}, {"prompt_cache_mib": 0}),
        ("no-speculation", {"speculation": "ngram-mod"}, {"speculation": None}),
        ("jinja-on", {"jinja": "off"}, {"jinja": "on"}),
        ("other-template", {}, {"chat_template": "chatml"}),
        ("longer-deadline", {}, {"patience": 2}),
    ],
)
def test_what_an_action_makes_of_a_candidate(
    action: str, before: dict[str, Setting], changed: dict[str, Setting | None]
) -> None:
    """Each action changes what it says and nothing else."""
    start = candidate(**before)
    assert list(remedied(start, [action], SITUATION)) == [(action, start.with_settings(**changed))]


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("lower-gpu-share", {}, {"gpu_memory_utilization": 0.8}),
        ("higher-gpu-share", {"gpu_memory_utilization": 0.5}, {"gpu_memory_utilization": 0.6}),
        ("eager-mode", {}, {"enforce_eager": "on"}),
        ("half-dtype", {"dtype": "bfloat16"}, {"dtype": "float16"}),
        ("single-gpu", {"tensor_parallel_size": 2}, {"tensor_parallel_size": 1}),
    ],
)
def test_what_an_action_makes_of_a_vllm_candidate(
    action: str, before: dict[str, Setting], after: dict[str, Setting]
) -> None:
    """The same for the settings that only an engine like vLLM has."""
    assert list(remedied(candidate(**before), [action], VLLM_LIKE)) == [
        (action, candidate(**after))
    ]


@pytest.mark.parametrize(
    ("action", "before"),
    [
        ("shorter-context", {"context": CHAT.context_tokens}),
        ("longer-context", {"context": 8192}),
        ("fewer-sequences", {"slots": 1}),
        ("smaller-batch", {"ubatch": 32}),
        ("quantized-kv", {"kv_type": "q8_0"}),
        ("full-kv", {}),
        ("lower-gpu-share", {}),
        ("eager-mode", {}),
        ("cpu-only", {"gpu_layers": 0}),
        ("longer-deadline", {"patience": 4}),
        ("drop-page-cache", {}),
        ("other-build", {}),
        ("trust-remote-code", {}),
    ],
)
def test_what_an_action_cannot_change(action: str, before: dict[str, Setting]) -> None:
    """An action ends at its floor, or where the engine has no such setting, or needs consent."""
    assert list(remedied(candidate(**before), [action], SITUATION)) == []


@pytest.mark.parametrize(
    ("said", "before", "after"),
    [
        ("error: invalid argument: --spec-type", {"speculation": "x", "slots": 1}, {"slots": 1}),
        ("Unsupported cache type: q9_9", {"kv_type": "q9_9", "slots": 1}, {"slots": 1}),
        (
            "error: invalid argument: --no-webui",
            {"slots": 1},
            {"slots": 1, "leave_out": "--no-webui"},
        ),
        (
            "error: invalid argument: --metrics",
            {"leave_out": "--no-webui"},
            {"leave_out": "--metrics --no-webui"},
        ),
    ],
)
def test_the_option_that_is_refused_is_dropped(
    said: str, before: dict[str, Setting], after: dict[str, Setting]
) -> None:
    """The flag or value that the failure names goes, a fixed flag of ours included."""
    situation = dataclasses.replace(SITUATION, said=said)
    found = list(remedied(candidate(**before), ["drop-option"], situation))
    assert found == [("drop-option", candidate(**after))]


def test_a_flag_is_left_out_with_its_value() -> None:
    """What follows a flag goes with it, the next flag stays."""
    argv = ("server", "--a", "1", "--b", "--c", "x", "y", "--d")
    assert without_flags(argv, {"--a", "--c"}) == ("server", "--b", "--d")


def place(available_bytes: int = 12 << 30) -> Place:
    machine = dataclasses.replace(MACHINE, memory_available_bytes=available_bytes)
    return Place(ENGINE, machine, Forms((MODEL,)), CHAT, 512 << 20)


def failed(candidate: Candidate, number: int, *actions: str, said: str = "") -> Trial:
    diagnosis = Diagnosis("config.unknown_flag", "refused", (Evidence(3, said),), actions=actions)
    record = trial(candidate, None, Outcome.EXITED)
    return dataclasses.replace(record, id=number, diagnosis=diagnosis)


def next_after(trials: list[Trial], minimal: Candidate, where: Place | None = None) -> Proposal:
    proposal = propose(where or place(), minimal, trials)
    assert proposal is not None
    return proposal


def test_the_next_candidate_follows_from_the_diagnosis() -> None:
    """The first remedy that applies is tried next, and the proposal says what led to it."""
    minimal = MINIMAL.with_settings(mlock="on")
    proposal = next_after([failed(minimal, 7, "fewer-sequences", "no-mlock")], minimal)
    assert proposal.candidate == MINIMAL
    assert proposal.remedy is not None
    assert proposal.remedy.trial_id == 7
    assert proposal.remedy.action == "no-mlock"
    assert proposal.reason == (
        "after trial 7 (config.unknown_flag): do not lock the weights in memory: mlock default"
    )


def test_the_ladder_stands_on_what_a_remedy_led_to() -> None:
    """Once a mended candidate gave a token, levers are tried on it and not on the failed one."""
    minimal = MINIMAL.with_settings(kv_type="q9_9")
    trials = [failed(minimal, 1, "full-kv"), trial(MINIMAL, 50.0)]
    assert base_of(trials, minimal) == MINIMAL
    proposal = next_after(trials, minimal)
    assert proposal.candidate.get("kv_type") != "q9_9"
    assert proposal.candidate != MINIMAL


def test_a_second_remedy_is_tried_when_the_first_led_nowhere() -> None:
    """The way goes back to the earlier failure's next remedy, and ends when all failed."""
    minimal = MINIMAL.with_settings(mlock="on", mmap="off")
    first = next_after([failed(minimal, 1, "no-mlock", "use-mmap")], minimal)
    trials = [failed(minimal, 1, "no-mlock", "use-mmap"), failed(first.candidate, 2)]
    second = next_after(trials, minimal)
    assert second.candidate == minimal.with_settings(mmap=None)
    assert propose(place(), minimal, [*trials, failed(second.candidate, 3)]) is None


def test_a_retry_is_made_once() -> None:
    """The same candidate is tried again for a remedy like a free port, but not for ever."""
    one = failed(MINIMAL, 1, "free-port")
    assert next_after([one], MINIMAL).candidate == MINIMAL
    assert propose(place(), MINIMAL, [one, failed(MINIMAL, 2, "free-port")]) is None


def test_what_cannot_fit_is_made_smaller_before_it_is_refused() -> None:
    """Of a context that is predicted not to fit, the largest that does is tried."""
    model = dataclasses.replace(MODEL, context_length=1 << 20)
    wide = MINIMAL.with_settings(context=1 << 20)
    where = dataclasses.replace(place(4 << 30), forms=Forms((model,)))
    proposal = next_after([], wide, where)
    assert proposal.refusal is None
    assert proposal.remedy is not None
    assert proposal.remedy.trial_id == 0
    context = int(proposal.candidate.get("context") or 0)
    assert where.refuse(proposal.candidate) is None
    assert where.refuse(proposal.candidate.with_settings(context=context + 256)) is not None


def test_what_was_made_smaller_and_failed_is_mended_although_memory_moved_meanwhile() -> None:
    """The failed trial's remedies are taken up; the context is not fitted to memory once more."""
    model = dataclasses.replace(MODEL, context_length=1 << 20)
    wide = MINIMAL.with_settings(context=1 << 20)
    first = next_after([], wide, dataclasses.replace(place(4 << 30), forms=Forms((model,))))
    tried = failed(first.candidate, 1, "shorter-context")
    tried = dataclasses.replace(tried, remedy=first.remedy)
    second = next_after([tried], wide, dataclasses.replace(place(3 << 30), forms=Forms((model,))))
    assert second.remedy is not None
    assert second.remedy.trial_id == 1
    assert int(second.candidate.get("context") or 0) <= int(first.candidate.get("context") or 0) / 2


def test_layers_are_not_taken_off_a_gpu_that_is_not_there() -> None:
    """On a machine without one the next remedy comes at once."""
    trials = [failed(MINIMAL, 1, "fewer-gpu-layers", "cpu-only", "full-kv", "quantized-kv")]
    assert next_after(trials, MINIMAL).candidate == MINIMAL.with_settings(kv_type="q8_0")
    gpu = Gpu("NVIDIA A2", "nvidia", 16 << 30)
    machine = dataclasses.replace(MACHINE, gpus=(gpu,))
    proposal = next_after(trials, MINIMAL, dataclasses.replace(place(), machine=machine))
    assert proposal.candidate.get("gpu_layers") == 32


def test_an_interrupted_trial_is_not_mended() -> None:
    """Ctrl-C is the user's; nothing follows from it."""
    record = failed(MINIMAL, 1, "no-mmap")
    assert (
        propose(place(), MINIMAL, [dataclasses.replace(record, outcome=Outcome.INTERRUPTED)])
        is None
    )


def test_the_next_build_answers_what_the_last_one_failed_of() -> None:
    """A build's first candidate is recorded as the remedy of the build before, when it is one."""
    proposal = Proposal(MINIMAL, "the minimal candidate comes first")
    answer = following_build(proposal, [failed(MINIMAL, 4, "other-build")]).remedy
    assert answer is not None
    assert (answer.trial_id, answer.action) == (4, "other-build")
    assert following_build(proposal, [failed(MINIMAL, 4, "fetch-again")]) == proposal
    assert following_build(proposal, [trial(MINIMAL, 3.0)]) == proposal


def test_the_leaderboard_shows_the_chain() -> None:
    """The winner says what led to it, and the failed candidate which trial answered it."""
    minimal = MINIMAL.with_settings(mlock="on")
    failure = failed(minimal, 1, "no-mlock")
    proposal = next_after([failure], minimal)
    mended = dataclasses.replace(trial(proposal.candidate, 9.0), id=2, remedy=proposal.remedy)
    ranked = choose([failure, mended], proposal.candidate)
    assert ranked[0].reason.startswith("chosen: after trial 1 (config.unknown_flag)")
    assert ranked[1].reason == "failed: refused; what was done about it: trial 2"


def test_a_mended_failure_does_not_count_against_the_same_candidate() -> None:
    """A candidate that failed for a taken port and then worked can win."""
    failure = failed(MINIMAL, 1, "free-port")
    proposal = next_after([failure], MINIMAL)
    again = dataclasses.replace(trial(MINIMAL, 9.0), id=2, remedy=proposal.remedy)
    assert choose([failure, again], MINIMAL)[0].output_tok_per_s == 9.0
