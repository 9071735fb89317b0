"""The `engines` commands: list, build, remove; `install` is added by who can install one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import PROGRAM, Call, command
from enginehouse.cli_progress import mib, open_progress, say

if TYPE_CHECKING:
    from enginehouse.app_engines import Listed
    from enginehouse.edges.native_build import Built, NativeBuild

BUILDABLE = ("llama.cpp", "ik_llama.cpp")


@click.group(epilog="\b\nExample:\n  enginehouse engines list")
def engines() -> None:
    """List engines, build, install and remove them."""


@click.group(epilog="\b\nExample:\n  enginehouse engines install --help")
def install() -> None:
    """Install an engine, away from Enginehouse's own environment."""


def installer(name: str, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Register `engines install NAME`; its function gets the call and its own options."""
    if install.name not in engines.commands:
        engines.add_command(install)
    return command(install, name, example)


@command(engines, "list", "enginehouse engines list --json")
def engines_list(call: Call) -> None:
    """List every engine, its builds here, and what can be built or installed.

    An engine that is unproven is written from its documentation: no trial has proven it yet.
    """
    from enginehouse.app_engines import list_engines

    with call.house() as house:
        listed = list_engines(house.builds(), house.look(), tuple(install.commands))
    call.show({"engines": listed}, lambda: _engines_text(listed))


@command(engines, "build", "enginehouse engines build llama.cpp --no-cuda")
@click.argument("engine", type=click.Choice(BUILDABLE))
@click.option("--cuda/--no-cuda", default=None, help="With CUDA or not; by default where it can.")
@click.option(
    "--jobs", type=click.IntRange(min=1), metavar="N",
    help="Compilers at once; by default one a core, fewer where memory is short.",
)  # fmt: skip
@click.option("--version", default="", help="Version of the source; by default the newest.")
@click.option(
    "--source", default="", metavar="FOLDER", help="A checkout of yours, instead of a package's."
)
@click.option("--dry-run", is_flag=True, help="Show what would be built, and how; build nothing.")
def engines_build(
    call: Call,
    engine: str,
    cuda: bool | None,
    jobs: int | None,
    version: str,
    source: str,
    dry_run: bool,
) -> None:
    """Build ENGINE from source for this machine.

    The source is the one inside a package of your index: xllamacpp for llama.cpp,
    ik-llama-cpp-python for ik_llama.cpp; or the one in FOLDER. An interrupted build goes on where
    it stopped; the same build is not made twice. Afterwards `find` tries it beside the others.
    """
    from enginehouse.app_engines import prepare_build
    from enginehouse.edges.native_build import Wanted

    if version and source:
        raise click.UsageError("--version chooses among packages, --source builds what is there")
    wanted = Wanted(cuda, jobs, version, source)
    with call.house() as house:
        plan = prepare_build(engine, house.look(), wanted, open_progress())
        if dry_run:
            call.show(_plan_document(plan), lambda: _plan_text(plan))
            return
        built = plan.make()
    call.show(_built_document(built), lambda: _built_text(built))


@command(engines, "remove", "enginehouse engines remove llama.cpp --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def engines_remove(call: Call, name: str, yes: bool) -> None:
    """Remove what Enginehouse built or installed: an engine's NAME, or one build of it.

    Engines that were not made by Enginehouse are not touched.
    """
    from enginehouse.app_engines import removable, remove_engines

    with call.house():
        folders = removable(name)
        for folder in folders:
            say(f"to remove: {folder}")
        if not yes:
            click.confirm("remove?", abort=True, err=True)
        remove_engines(folders)
    removed = [str(folder) for folder in folders]
    call.show({"removed": removed}, lambda: f"removed {len(removed)} folder(s)")


def _engines_text(listed: tuple[Listed, ...]) -> str:
    from enginehouse.cli_render import table

    rows = []
    for engine in listed:
        facts = (engine.name, engine.status)
        for build in engine.builds:
            rows.append((*facts, build.version, build.kind, build.short_digest, build.path))
        if not engine.builds:
            rows.append((*facts, "-", "not here", "-", "-"))
    lines = [table(("ENGINE", "STATUS", "VERSION", "KIND", "DIGEST", "PATH"), rows)]
    offers = [(offer.command, offer.says) for engine in listed for offer in engine.offers]
    if offers:
        lines += ["", table(("TO BUILD OR INSTALL HERE", "GIVES"), offers)]
    return "\n".join(lines)


def _plan_document(plan: NativeBuild) -> dict[str, object]:
    return {
        "version": plan.version,
        "source": plan.sdist.url,
        "source_digest": plan.sdist.sha256,
        "flags": plan.recipe.defines,
        "why": plan.recipe.why,
        "jobs": plan.jobs,
        "disk_bytes": plan.recipe.disk_bytes,
        "folder": str(plan.target),
        "is_here": (plan.target / "build.json").exists(),
    }


def _plan_text(plan: NativeBuild) -> str:
    return "\n".join(
        (
            f"{plan.source.engine} {plan.version}, {plan.recipe.why}",
            f"source  {plan.sdist.name}",
            f"flags   {' '.join(plan.recipe.defines)}",
            f"jobs    {plan.jobs}",
            f"disk    {mib(plan.recipe.disk_bytes)} while it is built",
            f"folder  {plan.target}",
        )
    )


def _built_document(built: Built) -> dict[str, object]:
    return {"folder": str(built.folder), "is_new": built.is_new, "build": built.record}


def _built_text(built: Built) -> str:
    verb = "built" if built.is_new else "is here already:"
    programs = "\n".join(f"  {built.folder / path}" for path in built.record.programs.values())
    return (
        f"{verb} {built.record.engine} {built.record.version} (native), {built.why}\n{programs}\n"
        f"`{PROGRAM} find MODEL` tries it beside the other builds"
    )
