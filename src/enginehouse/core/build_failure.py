"""What a failed build is told as: its log's verdict in the house's form of errors."""

from __future__ import annotations

from enginehouse.core.diagnose_verdict import Verdict
from enginehouse.core.errors import EngineError, EnginehouseError, MachineError

OF_THE_MACHINE = ("disk.", "memory.", "build.host_oom", "network.")
OWN_REMEDIES = {
    "build.host_oom": "fewer compilers at once: --jobs 1 (what is built already is kept)",
    "build.cuda_toolkit_too_old": "build for the CPU alone: --no-cuda",
}
MOST_LINES = 4


def build_failure(label: str, ended: str, verdict: Verdict, log: str) -> EnginehouseError:
    """Return the error of a failed step: the cause's name, or `build.failed` when it is unknown.

    `ended` says in words how the step ended, such as `exit code 1`.
    """
    lines = [f'"{piece.text}" (log line {piece.line})' for piece in verdict.evidence[:MOST_LINES]]
    if not lines and verdict.trouble:
        lines = [f'"{verdict.trouble.text}" (log line {verdict.trouble.line})']
    own = OWN_REMEDIES.get(verdict.cause or "")
    remedies = (
        *((own,) if own else ()),
        *verdict.remedies,
        f"enginehouse explain {log}",
        "run it again: it goes on with what is built already",
    )
    of_machine = (verdict.cause or "").startswith(OF_THE_MACHINE)
    kind = MachineError if of_machine else EngineError
    title = verdict.title if verdict.cause else "the cause is unknown"
    return kind(
        verdict.cause or "build.failed",
        f"{label} failed: {title}",
        evidence=(ended, *lines, log),
        remedies=remedies,
    )
