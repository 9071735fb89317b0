"""Bytes at an offset, of a local file or of a file behind HTTP of which only ranges travel."""

from __future__ import annotations

import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

from enginehouse.core.errors import EnginehouseError, MachineError, UserError

TIMEOUT_S = 20.0
LOCAL_STEP, REMOTE_STEP, MOST_REMOTE_STEP = 1 << 20, 1 << 16, 4 << 20


class ByteSource(Protocol):
    """A file whose ranges can be read."""

    name: str
    place: str
    size: int
    step: int

    def read_at(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes; fewer only at the end."""

    def close(self) -> None:
        """Let go of it."""


class LocalFile:
    """A file on this machine.

    Raises:
        UserError: `model.file.missing`, `model.file.unreadable`.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.place, self.step = path.name, str(path), LOCAL_STEP
        try:
            self.size = path.stat().st_size
            if not path.is_file():
                raise file_error(self.name, self.place, "unreadable", "it is not a file")
            self._file: BinaryIO = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise file_error(self.name, self.place, "missing", "there is no such file") from None
        except OSError as problem:
            what = f"it cannot be read: {problem.strerror}"
            raise file_error(self.name, self.place, "unreadable", what) from problem

    def read_at(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes."""
        try:
            self._file.seek(offset)
            return self._file.read(count)
        except OSError as problem:
            what = f"it cannot be read: {problem.strerror}"
            raise file_error(self.name, self.place, "unreadable", what) from problem

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RemoteFile:
    """A file behind HTTP, read by range requests; the steps double, so few requests are made.

    Only the host of the URL is contacted: a redirect to another one is refused, unless
    `follow_hosts` says that the host may name its own storage (a hub does). Credentials in
    `headers` never go to another host.

    Raises:
        UserError: `model.url.*`: not found, refused, redirected, without ranges.
        MachineError: `network.unreachable`.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, follow_hosts: bool = False
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                "model.url.invalid",
                f"{url} is not an http(s) URL",
                evidence=(f"scheme {parts.scheme or 'none'}, host {parts.hostname or 'none'}",),
                remedies=("check the URL",),
            )
        self.name = urllib.parse.unquote(parts.path.rsplit("/", 1)[-1]) or parts.hostname
        self.place, self.step = url, REMOTE_STEP
        self.fetched_bytes = 0
        self._headers = dict(headers or {})
        self._opener = urllib.request.build_opener(_Redirects(follow_hosts))
        self.size = 0
        self._first = self._fetch(0, REMOTE_STEP)

    def read_at(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes."""
        count = min(count, self.size - offset)
        if offset + count <= len(self._first):
            return self._first[offset : offset + count]
        self.step = min(2 * self.step, MOST_REMOTE_STEP)
        return self._fetch(offset, count)

    def read_all(self, most: int) -> bytes:
        """Return the whole of a small file.

        Raises:
            UserError: `model.file.damaged` when it has more than `most` bytes.
        """
        if self.size > most:
            raise file_error(self.name, self.place, "damaged", f"it has {self.size:,} bytes")
        return self.read_at(0, self.size)

    def close(self) -> None:
        """Do nothing: no connection is kept."""

    def _fetch(self, offset: int, count: int) -> bytes:
        if count <= 0:
            return b""
        asked = {**self._headers, "Range": f"bytes={offset}-{offset + count - 1}"}
        asked["Accept-Encoding"] = "identity"
        request = urllib.request.Request(self.place, headers=asked)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as answer:
                self.size = self._whole_size(answer, offset)
                data: bytes = answer.read(count)
        except urllib.error.HTTPError as problem:
            problem.close()
            raise self._refused(problem) from None
        except (OSError, http.client.HTTPException) as problem:
            raise MachineError(
                "network.unreachable",
                f"{self.name} could not be read from {urllib.parse.urlsplit(self.place).netloc}",
                evidence=(f"{type(problem).__name__}: {str(problem)[:200]}",),
                remedies=("check the URL and the network", "use a file that is here"),
            ) from problem
        self.fetched_bytes += len(data)
        return data

    def _whole_size(self, answer: http.client.HTTPResponse, offset: int) -> int:
        given = re.match(r"bytes \d+-\d+/(\d+)$", answer.headers.get("Content-Range") or "")
        if answer.status == 206 and given:
            return int(given[1])
        length = answer.headers.get("Content-Length") or ""
        if answer.status == 200 and offset == 0 and length.isdigit():
            return int(length)
        raise UserError(
            "model.url.no_ranges",
            f"{self.name} cannot be looked into: its server sends files only whole",
            evidence=(f"status {answer.status} for bytes from {offset:,}",),
            remedies=("download the file, then show it",),
        )

    def _refused(self, problem: urllib.error.HTTPError) -> EnginehouseError:
        if problem.code == 416:
            return file_error(self.name, self.place, "empty", "it has no bytes")
        kinds = {401: "refused", 403: "refused", 404: "not_found", 410: "not_found"}
        remedies = {
            "refused": ("check that you may read it; set HF_TOKEN for a gated repository",),
            "not_found": ("check the URL",),
        }
        kind = kinds.get(problem.code, "failed")
        return UserError(
            f"model.url.{kind}",
            f"{self.name} could not be read: status {problem.code}",
            evidence=(self.place, str(problem.reason)[:200]),
            remedies=remedies.get(kind, ("try again later",)),
        )


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, follow_hosts: bool) -> None:
        self._follow_hosts = follow_hosts

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        """Follow on the same host; to another one only where that is allowed, without secrets."""
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if (old.scheme, old.netloc) == (new.scheme, new.netloc):
            kept = dict(req.header_items())
        elif self._follow_hosts and (new.scheme == "https" or old.scheme == "http"):
            kept = {k: v for k, v in req.header_items() if k.lower() in ("range", "user-agent")}
        else:
            fp.close()
            raise UserError(
                "model.url.redirected",
                f"{old.netloc} sends you to {new.netloc}, which you did not name",
                evidence=(f"{req.full_url} → {new.scheme}://{new.netloc}{new.path}",),
                remedies=(f"give the URL at {new.netloc}, or hf:owner/repo/file for a hub",),
            )
        return urllib.request.Request(newurl, headers=kept)


def file_error(name: str, place: str, kind: str, what: str) -> UserError:
    """Return the error for a model's file that cannot be used."""
    remedies = {
        "missing": ("check the path", "enginehouse models list"),
        "unreadable": ("check the file's permissions",),
        "split": ("put all parts into one folder under their own names",),
        "unsupported": ("enginehouse models show lists what each engine family reads",),
    }.get(kind, ("fetch the file again and compare its SHA-256 with the source's",))
    return UserError(
        f"model.file.{kind}",
        f"{name} cannot be used: {what}",
        evidence=(place,),
        remedies=remedies,
    )
