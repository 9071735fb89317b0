"""A failure as a row of a table: how it is provoked, and what must be said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from enginehouse.cli import cli
from enginehouse.core.trial import Outcome, Trial
from tests.real.broken import write_llama
from tests.real.provoke import Plan, provoke

Arrange = Callable[[Path, ExitStack], Plan]
ENDED = {Outcome.EXITED, Outcome.BAD_ANSWER}


@dataclass(frozen=True)
class Failure:
    """`words` stand in the evidence, or in the title where no log tells.

    With `is_among` the log cannot tell the cause from others: it must be named, first or as what it
    may also be, and nothing may be called certain. `explains` is off where only the trial knows
    what happened (a deadline, a guard, the kernel's own count).
    """

    name: str
    cause: str
    words: str
    arrange: Arrange
    is_among: bool = False
    explains: bool = True
    outcome: Outcome = Outcome.EXITED


def check(failure: Failure, folder: Path, stack: ExitStack, patch: pytest.MonkeyPatch) -> Trial:
    """Provoke a failure and hold its trial, and `enginehouse explain`, to what must be said."""
    plan = failure.arrange(folder, stack)
    trial = provoke(plan, write_llama(folder / "whole.gguf"), folder)
    found = trial.diagnosis
    assert (trial.outcome, trial.measurement) == (failure.outcome, None), trial.detail
    assert found is not None
    others = found.alternatives if failure.is_among else ()
    assert failure.cause in (found.cause, *others), found
    assert found.cause is not None
    assert found.confidence in ("certain", "likely", "low")
    assert not (failure.is_among and found.confidence == "certain")
    said = "\n".join(evidence.text for evidence in found.evidence)
    assert failure.words in f"{said}\n{found.title}", found
    assert found.remedies
    if failure.explains:
        told = explain(folder, patch)
        named = {told["cause"], *(other["cause"] for other in told["alternatives"])}
        assert told["confidence"] != "unknown", told
        assert failure.cause in (named if failure.is_among else {told["cause"]}), told
    return trial


def explain(folder: Path, patch: pytest.MonkeyPatch) -> Any:
    """Return what `enginehouse explain 1 --json` says of the folder's first trial."""
    patch.setenv("ENGINEHOUSE_STATE_DIR", str(folder))
    patch.chdir(folder)
    done = CliRunner().invoke(cli, ["explain", "1", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def plain(**plan: Any) -> Arrange:
    """Arrange nothing but what the plan says."""
    return lambda folder, stack: Plan(**plan)


def file(make: Callable[[Path], Path], **plan: Any) -> Arrange:
    """Arrange that another file is loaded than the whole model."""
    return lambda folder, stack: Plan(model=make(folder / "model.gguf"), **plan)
