"""Take out of a text what says whose machine it is: for recordings that leave it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMMON_NAMES = frozenset({
    "root", "user", "admin", "ubuntu", "debian", "fedora", "nvidia", "jetson", "orin", "thor",
    "pi", "raspberrypi", "localhost", "runner", "default", "linux", "docker", "ollama",
})  # fmt: skip
"""Names that say nothing about a person, and that are words of the facts themselves."""
SHORTEST_NAME = 3
"""Shorter ones name nobody, and stand in too many other words."""
KEPT_FIELDS = {
    "cpuinfo": (
        "processor", "model name", "flags", "Features", "core id", "physical id", "Model",
        "CPU implementer", "CPU part", "cpu MHz",
    ),
    "status": ("Cpus_allowed_list",),
}  # fmt: skip
"""Of these files only these lines are kept: the rest is long, or holds serial numbers."""
PATTERNS = (
    (re.compile(r"\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b"), "00:00:00:00:00:00"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.I), "UUID"),
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "HEX"),
    (re.compile(r"^(.*\bserial(?: number|_number|no)?\s*[:=]\s*).*$", re.I | re.M), r"\1-"),
    (re.compile(r"\b(?:hf|sk|ghp|gho|glpat|xox[abp])[_-][A-Za-z0-9_-]{8,}"), "KEY"),
    (re.compile(
        r"(?i)\b([A-Z0-9_]*(?:key|token|secret|password|passwd|credential)s?\s*[:=]\s*)\S+"
    ), r"\1-"),
    (re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]+\b"), "MAIL"),
    (re.compile(r"/(home|Users)/(?!linuxbrew\b)[^/\s\"':]+"), r"/\1/USER"),
)  # fmt: skip


@dataclass(frozen=True)
class Names:
    """The names that must not leave a machine."""

    host: str = ""
    user: str = ""
    home: str = ""


def redact(text: str, names: Names) -> str:
    """Return a text without names of host and user, serial numbers, MACs, UUIDs and keys."""
    if len(names.home) > len("/root"):
        text = text.replace(names.home, "~")
    short_host = names.host.split(".")[0]
    for name, word in ((names.host, "HOST"), (short_host, "HOST"), (names.user, "USER")):
        if len(name) >= SHORTEST_NAME and name.lower() not in COMMON_NAMES:
            text = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", word, text)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact_path(path: str, names: Names) -> str:
    """Return a recorded file's path: the kernel's own stay (a host may be called `vm` or `cpu`)."""
    kernels = path.startswith(("/proc/", "/sys/")) and not path.startswith("/sys/fs/cgroup/")
    return path if kernels else redact(path, names)


def redact_document(document: Any, names: Names) -> Any:
    """Return JSON-like data with every text in it redacted; keys are the probes' own words."""
    if isinstance(document, str):
        return redact(document, names)
    if isinstance(document, Mapping):
        return {key: redact_document(value, names) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [redact_document(entry, names) for entry in document]
    return document


def keep_fields(path: str, text: str) -> str:
    """Return only those lines of a file that are facts about the machine."""
    kept = KEPT_FIELDS.get(path.rsplit("/", 1)[-1])
    if kept is None or not path.startswith("/proc/"):
        return text
    return "\n".join(
        line
        for line in text.splitlines()
        if not line.strip() or line.split(":", 1)[0].strip() in kept
    )
