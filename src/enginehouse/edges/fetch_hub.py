"""Fetch a GGUF file from the Hugging Face Hub with its own client (resume, ETag, token, cache)."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enginehouse.core.errors import MachineError, UserError
from enginehouse.edges.progress import Progress

PREFERRED = ("Q4_K_M", "Q4_0", "Q4_K_S", "Q5_K_M", "Q8_0")
"""Which quantization to take when a repository has several and none was named."""


def fetch_hub_model(spec: str, progress: Progress) -> Path:
    """Return the path of `owner/repo[/file]` in the hub's own cache, fetched when it is not there.

    Raises:
        UserError: `model.hub.*`: no such repository or file, gated, or no GGUF in it.
        MachineError: `network.unreachable`.
    """
    import huggingface_hub

    repository, file = split_spec(spec)
    progress.begin(f"fetching {repository}", None)
    try:
        with hub_errors(repository, file):
            file = file or pick_gguf(repository, list_files(repository))
            return Path(huggingface_hub.hf_hub_download(repository, file))
    finally:
        progress.end()


def split_spec(spec: str) -> tuple[str, str]:
    """Return the repository and the file (or "") of `owner/repo[/file]`.

    Raises:
        UserError: `model.bad_spec`.
    """
    owner, _, rest = spec.partition("/")
    name, _, file = rest.partition("/")
    if not owner or not name:
        raise UserError(
            "model.bad_spec",
            f"hf:{spec} does not name a repository",
            evidence=(f"{spec!r} is not of the form owner/repo[/file]",),
            remedies=("write hf:owner/repo or hf:owner/repo/file.gguf",),
        )
    return f"{owner}/{name}", file


@contextmanager
def hub_errors(repository: str, file: str) -> Iterator[None]:
    """Turn the hub client's errors into ours.

    Raises:
        UserError: `model.hub.*`.
        MachineError: `network.unreachable`.
    """
    from huggingface_hub import errors

    # The hub's client changed its HTTP library twice; what its own error derives from is the base
    # of that library's errors, a refused connection included.
    transport_error: type[BaseException] = errors.HfHubHTTPError.__mro__[1]
    try:
        yield
    except errors.GatedRepoError as problem:
        raise UserError(
            "model.hub.gated",
            f"{repository} is gated: its owner must let you in",
            evidence=(_first_line(problem),),
            remedies=("accept its terms on the hub, then set HF_TOKEN",),
        ) from problem
    except errors.LocalEntryNotFoundError as problem:  # an EntryNotFoundError too: comes first
        raise _unreachable(repository, problem) from problem
    except errors.EntryNotFoundError as problem:
        names = list_files(repository)
        nearest = difflib.get_close_matches(file, names, 3)
        raise UserError(
            "model.hub.no_file",
            f"{repository} has no file {file}",
            evidence=(_first_line(problem),),
            remedies=tuple(f"hf:{repository}/{near}" for near in nearest),
        ) from problem
    except errors.RepositoryNotFoundError as problem:
        raise UserError(
            "model.hub.no_repository",
            f"the hub has no repository {repository}, or it is private",
            evidence=(_first_line(problem),),
            remedies=("check the name", "set HF_TOKEN if it is private"),
        ) from problem
    except (transport_error, OSError) as problem:
        raise _unreachable(repository, problem) from problem


def _unreachable(repository: str, problem: BaseException) -> MachineError:
    return MachineError(
        "network.unreachable",
        f"{repository} could not be fetched from the hub",
        evidence=(f"{type(problem).__name__}: {_first_line(problem)}",),
        remedies=(
            "check the network, HF_ENDPOINT and the disk's space",
            "use a GGUF file that is here: enginehouse up FILE",
        ),
    )


def list_files(repository: str) -> tuple[str, ...]:
    """Return the names of a repository's files."""
    import huggingface_hub

    siblings = huggingface_hub.model_info(repository).siblings or ()
    return tuple(sibling.rfilename for sibling in siblings)


def pick_gguf(repository: str, names: tuple[str, ...]) -> str:
    """Return the GGUF file to take when none was named.

    Raises:
        UserError: `model.hub.which_file`.
    """
    models = [name for name in names if name.endswith(".gguf") and "mmproj" not in name]
    if len(models) == 1:
        return models[0]
    for quantization in PREFERRED:
        for name in models:
            if quantization.lower() in name.lower() and "-of-" not in name:
                return name
    raise UserError(
        "model.hub.which_file",
        f"{repository} holds {len(models)} GGUF files",
        evidence=tuple(models[:10]) or ("no file ends in .gguf",),
        remedies=tuple(f"hf:{repository}/{name}" for name in models[:3]),
    )


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [""])[0][:300]
