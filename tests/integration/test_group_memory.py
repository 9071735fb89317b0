"""The memory of a group of processes, read without slowing them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from enginehouse.edges.group_memory import SHARE, GroupMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PSS is read from /proc")

GROWING = """
import sys
kept = []
for line in sys.stdin:
    kept.append(bytearray(b"x" * int(line)))
    print(flush=True)
"""


@pytest.fixture
def growing() -> Iterator[subprocess.Popen[str]]:
    """Start a process that takes as many bytes as it is told."""
    with subprocess.Popen(
        (sys.executable, "-c", GROWING), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        grow(child, 1)
        yield child
        child.kill()


def grow(child: subprocess.Popen[str], size: int) -> None:
    """Have the process take memory, and wait until it has."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{size}\n")
    child.stdin.flush()
    child.stdout.readline()


class Looks:
    """Names the processes, counts how often it was asked, and is a clock that stands still."""

    def __init__(self, *pids: int) -> None:
        self.count = 0
        self.now = 100.0
        self.pids = pids

    def family(self) -> list[psutil.Process]:
        """Name the processes; it takes a tenth of a second."""
        self.count += 1
        self.now += 0.1
        return [psutil.Process(pid) for pid in self.pids]

    def clock(self) -> float:
        """Return the time that was set."""
        return self.now


def test_growth_is_seen_between_two_looks(growing: subprocess.Popen[str]) -> None:
    """RSS and PSS follow a process that grows, while nobody walks its pages again."""
    looks = Looks(growing.pid)
    memory = GroupMemory(looks.family, looks.clock)
    rss, pss = memory.read()
    assert pss is not None
    assert 0 < pss <= rss
    grow(growing, 64 << 20)
    grown_rss, grown_pss = memory.read()
    assert grown_pss is not None
    assert grown_rss - rss == grown_pss - pss >= 64 << 20
    assert looks.count == 1


def test_it_looks_again_when_that_takes_little_of_a_core(growing: subprocess.Popen[str]) -> None:
    """A look of a tenth of a second is followed by the next one 20 seconds later."""
    looks = Looks(growing.pid)
    memory = GroupMemory(looks.family, looks.clock)
    memory.read()
    looks.now += 0.1 / SHARE - 0.01
    memory.read()
    assert looks.count == 1
    looks.now += 0.02
    memory.read()
    assert looks.count == 2


def test_pages_that_two_share_count_once(growing: subprocess.Popen[str]) -> None:
    """The interpreter's own pages are in the RSS of both processes, and once in their PSS."""
    looks = Looks(growing.pid, psutil.Process().pid)
    rss, pss = GroupMemory(looks.family, looks.clock).read()
    assert pss is not None
    assert pss < rss


def test_what_has_ended_takes_nothing(growing: subprocess.Popen[str]) -> None:
    """A process that has gone is no error and counts as nothing."""
    looks = Looks(growing.pid)
    memory = GroupMemory(looks.family, looks.clock)
    memory.read()
    growing.kill()
    growing.wait()
    assert memory.read()[0] == 0


def test_what_is_not_there_yet_is_looked_for_each_time(growing: subprocess.Popen[str]) -> None:
    """A container's process comes after its client; a short trial must not end without a figure."""
    looks = Looks()
    memory = GroupMemory(looks.family, looks.clock)
    assert memory.read() == (0, None)
    looks.pids = (growing.pid,)
    assert memory.read()[0] > 0
    assert looks.count == 2
