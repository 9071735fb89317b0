"""What surrounds a log, as far as it is known: the platform, and how the process ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from enginehouse.core.diagnose_signature import When
from enginehouse.core.machine import Machine
from enginehouse.core.trial import Outcome, Stage

SIGNAL_NUMBERS = {
    1: "SIGHUP", 2: "SIGINT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM",
}  # fmt: skip
SIGNAL_WORDS = {
    "illegal instruction": "SIGILL",
    "abort trap": "SIGABRT",
    "aborted": "SIGABRT",
    "bus error": "SIGBUS",
    "killed": "SIGKILL",
    "oom-kill": "SIGKILL",
    "segmentation fault": "SIGSEGV",
    "terminated": "SIGTERM",
}
FAILED_OUTCOMES = (Outcome.EXITED, Outcome.BAD_ANSWER, Outcome.TIMED_OUT, Outcome.GUARDED)

TAG_WORDS = (
    (r"jetson|tegra|l4t|jetpack|\borin\b|xavier|\bagx\b|\bigx\b", "jetson arm64 unified nvidia"),
    (r"\borin\b|sm_87", "orin"),
    (r"xavier", "xavier"),
    (r"jetson[ -]?nano|nano (?:2|4) ?gb|\btx[12]\b", "nano"),
    (r"\bthor\b", "thor jetson arm64 unified nvidia blackwell"),
    (r"spark|gb10", "spark arm64 unified nvidia blackwell"),
    (r"gh200|grace|\buma\b|unified|apple|\bm[1-4] (?:pro|max|ultra)\b", "unified"),
    (r"\bmig\b", "mig nvidia"),
    (r"vgpu|grid\b|-\d+q\b", "vgpu nvidia"),
    (r"docker|container|lxc|\bngc\b", "container"),
    (r"podman", "container podman"),
    (r"kubernetes|openshift|\bk8s\b|\bpod\b", "container kubernetes"),
    (r"wsl", "wsl linux"),
    (r"windows|\bwin\d*\b", "windows"),
    (r"macos|darwin|metal\b", "macos"),
    (r"linux|ubuntu|debian|fedora|nixos", "linux"),
    (r"x86_64|amd64|x64", "x86_64"),
    (r"aarch64|arm64|\barm\b", "arm64"),
    (r"rocm|radeon|\bmi\d{3}|\bhip\b", "amd"),
    (r"intel-xpu|\bxpu\b|\barc\b|sycl", "intel"),
    (r"ascend|\bnpu\b", "ascend"),
    (r"\bcpu\b", "cpu"),
    (r"cuda|nvidia|rtx|gtx|\b[avhlt]\d{1,3}s?\b|\bp\d{2,3}\b|titan|geforce|tesla", "nvidia"),
    (r"blackwell|rtx ?50\d0|\bb[23]00\b|gb200", "blackwell nvidia"),
)
"""Words of a platform's description → tags."""
L4T = re.compile(r"(?i)(?:l4t|jetson linux)[ :-]*r?(\d\d(?:\.\d+){1,2})|\br(3\d(?:\.\d+){1,2})\b")
JETPACK = re.compile(r"(?i)jet ?pack[ -]*(\d+(?:\.\d+){0,2})")
L4T_OF_JETPACK = {
    "4.6": "32.6", "5.0": "34.1", "5.1": "35.2", "5.1.1": "35.3", "5.1.2": "35.4.1",
    "5.1.3": "35.5", "6.0": "36.3", "6.1": "36.4", "6.2": "36.4.3", "6.2.1": "36.4.4",
    "6.2.2": "36.5", "7.0": "38.2", "7.1": "38.4", "7.2": "39.2",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is known beside the log; empty where nothing is."""

    tags: frozenset[str] = frozenset()
    l4t: tuple[int, ...] = ()
    exit_code: int | None = None
    signal: str = ""
    outcome: Outcome | None = None
    stage: Stage | None = None

    @property
    def has_failed(self) -> bool:
        """Whether it is known, other than from the log, that something failed."""
        return (
            self.outcome in FAILED_OUTCOMES
            or self.signal not in ("", "SIGTERM", "SIGINT")
            or self.exit_code not in (None, 0, 130, 143)
        )

    def with_tags(self, tags: Iterable[str]) -> Facts:
        """Add what the log itself tells of the platform."""
        return replace(self, tags=_close(self.tags | frozenset(tags)))

    def with_ending(self, exit_code: int | None, signal: str) -> Facts:
        """Add how the log says that the process ended, unless the caller knew."""
        if self.signal or self.exit_code is not None:
            return self
        return replace(self, exit_code=exit_code, signal=signal)


def facts_of_text(platform: str) -> Facts:
    """Return what a platform's description tells, in anybody's words."""
    words = platform.lower()
    tags = {tag for pattern, tags in TAG_WORDS if re.search(pattern, words) for tag in tags.split()}
    return Facts(tags=_close(frozenset(tags)), l4t=l4t_of(platform))


def facts_of_machine(machine: Machine) -> Facts:
    """Return what a machine's snapshot tells."""
    told = facts_of_text(" ".join((machine.board, machine.architecture, machine.os_name)))
    tags = set(told.tags)
    for gpu in machine.gpus:
        tags |= facts_of_text(gpu.name).tags | {gpu.vendor.lower()} | _memory_tags(gpu.unified)
    if machine.l4t:
        tags |= facts_of_text("l4t").tags
    if not machine.gpus and not machine.l4t:
        tags.add("cpu")
    known = frozenset(tags)
    return Facts(tags=_close(known), l4t=numbers_of(machine.l4t) or told.l4t)


def _memory_tags(is_unified: bool) -> set[str]:
    return {"unified"} if is_unified else {"discrete"}


def _close(tags: frozenset[str]) -> frozenset[str]:
    """Add what follows from the tags that are there."""
    if "jetson" in tags:
        tags |= {"unified", "arm64", "nvidia", "linux"}
    if "nvidia" in tags and not tags & {"unified", "mig", "vgpu"}:
        tags |= {"discrete"}
    return tags - {"discrete"} if "unified" in tags else tags


def l4t_of(text: str) -> tuple[int, ...]:
    """Return the first L4T release that a text names, or that belongs to the JetPack it names."""
    if found := L4T.search(text):
        return numbers_of(found[1] or found[2])
    if found := JETPACK.search(text):
        version = found[1]
        while version:
            if version in L4T_OF_JETPACK:
                return numbers_of(L4T_OF_JETPACK[version])
            version = version.rpartition(".")[0]
    return ()


def numbers_of(version: str) -> tuple[int, ...]:
    """Return a version's numbers: `R36 (release), REVISION: 4.7` and `36.4.7` give (36, 4, 7)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def ending_of(text: str) -> tuple[int | None, str]:
    """Read an exit status in anybody's words: `137`, `SIGILL`, `139 / SIGSEGV`, `oom-kill`.

    A code above 128 is also the signal that it stands for. What says nothing gives (None, "").
    """
    words = text.strip().lower()
    code: int | None = None
    if found := re.match(r"0x[0-9a-f]+", words):
        code = int(found[0], 16)
    elif found := re.match(r"-?\d+\b(?! ?\(sig)", words):
        code = int(found[0])
    elif found := re.match(r"(\d+) ?\(sig", words):
        code = int(found[1])
    if found := re.search(r"\bsig(?:ill|abrt|bus|fpe|kill|segv|term|trap|int|pipe|hup)\b", words):
        return code, found[0].upper()
    for word, signal in SIGNAL_WORDS.items():
        if word in words:
            return code, signal
    if code is not None and code < 0:
        return None, SIGNAL_NUMBERS.get(-code, "")
    return code, SIGNAL_NUMBERS.get(code - 128, "") if code is not None else ""


EXIT_IN_LOG = re.compile(
    r"(?i)\b(?:exit(?:ed)?(?: with)?(?: status| code){1,2}|exitcode|return code|exit status"
    r"|non-zero exit status)[:= ]{1,3}(-?\d+)\b|\bError (1[23]\d)$|status=(\d+)/"
)
SIGNAL_IN_LOG = re.compile(
    r"(?i)\bsignal: ?(illegal instruction|killed|abort trap|aborted|bus error|segmentation fault)"
    r"|\b(SIG(?:ILL|ABRT|BUS|FPE|KILL|SEGV))\b"
    r"|^(?:[\w./-]+: (?:line )?\d+: +\d+ )?(killed|illegal instruction|bus error"
    r"|segmentation fault)(?: +\(core dumped\))?\b|result '(oom-kill)'"
)


def ending_in(text: str) -> tuple[int | None, str]:
    """Return how a log's line says that a process ended; (None, "") where it does not say."""
    if found := SIGNAL_IN_LOG.search(text):
        return ending_of(next(group for group in found.groups() if group))
    if found := EXIT_IN_LOG.search(text):
        return ending_of(next(group for group in found.groups() if group))
    return None, ""


def holds(when: When, facts: Facts) -> bool:
    """Whether a signature's or a context's conditions hold."""
    if when.platform and not facts.tags & set(when.platform):
        return False
    if facts.tags & set(when.not_platform):
        return False
    if when.l4t and not (facts.l4t and _is_in(facts.l4t, when.l4t)):
        return False
    if when.stages and facts.stage is not None and facts.stage not in when.stages:
        return False
    if facts.outcome is not None and facts.outcome not in (when.outcomes or (Outcome.EXITED,)):
        return False
    if when.signals or when.exit_codes:
        return facts.signal in when.signals or facts.exit_code in when.exit_codes
    return True


def _is_in(version: tuple[int, ...], spans: str) -> bool:
    """Whether a version satisfies `>=36.4.7,<36.5`; missing numbers are zeros."""
    for span in spans.split(","):
        operator = span.rstrip("0123456789.")
        one, other = _pad(version), _pad(numbers_of(span))
        compared = (one > other) - (one < other)
        if compared not in _ALLOWED[operator]:
            return False
    return True


_ALLOWED = {"<": (-1,), "<=": (-1, 0), ">": (1,), ">=": (0, 1), "==": (0,), "=": (0,)}


def _pad(version: tuple[int, ...]) -> tuple[int, ...]:
    return (*version, 0, 0, 0)[:3]
