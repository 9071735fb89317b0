"""`find` meets a failure of the real engine, applies its remedy, and ends with served tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.houses import House
from tests.real.broken import write_llama

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
BUDGET = ("--budget", "3s", "--set", "threads=1")
"""One thread: with so small a model two spin at each other's barrier whenever a core is busy."""


def plain(house: House) -> Path:
    return write_llama(house.folder / "model.gguf")


def bad_template(house: House) -> Path:
    metadata = {"tokenizer.chat_template": "{% for x in %}{{"}
    return write_llama(house.folder / "model.gguf", metadata=metadata)


def long_context(house: House) -> Path:
    return write_llama(house.folder / "model.gguf", metadata={"llama.context_length": 1 << 24})


def little_room(house: House) -> Path:
    """Leave about 2.5 GiB beside the reserve; 8 million tokens of context take 10 GiB."""
    reserve = psutil.virtual_memory().available - (5 << 29)
    house.settings_file.write_text(f'[trials]\nmemory_reserve = "{reserve >> 20}MiB"\n')
    return long_context(house)


def program(house: House, script: str) -> Path:
    """Put a `llama-server` before the wheel's server, and take the wheel's own place."""
    server = house.folder / "llama-server"
    server.write_text(f"#!{sys.executable}\nimport os, signal, sys\n{script}")
    server.chmod(0o700)
    house.settings_file.write_text(f"[engine.llama_cpp]\npath = '{server}'\n")
    return server


OLD_BUILD = f"""\
if '--version' in sys.argv:
    sys.exit('version: 4242 (abcdef1)')
if '--no-webui' in sys.argv:
    sys.exit('error: invalid argument: --no-webui')
os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'enginehouse.edges.wheel_server',
    *sys.argv[1:]])
"""
"""A build that is older than a flag we give, in llama.cpp's own words, over the real server."""


@dataclass(frozen=True)
class Case:
    """What is asked for, the cause it fails of, and the action that mends it.

    `is_predicted` says that the failing candidate is not even tried.
    """

    name: str
    cause: str
    action: str
    asked: Sequence[str] = ()
    arrange: Callable[[House], Path] = plain
    is_predicted: bool = False


CASES = (
    Case("unknown cache type", "config.unknown_flag", "full-kv", ("--set", "kv_type=q9_9")),
    Case("cache type does not fit", "config.model_incompatible_option", "full-kv",
         ("--set", "kv_type=q4_K")),
    Case("speculation that no build knows", "config.invalid_value", "drop-option",
         ("--set", "speculation=telepathy")),
    Case("quantized V without flash attention", "config.incompatible_flags", "flash-attention-on",
         ("--set", "kv_type=q8_0", "--set", "flash_attention=off"), is_predicted=True),
    Case("a chat template that does not parse", "model.chat_template", "other-template",
         arrange=bad_template),
    Case("a context that cannot fit", "memory.host.insufficient", "shorter-context",
         ("--context", str(8 << 20)), little_room, is_predicted=True),
)  # fmt: skip


def find(house: House, model: Path, *asked: str) -> Any:
    return house.run_json("find", str(model), *BUDGET, *asked)


def chain_of(found: Any) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Return the trial that a remedy led to, and all trials by their number."""
    trials = {row["trial"]["id"]: row["trial"] for row in found["leaderboard"]}
    return next(trial for trial in trials.values() if trial["remedy"]), trials


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_remedy_acts_and_a_token_is_served(tmp_path: Path, case: Case) -> None:
    """The search goes from the failure by its remedy to a measured candidate, as recorded."""
    house = House(tmp_path)
    found = find(house, case.arrange(house), *case.asked)
    mended, trials = chain_of(found)
    assert mended["outcome"] == "measured"
    assert mended["measurement"]["output_tokens"] > 0
    assert (mended["remedy"]["cause"], mended["remedy"]["action"]) == (case.cause, case.action)
    if case.is_predicted:
        assert mended["remedy"]["trial_id"] == 0
    else:
        failed = trials[mended["remedy"]["trial_id"]]
        assert failed["diagnosis"]["cause"] == case.cause
        assert case.action in failed["diagnosis"]["actions"]
    assert found["choice"]["candidate"]


@pytest.mark.long
def test_a_context_is_shortened_no_further_than_it_must(tmp_path: Path) -> None:
    """Of 8 million tokens that do not fit, what fits beside the reserve is served, not a stump."""
    house = House(tmp_path)
    found = find(house, little_room(house), "--context", str(8 << 20))
    settings = dict(map(tuple, found["choice"]["candidate"]["settings"]))
    assert (64 << 10) < settings["context"] < (8 << 20)


@pytest.mark.long
def test_a_flag_that_an_old_build_does_not_know_is_left_out(tmp_path: Path) -> None:
    """A build that refuses a flag of ours is mended by leaving just that one out."""
    house = House(tmp_path)
    program(house, OLD_BUILD)
    find(house, plain(house), "--budget", "20s")
    old = [
        trial for trial in house.run_json("trials", "list")["trials"]
        if trial["build"]["kind"] == "binary"
    ]  # fmt: skip
    mended = next(trial for trial in old if trial["remedy"])
    assert mended["remedy"]["action"] == "drop-option"
    assert dict(map(tuple, mended["candidate"]["settings"]))["leave_out"] == "--no-webui"
    assert "--no-webui" not in mended["argv"]
    assert mended["outcome"] in ("measured", "proven")  # the wheel was measured before


def test_the_chain_is_shown(tmp_path: Path) -> None:
    """A reader of the trial sees what it came from, and what was asked for and not held."""
    house = House(tmp_path)
    done = house.run("find", str(plain(house)), *BUDGET, "--set", "kv_type=q9_9")
    assert done.returncode == 0, done.stderr
    assert "kv_type q9_9 was asked for and failed here" in done.stderr
    assert "after trial 1 (config.unknown_flag)" in done.stderr
    assert "what was done about it: trial 2" in done.stdout
    shown = house.run("trials", "show", "2").stdout
    assert "came from  after trial 1 (config.unknown_flag): keep the KV cache in f16" in shown
