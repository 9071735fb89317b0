"""Every command that the documents show is one that exists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from tests.docs.documents import DOCUMENTS, ROOT, commands_of, name_of

PLACEHOLDER = re.compile(r"[A-Z]+|…|\[.*")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_dev_commands_exist(document: Path) -> None:
    """What follows `./dev` is one of the script's commands; a named benchmark is there."""
    cases = re.findall(r"^(\w+(?: \| \w+)*)\)", (ROOT / "dev").read_text(), re.MULTILINE)
    known = {name for case in cases for name in case.split(" | ")} | {"help"}
    for words in commands_of(document.read_text(encoding="utf-8"), "./dev"):
        assert not words or words[0] in known or PLACEHOLDER.match(words[0]), words
        if words[:1] == ["bench"] and len(words) > 1 and not PLACEHOLDER.match(words[1]):
            assert (ROOT / "benchmarks" / f"{words[1]}.py").exists(), words


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_enginehouse_commands_exist(document: Path) -> None:
    """What follows `enginehouse` is a command of the program, with options that it has."""
    cli = pytest.importorskip("enginehouse.cli", reason="the command line is not there").cli
    for words in commands_of(document.read_text(encoding="utf-8"), "enginehouse"):
        problem = find_problem(cli, words)
        assert not problem, f"enginehouse {' '.join(words)}: {problem}"


def find_problem(cli: click.Group, words: Sequence[str]) -> str:
    """Say what a line of words asks for that the program does not have; empty when nothing."""
    command: click.Command = cli
    options = {"--help", "-h", *options_of(cli)}
    for word in words:
        if word.startswith("-"):
            name = word.partition("=")[0]
            if name not in options:
                return f"there is no option {name}"
        elif isinstance(command, click.Group) and not PLACEHOLDER.match(word):
            found = command.commands.get(word)
            if found is None:
                return f"there is no command {word}"
            command = found
            options |= options_of(found)
    return ""


def options_of(command: click.Command) -> set[str]:
    """Return the spellings of a command's options."""
    return {name for param in command.params for name in (*param.opts, *param.secondary_opts)}


def test_commands_are_found_in_fences_and_inline() -> None:
    """Prompts, comments, chains and pipes around a command do not hide it."""
    text = "Use `./dev up` or:\n```sh\n$ cd x && ./dev test -q  # all\n./dev bench a | tee b\n```\n"
    assert list(commands_of(text, "./dev")) == [["test", "-q"], ["bench", "a"], ["up"]]


def test_a_wrong_command_or_option_is_noticed() -> None:
    """The check can fail: it knows groups, their commands and each command's options."""

    @click.group()
    def program() -> None: ...

    @program.command()
    @click.option("--fast")
    def go(fast: str) -> None: ...

    assert find_problem(program, ["go", "there", "--fast=1"]) == ""
    assert find_problem(program, ["stop"]) == "there is no command stop"
    assert find_problem(program, ["go", "--slow"]) == "there is no option --slow"
