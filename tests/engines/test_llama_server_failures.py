"""Failures of a native `llama-server`, in its own words: its flags are not the wheel's program's.

The program is the one on PATH, or one in a folder `tools/llama-server-*` of Enginehouse's cache.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from enginehouse.core.diagnose_facts import Facts
from enginehouse.core.diagnose_scan import scan
from enginehouse.core.diagnose_verdict import Verdict, judge
from enginehouse.edges.builds import find_builds
from enginehouse.edges.paths import cache_dir
from enginehouse.knowledge.patterns import load_book
from tests.integration.houses import House
from tests.real.broken import write_llama
from tests.real.provoke import QUIET

pytestmark = [pytest.mark.llama_server, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def program() -> str:
    """A native llama-server; skips where there is none."""
    kept = sorted(cache_dir().glob("tools/llama-server-*/llama-server"))
    found = shutil.which("llama-server") or (str(kept[-1]) if kept else None)
    if found is None:
        pytest.skip("there is no llama-server here, neither on PATH nor among Enginehouse's tools")
    return found


@dataclass(frozen=True)
class Refused:
    """Flags that a real llama-server refuses, and what must be said of it."""

    name: str
    cause: str
    words: str
    flags: tuple[str, ...]


REFUSED = (
    Refused("an unknown flag", "config.unknown_flag", "--nonesuch", ("--nonesuch",)),
    Refused("a word for a number", "config.invalid_value", "--threads", ("--threads", "many")),
    Refused("no value", "config.unknown_flag", "expected value", ("--threads",)),
    Refused("an unknown way to pool", "config.invalid_value", "--pooling", ("--pooling", "odd")),
    Refused("an unknown cache type", "config.unknown_flag", "q9_9", ("--cache-type-k", "q9_9")),
    Refused("an unknown device", "config.wrong_device", "CUDA9", ("--device", "CUDA9")),
    Refused("no template file", "config.wrong_path", "/no/t.jinja",
            ("--chat-template-file", "/no/t.jinja")),
    Refused("no folder for slots", "config.wrong_path", "/no/dir", ("--slot-save-path", "/no/dir")),
    Refused("no folder of pages", "config.wrong_path", "/no/dir", ("--path", "/no/dir")),
    Refused("a template by no known name", "model.chat_template", "nonesuch",
            ("--chat-template", "nonesuch", "--no-jinja")),
    Refused("no adapter", "model.file_missing", "/no/a.gguf", ("--lora", "/no/a.gguf")),
    Refused("no projector", "model.file_missing", "/no/p.gguf", ("--mmproj", "/no/p.gguf")),
)  # fmt: skip


def verdict_on(argv: list[str]) -> Verdict:
    """Run a server that must end by itself, and judge what it wrote."""
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        env=QUIET, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    facts = Facts(exit_code=done.returncode)
    return judge(load_book(), scan([done.stdout], load_book()), facts)


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_a_refused_start_is_explained(program: str, tmp_path: Path, refused: Refused) -> None:
    """The cause is what was provoked, with the program's own line as evidence."""
    model = write_llama(tmp_path / "model.gguf")
    socket = tmp_path / "engine.sock"
    found = verdict_on([program, "-m", str(model), "--host", str(socket), *refused.flags])
    assert found.cause == refused.cause, found
    assert refused.words in "\n".join(evidence.text for evidence in found.evidence)


def test_a_word_in_the_environment_is_explained(program: str, tmp_path: Path) -> None:
    """A LLAMA_ARG_ variable that cannot be read is named."""
    model = write_llama(tmp_path / "model.gguf")
    found = verdict_on(["env", "LLAMA_ARG_CTX_SIZE=many", program, "-m", str(model)])
    assert found.cause == "config.invalid_value"
    assert "LLAMA_ARG_CTX_SIZE" in found.evidence[0].text


def test_its_version_is_read_whatever_its_age(program: str) -> None:
    """The build that is named here is found, with its number."""
    build = next(build for build in find_builds(program) if build.kind in ("binary", "native"))
    assert build.version.startswith("b")
    assert build.path == program


def test_find_drops_what_this_build_refuses(program: str, tmp_path: Path) -> None:
    """A setting that the native build refuses at its start is left out, and a token is served."""
    house = House(tmp_path)
    house.settings_file.write_text(f"[engine.llama_cpp]\npath = '{program}'\n")
    model = str(write_llama(tmp_path / "model.gguf"))
    found = house.run_json("find", model, "--budget", "12s", "--set", "speculation=telepathy")
    trials = {row["trial"]["id"]: row["trial"] for row in found["leaderboard"]}
    mended = [
        trial for trial in trials.values()
        if trial["build"]["kind"] == "binary" and trial["remedy"]
        and trial["outcome"] in ("measured", "proven")
    ]  # fmt: skip
    assert mended
    failed = trials[mended[0]["remedy"]["trial_id"]]
    assert failed["diagnosis"]["cause"] == "config.invalid_value"
    assert "unknown speculative type" in failed["diagnosis"]["evidence"][0]["text"]
