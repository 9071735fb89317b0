"""The allocator's rule, on graphs small enough to be computed by hand."""

from __future__ import annotations

from enginehouse.core.graph_memory import Graph, peak_bytes


def test_a_chain_needs_two_tensors_at_a_time() -> None:
    """A tensor is freed after its last reader, so a chain holds a source and its result."""
    graph = Graph()
    current = graph.input(640)
    for _ in range(10):
        current = graph.new(640, current)
    assert peak_bytes(graph.nodes) == 2 * 640


def test_writing_over_a_source_needs_no_memory() -> None:
    """An operation that may overwrite takes the place of a source that nobody else reads."""
    graph = Graph()
    current = graph.input(640)
    for _ in range(10):
        current = graph.over(640, current)
    assert peak_bytes(graph.nodes) == 640


def test_a_source_that_is_read_again_is_not_overwritten() -> None:
    """A residual stays until it is added, whatever could be computed in its place."""
    graph = Graph()
    residual = graph.input(640)
    normed = graph.over(640, residual)
    graph.over(640, normed, residual)
    assert peak_bytes(graph.nodes) == 2 * 640


def test_a_freed_block_is_used_again_and_joined() -> None:
    """Two neighbours that were freed hold one tensor of their joint size."""
    graph = Graph()
    first, second = graph.input(640), graph.input(640)
    kept = graph.new(64, first, second)
    large = graph.new(1280, kept)
    graph.read(large)
    assert peak_bytes(graph.nodes) == 1280 + 64


def test_inputs_exist_from_the_start() -> None:
    """All inputs are there together, even when the first is read before the last is needed."""
    graph = Graph()
    inputs = [graph.input(640) for _ in range(5)]
    for number in inputs:
        graph.read(number)
    assert peak_bytes(graph.nodes) == 5 * 640


def test_a_kept_tensor_is_never_freed() -> None:
    """An output stays although its reader is done."""
    graph = Graph()
    graph.read(graph.input(640, kept=True))
    graph.new(640)
    assert peak_bytes(graph.nodes) == 2 * 640
