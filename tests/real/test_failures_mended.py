"""`find` meets further failures of the real engine, acts on them, and ends with served tokens.

Beyond `test_remedies.py`; here the failing candidate is always really tried.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.houses import House
from tests.real.broken import write_llama
from tests.real.provoke import QUIET, limited

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(180)]
ONCE = f"""\
#!{sys.executable}
import os, socket, sys, time
if '--version' in sys.argv:
    sys.exit('version: 4242 (abcdef1)')
mark = os.path.join(os.path.dirname(__file__), 'was-started')
if not os.path.exists(mark):
    open(mark, 'w').close()
    ONCE
os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'enginehouse.edges.wheel_server',
    *sys.argv[1:]])
"""
"""A `llama-server` that is the wheel's, but meets a difficulty at its first start."""


def plain(house: House) -> Path:
    return write_llama(house.folder / "model.gguf")


def roomy(house: House) -> Path:
    """A model made for 2 million tokens: they take 0.5 GiB of KV cache and 2 GiB of masks."""
    return write_llama(house.folder / "model.gguf", metadata={"llama.context_length": 2 << 20})


def at_first(difficulty: str, settings: str = "") -> Callable[[House], Path]:
    def arrange(house: House) -> Path:
        program = house.folder / "llama-server"
        program.write_text(ONCE.replace("ONCE", difficulty))
        program.chmod(0o700)
        house.settings_file.write_text(f"[engine.llama_cpp]\npath = '{program}'\n{settings}")
        return plain(house)

    return arrange


@dataclass(frozen=True)
class Mended:
    """What is asked for, the causes it fails of in turn, and the action that follows each."""

    name: str
    chain: tuple[tuple[str, str], ...]
    asked: Sequence[str] = ()
    arrange: Callable[[House], Path] = plain
    prefix: Callable[[], Sequence[str]] = tuple
    budget: str = "4s"


MENDED = (
    Mended("threads without number", (("config.invalid_value", "default-threads"),),
           ("--set", "threads=1000000")),
    Mended("a KV cache of integers", (("config.invalid_value", "full-kv"),),
           ("--set", "kv_type=i32")),
    Mended("more slots than the build has", (("config.too_many_slots", "fewer-sequences"),),
           ("--set", "slots=300", "--context", "512")),
    Mended("a template that needs jinja", (("config.missing_flag", "jinja-on"),),
           ("--set", "jinja=off")),
    Mended("a context that the system refuses twice",
           (("memory.device.oom", "shorter-context"),
            ("memory.device.oom", "shorter-context")),
           ("--context", str(2 << 20)), roomy, lambda: limited(**{"as": 3 << 29}), "8s"),
    Mended("a dead server's socket", (("config.missing_directory", "free-port"),),
           arrange=at_first(
               "socket.socket(socket.AF_UNIX).bind(sys.argv[sys.argv.index('--host') + 1])")),
    Mended("a start that takes too long", (("runtime.load_timeout", "longer-deadline"),),
           arrange=at_first("time.sleep(60)", "[trials]\nload_deadline = '2s'\n"), budget="8s"),
)  # fmt: skip


@pytest.mark.parametrize("mended", MENDED, ids=lambda mended: mended.name)
def test_find_goes_from_the_failure_to_a_served_token(tmp_path: Path, mended: Mended) -> None:
    """Each trial says which one it follows from, why, and by what; the last one served."""
    house = House(tmp_path)
    house.env |= QUIET
    model = mended.arrange(house)
    arguments = ("find", str(model), "--budget", mended.budget, *mended.asked)
    done = house.run(*arguments, prefix=mended.prefix())
    assert done.returncode == 0, done.stderr
    trials = {row["id"]: row for row in house.run_json("trials", "list")["trials"]}
    last = next(
        trial for _, trial in sorted(trials.items())
        if trial["remedy"] and trial["outcome"] in ("measured", "proven")
    )  # fmt: skip
    served = last["measurement"] or {}  # a further build of an engine is only proven
    assert served.get("output_tokens", 0) > 0 or last["first_tok_per_s"] > 0
    chain: list[tuple[str, str]] = []
    trial = last
    while trial["remedy"] and trial["remedy"]["trial_id"]:
        failed = trials[trial["remedy"]["trial_id"]]
        assert trial["remedy"]["cause"] == failed["diagnosis"]["cause"]
        assert trial["remedy"]["action"] in failed["diagnosis"]["actions"]
        chain.insert(0, (failed["diagnosis"]["cause"], trial["remedy"]["action"]))
        trial = failed
    assert tuple(chain) == mended.chain
    assert f"came from  after trial {last['remedy']['trial_id']}" in house.run(
        "trials", "show", str(last["id"])
    ).stdout  # fmt: skip
