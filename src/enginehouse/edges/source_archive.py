"""Unpack a part of a source archive: files, folders and links inside it, nothing else."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from enginehouse.core.errors import UserError


def unpack_part(archive: Path, part: str, target: Path) -> None:
    """Unpack the folder `<top>/<part>` of a tar into `target`, which appears only when whole.

    Raises:
        UserError: `source.damaged`, `source.no_part`.
    """
    draft = target.with_name(f".{target.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    inside = PurePosixPath(part).parts
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                path = PurePosixPath(member.name).parts
                if path[1 : 1 + len(inside)] == inside and len(path) > 1 + len(inside):
                    _write(tar, member, archive, draft, path[1 + len(inside) :])
    except (tarfile.TarError, EOFError, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno:
            raise
        raise _damaged(archive, f"{type(problem).__name__}: {problem}") from problem
    if not any(draft.iterdir()):
        raise UserError(
            "source.no_part",
            f"{archive.name} holds no {part}",
            evidence=(str(archive),),
            remedies=("choose another version: --version",),
        )
    draft.rename(target)


def _write(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    archive: Path,
    root: Path,
    parts: tuple[str, ...],
) -> None:
    if ".." in parts or any(part.startswith("/") for part in parts):
        raise _damaged(archive, f"{member.name} leads out of it")
    path = root.joinpath(*parts)
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
    elif member.isfile():
        path.parent.mkdir(parents=True, exist_ok=True)
        packed = tar.extractfile(member)
        if packed is not None:
            with path.open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
    elif member.issym() and _stays_inside(member.linkname, len(parts) - 1):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(member.linkname)


def _stays_inside(target: str, depth: int) -> bool:
    """Return whether a relative link that many folders deep never leaves the tree."""
    if target.startswith("/"):
        return False
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def _damaged(archive: Path, why: str) -> UserError:
    return UserError(
        "source.damaged",
        f"{archive.name} cannot be unpacked",
        evidence=(why,),
        remedies=("remove it and run this again: it is fetched anew", str(archive)),
    )
