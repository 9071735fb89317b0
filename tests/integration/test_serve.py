"""Serving ends as it is asked to, before and after it serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = """
import asyncio, sys
from pathlib import Path
from enginehouse.edges.leases import LeaseBook
from enginehouse.core.catalog import Served
from enginehouse.gateway.router import Offer, Step
from enginehouse.gateway.serve import serve
from enginehouse.gateway.serving import Serving
from tests.integration.conftest import fake_plan
folder = Path(sys.argv[1])
plan = fake_plan(folder, *sys.argv[2:])
print("started", plan.endpoint.socket_path, flush=True)
serving = Serving("127.0.0.1", 0, 8, 5.0)
offers = (Offer(Served("fake"), (Step("as chosen", lambda context: plan),)),)
try:
    leases = LeaseBook(folder / "leases")
    asyncio.run(serve(offers, serving, leases, lambda url: print(url, flush=True)))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("script", "code"), [(("--never-ready",), 130), ((), 0)])
def test_an_end_before_it_serves_is_an_interruption(
    tmp_path: Path, script: tuple[str, ...], code: int
) -> None:
    """Before a token came out SIGINT is an interruption; after that it is how a server ends."""
    child = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path), *script],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    assert child.stdout is not None
    socket_path = child.stdout.readline().split()[1]
    if code == 0:
        assert child.stdout.readline().startswith("http://127.0.0.1:")
    else:
        while not os.path.exists(socket_path):
            assert child.poll() is None
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    assert child.returncode == code
    assert not os.path.exists(socket_path)
    assert not list((tmp_path / "leases").glob("*"))
