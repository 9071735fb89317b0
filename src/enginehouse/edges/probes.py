"""Look at the machine: all probes over one source, live or recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from enginehouse.core.facts import Fact, Facts
from enginehouse.core.known import enrich
from enginehouse.core.machine import Machine
from enginehouse.core.machine_of import machine_of
from enginehouse.edges.answers import live_answers
from enginehouse.edges.machine.cgroup import Cgroup
from enginehouse.edges.machine.containers import container_facts
from enginehouse.edges.machine.cpu import cpu_facts
from enginehouse.edges.machine.engines import engine_facts
from enginehouse.edges.machine.jetson import jetson_facts
from enginehouse.edges.machine.kind import kind_facts
from enginehouse.edges.machine.memory import memory_facts, read_unlimited
from enginehouse.edges.machine.nvidia import nvidia_facts
from enginehouse.edges.machine.other_gpus import other_gpu_facts
from enginehouse.edges.machine.storage import storage_facts
from enginehouse.edges.seam import LiveSource, Reader, Source
from enginehouse.knowledge.machine_facts import load_known

Probe = Callable[[Reader], Iterator[Fact]]

HARDWARE: tuple[Probe, ...] = (
    kind_facts, cpu_facts, memory_facts, nvidia_facts, other_gpu_facts, jetson_facts,
)  # fmt: skip
LIMITS_EVERY_S = 2.0
SOFTWARE: tuple[Probe, ...] = (engine_facts, container_facts, storage_facts)


def live_source() -> LiveSource:
    """Return this machine as a source, as of now."""
    return LiveSource(live_answers())


def examine(source: Source, probes: Sequence[Probe] = (*HARDWARE, *SOFTWARE)) -> Facts:
    """Return all facts of a machine, with what is known about them; probes run side by side."""
    reader = Reader(source)
    with ThreadPoolExecutor(len(probes)) as pool:
        found = pool.map(lambda probe: tuple(probe(reader)), probes)
        facts = Facts(tuple(fact for part in found for fact in part))
    return enrich(facts, load_known())


def look_at_machine() -> Machine:
    """Return this machine's hardware now, without engines, containers and disks."""
    return machine_of(examine(live_source(), HARDWARE))


def read_available_bytes() -> int:
    """Return MemAvailable now, capped by the cgroup; it takes about a millisecond."""
    return AvailableMemory().read()


class AvailableMemory:
    """MemAvailable, capped by the cgroup, for whoever asks often.

    Most processes are under no limit; whether ours is now is looked up every few seconds.
    """

    def __init__(
        self, source: Source | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._reader = Reader(source or LiveSource())
        self._clock = clock
        self._is_limited = True
        self._look_at = float("-inf")

    def read(self) -> int:
        """Return the bytes that are available now."""
        now = self._clock()
        if not self._is_limited and now < self._look_at:
            return read_unlimited(self._reader)
        cgroup = Cgroup.find(self._reader)
        self._is_limited = cgroup.limit_bytes is not None
        self._look_at = now + LIMITS_EVERY_S
        return cgroup.left_of(read_unlimited(self._reader))
