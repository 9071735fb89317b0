"""A fake container program: it speaks docker's commands and runs the engine without a container.

What it does as docker does, and as a plain child would not: what runs in the container is no child
of the client but of a daemon's shim, sees the variables that it is given and no others, and goes on
when the client is killed. A container is a folder; whether the memory killer struck is told by a
file named `oom` beside them.

    fake_container.py HOME COMMAND…      (`install` writes a program that is called as docker is)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

IMAGE, IMAGE_ID = "fake/llama:1", "sha256:" + "c" * 64
ALONE = {"--init", "--read-only", "--rm"}
POLL_S = 0.01


def install(folder: Path, name: str = "docker") -> Path:
    """Write a program that keeps its containers in a folder beside it, and return its path."""
    home = folder / "containers"
    home.mkdir()
    program = folder / name
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {__file__} {home} "$@"\n')
    program.chmod(0o755)
    return program


def run(home: Path, words: list[str]) -> int:
    """Have the shim run the command, and end as it ends."""
    given, entry, name, is_kept = {}, "", "", True
    while words[0].startswith("-"):
        flag = words.pop(0)
        value = "" if flag in ALONE else words.pop(0)
        is_kept = is_kept and flag != "--rm"
        if flag == "--env":
            key, equals, text = value.partition("=")
            given[key] = text if equals else os.environ.get(key, "")
        entry = value if flag == "--entrypoint" else entry
        name = value if flag == "--name" else name
    folder = home / name
    if folder.exists():
        print(f"docker: the name {name} is in use", file=sys.stderr)
        return 125
    folder.mkdir()
    argv = [entry, *words[1:]]
    (folder / "config.json").write_text(json.dumps({"argv": argv, "env": given}))
    shim = [sys.executable, "-SE", __file__, str(home), "shim", name]
    subprocess.Popen(shim, env={}, start_new_session=True)
    while not (folder / "code").exists():
        time.sleep(POLL_S)
        if not folder.exists():
            return 137
    code = int((folder / "code").read_text())
    if not is_kept:
        shutil.rmtree(folder)
    return code


def shim(home: Path, name: str) -> int:
    """Run the command as the daemon's child and note its process id, then its exit code."""
    folder = home / name
    config = json.loads((folder / "config.json").read_text())
    child = subprocess.Popen(config["argv"], env=config["env"], start_new_session=True)
    _write(folder / "pid", str(child.pid))
    code = child.wait()
    if folder.exists():
        _write(folder / "code", str(code if code >= 0 else 128 - code))
    return 0


def inspect(home: Path, name: str) -> int:
    """Print the first process, the exit code and whether the memory killer struck."""
    folder = home / name
    if not folder.exists():
        return 1
    code = _read(folder / "code")
    pid = "0" if code else _read(folder / "pid") or "0"
    struck = code == "137" and (home / "oom").exists()
    print(pid, code or "0", str(struck).lower())
    return 0


def end(home: Path, name: str, grace_s: float) -> int:
    """Ask a container to end, and after the grace insist."""
    folder = home / name
    if not folder.exists():
        print(f"Error: No such container: {name}", file=sys.stderr)
        return 1
    while not (folder / "pid").exists():
        time.sleep(POLL_S)
    number: int = signal.SIGTERM if grace_s else signal.SIGKILL
    limit = time.monotonic() + grace_s
    while not (folder / "code").exists():
        if number:
            _signal(int(_read(folder / "pid")), number)
        number = 0
        if grace_s and time.monotonic() > limit:
            number, grace_s = signal.SIGKILL, 0.0
        time.sleep(POLL_S)
    return 0


def main(home: Path, words: list[str]) -> int:
    """Carry out one command of docker's; one that is not played ends with 9."""
    with (home.parent / "asked").open("a") as asked:
        asked.write(" ".join(words) + "\n")
    match words:
        case ["images", *_]:
            print(f"{IMAGE}|<none>|{IMAGE_ID}")
        case ["image", "inspect", *_, name]:
            print(f'{IMAGE_ID}|["{sys.executable}"]')
            return 0 if name == IMAGE else 1
        case ["ps", *_]:
            print("\n".join(path.name for path in home.iterdir() if path.is_dir()))
        case ["run", *rest]:
            return run(home, rest)
        case ["shim", name]:
            return shim(home, name)
        case ["inspect", *_, name]:
            return inspect(home, name)
        case ["stop", "-t", grace, name]:
            return end(home, name, float(grace))
        case ["kill", name]:
            return end(home, name, 0.0)
        case ["rm", "--force", name]:
            code = end(home, name, 0.0)
            shutil.rmtree(home / name, ignore_errors=True)
            return code
        case _:
            return 9
    return 0


def _signal(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


def _write(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
