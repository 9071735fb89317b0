"""A raw log line → its text without prefixes, who wrote it, how severe it is, and its role.

Every expression here is anchored, has no nested repeats and sees a bounded line, so its time is
linear in the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from enginehouse.core.diagnose_signature import Role

MOST_PREFIXES = 8
"""Of prefixes taken off one line: Kubernetes, CRI, compose, time, process, level, time, place."""
LEVELS = {
    "E": Role.ERROR,
    "F": Role.ERROR,
    "W": Role.WARNING,
    "I": Role.INFO,
    "D": Role.INFO,
    "N": Role.INFO,
    "T": Role.INFO,
    "C": Role.ERROR,
    "P": Role.ERROR,
    "S": Role.ERROR,
}
"""By the first letter: fatal, error, critical, panic, severe, warn, info, debug, notice, trace."""

_TIME = r"\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?"
_ZONE = r"(?: ?(?:Z|UTC|[+-]\d\d:?\d\d))?"
_LEVEL = r"(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|ERR|CRITICAL|FATAL|PANIC|SEVERE)"
PREFIX = re.compile(
    "|".join(
        (
            # what carries the log: the process it names goes into `who`
            r"\[pod/(?P<pod>[\w./-]{1,200})\] ",
            r"(?P<compose>[A-Za-z][\w.-]{0,80}) {0,40}\| ",
            rf"[A-Z][a-z]{{2}} [ \d]\d {_TIME} (?P<unit>[\w.-]{{1,80}} [^\s:]{{1,80}}): ",
            rf"\d{{4}}-\d\d-\d\dT{_TIME}{_ZONE} (?P<cri>std(?:out|err)) [FP] ",
            rf"\d{{4}}-\d\d-\d\dT{_TIME}{_ZONE} (?P<unit2>[\w.-]{{1,80}} [\w@.-]{{1,80}}\[\d+\]): ",
            # time stamps
            rf"[\[(]?\d{{4}}[-/]\d\d[-/]\d\d[T ,-]{{0,3}}{_TIME}{_ZONE}[\])]?:?(?: - | \| |\s|$)",
            rf"\[\d\d/\d\d/\d{{4}}-{_TIME}\] ?",
            rf"[\[(]?(?:\d\d-\d\d )?{_TIME}[\])]?:?(?: - | |$)",
            r"\d{1,3}\.\d\d\.\d{3}\.\d{3} ",
            r"(?:<\d>)?(?P<boot>\[ {0,8}\d{1,8}\.\d{6}\]) ",
            # processes and ranks
            r"\((?P<worker>[A-Za-z_][\w:.-]{0,80}(?: rank=\d+)? pid=\d+(?:, ip=[\d.]+)?)\) ",
            r"\[(?P<rank>(?:rank|default)\d+)\]: ?",
            r"\[\d+,\d+\]<(?P<mpi>std(?:out|err))>: ?",
            # severities
            r"(?P<klog>[IWEF])\d{4} " + _TIME + r" +\d+ [\w./-]{1,120}:\d+\] ?",
            r"\[[\w. /-]{1,40}\] ?\[(?P<trt>[EWIVF]|ERROR|WARNING|INFO|DEBUG|FATAL)\] ?",
            r"\[[\w.-]{1,40}\]\[(?P<trt2>ERROR|WARNING|INFO|DEBUG|FATAL)\] ?",
            rf"\[?(?P<level>{_LEVEL})\]?(?::(?=[\w.]{{1,60}}:)[\w.]{{1,60}}:|:? +(?:- )?)(?=\S)",
            rf"(?P<level2>{_LEVEL}):\s+(?=\S)",
            r"\[(?P<small>trace|debug|info|notice|warn|warning|error|critical|fatal)\]:? ",
            r"(?P<letter>[EWIDF]) (?=[\w.-]+(?: +[\w().~-]+)?: )",
            r"time=\S+ level=(?P<logfmt>\w+) (?:source=\S+ )?",
            r"level=(?P<logfmt2>\w+) (?:source=\S+ )?",
            # places and names that some loggers put behind the severity
            r"\[[\w./-]{1,80}\.(?:py|cc|cpp|cu|go|rs|h):\d+\] ?",
            r"[\w./-]{1,80}\.(?:py|cc|cpp|go|rs):\d+\] ?",
            r"[\w.]{1,60} - (?=" + _LEVEL + r" - )",
        )
    )
)
ANSI = re.compile(rb"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
JSON_LEVEL = re.compile(r'"(?:level|severity|levelname)": ?"(\w+)"')
WHO = ("pod", "compose", "unit", "unit2", "worker", "rank")
SEVERITY = ("klog", "trt", "trt2", "level", "level2", "small", "letter", "logfmt", "logfmt2")

KERNEL = re.compile(
    r"NVRM: |Out of memory: Kill|Memory cgroup out of memory|oom-kill:|oom_reaper"
    r"|invoked oom-killer"
    r"|traps: |segfault at |\[drm:|nvidia-modeset: |kernel: |EXT4-fs error|pcieport "
)
EXIT = re.compile(
    r"(?i)\b(?:exit(?:ed)?(?: with)? (?:status|code)|exitcode|exit code|returned non-zero exit"
    r"|return code|signal: |terminated by signal|died with|died unexpectedly|core dumped"
    r"|main process exited|failed with result|has terminated|process exited|OOMKilled)\b"
    r"|^(?:[\w./-]+: (?:line )?\d+: +\d+ )?(?:killed|segmentation fault|illegal instruction"
    r"|bus error|aborted|terminated)\b|\*\*\* .{0,200} Error \d+$|^SIG[A-Z]{3,4}\b"
)
EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w{0,60}\.){0,12}(?:[A-Z]\w{0,80}(?:Error|Exception|Interrupt|Exit|Failure|Fault"
    r"|Timeout)|[a-z]\w*_error|Exception|OfflineModeIsEnabled)(?:: |:$|$|\()"
    r"|(?:[a-z_]\w{0,60}\.){1,12}[A-Z]\w{1,80}: "
    r"|terminate called|\s*what\(\): |libc\+\+abi: |panic: |fatal error: |thread '.{0,80}' panicked"
    r"|GGML_ASSERT|.{0,200}: GGML_ASSERT|.{0,300}: Assertion .{0,400} failed"
    r"|Assertion .{0,400} failed"
    r"|Fatal Python error|CUDA error|.{0,300}INTERNAL ASSERT FAILED|NCCL error|NCCLerror"
)
WARNING = re.compile(r"(?:[\w./-]{1,300}:\d+: )?(?:\w{0,40}Warning: |warning: |Warning: |WARN)")
ERROR = re.compile(
    r"(?:[\w./ -]{0,300}: )?(?:error|Error|fatal|Fatal)\b[: ]|.{0,60}\berror (?:loading|while)\b"
    r"|[\w./-]{1,80} fatal|#error|FAILED: |\S{0,80}: fatal"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log: its number (from 1), its text without prefixes, its role, its writer."""

    number: int
    text: str
    role: Role
    who: str = ""


BINARY_SAMPLE_BYTES = 64 << 10
BINARY_SHARE = 0.05
"""Of control characters (NULs aside, which UTF-16 and crashed logs hold) that no log has."""
TEXT_CONTROLS = bytes((7, 8, 9, 10, 12, 13, 27))


def is_binary(start: bytes) -> bool:
    """Whether a file that starts so is no text: a model, a program, an archive, a core dump."""
    if start[:4] in (b"GGUF", b"\x7fELF", b"PK\x03\x04"):
        return True
    sample = start[:BINARY_SAMPLE_BYTES].replace(b"\x00", b"")
    controls = len(sample) - len(sample.translate(None, CONTROLS))
    return controls > BINARY_SHARE * len(sample)


CONTROLS = bytes(set(range(1, 32)) - set(TEXT_CONTROLS))


def normalise(number: int, raw: bytes) -> Line:
    """Return a line without colours and prefixes, with its writer and its role."""
    if b"\x1b" in raw:
        raw = ANSI.sub(b"", raw)
    text = raw.decode("utf-8", "replace").replace("\x00", "").replace("\ufeff", "")
    who: list[str] = []
    level: Role | None = None
    is_kernel = False
    position = 0
    for _ in range(MOST_PREFIXES):
        match = PREFIX.match(text, position)
        if match is None:
            break
        kind = match.lastgroup
        if kind in WHO:
            who.append(match[kind])
            is_kernel = is_kernel or match[kind].endswith(" kernel")
        elif kind in SEVERITY:
            level = LEVELS.get(match[kind][:1].upper(), level)
        is_kernel = is_kernel or kind == "boot"
        position = match.end()
    body = text[position:].rstrip()
    if level is None and '"' in body and (found := JSON_LEVEL.search(body)):
        level = LEVELS.get(found[1][:1].upper())
    return Line(number, body, _role(body, level, is_kernel), "/".join(who))


def _role(text: str, level: Role | None, is_kernel: bool) -> Role:
    """Return the role that a line has by its severity and its wording."""
    if is_kernel or KERNEL.match(text):
        return Role.KERNEL
    if level in (Role.WARNING, Role.INFO):
        return level
    if WARNING.match(text):
        return Role.WARNING
    if EXCEPTION.match(text):
        return Role.EXCEPTION
    if EXIT.search(text):
        return Role.EXIT
    if level is Role.ERROR or ERROR.match(text):
        return Role.ERROR
    return Role.PLAIN
