"""`enginehouse engines install vllm`."""

from __future__ import annotations

import click

from enginehouse.cli_call import PROGRAM, Call
from enginehouse.cli_engines import installer
from enginehouse.cli_progress import open_progress


@click.option("--version", default="", metavar="VERSION", help="By default the index's newest.")
@click.option(
    "--flavour", type=click.Choice(("cpu", "cuda", "jetson")),
    help="By default what this machine needs.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show the commands; run none.")
def install_vllm(call: Call, version: str, flavour: str | None, dry_run: bool) -> None:
    """Install vLLM into an environment of its own.

    The package index is the one that pip is configured for. An interrupted installation goes on
    where it stopped. Afterwards `find` tries vLLM on safetensors models.
    """
    from enginehouse.cli_render import command_line

    with call.house() as house:
        wanted = house.vllm_install(version, flavour or "", open_progress())
        if dry_run:
            document = {"flavour": wanted.flavour, "commands": wanted.commands()}
            call.show(document, lambda: "\n".join(command_line(argv) for argv in wanted.commands()))
            return
        record, is_new = wanted.make()
    document = {"folder": str(wanted.folder), "is_new": is_new, "build": record}
    verb = "installed" if is_new else "is here already:"
    call.show(
        document,
        lambda: (
            f"{verb} vLLM {record.version}, since {wanted.flavour.why}: {wanted.folder}\n"
            f"`{PROGRAM} find MODEL` tries it where MODEL, or --also, is a safetensors folder"
        ),
    )


def register() -> None:
    """Add the installers to `engines install`."""
    installer("vllm", "enginehouse engines install vllm --dry-run")(install_vllm)
