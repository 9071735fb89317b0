"""Walk forward through a header, a step of bytes at a time, believing no length."""

from __future__ import annotations

import hashlib
import struct

from enginehouse.edges.byte_sources import ByteSource

MOST_HEADER_BYTES = 128 << 20
"""The largest known are near 40 MB: 262,144 tokens, 514,906 merges and a tokenizer.json."""


class DamagedError(Exception):
    """A header that cannot be what a writer wrote."""


class Cursor:
    """A position in a source; what is taken is hashed, what is skipped is not."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._buffer = b""
        self._start = 0
        self._at = 0
        self._hash = hashlib.sha256()

    @property
    def position(self) -> int:
        """The offset of the next byte."""
        return self._start + self._at

    def digest(self) -> str:
        """Return the SHA-256 over the bytes that were taken and the file's size."""
        whole = self._hash.copy()
        whole.update(self._source.size.to_bytes(8, "little"))
        return whole.hexdigest()

    def take(self, count: int) -> bytes:
        """Return exactly `count` bytes."""
        self._check(count)
        if self._at + count > len(self._buffer):
            self._refill(count)
        data = self._buffer[self._at : self._at + count]
        self._at += count
        self._hash.update(data)
        return data

    def skip(self, count: int) -> None:
        """Pass `count` bytes without reading them."""
        self._check(count)
        self._at += count
        if self._at > len(self._buffer):
            self._start, self._at, self._buffer = self._start + self._at, 0, b""

    def number(self, form: str) -> int:
        """Return an integer in a form of `struct`."""
        return int(self.value(form))

    def value(self, form: str) -> int | float | bool:
        """Return a scalar in a form of `struct`."""
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, form: str, most: int, what: str) -> int:
        """Return a count, which must not be above `most`."""
        count = self.number(form)
        if count > most:
            raise DamagedError(f"{count:,} {what}")
        return count

    def skip_strings(self, count: int) -> None:
        """Pass `count` strings, each after its length in eight bytes."""
        self._check(8 * count)
        length_at = struct.Struct("<Q").unpack_from
        while count:
            buffer, begin, at, end = self._buffer, self._at, self._at, len(self._buffer)
            while count and at + 8 <= end:
                after = at + 8 + length_at(buffer, at)[0]
                if after > end:
                    break
                at, count = after, count - 1
            self._hash.update(buffer[begin:at])
            self._at = at
            if count:
                self.skip(self.number("<Q"))
                count -= 1

    def _check(self, count: int) -> None:
        position = self.position
        if count > self._source.size - position:
            raise DamagedError(f"{count:,} bytes announced at {position:,}, beyond its end")
        if position + count > MOST_HEADER_BYTES:
            raise DamagedError(f"the header is larger than {MOST_HEADER_BYTES >> 20} MiB")

    def _refill(self, count: int) -> None:
        self._start, rest = self.position, self._buffer[self._at :]
        self._at = 0
        wanted = max(count, self._source.step) - len(rest)
        wanted = min(wanted, self._source.size - self._start - len(rest))
        self._buffer = rest + self._source.read_at(self._start + len(rest), wanted)
        if len(self._buffer) < count:
            raise DamagedError("it became shorter while it was read")
