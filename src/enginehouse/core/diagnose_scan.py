"""One pass over a log, in blocks: which lines matter, and whether the engine got to serve.

A block of many lines is searched once for all patterns together; only where something is found is
it cut into smaller pieces, lines at last. A pattern that was found often enough is left out of the
search, so that a log full of one message costs no more than any other. The last lines are always
read whole. What is kept is bounded, whatever the log holds.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from enginehouse.core.diagnose_lines import ANSI, Line, normalise
from enginehouse.core.diagnose_signature import Alternative, Signature

BLOCK_BYTES = 128 << 10
PIECE_BYTES = 4 << 10
MOST_LINE_BYTES = 4000
"""Of a line that patterns see: its first 3000 and its last 1000 bytes."""
MOST_HITS = 60
"""Of one pattern that are kept before the log's end."""
MOST_VAIN = 300
"""Lines in which a pattern is found raw, but not once the prefixes are off (`^`, `$`), before it is
left out; only the log's last lines are then searched for it."""
MOST_SEGMENTS = 20
"""Of a line that a progress bar wrote over and over (carriage returns): the last ones."""
TAIL_LINES = 300
WASTEFUL = 100
"""Lines that were looked at for patterns already found often enough, before these are left out."""
WASTED_BLOCKS = 8
"""Blocks in which only such patterns were found that count as much as `WASTEFUL` lines."""

STRUCTURE: Mapping[str, str] = {
    "trouble": (
        r"(?i)\b(?:error|fatal|critical|panic|panicked|exception|traceback|abort|aborted"
        r"|assert|assertion|failed|failure|killed|terminate|terminated|exited|signal|core dumped)\b"
        r"|Error\b|Error:|Exception\b|GGML_ASSERT|\b(?:unable|could not|cannot|can't)\b"
        r"|Segmentation fault|Illegal instruction|Bus error|SIG[A-Z]{3,4}\b|what\(\)|Xid"
    ),
    "tegra": r"(?i)tegra|NvMap|NvRmMem|nvgpu|jetson|jetpack|\bL4T\b|\borin\b|xavier",
    "thor": r"NVIDIA Thor|sm_110|compute capability 11\.0",
    "spark": r"\bGB10\b|sm_121",
    "mig": r"\bMIG[ -][0-9a-fA-F]|\bMIG \d+[gc]\.",
    "wsl": r"/usr/lib/wsl|microsoft-standard-WSL|\bWSL2?\b",
    "windows": r"\b[A-Z]:\\[A-Za-z]|0xc000[0-9a-f]{4}\b",
    "container": r"OCI runtime|nvidia-container|Error response from daemon|/dev/shm|kubepods",
}
"""What the scan looks for beside the signatures; all but `trouble` are tags of the platform."""

READY = (
    r"Application startup complete|[^P] server is listening|^server is listening"
    r"|server listening at|Uvicorn running on|llama runner started in|\bmodel loaded\b"
    r"|Listening on \S+:\d+ \(version|Starting vLLM API server \d? ?on http|runner ready"
    r"|Server started at"
)
SERVED = (
    r"HTTP/1\.[01]\"? 2\d\d|\| +200 \||\bdone request: \S+ \S+ \S+ 200\b"
    r"|log_server_r: .{0,200} 200$"
    r"|Avg generation throughput: [1-9]|slot print_timing: id"
    r"|prompt eval time = +[\d.]+ ms|\beval time = +[\d.]+ ms|status=200\b"
    r"|\b[1-9]\d*(?:\.\d+)? tok(?:en)?s?/s|generated \d+ tokens|done: \d+ tokens"
    r"|Successfully (?:installed|built) |Engine generation completed|&&&& PASSED|Engine saved to"
    r"|Download complete"
)
SHUTDOWN = (
    r"(?i)shutting down|received (?:signal|sigterm|sigint)|cleaning up before exit"
    r"|KeyboardInterrupt|SIGTERM|Waiting for application shutdown|Finished server process"
)


class PatternSet(Protocol):
    """Some patterns, searched for together."""

    def matches(self, text: bytes) -> Sequence[int]:
        """Return the ids of the patterns that are found, anchors aside, somewhere in the text."""
        ...


class Finder(Protocol):
    """One expression, looked for in many lines at once."""

    def first(self, text: bytes) -> int:
        """Return where it is found first, -1 where it is not."""
        ...

    def last(self, text: bytes) -> int:
        """Return where it is found last, -1 where it is not."""
        ...


class Book(Protocol):
    """The signatures with their patterns compiled; ids count over signatures, then `STRUCTURE`."""

    @property
    def signatures(self) -> Sequence[Signature]:
        """Every signature."""
        ...

    @property
    def confusions(self) -> Mapping[str, Sequence[Alternative]]:
        """For a cause: what the same outward failure is also confirmed to be."""
        ...

    def candidates(self, ids: Iterable[int]) -> Sequence[Signature]:
        """Return the signatures of which a decisive pattern is among some, or that have none."""
        ...

    def id_of(self, pattern: str) -> int:
        """Return a pattern's id."""
        ...

    def set_without(self, ids: frozenset[int]) -> PatternSet:
        """Return all patterns but some as one set."""
        ...

    def finder(self, expression: str) -> Finder:
        """Return an expression of the scan's own, compiled."""
        ...

    def captures(self, id: int, text: str) -> Mapping[str, str] | None:
        """Return what a pattern captures in a normalised line; None when it does not match."""
        ...


@dataclass
class Digest:
    """What is kept of a log."""

    hits: dict[int, list[Line]] = field(default_factory=dict)
    lines: int = 0
    tail: list[Line] = field(default_factory=list)
    first_ready: int = 0
    last_ready: int = 0
    last_served: int = 0
    last_shutdown: int = 0
    """Line numbers; 0 where there is none."""

    def of(self, id: int) -> Sequence[Line]:
        """Return the kept lines in which a pattern is found, in order."""
        return self.hits.get(id, ())


class _Tracker:
    """Finds the first and the last line of one expression, a block at a time."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.first = 0
        self._last: tuple[int, bytes] | None = None

    def see(self, block: bytes, before: int) -> None:
        start = self.finder.first(block)
        if start < 0:
            return
        if not self.first:
            self.first = before + 1 + block.count(b"\n", 0, start)
        self._last = (before, block)

    @property
    def last(self) -> int:
        if self._last is None:
            return 0
        before, block = self._last
        return before + 1 + block.count(b"\n", 0, self.finder.last(block))


class Scanner:
    """Reads a log once, in any pieces; `finish` gives what was kept."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.digest = Digest()
        self._rest = b""
        self._tail: deque[tuple[int, bytes]] = deque(maxlen=TAIL_LINES)
        self._full: set[int] = set()
        self._vain: dict[int, int] = {}
        self._wasted = 0
        self._left_out: frozenset[int] = frozenset()
        self._set = book.set_without(frozenset())
        self._scanned = 0
        self._trackers = [_Tracker(book.finder(text)) for text in (READY, SERVED, SHUTDOWN)]

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the log."""
        for start in range(0, len(data), BLOCK_BYTES):
            self._feed(data[start : start + BLOCK_BYTES])

    def _feed(self, data: bytes) -> None:
        end = data.rfind(b"\n")
        if end < 0:
            self._rest += data
            if len(self._rest) > 2 * BLOCK_BYTES:  # a giant line: its middle is not kept
                self._rest = self._rest[:MOST_LINE_BYTES] + self._rest[-MOST_LINE_BYTES:]
            return
        block = self._rest + data[: end + 1]
        self._rest = data[end + 1 :]
        self._block(block)

    def finish(self) -> Digest:
        """Read what is left, the last lines in full, and return what was kept."""
        if self._rest:
            self._block(self._rest + b"\n")
            self._rest = b""
        digest = self.digest
        everything = self.book.set_without(frozenset())
        for number, raw in self._tail:
            if number <= self._scanned or self._left_out:
                self._line(number, raw, everything, keep_always=True)
        for kept in digest.hits.values():
            kept.sort(key=lambda line: line.number)
        digest.tail = [normalise(number, raw) for number, raw in self._tail]
        ready, served, shutdown = self._trackers
        digest.first_ready, digest.last_ready = ready.first, ready.last
        digest.last_served, digest.last_shutdown = served.last, shutdown.last
        return digest

    def _block(self, block: bytes) -> None:
        block = _clean(block)
        before = self.digest.lines
        for tracker in self._trackers:
            tracker.see(block, before)
        count = block.count(b"\n")
        self.digest.lines += count
        self._keep_tail(block, before, count)
        found = self._set.matches(block)
        if self._has_wanted(found):
            self._wasted += self._pieces(block, before)
        elif found:
            self._wasted += WASTEFUL // WASTED_BLOCKS
        if self._wasted > WASTEFUL and len(self._full) > len(self._left_out):
            self._wasted = 0
            self._left_out = frozenset(self._full)
            self._set = self.book.set_without(self._left_out)
        self._scanned = self.digest.lines

    def _keep_tail(self, block: bytes, before: int, count: int) -> None:
        lines = block.rsplit(b"\n", TAIL_LINES + 1)[-TAIL_LINES - 1 : -1]
        first = before + count - len(lines) + 1
        self._tail.extend((first + n, _shorten(line)) for n, line in enumerate(lines))

    def _pieces(self, block: bytes, before: int) -> int:
        """Look through a block, a piece and then a line at a time; return the lines wasted."""
        wasted = start = 0
        number = before
        while start < len(block):
            end = block.rfind(b"\n", start, start + PIECE_BYTES) + 1 or (
                block.find(b"\n", start) + 1 or len(block)
            )
            piece = block[start:end]
            start = end
            if len(piece) > PIECE_BYTES or self._has_wanted(self._set.matches(piece)):
                for raw in piece.split(b"\n")[:-1]:
                    number += 1
                    wasted += not self._line(number, _shorten(raw), self._set)
            else:
                number += piece.count(b"\n")
        return wasted

    def _has_wanted(self, found: Sequence[int]) -> bool:
        """Whether a pattern was found that was not yet found often enough."""
        return any(id not in self._full for id in found)

    def _line(
        self, number: int, raw: bytes, patterns: PatternSet, keep_always: bool = False
    ) -> bool:
        """Keep a line if a pattern matches it; return False if it was looked at in vain."""
        segments = raw.split(b"\r")[-MOST_SEGMENTS:] if b"\r" in raw else (raw,)
        for segment in segments:
            found = patterns.matches(segment)
            if not found:
                continue
            wanted = found if keep_always else [id for id in found if id not in self._full]
            if not wanted:
                return False
            self._keep(normalise(number, segment), wanted)
        return True

    def _keep(self, line: Line, ids: Iterable[int]) -> None:
        for id in ids:
            kept = self.digest.hits.setdefault(id, [])
            if any(other.number == line.number for other in kept[-TAIL_LINES:]):
                continue
            if self.book.captures(id, line.text) is not None:
                kept.append(line)
                if len(kept) >= MOST_HITS:
                    self._full.add(id)
            else:
                self._vain[id] = self._vain.get(id, 0) + 1
                if self._vain[id] >= MOST_VAIN:
                    self._full.add(id)


def scan(log: Iterable[bytes], book: Book) -> Digest:
    """Read a whole log."""
    scanner = Scanner(book)
    for piece in log:
        scanner.feed(piece)
    return scanner.finish()


DOCKER_JSON = re.compile(
    rb'^\{"log":"(.*)(?:\\n|\\r)?","stream":"std(?:out|err)"[^\n]*\}$', re.MULTILINE
)


def _clean(block: bytes) -> bytes:
    """Take out what no pattern should see: colours, NULs, JSON's quoting, CR before LF."""
    if b"\x1b" in block:
        block = ANSI.sub(b"", block)
    if b"\x00" in block:
        block = block.replace(b"\x00", b"")
    if b"\r\n" in block:
        block = block.replace(b"\r\n", b"\n")
    if b'{"log":"' in block:
        block = DOCKER_JSON.sub(_unwrap, block)
    if b'\\"' in block:
        block = block.replace(b'\\"', b'"')
    return block


def _unwrap(match: re.Match[bytes]) -> bytes:
    text = match[1].removesuffix(b"\\n").removesuffix(b"\\r")
    return text.replace(b"\\u001b", b"\x1b").replace(b"\\t", b"\t").replace(b"\\r", b"\r")


def _shorten(line: bytes) -> bytes:
    if len(line) <= MOST_LINE_BYTES:
        return line
    return line[: MOST_LINE_BYTES - 1000] + line[-1000:]
