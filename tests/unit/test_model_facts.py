"""From GGUF headers to what is read for a token, and what else the header tells."""

from __future__ import annotations

from enginehouse.core.gguf_header import TensorInfo
from enginehouse.core.model import Model
from enginehouse.core.model_facts import model_of
from tests.unit.headers import header


def tensor(name: str, *shape: int, type_id: int = 1) -> TensorInfo:
    return TensorInfo(name, shape, type_id, 0)


def facts(arch: str, tensors: tuple[TensorInfo, ...], **metadata: object) -> Model:
    keys = {name.replace("__", "."): value for name, value in metadata.items()}
    found = header(arch, {"block_count": 2, **keys}, tensors)  # type: ignore[dict-item]
    return model_of(found, name="x", path="", source="", digest="")


EMBEDDING = tensor("token_embd.weight", 64, 100)


def test_a_tied_embedding_is_read_and_one_of_its_own_is_not() -> None:
    """The output projection is read for every token; of a separate embedding only a row."""
    tied = facts("llama", (EMBEDDING,))
    assert (tied.is_output_tied, tied.bytes_per_token) == (True, 12_800)
    apart = facts("llama", (EMBEDDING, tensor("output.weight", 64, 100, type_id=8)))
    assert (apart.is_output_tied, apart.bytes_per_token) == (False, 6_800)
    assert apart.bytes_by_class() == {"token embedding": 12_800, "output": 6_800}
    assert apart.bytes_by_type() == {"F16": 12_800, "Q8_0": 6_800}


def test_only_active_experts_are_read() -> None:
    """Two of eight experts are a quarter of the experts' bytes; the shared one is read whole."""
    tensors = (
        tensor("blk.0.ffn_up_exps.weight", 64, 32, 8),
        tensor("blk.0.ffn_up_shexp.weight", 64, 32),
    )
    found = facts("qwen2moe", tensors, expert_count=8, expert_used_count=2)
    assert found.bytes_per_token == 2 * 64 * 32 * 2 + 64 * 32 * 2
    assert found.active_parameters == 3 * 64 * 32
    assert (found.blocks[0].weight_bytes, found.blocks[0].expert_bytes) == (36_864, 32_768)


def test_draft_heads_projectors_and_row_tables_are_not_read() -> None:
    """What ordinary decoding does not touch does not count for its bandwidth."""
    tensors = (
        EMBEDDING,
        tensor("output.weight", 64, 100),
        tensor("per_layer_token_embd.weight", 64, 100),
        tensor("blk.1.attn_q.weight", 64, 64),
        tensor("v.blk.0.attn_q.weight", 64, 64),
    )
    found = facts("glm4moe", tensors, nextn_predict_layers=1)
    assert found.bytes_per_token == 12_800
    assert found.projector_bytes == 8_192


def test_a_projector_and_an_adapter_have_their_role() -> None:
    """mmproj files and LoRA adapters are no models."""
    projector = facts("clip", (tensor("v.blk.0.attn_q.weight", 8, 8),), vision__block_count=27)
    assert (projector.role, projector.encoder and projector.encoder.blocks) == ("projector", 27)
    lora = (
        tensor("blk.0.attn_q.weight.lora_a", 64, 16),
        tensor("blk.0.attn_q.weight.lora_b", 16, 64),
    )
    found = model_of(
        header("llama", {"/general.type": "adapter", "/general.base_model.0.name": "Base"}, lora),
        name="x", path="", source="", digest="",
    )  # fmt: skip
    assert (found.role, found.adapter_rank, found.base_model) == ("adapter", 16, "Base")


def test_an_unknown_type_is_told() -> None:
    """A tensor type of the future is counted by its room, and noted."""
    found = facts("llama", (TensorInfo("blk.0.attn_q.weight", (64,), 77, 0, gap_bytes=40),))
    assert found.weight_bytes == 40
    assert "type 77" in found.notes[0]


def test_metadata_of_wrong_types_counts_as_absent() -> None:
    """Text for a number, a number for text, NaN: no exception, no nonsense."""
    found = facts(
        "llama", (), context_length="x", rope__freq_base=float("nan"), rope__scaling__type=3,
        attention__head_count="y", vocab_size=-4, expert_count=True,
    )  # fmt: skip
    assert (found.context_length, found.vocabulary_size) == (0, 0)
    assert found.rope is not None
    assert (found.rope.base, found.rope.scaling) == (0.0, "")
