"""Fetch a GGUF file from the Hugging Face Hub with its own client (resume, ETag, token, cache)."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginehouse.core.errors import MachineError, UserError
from enginehouse.edges.progress import Progress

PREFERRED = ("Q4_K_M", "Q4_0", "Q4_K_S", "Q5_K_M", "Q8_0")
"""Which quantization to take when a repository has several and none was named."""
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """A file on the hub: `owner/repo/file`, its SHA-256 where the hub tells it, and its size."""

    spec: str
    digest: str
    bytes: int


def fetch_hub_model(spec: str, progress: Progress) -> Path:
    """Return the path of `owner/repo[:quantization][/file]` in the hub's cache, fetched to there.

    Raises:
        UserError: `model.hub.*`: no such repository or file, gated, or no GGUF in it.
        MachineError: `network.unreachable`.
    """
    import huggingface_hub

    repository, file, quantization = split_spec(spec)
    with hub_errors(repository, file):
        file = file or pick_gguf(repository, list_files(repository), quantization)
        if not isinstance(huggingface_hub.try_to_load_from_cache(repository, file), str):
            _metadata(repository, file)  # fails at once where the download retries for long
        bar = _bar_of(progress, f"fetching {repository}/{file}")
        return Path(huggingface_hub.hf_hub_download(repository, file, **bar))


def find_hub_file(spec: str) -> HubFile:
    """Return which file `owner/repo[:quantization][/file]` means, without fetching it.

    Raises:
        UserError, MachineError: as `fetch_hub_model`.
    """
    repository, file, quantization = split_spec(spec)
    with hub_errors(repository, file):
        file = file or pick_gguf(repository, list_files(repository), quantization)
        found = _metadata(repository, file)
    etag = str(found.etag or "")
    digest = f"sha256:{etag}" if SHA256.fullmatch(etag) else ""
    return HubFile(f"{repository}/{file}", digest, int(found.size or 0))


def _metadata(repository: str, file: str) -> Any:
    import huggingface_hub
    from huggingface_hub import constants

    url = huggingface_hub.hf_hub_url(repository, file)
    return huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _bar_of(progress: Progress, label: str) -> dict[str, Any]:
    """Return the option that tells a transfer's progress, none where the hub's client has none."""
    import huggingface_hub
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    if "tqdm_class" not in inspect.signature(huggingface_hub.hf_hub_download).parameters:
        return {}

    class Bar(tqdm):
        """One transfer, drawn by nobody but `progress`; a retry goes on with the same bar."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]
            self.done = int(options.get("initial") or 0)
            progress.begin(label, options.get("total"))
            progress.advance_to(self.done)

        def update(self, n: float | None = 1) -> None:
            """Take that so many more bytes came."""
            self.done += int(n or 0)
            progress.advance_to(self.done)

        def __exit__(self, kind: object, *rest: object) -> None:
            if kind is None:
                progress.end()

    return {"tqdm_class": Bar}


def split_spec(spec: str) -> tuple[str, str, str]:
    """Return the repository, file and quantization (or "") of `owner/repo[:quantization][/file]`.

    Raises:
        UserError: `model.bad_spec`.
    """
    owner, _, rest = spec.partition("/")
    name, _, file = rest.partition("/")
    name, _, quantization = name.partition(":")
    if not owner or not name:
        raise UserError(
            "model.bad_spec",
            f"hf:{spec} does not name a repository",
            evidence=(f"{spec!r} is not of the form owner/repo[/file]",),
            remedies=("write hf:owner/repo or hf:owner/repo/file.gguf",),
        )
    return f"{owner}/{name}", file, quantization


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
    from huggingface_hub import constants

    limit_s = constants.HF_HUB_ETAG_TIMEOUT  # without one a silent hub is waited for without end
    siblings = huggingface_hub.model_info(repository, timeout=limit_s).siblings or ()
    return tuple(sibling.rfilename for sibling in siblings)


def pick_gguf(repository: str, names: tuple[str, ...], quantization: str = "") -> str:
    """Return the GGUF file to take when none was named: the one of a quantization, or the usual.

    Raises:
        UserError: `model.hub.which_file`.
    """
    models = [name for name in names if name.endswith(".gguf") and "mmproj" not in name]
    if quantization:
        word = re.compile(rf"(?i)(?<![A-Za-z0-9_]){re.escape(quantization)}(?![A-Za-z0-9_])")
        for name in models:
            if word.search(name):
                return name
    elif len(models) == 1:
        return models[0]
    for preferred in () if quantization else PREFERRED:
        for name in models:
            if preferred.lower() in name.lower() and "-of-" not in name:
                return name
    raise UserError(
        "model.hub.which_file",
        f"{repository} holds {len(models)} GGUF files"
        + (f", and none of {quantization}" if quantization else ""),
        evidence=tuple(models[:10]) or ("no file ends in .gguf",),
        remedies=tuple(f"hf:{repository}/{name}" for name in models[:3]),
    )


def _first_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [""])[0][:300]
