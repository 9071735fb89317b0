"""A package index's page of one package: which source distributions there are, and the one to take.

The page is PEP 503's HTML or PEP 691's JSON. Pre-releases and yanked files are left out.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin

ACCEPT = (
    "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
    "text/html;q=0.1"
)
DEFAULT_INDEX = "https://pypi.org/simple"
RELEASE = re.compile(r"\d+(?:\.\d+)*(?:\.post\d+)?")
SUFFIX = ".tar.gz"


@dataclass(frozen=True)
class Sdist:
    """A source distribution to fetch; the digest is empty and the size None where not told."""

    name: str
    version: str
    url: str
    sha256: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True)
class IndexSettings:
    """Where pip is told to look: indexes in order, and a file of certificates."""

    indexes: tuple[str, ...]
    certificates: str = ""


def read_pip_settings(listing: str) -> IndexSettings:
    """Return what `pip config list` says of indexes; its lines are `section.name='value'`.

    The environment comes before the command's own section, and that before `global`.
    """
    said: dict[str, str] = {}
    for section in ("global", "download", "install", ":env:"):
        for name, value in re.findall(rf"^{section}\.\.?([\w-]+)=(.+)$", listing, re.M):
            said[name] = _literal(value)
    first = () if "no-index" in said else tuple(said.get("index-url", DEFAULT_INDEX).split())
    return IndexSettings((*first, *said.get("extra-index-url", "").split()), said.get("cert", ""))


def _literal(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        return text


def page_url(index: str, package: str) -> str:
    """Return the address of a package's page in an index."""
    return f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', package).lower()}/"


def read_page(text: str, url: str, package: str) -> tuple[Sdist, ...]:
    """Return the source distributions that a page lists; none when it cannot be read."""
    files = _json_files(text) if text.lstrip().startswith("{") else _html_files(text)
    found = []
    for name, target, sha256, size in files:
        stem = name.removesuffix(SUFFIX)
        project, _, version = stem.rpartition("-")
        same = re.sub(r"[-_.]+", "-", project).lower() == package.lower()
        if stem != name and same and RELEASE.fullmatch(version):
            found.append(Sdist(name, version, urljoin(url, target), sha256, size))
    return tuple(found)


def pick_sdist(listed: Iterable[Sdist], version: str = "") -> Sdist | None:
    """Return the newest, or the one of a version; of equal ones the first listed."""
    fitting = [one for one in listed if not version or one.version == version]
    return max(fitting, key=lambda one: order_of(one.version), default=None)


def order_of(version: str) -> tuple[int, ...]:
    """Return what versions are compared by: their numbers."""
    return tuple(int(number) for number in re.findall(r"\d+", version))


_File = tuple[str, str, str, int | None]


def _json_files(text: str) -> Sequence[_File]:
    try:
        document = json.loads(text)
    except ValueError:
        return ()
    listed = document.get("files") if isinstance(document, dict) else None
    files: list[_File] = []
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and not entry.get("yanked"):
            name, url, size = entry.get("filename"), entry.get("url"), entry.get("size")
            hashes = entry.get("hashes")
            sha256 = hashes.get("sha256", "") if isinstance(hashes, dict) else ""
            if isinstance(name, str) and isinstance(url, str):
                files.append((name, url, str(sha256), size if isinstance(size, int) else None))
    return files


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[Mapping[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep a link."""
        if tag == "a":
            self.links.append(dict(attrs))


def _html_files(text: str) -> Sequence[_File]:
    parser = _Anchors()
    parser.feed(text)
    files: list[_File] = []
    for link in parser.links:
        if "data-yanked" not in link and (target := link.get("href")):
            url, fragment = urldefrag(target)
            sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
            files.append((unquote(url.rsplit("/", 1)[-1]), url, sha256, None))
    return files
