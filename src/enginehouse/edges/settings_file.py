"""Read settings from config.toml, the environment and the command line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from enginehouse.core.errors import UserError
from enginehouse.core.settings import Given, Settings, given_by_environment, resolve
from enginehouse.edges.paths import config_dir

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_settings(config: Path | None, cli: Mapping[str, str]) -> Settings:
    """Resolve settings: default < config file < environment < command line.

    Raises:
        UserError: `settings.*`, with file, line, key, value and what is wanted.
    """
    path = config or config_dir() / "config.toml"
    given = [*_given_by_file(path, required=config is not None)]
    given += given_by_environment(os.environ)
    given += [Given(key, value, "command line") for key, value in cli.items()]
    return resolve(tuple(given))


def _given_by_file(path: Path, required: bool) -> Iterator[Given]:
    try:
        text = path.read_text()
    except FileNotFoundError:
        if required:
            raise UserError(
                "settings.no_file",
                f"there is no settings file {path}",
                evidence=(str(path.absolute()),),
                remedies=("check the path, or leave --config away to use the usual file",),
            ) from None
        return
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(
            "settings.unreadable",
            f"{path} cannot be read",
            evidence=(str(problem),),
            remedies=("make it a text file in UTF-8 that you may read",),
        ) from problem
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise UserError(
            "settings.syntax",
            f"{path} is not valid TOML",
            evidence=(str(problem),),
            remedies=("mend the line, or move the file away to start from the defaults",),
        ) from problem
    for key, value in _flatten(table, ""):
        yield Given(key, value, f"{path}:{_line_of(text, key)}")


def _flatten(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in table.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{key}.")
        else:
            yield key, value


def _line_of(text: str, key: str) -> int:
    """Return the line that sets a dotted key, 1 when it cannot be told."""
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := re.match(r"\s*\[([^\]]+)\]", line):
            section = header[1].strip() + "."
        elif (entry := re.match(r"\s*([\w.\"-]+)\s*=", line)) and (
            section + entry[1].replace('"', "") == key
        ):
            return number
    return 1
