"""How much memory ggml's graph allocator needs for a list of tensors in the order of computing.

The rule is the engine's own (`ggml/src/ggml-alloc.c`, llama.cpp b11549: `ggml_gallocr_alloc_graph`,
`ggml_dyn_tallocr_alloc`): a tensor takes the smallest free block that is large enough, or grows the
buffer; it is freed after its last reader; some operations write over a source that has no other
reader left. What remains to be said is the list, see `core/llama_graph.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

ALIGNMENT = 64
ENDLESS = 1 << 62


@dataclass(frozen=True)
class Node:
    """One tensor: its size, the nodes it reads, and whether it may overwrite one of them.

    An input exists before anything is computed. What is `kept` is never freed.
    """

    bytes: int
    sources: tuple[int, ...] = ()
    can_overwrite: bool = False
    is_input: bool = False
    is_kept: bool = False


@dataclass
class Graph:
    """A list of nodes that is written in the order in which they are computed."""

    nodes: list[Node] = field(default_factory=list)

    def input(self, size: float, kept: bool = False) -> int:
        """Add an input and return its number."""
        return self._add(Node(_aligned(size), is_input=True, is_kept=kept))

    def new(self, size: float, *sources: int) -> int:
        """Add a tensor that needs memory of its own."""
        return self._add(Node(_aligned(size), sources))

    def over(self, size: float, *sources: int) -> int:
        """Add a tensor that may take the place of the first source of its size it alone reads."""
        return self._add(Node(_aligned(size), sources, can_overwrite=True))

    def read(self, *sources: int) -> None:
        """Add a reader that makes nothing (a copy into the KV cache)."""
        self._add(Node(0, sources))

    def _add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1


def _aligned(size: float) -> int:
    return -(-int(size) // ALIGNMENT) * ALIGNMENT


def peak_bytes(nodes: Sequence[Node]) -> int:
    """Return the size that the buffer grows to while the nodes are computed in order."""
    readers = [0] * len(nodes)
    for node in nodes:
        for source in node.sources:
            readers[source] += 1
    blocks = _Blocks()
    place: dict[int, int] = {}
    for number, node in enumerate(nodes):
        if node.is_input:
            place[number] = blocks.take(node.bytes)
    for number, node in enumerate(nodes):
        if node.is_input:
            continue
        if node.bytes:
            taken = _overwritten(nodes, number, readers, place)
            place[number] = blocks.take(node.bytes) if taken is None else place.pop(taken)
        for source in node.sources:
            readers[source] -= 1
            if readers[source] == 0 and source in place and not nodes[source].is_kept:
                blocks.give(place.pop(source), nodes[source].bytes)
    return blocks.peak


def _overwritten(
    nodes: Sequence[Node], number: int, readers: Sequence[int], place: dict[int, int]
) -> int | None:
    node = nodes[number]
    if not node.can_overwrite:
        return None
    for source in node.sources:
        fits = nodes[source].bytes == node.bytes and not nodes[source].is_kept
        if fits and readers[source] == 1 and source in place:
            return source
    return None


class _Blocks:
    """Free blocks by offset; the last one has no end."""

    def __init__(self) -> None:
        self.peak = 0
        self._free: list[tuple[int, int]] = [(0, ENDLESS)]

    def take(self, size: int) -> int:
        """Return the offset of the best fitting block, the endless one when no other fits."""
        chosen = len(self._free) - 1
        for number in range(len(self._free) - 1):
            if size <= self._free[number][1] and (
                chosen == len(self._free) - 1 or self._free[number][1] <= self._free[chosen][1]
            ):
                chosen = number
        offset, room = self._free[chosen]
        if room == size:
            del self._free[chosen]
        else:
            self._free[chosen] = (offset + size, room - size)
        self.peak = max(self.peak, offset + size)
        return offset

    def give(self, offset: int, size: int) -> None:
        """Free a block and join it with its free neighbours."""
        joined: list[tuple[int, int]] = []
        for block in sorted([*self._free, (offset, size)]):
            if joined and joined[-1][0] + joined[-1][1] == block[0]:
                joined[-1] = (joined[-1][0], joined[-1][1] + block[1])
            else:
                joined.append(block)
        self._free = joined
