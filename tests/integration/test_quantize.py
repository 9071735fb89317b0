"""Re-quantized files made with the wheel's own routines, without a compiler."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from enginehouse.core.errors import EngineError, MachineError
from enginehouse.core.model import Model
from enginehouse.edges.ggml_library import find_library
from enginehouse.edges.gguf_copy import split_entries
from enginehouse.edges.gguf_file import read_gguf_header
from enginehouse.edges.model_files import read_place
from enginehouse.edges.quantize import VariantStore, make_variant, weigh_here
from enginehouse.edges.quantize_run import Tool, Tools, find_tools
from tests.model_writers import METADATA

WIDTH = 512
TEMPLATE = "{% for message in messages %}{{ message.content }} – ünï{% endfor %}"


def write_model(path: Path, layers: int = 2, rows: int = 64, alignment: int = 0) -> Path:
    """Write a llama with random half-precision weights and metadata of every kind."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for key in ("block_count", "context_length", "embedding_length"):
        writer.add_uint32(f"llama.{key}", {"block_count": layers}.get(key, WIDTH))
    writer.add_uint32("llama.attention.head_count", 8)
    writer.add_uint32("llama.attention.head_count_kv", 2)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_array("tokenizer.ggml.tokens", [f"tökén{n}" for n in range(rows)])
    writer.add_array("tokenizer.ggml.token_type", [1] * rows)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    rng = np.random.default_rng(7)
    names = ["token_embd.weight", "output.weight"]
    for n in range(layers):
        names += [f"blk.{n}.{part}.weight" for part in ("attn_v", "attn_q", "ffn_down")]
        norm = np.ones(WIDTH, np.float32) * (n + 1)
        writer.add_tensor(f"blk.{n}.attn_norm.weight", norm)
    for name in names:
        writer.add_tensor(name, rng.standard_normal((rows, WIDTH)).astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def store(tmp_path: Path) -> VariantStore:
    """A store of the test's own, with the wheel's routines only."""
    return VariantStore(tmp_path / "cache", Tools(library=find_tools().library), 1 << 30, 0)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """A small model in half precision."""
    return read_place(write_model(tmp_path / "tiny.gguf"), "tiny")


def tensors(path: str | Path) -> dict[str, Any]:
    """The tensors of a file as another reader sees them."""
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("quantization", ["Q4_0", "Q5_0", "Q8_0", "BF16"])
def test_the_bits_are_those_of_an_independent_quantizer(
    store: VariantStore, model: Model, quantization: str
) -> None:
    """Every matrix equals what the `gguf` package makes of the source; the rest is untouched."""
    made = make_variant(model, quantization, store)
    source = tensors(model.path)
    for name, tensor in tensors(made.path).items():
        given = source[name]
        if tensor.tensor_type == given.tensor_type:
            assert np.array_equal(tensor.data, given.data)
        elif tensor.tensor_type.name != "Q6_K":  # the package cannot make it
            floats = dequantize(given.data, given.tensor_type)
            assert np.array_equal(tensor.data, quantize(floats, tensor.tensor_type))


@pytest.mark.parametrize(
    ("quantization", "worst"), [("Q4_K_M", 0.09), ("IQ4_NL", 0.09), ("Q6_K", 0.03), ("Q2_K", 0.40)]
)
def test_mixtures_stay_near_their_source(
    store: VariantStore, model: Model, quantization: str, worst: float
) -> None:
    """The error of every matrix, against random weights, is what the bits allow."""
    made = make_variant(model, quantization, store)
    source = tensors(model.path)
    for name, tensor in tensors(made.path).items():
        before = dequantize(source[name].data, source[name].tensor_type)
        after = dequantize(tensor.data, tensor.tensor_type)
        assert np.linalg.norm(after - before) <= worst * np.linalg.norm(before)


def test_metadata_stay_byte_for_byte(store: VariantStore, model: Model) -> None:
    """Tokenizer, template and all else are copied; only what names the format changes."""
    made = make_variant(model, "Q4_0", store)
    before, after = (dict(split_entries(Path(p).read_bytes())) for p in (model.path, made.path))
    changed = {"general.file_type", "general.quantization_version"}
    assert set(after) == set(before) | changed
    assert all(after[key] == before[key] for key in set(before) - changed)
    assert made.quantization == "Q4_0"
    assert (made.name, made.template) == (model.name, model.template)


@pytest.mark.parametrize("alignment", [32, 64])
def test_the_size_is_predicted(tmp_path: Path, store: VariantStore, alignment: int) -> None:
    """The file takes what was predicted, but for two keys in the header."""
    path = write_model(tmp_path / "aligned.gguf", alignment=0 if alignment == 32 else alignment)
    model = read_place(path)
    for variant in weigh_here(model, store):
        if not variant.refusal:
            made = make_variant(model, variant.quantization, store)
            assert abs(made.file_bytes - variant.file_bytes) <= 128


def test_a_variant_of_a_variant_may_be_made(store: VariantStore, model: Model) -> None:
    """A quantized file is a source too, in its own folder."""
    first = make_variant(model, "Q8_0", store)
    second = make_variant(first, "Q4_0", store)
    assert second.quantization == "Q4_0"
    assert Path(second.path).parent != Path(first.path).parent


def test_it_is_made_once(store: VariantStore, model: Model) -> None:
    """The second call returns the kept file; a changed one is made again."""
    made = make_variant(model, "Q4_0", store)
    stat = os.stat(made.path)
    assert make_variant(model, "Q4_0", store) == made
    assert os.stat(made.path).st_ino == stat.st_ino
    with open(made.path, "r+b") as file:
        file.truncate(made.file_bytes - 32)
    again = make_variant(model, "Q4_0", store)
    assert (again.digest, again.file_bytes) == (made.digest, made.file_bytes)


def test_its_recipe_stands_beside_it(store: VariantStore, model: Model) -> None:
    """Who made it of what, and what the file was then, is kept."""
    made = make_variant(model, "Q4_0", store)
    recipe = json.loads(Path(made.path).with_suffix(".json").read_text())
    assert recipe["source"] == model.path
    assert (recipe["tool"], recipe["quantization"]) == ("wheel", "Q4_0")
    assert (recipe["digest"], recipe["file_bytes"]) == (made.digest, made.file_bytes)
    names = {path.name for path in Path(made.path).parent.iterdir()}
    assert names == {"Q4_0.gguf", "Q4_0.json", ".lock"}


def child(source: Path, draft: Path) -> list[str]:
    """The command that writes a draft."""
    library = str(find_library())
    program = [sys.executable, "-m", "enginehouse.edges.quantize_child"]
    return [*program, library, str(source), "IQ4_NL", str(draft), "1"]


def test_a_killed_run_leaves_no_broken_file_and_is_gone_on_with(
    tmp_path: Path, store: VariantStore
) -> None:
    """Killed twice, the file is whole in the end, and its first part is not redone."""
    model = read_place(write_model(tmp_path / "large.gguf", layers=8, rows=512))
    folder = store.folder(model)
    folder.mkdir(parents=True)
    draft, journal = folder / "IQ4_NL.draft", folder / "IQ4_NL.journal"
    kept: list[str] = []
    for lines in (3, 6):
        run = subprocess.Popen(child(Path(model.path), draft))
        while not journal.exists() or len(journal.read_text().splitlines()) < lines:
            assert run.poll() is None
            time.sleep(0.01)
        run.kill()
        run.wait()
        assert not (folder / "IQ4_NL.gguf").exists()
        found = journal.read_text().splitlines()
        assert found[: len(kept)] == kept
        kept = found[:lines]
    whole = make_variant(model, "IQ4_NL", store)
    other = dataclasses.replace(store, cache=tmp_path / "other")
    assert make_variant(model, "IQ4_NL", other).digest == whole.digest


def test_a_draft_that_was_damaged_meanwhile_is_not_believed(
    tmp_path: Path, store: VariantStore, model: Model
) -> None:
    """What does not match its checksum is written again."""
    made = make_variant(model, "Q4_0", store)
    draft = tmp_path / "Q4_0.draft"
    command = child(Path(model.path), draft)
    command[-3] = "Q4_0"
    subprocess.run(command, check=True)
    with draft.open("r+b") as file:
        file.seek(read_gguf_header(draft).data_offset + 5000)
        file.write(b"damaged")
    subprocess.run(command, check=True)
    assert draft.read_bytes() == Path(made.path).read_bytes()


def test_it_can_be_stopped(store: VariantStore, model: Model) -> None:
    """A store that says stop ends the child and leaves no file of the final name."""
    stopped = dataclasses.replace(store, should_stop=lambda: True)
    with pytest.raises(CancelledError):
        make_variant(model, "Q4_0", stopped)
    assert not list(store.cache.rglob("*.gguf"))
    assert make_variant(model, "Q4_0", store).quantization == "Q4_0"


def test_the_least_recently_used_model_goes_when_there_is_no_room(
    tmp_path: Path, store: VariantStore, model: Model
) -> None:
    """Variants of other models make room; this model's own stay, and then the disk is full."""
    first = make_variant(model, "Q8_0", store)
    small = dataclasses.replace(store, disk_budget_bytes=first.file_bytes + 1000)
    other = read_place(write_model(tmp_path / "other.gguf", layers=3))
    made = make_variant(other, "Q4_0", small)
    assert not Path(first.path).exists()
    with pytest.raises(MachineError) as caught:
        make_variant(other, "Q8_0", small)
    assert caught.value.report.id == "disk.full"
    assert Path(made.path).exists()


def test_a_failed_run_says_what_it_said(store: VariantStore, model: Model) -> None:
    """The tool's own last words are the evidence, and nothing is left."""
    broken = Tools(library=Tool("wheel", "/no/such/library.so"))
    with pytest.raises(EngineError) as caught:
        make_variant(model, "Q4_0", dataclasses.replace(store, tools=broken))
    assert caught.value.report.id == "quantize.failed"
    assert "/no/such/library.so" in caught.value.report.evidence[0]
    assert not list(store.cache.rglob("Q4_0*"))


def test_without_means_it_is_said(store: VariantStore, model: Model) -> None:
    """No tool is an error of its own, and every variant is refused for it."""
    nothing = dataclasses.replace(store, tools=Tools())
    with pytest.raises(EngineError) as caught:
        make_variant(model, "Q4_0", nothing)
    assert caught.value.report.id == "quantize.no_tool"
    assert all(variant.refusal for variant in weigh_here(model, nothing))


def test_a_model_in_parts_becomes_one_file(tmp_path: Path, store: VariantStore) -> None:
    """The parts' tensors are gathered, and what says that there are parts is dropped."""
    whole = write_model(tmp_path / "whole.gguf")
    names = [f"parts-{n:05d}-of-00002.gguf" for n in (1, 2)]
    all_tensors = list(tensors(whole).values())
    for number, name in enumerate(names):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(all_tensors))
        if number == 0:
            for key, value in METADATA.items():
                if isinstance(value, int):
                    writer.add_uint32(key, value)
        for tensor in all_tensors[number::2]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    made = make_variant(read_place(tmp_path / names[0]), "Q8_0", store)
    apart = make_variant(read_place(whole), "Q8_0", store)
    found, expected = tensors(made.path), tensors(apart.path)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[n].data, expected[n].data) for n in found)
    assert not any("split" in key for key, _ in split_entries(Path(made.path).read_bytes()))
