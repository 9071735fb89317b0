"""A stored choice, and whether it still holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.candidate import Build, Candidate, Settings, show_setting
from enginehouse.core.machine import Machine
from enginehouse.core.measurement import Measurement
from enginehouse.core.model import Model


@dataclass(frozen=True)
class Choice:
    """The winner of a search with what it was found on; `chosen_at` is Unix time.

    `asked` are the settings that the user wanted, which a remedy may have had to change. `form` is
    the file that is served when it is not the one that was asked for; `refusals` is what the search
    said of candidates that it did not try.
    """

    model_digest: str
    model_name: str
    workload: str
    machine_fingerprint: str
    machine_facts: tuple[tuple[str, str], ...]
    build: Build
    candidate: Candidate
    trial_id: int
    measurement: Measurement
    chosen_at: float
    asked: Settings = ()
    form: Model | None = None
    refusals: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


def stale_reasons(
    choice: Choice, machine: Machine, model: Model, builds: Sequence[Build], asked: Settings = (),
    workloads: Sequence[str] = (),
) -> tuple[str, ...]:  # fmt: skip
    """Say in words why a choice no longer holds; empty when it does.

    A choice holds for a user who asks for no settings, whatever was asked for when it was made. For
    several workloads it holds when all of them were searched for with it.
    """
    reasons = []
    if len(workloads) > 1 and not set(workloads) <= set(choice.beside):
        before = ", ".join(choice.beside or (choice.workload,))
        reasons.append(f"it was found for {before}, and {', '.join(workloads)} are asked for now")
    before_asked = dict(choice.asked)
    for wanted, setting in asked:
        if before_asked.get(wanted) != setting:
            reasons.append(
                f"it was found for {wanted} {show_setting(before_asked.get(wanted))}, "
                f"and {show_setting(setting)} is asked for now"
            )
    if choice.machine_fingerprint != machine.fingerprint():
        facts = dict(choice.machine_facts)
        for name, value in machine.fingerprint_facts():
            if facts.get(name) != value:
                reasons.append(
                    f"the machine's {name} changed from {facts.get(name) or 'none'} "
                    f"to {value or 'none'}"
                )
    if choice.model_digest != model.digest:
        reasons.append("the model's file changed")
    if choice.build.digest not in {build.digest for build in builds}:
        here = ", ".join(build.label for build in builds) or "no build"
        reasons.append(f"{choice.build.label} is no longer what is installed (found: {here})")
    return tuple(reasons)
