"""Record what the probes read into a folder, without secrets, and replay such a folder.

The folder holds `meta.json` (name, kind, taken, sources), `files/` (a tree; the user's home is
`files/HOME`), `commands.json`, `listings.json` and `answers.json`; `docs/doctor.md` describes them.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from dataclasses import dataclass, field
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from enginehouse.core.errors import MachineError, UserError
from enginehouse.core.redact import Names, keep_fields, redact, redact_document, redact_path
from enginehouse.edges.seam import Answer, Source, clean

KINDS = ("captured", "reconstructed")


@dataclass(frozen=True)
class Meta:
    """What a recording says about itself."""

    name: str
    kind: str
    taken: str
    sources: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class RecordedSource:
    """A machine as it was recorded."""

    folder: Path
    meta: Meta
    commands: dict[tuple[str, ...], Answer]
    listings: dict[str, tuple[str, ...]]
    answers: dict[str, Any]

    @property
    def taken_at(self) -> float:
        """When it was recorded, as Unix time."""
        return parse_time(self.meta.taken)

    def read(self, path: str) -> str | None:
        """Return a recorded file's text."""
        try:
            return clean((self.folder / "files" / _inside(path)).read_text(errors="replace"))
        except OSError:
            return None

    def glob(self, pattern: str) -> tuple[str, ...]:
        """Return the recorded paths that match: listed ones and those of the tree."""
        files = self.folder / "files"
        found = {
            _outside(str(path.relative_to(files))) for path in files.glob(_inside(pattern))
        } | {
            path
            for paths in self.listings.values()
            for path in paths
            if path.count("/") == pattern.count("/") and fnmatchcase(path, pattern)
        }
        return tuple(sorted(found))

    def run(self, *argv: str) -> Answer | None:
        """Return what a recorded command said."""
        return self.commands.get(argv)

    def ask(self, question: str) -> Any:
        """Return a recorded answer."""
        return self.answers.get(question)


def open_recording(folder: Path) -> RecordedSource:
    """Open a recording.

    Raises:
        UserError: `snapshot.not_readable`, when it is none.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        commands = json.loads(_text(folder / "commands.json", "[]"))
        source = RecordedSource(
            folder,
            Meta(
                str(meta["name"]),
                str(meta["kind"]),
                str(meta["taken"]),
                tuple(meta.get("sources", ())),
                str(meta.get("note", "")),
            ),
            {
                tuple(entry["argv"]): Answer(entry["exit_code"], clean(_lines(entry["output"])))
                for entry in commands
            },
            {
                pattern: tuple(paths)
                for pattern, paths in json.loads(_text(folder / "listings.json", "{}")).items()
            },
            json.loads(_text(folder / "answers.json", "{}")),
        )
        parse_time(source.meta.taken)
        if source.meta.kind not in KINDS:
            raise ValueError(f"kind {source.meta.kind!r} is not one of {KINDS}")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise UserError(
            "snapshot.not_readable",
            f"{folder} is not a recorded machine",
            evidence=(f"{type(problem).__name__}: {problem}",),
            remedies=(
                "give the folder that holds meta.json; `enginehouse doctor --record DIR` makes one",
            ),
        ) from problem
    return source


@dataclass(frozen=True)
class Recorder:
    """A source that keeps all that is read through it; `write` puts it into a folder."""

    inner: Source
    files: dict[str, str] = field(default_factory=dict)
    commands: dict[tuple[str, ...], Answer] = field(default_factory=dict)
    listings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def taken_at(self) -> float:
        """When the facts are from."""
        return self.inner.taken_at

    def read(self, path: str) -> str | None:
        """Read a file and keep it."""
        text = self.inner.read(path)
        if text is not None:
            self.files[path] = text
        return text

    def glob(self, pattern: str) -> tuple[str, ...]:
        """List paths and keep them."""
        found = self.inner.glob(pattern)
        if found:
            self.listings[pattern] = found
        return found

    def run(self, *argv: str) -> Answer | None:
        """Run a command and keep what it says."""
        answer = self.inner.run(*argv)
        if answer is not None:
            self.commands[argv] = answer
        return answer

    def ask(self, question: str) -> Any:
        """Ask a library and keep its answer."""
        answer = self.inner.ask(question)
        if answer is not None:
            self.answers[question] = answer
        return answer

    def write(self, folder: Path, names: Names) -> int:
        """Write the recording without secrets; return its number of files.

        Raises:
            MachineError: `snapshot.not_writable`.
            UserError: `snapshot.exists`, when the folder holds something already.
        """
        if folder.exists() and any(folder.iterdir()):
            raise UserError(
                "snapshot.exists",
                f"{folder} is not empty",
                evidence=("a recording is never mixed with other files",),
                remedies=("give a folder that does not exist yet",),
            )
        taken = datetime.fromtimestamp(self.taken_at, timezone.utc)
        documents = {
            "meta.json": {
                "name": folder.name,
                "kind": "captured",
                "taken": taken.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "sources": ["enginehouse doctor --record"],
            },
            "commands.json": [
                {
                    "argv": argv,
                    "exit_code": said.exit_code,
                    "output": redact(said.output, names).splitlines(),
                }
                for argv, said in sorted(self.commands.items())
            ],
            "listings.json": redact_document(dict(sorted(self.listings.items())), names),
            "answers.json": redact_document(dict(sorted(self.answers.items())), names),
        }
        texts = {
            f"files/{_inside(redact_path(path, names))}": redact(keep_fields(path, text), names)
            + "\n"
            for path, text in self.files.items()
        }
        texts |= {
            name: json.dumps(document, indent=1, ensure_ascii=False) + "\n"
            for name, document in documents.items()
        }
        try:
            for name, text in texts.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        except OSError as problem:
            raise MachineError(
                "snapshot.not_writable",
                f"the recording could not be written to {folder}",
                evidence=(str(problem),),
                remedies=("give a folder that you may write to",),
            ) from problem
        return len(texts)


def names_here() -> Names:
    """Return the names that must not leave this machine: its own, its user's, the home folder."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
    return Names(socket.gethostname(), user, str(Path.home()))


def parse_time(text: str) -> float:
    """Return the Unix time of `2026-11-25T03:00:00Z`; raise ValueError for anything else."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()


def _inside(path: str) -> str:
    """Turn an absolute path, or one below `~`, into one inside of `files/`."""
    if ".." in path.split("/"):
        raise ValueError(f"{path} leads out of the recording")
    return re.sub(r"^~", "HOME", path).lstrip("/")


def _outside(path: str) -> str:
    return "~" + path[4:] if path.startswith("HOME/") else f"/{path}"


def _text(path: Path, default: str) -> str:
    return path.read_text() if os.path.exists(path) else default


def _lines(output: str | list[str]) -> str:
    return output if isinstance(output, str) else "\n".join(output)
