"""A real image for real containers: this Python with the `xllamacpp` wheel, and nothing else.

It is made of what the machine has, so that no registry is needed. Podman is used with runc and with
limits of its own: in a container without CAP_SYS_RESOURCE crun cannot raise RLIMIT_NOFILE, and it
refuses hybrid cgroups.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import xllamacpp

from enginehouse.edges import wheel_server

SETTINGS = """
[containers]
default_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]
[engine]
runtime = "runc"
"""
SERVER = "/app/wheel_server.py"
EATER = "/app/eater.py"
EAT = """import sys, time
print("eating", flush=True)
held = []
while len(held) < 128:
    held.append(bytearray(b"x" * (8 << 20)))
    time.sleep(0.01)
time.sleep(600)
"""
LEFT_OUT = re.compile(r"/(test|site-packages|__pycache__|idlelib|ensurepip|tkinter)(/|$)|\.a$")
LIBRARY = re.compile(r"(/\S+) \(0x")


def why_not() -> str:
    """Say why no container can be run here, empty when one can."""
    for program in ("podman", "runc", "ldd"):
        if shutil.which(program) is None:
            return f"there is no {program} here"
    return ""


def write_settings(folder: Path) -> dict[str, str]:
    """Write settings of podman's own and return the variable that makes it use them."""
    path = folder / "containers.conf"
    path.write_text(SETTINGS)
    return {"CONTAINERS_CONF": str(path)}


def python_in_image() -> str:
    """Return the path of Python in the image, which is its path here."""
    return str(Path(sys.executable).resolve())


def import_image(name: str, env: dict[str, str]) -> None:
    """Make the image, with an entry point that runs the wheel's server."""
    entry = f'ENTRYPOINT ["{python_in_image()}", "{SERVER}"]'
    child = subprocess.Popen(
        ["podman", "import", "--quiet", "--change", entry, "-", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=env,
    )
    assert child.stdin is not None
    with tarfile.open(fileobj=child.stdin, mode="w|") as tar:
        for source, target in sorted(_files()):
            tar.add(source.resolve(), target, recursive=False)
        for folder in ("dev/shm", "proc", "sys", "tmp", "etc", "run"):
            entry_of = tarfile.TarInfo(folder)
            entry_of.type, entry_of.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry_of)
        eater = tarfile.TarInfo(EATER.lstrip("/"))
        eater.size, eater.mode = len(EAT), 0o644
        tar.addfile(eater, io.BytesIO(EAT.encode()))
    child.stdin.close()
    assert child.wait(300) == 0


def _files() -> set[tuple[Path, str]]:
    """Return what goes in: the file here, and its name in the image."""
    python, found = Path(python_in_image()), set()
    folder = Path(f"{sys.base_prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}")
    wheel = Path(xllamacpp.__file__).parent
    site = folder / "site-packages"
    found.add((python, str(python)))
    found.add((Path(wheel_server.__file__), SERVER))
    for path in folder.rglob("*"):
        if path.is_file() and not LEFT_OUT.search(str(path)):
            found.add((path, str(path)))
    for beside in (wheel, wheel.with_name("xllamacpp.libs")):
        for path in beside.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add((path, f"{site}/{path.relative_to(wheel.parent)}"))
    for path in _libraries([python, *folder.rglob("lib-dynload/*.so"), *wheel.rglob("*.so")]):
        found.add((path, str(path)))
    return found


def _libraries(programs: list[Path]) -> Iterator[Path]:
    """Return the shared libraries that these need, and the loader."""
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    for name in set(LIBRARY.findall(done.stdout)):
        yield Path(name)
