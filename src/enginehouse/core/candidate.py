"""A candidate: engine, build and settings that may serve a model; and a build, as facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.core.machine import digest_of

Setting = str | int | float | bool
Settings = tuple[tuple[str, Setting], ...]
"""Settings sorted by name, so that equal candidates are equal values."""
DIGEST_DIGITS = 12
"""So many digits of a digest are shown."""


@dataclass(frozen=True)
class Build:
    """One installed build of an engine: where it is and exactly which one it is.

    `kind` is how it is run: `wheel` (inside a Python distribution), `environment` (one of its own),
    `binary` (a program), `native` (one that was built here) or `container` (an image).
    `command` is the start of the argv that runs it. `digest` is the SHA-256 of the code that runs:
    of a program, of a wheel's library, of an environment's list of its files, or of an image.
    """

    engine: str
    kind: str
    version: str
    digest: str
    command: tuple[str, ...]
    path: str

    @property
    def label(self) -> str:
        """How the build is named in a line of text."""
        return f"{self.engine} {self.version} ({self.kind})"

    @property
    def short_digest(self) -> str:
        """The digest's first digits, as it is shown."""
        return self.digest[:DIGEST_DIGITS]


@dataclass(frozen=True)
class Candidate:
    """An engine's build with settings; what a trial tries."""

    engine: str
    build_digest: str
    settings: Settings

    @property
    def id(self) -> str:
        """Name the candidate in 16 hex digits; equal settings on the same build are equal."""
        return digest_of(f"{self.engine}|{self.build_digest}|{self.settings!r}")

    def get(self, name: str) -> Setting | None:
        """Return a setting's value, None where the engine's own default holds."""
        return dict(self.settings).get(name)

    def with_settings(self, **changes: Setting | None) -> Candidate:
        """Return the candidate with some settings changed; None removes one."""
        merged: dict[str, Setting] = dict(self.settings)
        for name, value in changes.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = value
        return Candidate(self.engine, self.build_digest, settings_of(merged))

    def describe_difference(self, other: Candidate) -> str:
        """Say in one line how the settings differ from `other`'s: `slots 16, flash_attention off`.

        Empty when they do not.
        """
        theirs = dict(other.settings)
        mine = dict(self.settings)
        changed = [
            f"{name} {show_setting(mine.get(name))}"
            for name in sorted(set(mine) | set(theirs))
            if mine.get(name) != theirs.get(name)
        ]
        return ", ".join(changed)


ANSWER_SETTINGS = (
    "quantization", "kv_type", "kv_cache_dtype", "dtype", "speculation", "flash_attention",
)  # fmt: skip
"""Settings that may change what a model answers, by rounding or by drafting."""


PRECISION_SETTINGS = ("quantization", "kv_type", "kv_cache_dtype", "dtype")
"""Those of them that store numbers with fewer bits."""


def precision_key(candidate: Candidate) -> Settings:
    """Return with how many bits a candidate computes; equal keys answer alike but for ties."""
    held = tuple((n, v) for n, v in candidate.settings if n in PRECISION_SETTINGS)
    return (("engine", candidate.engine), *held)


def answer_key(candidate: Candidate) -> Settings:
    """Return what of a candidate may change its answers; equal keys need one exam.

    Builds of one engine compute the same up to rounding.
    """
    held = tuple((n, v) for n, v in candidate.settings if n in ANSWER_SETTINGS)
    return (("engine", candidate.engine), *held)


def settings_of(mapping: Mapping[str, Setting]) -> Settings:
    """Freeze a mapping of settings in the order that makes equal ones equal."""
    return tuple(sorted(mapping.items()))


def show_setting(value: Setting | None) -> str:
    """Show a setting's value as a person would write it."""
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
