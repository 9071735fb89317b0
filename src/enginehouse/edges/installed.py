"""Engines that Enginehouse built or installed: one folder each, with a `build.json` in it.

`<cache>/engines/<engine>/<version>-<key>/build.json`; a folder without it is none.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import msgspec
import psutil

from enginehouse.core.candidate import Build
from enginehouse.edges.paths import engines_dir

RECORD = "build.json"
TRASH = ".removed-"


class Installed(msgspec.Struct, frozen=True, kw_only=True):
    """What is told of a built or installed engine; paths are below its own folder.

    `command` and `path` are relative, so that the folder may be moved. `cpu` names the processor
    that it was built for, empty where that does not matter. `date` is ISO 8601, UTC.
    """

    engine: str
    kind: str
    version: str
    digest: str
    command: tuple[str, ...]
    path: str
    date: str
    source: str = ""
    source_digest: str = ""
    flags: tuple[str, ...] = ()
    toolchain: tuple[str, ...] = ()
    programs: dict[str, str] = {}
    cpu: str = ""

    def build(self, folder: Path, digest: str = "") -> Build:
        """Return it as a build that trials can start; `digest` is what its code has now."""
        return Build(
            engine=self.engine,
            kind=self.kind,
            version=self.version,
            digest=digest or self.digest,
            command=(str(folder / self.command[0]), *self.command[1:]),
            path=str(folder / self.path),
        )


def write_record(folder: Path, record: Installed) -> None:
    """Write a folder's record, the last thing that makes it an installed engine."""
    draft = folder / f"{RECORD}.draft"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2))
    draft.replace(folder / RECORD)


def read_record(folder: Path) -> Installed | None:
    """Return a folder's record, None where there is none or its program is gone."""
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Installed)
    except (OSError, msgspec.MsgspecError):
        return None
    return record if (folder / record.path).exists() else None


def installed(engine: str = "") -> tuple[tuple[Path, Installed], ...]:
    """Return what was built or installed (of one engine), the newest first."""
    found = []
    for path in engines_dir().glob(f"{engine or '*'}/*/{RECORD}"):
        record = read_record(path.parent)
        if record is not None and not path.parent.name.startswith("."):
            found.append((path.parent, record))
    return tuple(sorted(found, key=lambda pair: pair[1].date, reverse=True))


def remove(folder: Path) -> None:
    """Remove an engine's folder; it is none from the first moment on."""
    trash = folder.with_name(f"{TRASH}{uuid.uuid4().hex[:8]}")
    folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def users_of(folder: Path) -> tuple[str, ...]:
    """Return the processes that run a program out of a folder: `name (pid)`."""
    root = f"{folder}{os.sep}"
    found = []
    for process in psutil.process_iter(("name", "exe", "cmdline")):
        program = (process.info["cmdline"] or [""])[0]
        if (process.info["exe"] or "").startswith(root) or program.startswith(root):
            found.append(f"{process.info['name']} ({process.pid})")
    return tuple(found)


def folders_of(cache: Path) -> tuple[Path, ...]:
    """Return the folders of finished and of unfinished engines: `…/<engine>/<version>-<key>`."""
    found = (*cache.glob("engines/*/*"), *cache.glob("build/*/*"))
    return tuple(sorted(path for path in found if path.is_dir() and path.name[0] != "."))
