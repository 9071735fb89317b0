"""Look into a model on the Hugging Face Hub that is not here: only its headers travel."""

from __future__ import annotations

from enginehouse.core.model import Model
from enginehouse.edges.fetch_hub import hub_errors, list_files, pick_gguf, split_spec
from enginehouse.edges.hub_cache import find_snapshot
from enginehouse.edges.model_files import read_place, read_remote_checkpoint, read_url
from enginehouse.edges.model_folders import RemoteFolder


def show_hub_model(spec: str) -> Model:
    """Read the facts of a hub's model, from the cache where it is there, else by ranges.

    `spec` is `owner/repo[:quantization][/file]`.

    Raises:
        UserError: `model.hub.*`, `model.url.*`, `model.file.*`.
        MachineError: `network.unreachable`.
    """
    repository, file, quantization = split_spec(spec)
    snapshot = None if quantization else find_snapshot(repository)
    if snapshot is not None and (not file or (snapshot / file).exists()):
        place = snapshot / file if file else snapshot
        if file or any(snapshot.glob("*.gguf")) or any(snapshot.glob("*.safetensors")):
            return read_place(place, source=f"hf:{spec}")
    return _show_remote(repository, file, quantization)


def _show_remote(repository: str, file: str, quantization: str) -> Model:
    import huggingface_hub
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    with hub_errors(repository, file):
        known = list_files(repository)
        headers = {name: str(value) for name, value in build_hf_headers().items()}
    is_checkpoint = not quantization and not any(name.endswith(".gguf") for name in known)
    if not file and is_checkpoint and any(name.endswith(".safetensors") for name in known):
        base = huggingface_hub.hf_hub_url(repository, "config.json").rsplit("/", 1)[0]
        folder = RemoteFolder(base, known, headers, follow_hosts=True)
        folder.name = repository.rsplit("/", 1)[-1]
        return read_remote_checkpoint(folder, "", f"hf:{repository}")
    file = file or pick_gguf(repository, known, quantization)
    return read_url(
        huggingface_hub.hf_hub_url(repository, file),
        headers,
        is_hub=True,
        source=f"hf:{repository}/{file}",
        known=() if "/" in file else known,
    )
