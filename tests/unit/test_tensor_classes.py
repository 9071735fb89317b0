"""Tensor names and the classes they belong to."""

from __future__ import annotations

import pytest

from enginehouse.core.model import CLASSES
from enginehouse.core.tensor_classes import class_of_gguf, class_of_hf, hf_layer_of, layer_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_embd.weight", "token embedding"),
        ("per_layer_token_embd.weight", "token embedding"),
        ("token_embd_norm.weight", "norms"),
        ("output.weight", "output"),
        ("output_norm.weight", "norms"),
        ("blk.0.attn_q.weight", "attention"),
        ("blk.0.attn_q_norm.weight", "norms"),
        ("blk.11.attn_kv_a_mqa.weight", "attention"),
        ("blk.0.ffn_gate_exps.weight", "experts"),
        ("blk.0.ffn_up.3.weight", "experts"),
        ("blk.0.ffn_gate_shexp.weight", "feed-forward"),
        ("blk.0.ffn_gate_inp.weight", "feed-forward"),
        ("blk.0.ffn_down.weight", "feed-forward"),
        ("blk.0.ssm_in.weight", "recurrent"),
        ("blk.0.shortconv.in_proj.weight", "recurrent"),
        ("blk.0.time_mix_w1.weight", "recurrent"),
        ("v.blk.0.attn_q.weight", "projector"),
        ("mm.0.weight", "projector"),
        ("rope_freqs.weight", "other"),
    ],
)
def test_gguf_names(name: str, expected: str) -> None:
    """llama.cpp's names fall into the class that memory and bandwidth are counted by."""
    assert class_of_gguf(name) == expected
    assert expected in CLASSES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "token embedding"),
        ("lm_head.weight", "output"),
        ("model.layers.0.self_attn.q_proj.qweight", "attention"),
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("model.layers.0.input_layernorm.weight", "norms"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "experts"),
        ("model.layers.3.mlp.shared_expert.up_proj.weight", "feed-forward"),
        ("model.layers.3.mlp.gate.weight", "feed-forward"),
        ("model.layers.0.linear_attn.in_proj_qkvz.weight", "recurrent"),
        ("model.layers.0.mlp.down_proj.weight_packed", "feed-forward"),
        ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", "projector"),
        ("model.visual.blocks.0.attn.qkv.weight", "projector"),
        ("model.norm.weight", "norms"),
    ],
)
def test_hugging_face_names(name: str, expected: str) -> None:
    """So do the names of checkpoints."""
    assert class_of_hf(name) == expected


def test_layers_of_tensors() -> None:
    """The layer is read from the name, and only where there is one."""
    assert layer_of("blk.17.attn_q.weight") == 17
    assert layer_of("v.blk.17.attn_q.weight") is None
    assert layer_of("blk.99999999999.x") is None
    assert hf_layer_of("model.layers.5.mlp.up_proj.weight") == 5
    assert hf_layer_of("transformer.h.2.attn.c_attn.weight") == 2
    assert hf_layer_of("lm_head.weight") is None
