"""The register of blocks: what does not work here, and what would lift it.

Reviewed blocks come from knowledge, a user's own from the trials that failed. Both have the same
shape, and their conditions are those of `doctor` (`core/conditions.py`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from enum import Enum

from enginehouse.core.conditions import Condition, holds, show_size
from enginehouse.core.engine import Refusal
from enginehouse.core.facts import Facts, show_value
from enginehouse.core.trial import Outcome, Trial

SURE = ("certain", "likely")
BUILD_DIGESTS = "builds.digests"
"""The fact that lists the digests of the builds that are installed."""
MORE_MEMORY = 1.1
"""A block for want of memory is looked at again when a tenth more is available than then."""


@dataclass(frozen=True)
class Trigger:
    """What would lift a block: in words, and as conditions that must all hold."""

    says: str
    when: tuple[Condition, ...]


@dataclass(frozen=True)
class Block:
    """Something that does not work. `engine` is `any` where it concerns all of them.

    `applies` says which machines it concerns; `again` is what to try once it is lifted. A `rule`
    is always in force and has no triggers. `since` is a date.
    """

    id: str
    engine: str
    cause: str
    what: str
    evidence: str
    since: str
    again: str
    applies: tuple[Condition, ...] = ()
    lifted_by: tuple[Trigger, ...] = ()
    sources: tuple[str, ...] = ()
    status: str = "observed"
    is_rule: bool = False
    trial_id: int = 0


class State(str, Enum):
    """Where a block stands on one machine."""

    IN_FORCE = "in force"
    LIFTED = "lifted"
    ELSEWHERE = "not this machine"


@dataclass(frozen=True)
class Standing:
    """A block on one machine: its state, the trigger that fired, the facts that were looked at."""

    block: Block
    state: State
    fired: str
    seen: tuple[str, ...]


def facts_by_engine(facts: Facts) -> Facts:
    """Return the facts with each engine's also under its own name, such as `engine.vllm.torch`."""
    named = []
    for member in facts.members("engine"):
        slug = re.sub(r"[^a-z0-9]+", "_", facts.text(f"{member}.name").lower()).strip("_")
        for fact in facts.under(member):
            part = fact.id.rpartition(".")[2]
            named.append(replace(fact, id=f"engine.{slug}.{part}"))
    return facts.plus(fact for fact in named if fact.id not in facts)


def standing_of(block: Block, facts: Facts) -> Standing:
    """Look at a block's triggers; what is unknown neither concerns a machine nor lifts anything."""
    looked_at = [*block.applies, *(c for trigger in block.lifted_by for c in trigger.when)]
    seen = tuple(dict.fromkeys(_show(condition, facts) for condition in looked_at))
    if not all(holds(condition, facts) for condition in block.applies):
        return Standing(block, State.ELSEWHERE, "", seen)
    for trigger in block.lifted_by:
        if all(holds(condition, facts) for condition in trigger.when):
            return Standing(block, State.LIFTED, trigger.says, seen)
    return Standing(block, State.IN_FORCE, "", seen)


def _show(condition: Condition, facts: Facts) -> str:
    fact = facts.fact(condition.fact)
    if fact is None:
        return f"{condition.fact} is not known"
    value = fact.value
    text = (
        show_size(float(value))
        if "bytes" in fact.id and not isinstance(value, (str, tuple))
        else show_value(value)
    )
    return f"{fact.id} is {text} ({fact.origin})"


def blocked(standings: Sequence[Standing], engine: str) -> Refusal | None:
    """Refuse an engine that a reviewed block in force names; not for a rule, nor for `any`.

    A user's own block is no refusal: it says what failed under its own settings.
    """
    for standing in standings:
        block = standing.block
        if standing.state is State.IN_FORCE and not block.trial_id and block.engine == engine:
            return Refusal(block.cause, f"{block.what} ({block.id}; `enginehouse recheck`)")
    return None


def blocks_of(trials: Sequence[Trial]) -> tuple[Block, ...]:
    """Derive a user's own blocks: of each build and model of which nothing was ever measured.

    Only where the last failure's cause is certain or likely. `trials` come newest first.
    """
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.build.digest, trial.model_digest), []).append(trial)
    found = []
    for group in groups.values():
        ended = [t for t in group if t.outcome not in (Outcome.RUNNING, Outcome.INTERRUPTED)]
        if ended and not any(t.has_measurement for t in ended):
            block = _block_of(ended[0])
            if block is not None:
                found.append(block)
    return tuple(found)


def _block_of(trial: Trial) -> Block | None:
    diagnosis = trial.diagnosis
    if diagnosis is None or diagnosis.cause is None or diagnosis.confidence not in SURE:
        return None
    return Block(
        id=f"trial-{trial.id}",
        engine=trial.build.engine,
        cause=diagnosis.cause,
        what=f"{trial.model_name} on {trial.build.label}: {diagnosis.title}",
        evidence=diagnosis.evidence[0].text if diagnosis.evidence else trial.detail,
        since=datetime.fromtimestamp(trial.started_at, timezone.utc).date().isoformat(),
        again=f"enginehouse find {trial.model_name} --workload {trial.workload}",
        lifted_by=_triggers_of(trial, diagnosis.cause),
        sources=diagnosis.sources,
        trial_id=trial.id,
    )


def _triggers_of(trial: Trial, cause: str) -> tuple[Trigger, ...]:
    """Return what could change the outcome: more memory, or in any case another build."""
    other_build = Trigger(
        f"{trial.build.label} is no longer what is installed",
        (Condition(BUILD_DIGESTS, "lacks", trial.build.digest),),
    )
    machine = trial.machine_before
    if not cause.startswith("memory.") or machine is None:
        return (other_build,)
    enough = int(MORE_MEMORY * machine.memory_available_bytes)
    more = Condition("memory.available_bytes", "above", enough)
    return (Trigger(f"more than {show_size(enough)} of memory is available", (more,)), other_build)
