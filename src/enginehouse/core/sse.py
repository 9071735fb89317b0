"""Split server-sent events: bytes in, the data of whole events out."""

from __future__ import annotations


def one_line(data: bytes) -> bytes:
    """Return JSON whose strings have no character that a client may take for a line's end.

    JSON leaves NEL, LS and PS as they are; Python's `str.splitlines`, with which httpx and so
    Ollama's client reads lines, ends one at each, and a model's text could break the stream.
    """
    return (
        data.replace(b"\xe2\x80\xa8", b"\\u2028")
        .replace(b"\xe2\x80\xa9", b"\\u2029")
        .replace(b"\xc2\x85", b"\\u0085")
    )


class EventSplitter:
    """Takes a stream's bytes as they come and gives the data of each event that is complete.

    Engines here send one `data:` line an event; further ones are joined by a line feed as the
    standard says. Comments and other fields are passed over.
    """

    def __init__(self, limit_bytes: int = 16 << 20) -> None:
        self._rest = b""
        self._limit_bytes = limit_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that this chunk completes.

        Raises:
            ValueError: when an event is larger than the limit.
        """
        whole = self._rest + chunk if self._rest else chunk
        if b"\r" in whole:
            if whole.endswith(b"\r"):  # half of a line's end: the rest decides
                self._rest = whole
                return []
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *events, self._rest = whole.split(b"\n\n")
        if len(self._rest) > self._limit_bytes:
            raise ValueError(f"an event of the engine is larger than {self._limit_bytes} bytes")
        return [data for event in events if (data := _data(event))]

    def rest(self) -> list[bytes]:
        """Return what stands at the end without an empty line after it."""
        data = _data(self._rest.replace(b"\r", b""))
        self._rest = b""
        return [data] if data else []


def _data(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [
        line.partition(b":")[2].removeprefix(b" ")
        for line in event.split(b"\n")
        if line.startswith((b"data:", b"error:"))  # older llama-servers send `error: {…}`
    ]
    return b"\n".join(lines)
