"""Fetch a source distribution from the user's package index: resumable, checked, never run.

Not by `pip download`: it runs the package's build to learn its metadata, and starts a broken
transfer anew (docs/adr/0031). Where to look is what pip is told.
"""

from __future__ import annotations

import base64
import http.client
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from enginehouse.core.errors import MachineError, UserError
from enginehouse.core.package_index import (
    ACCEPT,
    IndexSettings,
    Sdist,
    page_url,
    pick_sdist,
    read_page,
    read_pip_settings,
)
from enginehouse.edges.digests import hash_file
from enginehouse.edges.progress import Progress

TIMEOUT_S = 30.0
PIP_LIMIT_S = 30.0
BLOCK_BYTES = 1 << 18
MOST_PAGE_BYTES = 64 << 20
MOST_TRIES = 4
"""Tries in a row that bring no byte; one that brings some starts the count again."""
PART = ".part"


class PackageIndex:
    """The indexes that pip is told of, in order."""

    def __init__(self, settings: IndexSettings) -> None:
        self._settings = settings
        context = ssl.create_default_context(cafile=settings.certificates or None)
        self._opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))

    def find(self, package: str, version: str = "") -> Sdist:
        """Return the newest source distribution, or the one of a version.

        Raises:
            UserError: `source.no_package`.
            MachineError: `network.unreachable`, when no index could be read.
        """
        problems: list[str] = []
        found: list[Sdist] = []
        for index in self._settings.indexes:
            try:
                found += self._listed(index, package)
            except urllib.error.HTTPError as problem:
                problem.close()
                problems.append(f"{_public(index)}: status {problem.code}")
            except (OSError, http.client.HTTPException) as problem:
                problems.append(f"{_public(index)}: {type(problem).__name__}: {problem}")
        picked = pick_sdist(found, version)
        if picked is None:
            raise self._not_found(package, version, found, problems)
        return picked

    def _listed(self, index: str, package: str) -> tuple[Sdist, ...]:
        url = page_url(index, package)
        if url.startswith("file:"):
            url += "index.html"
        with self.open(url, {"Accept": ACCEPT}) as answer:
            text = answer.read(MOST_PAGE_BYTES).decode(errors="replace")
            return read_page(text, answer.geturl() or url, package)

    def _not_found(
        self, package: str, version: str, found: list[Sdist], problems: list[str]
    ) -> UserError | MachineError:
        if problems and not found and not any("status 404" in problem for problem in problems):
            return MachineError(
                "network.unreachable",
                f"the package index cannot be reached to fetch the source of {package}",
                evidence=tuple(problem[:300] for problem in problems),
                remedies=("check the network and pip's settings: pip config list",),
            )
        others = sorted({one.version for one in found})[-5:]
        return UserError(
            "source.no_package",
            f"the package index has no source of {package}{f' {version}' if version else ''}",
            evidence=(*problems, f"versions with a source: {', '.join(others) or 'none'}"),
            remedies=("check pip's settings: pip config list", "leave --version out"),
        )

    def open(self, url: str, headers: dict[str, str]) -> Any:
        """Send a request; a name and password in the URL go as a header, to its host only."""
        parts = urllib.parse.urlsplit(url)
        request = urllib.request.Request(_public(url), headers=headers)
        if parts.username:
            secret = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
            token = base64.b64encode(secret.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        return self._opener.open(request, timeout=TIMEOUT_S)


def open_index() -> PackageIndex:
    """Return the indexes that pip is told of here; PyPI where pip says nothing."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        said = subprocess.run(
            command, capture_output=True, timeout=PIP_LIMIT_S, stdin=subprocess.DEVNULL, check=False
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        said = ""
    return PackageIndex(read_pip_settings(said))


def fetch_sdist(sdist: Sdist, folder: Path, index: PackageIndex, progress: Progress) -> Path:
    """Return the file's path, fetched unless it is there; what a broken transfer left goes on.

    Raises:
        UserError: `source.digest`: it is not what the index says; it was not kept.
        MachineError: `network.broken`.
    """
    target = folder / sdist.name
    if target.exists() and sdist.sha256 in ("", hash_file(target)):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{sdist.name}{PART}"
    progress.begin(f"fetching {sdist.name}", sdist.size_bytes)
    try:
        _download(sdist, part, index, progress)
    finally:
        progress.end()
    found = hash_file(part)
    if sdist.sha256 and found != sdist.sha256:
        part.unlink()
        raise UserError(
            "source.digest",
            f"{sdist.name} is not the file that the index promises; it was not kept",
            evidence=(f"SHA-256 {found}", f"expected {sdist.sha256}"),
            remedies=("run it again; if it stays so, the index or the way to it is not sound",),
        )
    return part.replace(target)


def _download(sdist: Sdist, part: Path, index: PackageIndex, progress: Progress) -> None:
    tries = 0
    while True:
        before = _size(part)
        try:
            _go_on(sdist, part, index, progress)
            return
        except urllib.error.HTTPError as problem:
            problem.close()
            what = f"status {problem.code}"
            if problem.code == 416:  # what is here is not a beginning of what is there
                part.unlink(missing_ok=True)
            elif problem.code < 500:
                tries = MOST_TRIES
        except (OSError, http.client.HTTPException) as problem:
            if isinstance(problem, OSError) and problem.errno and not _is_network(problem):
                raise
            what = f"{type(problem).__name__}: {problem}"
        tries = 1 if _size(part) > before else tries + 1
        if tries > MOST_TRIES:
            raise MachineError(
                "network.broken",
                f"{sdist.name} could not be fetched",
                evidence=(what[:300], f"{_size(part):,} bytes are here and are kept"),
                remedies=("run it again: it goes on where it broke off",),
            )
        time.sleep(tries - 1)


def _is_network(problem: OSError) -> bool:
    return isinstance(problem, (ConnectionError, TimeoutError, urllib.error.URLError))


def _go_on(sdist: Sdist, part: Path, index: PackageIndex, progress: Progress) -> None:
    """Fetch from where the part ends; a server that cannot do that sends it all again."""
    have = _size(part)
    if sdist.size_bytes is not None and have == sdist.size_bytes:
        return
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    with index.open(sdist.url, headers) as answer:
        if answer.status != 206:
            have = 0
        length = answer.headers.get("Content-Length") or ""
        with part.open("ab" if have else "wb") as file:
            done = have
            while block := answer.read(BLOCK_BYTES):
                file.write(block)
                done += len(block)
                progress.advance_to(done)
    if length.isdecimal() and done < have + int(length):
        raise ConnectionError(f"the transfer broke off after {done:,} bytes")


def kept_sdists(folder: Path, package: str) -> tuple[Sdist, ...]:
    """Return the whole source distributions that were fetched earlier."""
    files = sorted(folder.glob("*.tar.gz"))
    page = "".join(f'<a href="{file.as_uri()}"></a>' for file in files)
    return read_page(page, folder.as_uri(), package)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _public(url: str) -> str:
    """Return a URL without the name and password that may stand in it."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
