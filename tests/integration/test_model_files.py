"""Every place that a model can be in, read by its headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from enginehouse.core.errors import UserError
from enginehouse.core.model import Model
from enginehouse.edges.byte_sources import LocalFile
from enginehouse.edges.model_files import read_place
from enginehouse.edges.model_sources import inspect_model, resolve_model
from enginehouse.edges.progress import SilentProgress
from enginehouse.edges.safetensors_file import read_safetensors
from tests.integration.test_models import Shelf
from tests.model_writers import (
    CONFIG,
    write_cache,
    write_checkpoint,
    write_gguf,
    write_parts,
    write_store,
)


def inspect(spec: str | Path, shelf: Shelf | None = None) -> Model:
    return inspect_model(str(spec), shelf or Shelf(), Path("/nowhere"), SilentProgress())


def error_of(spec: str | Path) -> str:
    with pytest.raises(UserError) as caught:
        inspect(spec)
    assert caught.value.report.evidence
    assert caught.value.report.remedies
    return f"{caught.value.report.id}: {caught.value.report.what}"


def test_parts_are_read_as_the_whole(tmp_path: Path) -> None:
    """From any part the model has the same weights as in one file, and its first part as path."""
    whole = inspect(write_gguf(tmp_path / "whole.gguf"))
    parts = write_parts(tmp_path, 3)
    for path in parts:
        found = inspect(path)
        assert found.groups == whole.groups
        assert found.blocks == whole.blocks
        assert found.path == str(parts[0])
        assert [part.path for part in found.parts] == [str(part) for part in parts]
        assert found.file_bytes == sum(part.stat().st_size for part in parts)


def test_parts_that_are_no_whole_are_told(tmp_path: Path) -> None:
    """Missing, a link back to the first (a cycle), renamed, or cut off: each is named."""
    first, second, third = write_parts(tmp_path, 3)
    kept = second.read_bytes()
    second.unlink()
    assert error_of(first).startswith("model.file.split: tiny-00001-of-00003.gguf")
    assert "of its 3 parts 1 are missing: tiny-00002-of-00003.gguf" in error_of(third)
    second.symlink_to(first)
    assert "tiny-00002-of-00003.gguf holds part 1" in error_of(first)
    second.unlink()
    second.symlink_to(second.name)
    assert "model.file.split" in error_of(first)
    second.unlink()
    second.write_bytes(kept[:-50])
    assert error_of(first).startswith("model.file.truncated")
    second.write_bytes(kept)
    first.rename(tmp_path / "renamed.gguf")
    assert "so the others cannot be found" in error_of(tmp_path / "renamed.gguf")


def test_a_part_is_hashed_with_the_others(tmp_path: Path) -> None:
    """A change of any part is a change of the model, and nothing is hashed twice."""
    parts, shelf = write_parts(tmp_path), Shelf()
    first = resolve_model(str(parts[1]), shelf, tmp_path, SilentProgress())
    assert len(first.digest) == 64
    assert inspect(parts[0], shelf).digest == first.digest
    parts[1].write_bytes(parts[1].read_bytes() + b"\0")
    assert inspect(parts[0], shelf).digest == ""
    assert resolve_model(str(parts[0]), shelf, tmp_path, SilentProgress()).digest != first.digest


def test_showing_hashes_nothing(tmp_path: Path) -> None:
    """`inspect_model` leaves the digest empty and the register as it is; the header has its own."""
    path, shelf = write_gguf(tmp_path / "tiny.gguf"), Shelf()
    found = inspect(path, shelf)
    assert (found.digest, shelf.models()) == ("", ())
    assert len(found.header_digest) == 64
    whole = resolve_model(str(path), shelf, tmp_path, SilentProgress())
    assert inspect(path, shelf) == whole


def test_a_projector_beside_its_model_is_found(tmp_path: Path) -> None:
    """One model in the folder: the mmproj is its; two models: nobody knows."""
    path = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "mmproj-tiny.gguf").write_bytes(b"12345")
    assert inspect(path).projector_bytes == 5
    assert inspect(tmp_path).path == str(path)
    write_gguf(tmp_path / "other.gguf")
    assert inspect(path).projector_bytes == 0
    assert error_of(tmp_path).startswith("model.folder.which_file")


def test_our_reader_agrees_with_the_safetensors_package(tmp_path: Path) -> None:
    """Names, shapes and types are what the field's own reader says."""
    folder = write_checkpoint(tmp_path / "tiny")
    for path in sorted(folder.glob("*.safetensors")):
        source = LocalFile(path)
        ours = {tensor.name: list(tensor.shape) for tensor in read_safetensors(source).tensors}
        source.close()
        with safe_open(path, "numpy") as theirs:
            assert ours == {name: theirs.get_slice(name).get_shape() for name in theirs.keys()}  # noqa: SIM118


def test_a_checkpoint_is_read_by_its_headers(tmp_path: Path) -> None:
    """Shards, config, tokenizer, template and license make the same facts as for GGUF."""
    folder = write_checkpoint(tmp_path / "Tiny")
    found = inspect(folder)
    assert (found.name, found.format, found.architecture) == (
        "tiny",
        "safetensors",
        "LlamaForCausalLM",
    )
    assert (found.quantization, found.license, found.context_length) == ("F16", "apache-2.0", 2048)
    assert found.parameters == 2 * 16 * 64 + 64 * 64 + 128 * 64
    assert found.weight_bytes == 2 * found.parameters
    assert found.bytes_per_token == found.weight_bytes - 2 * 16 * 64
    assert [block.k_elements for block in found.blocks] == [32, 32]
    assert found.template is not None
    assert (found.template.has_tools, found.template.dialect) == (True, "mistral")
    assert len(found.parts) == 2
    assert inspect(folder / "model-00002-of-00002.safetensors") == found


@pytest.mark.parametrize(
    ("quantization", "arrays", "label", "parameters"),
    [
        (
            {"quant_method": "awq", "bits": 4, "group_size": 32},
            {
                "model.layers.0.mlp.up_proj.qweight": np.zeros((64, 8), dtype=np.int32),
                "model.layers.0.mlp.up_proj.scales": np.zeros((2, 64), dtype=np.float16),
            },
            "awq 4-bit",
            64 * 64,
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {
                "model.layers.0.mlp.up_proj.weight": np.zeros((2048, 1), dtype=np.uint8),
                "model.layers.0.mlp.up_proj.weight.absmax": np.zeros(64, dtype=np.uint8),
            },
            "bitsandbytes 4-bit",
            4096,
        ),
    ],
)
def test_quantized_checkpoints(
    tmp_path: Path,
    quantization: dict[str, Any],
    arrays: dict[str, Any],
    label: str,
    parameters: int,
) -> None:
    """Packed weights are counted each, and the method is named."""
    config = {**CONFIG, "quantization_config": quantization}
    found = inspect(write_checkpoint(tmp_path / "q", config, arrays))
    assert (found.quantization, found.parameters) == (label, parameters)


def safetensors(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


ENTRY = b'{"a":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("content", "id"),
    [
        (b"", "model.file.empty"),
        (b"abc", "model.file.not_safetensors"),
        (safetensors(b"{}", length=1 << 63), "model.file.not_safetensors"),
        (safetensors(b"{}", length=1 << 20), "model.file.truncated"),
        (safetensors(b"[" * 100_000, data=b"x"), "model.file.damaged"),
        (safetensors(b'{"a":' * 50_000), "model.file.damaged"),
        (safetensors(ENTRY, data=b"1234"), "model.file.damaged"),
        (safetensors(ENTRY.replace(b"[4]", b"[5]"), data=bytes(8)), "model.file.damaged"),
        (safetensors(ENTRY.replace(b"[0,8]", b"[-8,0]"), data=bytes(8)), "model.file.damaged"),
        (safetensors(b"\xff\xfe"), "model.file.damaged"),
        (safetensors(ENTRY.replace(b"[4]", b"[4" + b",1" * 2**21 + b"]")), "model.file.damaged"),
    ],
)  # fmt: skip
def test_hostile_safetensors_are_told(tmp_path: Path, content: bytes, id: str) -> None:
    """Whatever is announced, the error has its id and nothing is believed."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert error_of(path).startswith(id)


@pytest.mark.parametrize(
    "weight_map",
    [{"a": "../../../etc/passwd.safetensors"}, {"a": "/x.safetensors"}, {"a": 5}, {}, ["a"],
     {"a": "none.safetensors"}],
)  # fmt: skip
def test_an_index_leads_nowhere_else(tmp_path: Path, weight_map: Any) -> None:
    """An index that names a path, nothing, or a part that is not there is refused."""
    folder = write_checkpoint(tmp_path / "tiny")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert error_of(folder).startswith(("model.file.damaged", "model.file.split"))


def test_the_hubs_cache_resolves_to_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository's name, its folder and its snapshot are the same model; no network is needed."""
    folder = write_cache(tmp_path / "hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = str(folder / "snapshots" / "abc123")
    for spec in ("me/tiny", "hf:me/tiny", str(folder), snapshot):
        assert inspect(spec).path == snapshot
    (folder / "refs" / "main").write_text("../../../etc")
    assert inspect(folder).path == snapshot
    assert inspect(folder).source == "hf:me/tiny"


def test_ollamas_store_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name or a manifest leads to the blob with its template, license and projector."""
    manifest = write_store(tmp_path / "store")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    for spec in ("ollama:tiny:1b", str(manifest)):
        found = inspect(spec)
        assert (found.name, found.architecture, found.license) == (
            "tiny:1b",
            "llama",
            "MIT License",
        )
        assert Path(found.path).parent == tmp_path / "store" / "blobs"
        assert [part.role for part in found.parts] == [
            "weights",
            "projector",
            "template",
            "license",
        ]
        assert found.template is not None
        assert (found.template.origin, found.template.has_tools) == (
            "Ollama's template layer",
            True,
        )
        assert found.projector_bytes == 4
    assert error_of("ollama:tinny").startswith("model.ollama.unknown")
    assert error_of("ollama:../x").startswith("model.ollama.unknown")
    Path(found.path).unlink()
    assert error_of("ollama:tiny:1b").startswith("model.file.missing")


def test_an_ollama_model_can_be_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`models add ollama:…` hashes the blob, whose name is its digest; later its name is enough."""
    write_store(tmp_path / "store")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    shelf = Shelf()
    found = resolve_model("ollama:tiny:1b", shelf, tmp_path, SilentProgress())
    assert Path(found.path).name == f"sha256-{found.digest}"
    assert inspect("tiny:1b", shelf) == found
    assert resolve_model("tiny:1b", shelf, tmp_path, SilentProgress()) == found


def test_facts_of_an_older_version_are_read_again(tmp_path: Path) -> None:
    """A model that was registered before is learned anew, without hashing it again."""
    import dataclasses

    path, shelf = write_gguf(tmp_path / "tiny.gguf"), Shelf()
    found = resolve_model(str(path), shelf, tmp_path, SilentProgress())
    old = dataclasses.replace(found, blocks=(), facts_version=0, digest="kept")
    shelf.remember(old, path.stat().st_mtime_ns)
    assert resolve_model("tiny", shelf, tmp_path, SilentProgress()) == dataclasses.replace(
        found, digest="kept"
    )


def test_a_place_without_a_model_is_told(tmp_path: Path) -> None:
    """Nothing there, an empty folder, a folder of something else."""
    assert error_of(tmp_path / "none.safetensors").startswith("model.file.missing")
    assert error_of(tmp_path).startswith("model.file.missing")
    (tmp_path / "models--a--b" / "snapshots").mkdir(parents=True)
    with pytest.raises(UserError):
        read_place(tmp_path / "models--a--b")


@pytest.mark.parametrize(
    "spec", ["a" * 5000, "a\0b/c", "x/" * 3000 + "y.gguf", "~nobody-here/x.gguf"]
)
def test_an_absurd_path_is_told(spec: str) -> None:
    """A name that no file system takes is an error of ours."""
    with pytest.raises(UserError):
        inspect(spec)
