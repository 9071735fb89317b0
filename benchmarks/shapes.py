"""Shapes of models: the sizes that real architectures have, as a list of tensors and metadata.

A shape says nothing of weights; `benchmarks/random_gguf.py` writes one as a file with random ones.
The sizes are those of each model's published `config.json`; a name that ends in `-cut` has fewer
layers than its model, so that a small machine loads it quickly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

Dimensions = tuple[int, ...]
Tensor = tuple[str, Dimensions, str]
"""Name, dimensions in ggml's order (row length first), and the class that its type follows."""

Q_RANK = 512
"""Rank of the query of a shape with multi-head latent attention."""


@dataclass(frozen=True)
class Shape:
    """One architecture's sizes. `full_every` is the period of full attention among sliding ones;
    `attention_layers` are the only ones with attention in a hybrid; `kv_rank` (MLA) is the latent's
    size.
    """

    name: str
    architecture: str
    layers: int
    embedding: int
    heads: int
    kv_heads: int
    head_size: int
    feed_forward: int
    vocabulary: int
    is_tied: bool = True
    context: int = 32768
    window: int = 0
    full_every: int = 0
    experts: int = 0
    experts_used: int = 0
    attention_layers: tuple[int, ...] = ()
    kv_rank: int = 0
    rope_size: int = 0
    state_size: int = 0
    merges: int = -1

    @property
    def is_recurrent(self) -> bool:
        """Whether no layer has attention."""
        return self.architecture == "mamba"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", "llama", 2, 256, 4, 2, 64, 512, 1024, context=2048),
        Shape("smollm2-135m", "llama", 30, 576, 9, 3, 64, 1536, 49152, context=8192),
        Shape("smollm2-360m", "llama", 32, 960, 15, 5, 64, 2560, 49152, context=8192),
        Shape("llama-3.2-1b", "llama", 16, 2048, 32, 8, 64, 8192, 128256, merges=280147),
        Shape("llama-3.2-3b", "llama", 28, 3072, 24, 8, 128, 8192, 128256, merges=280147),
        Shape("tinyllama-1.1b", "llama", 22, 2048, 32, 4, 64, 5632, 32000, is_tied=False),
        Shape("mistral-7b-cut", "llama", 6, 4096, 32, 8, 128, 14336, 32768, is_tied=False),
        Shape("qwen2.5-0.5b", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, merges=151387),
        Shape("qwen2.5-1.5b", "qwen2", 28, 1536, 12, 2, 128, 8960, 151936, merges=151387),
        Shape("qwen2.5-7b-cut", "qwen2", 5, 3584, 28, 4, 128, 18944, 152064, is_tied=False),
        Shape("qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, merges=151387),
        Shape("qwen3-1.7b", "qwen3", 28, 2048, 16, 8, 128, 6144, 151936, merges=151387),
        Shape(
            "gemma2-2b-cut", "gemma2", 8, 2304, 8, 4, 256, 9216, 256000, context=8192,
            window=4096, full_every=2,
        ),
        Shape("gemma3-270m", "gemma3", 18, 640, 4, 1, 256, 2048, 262144, window=512, full_every=6),
        Shape("gemma3-1b", "gemma3", 26, 1152, 4, 1, 256, 6912, 262144, window=512, full_every=6),
        Shape(
            "mixtral-small", "llama", 12, 1024, 16, 4, 64, 3584, 32000, is_tied=False, experts=8,
            experts_used=2,
        ),
        Shape(
            "qwen3moe-small", "qwen3moe", 12, 1024, 16, 4, 128, 768, 151936, is_tied=False,
            experts=32, experts_used=8, merges=151387,
        ),
        Shape("phi3-mini-cut", "phi3", 10, 3072, 32, 32, 96, 8192, 32064, is_tied=False),
        Shape(
            "lfm2-350m", "lfm2", 16, 1024, 16, 8, 64, 4608, 65536,
            attention_layers=(2, 5, 8, 10, 12, 14), merges=63683,
        ),
        Shape("mamba-370m", "mamba", 48, 1024, 0, 0, 0, 0, 50280, state_size=16),
        Shape(
            "deepseek2-small", "deepseek2", 8, 1024, 16, 1, 192, 4096, 102400, is_tied=False,
            kv_rank=512, rope_size=64,
        ),
        Shape("stories-42m", "llama", 8, 512, 8, 8, 64, 1376, 32000, context=1024),
        Shape("danube3-500m", "llama", 16, 1536, 16, 8, 96, 4096, 32000, is_tied=False),
        Shape("granite3-1b-cut", "llama", 20, 2048, 32, 8, 64, 4096, 49152),
        Shape("qwen2.5-3b-cut", "qwen2", 12, 2048, 16, 2, 128, 11008, 151936, merges=151387),
        Shape("qwen3-4b-cut", "qwen3", 9, 2560, 32, 8, 128, 9728, 151936, merges=151387),
        Shape("llama-3.1-8b-cut", "llama", 4, 4096, 32, 8, 128, 14336, 128256, merges=280147),
        Shape("minicpm-1b-cut", "llama", 26, 1536, 24, 8, 64, 3840, 73440),
        Shape("phi3-medium-cut", "phi3", 5, 5120, 40, 10, 128, 17920, 32064, is_tied=False),
        Shape(
            "gemma2-9b-cut", "gemma2", 4, 3584, 16, 8, 256, 14336, 256000, context=8192,
            window=4096, full_every=2,
        ),
        Shape(
            "olmoe-cut", "qwen3moe", 6, 2048, 16, 16, 128, 1024, 50304, is_tied=False,
            experts=64, experts_used=8,
        ),
        Shape(
            "qwen1.5-moe-cut", "qwen3moe", 8, 2048, 16, 16, 128, 1408, 151936, is_tied=False,
            experts=32, experts_used=4, merges=151387,
        ),
        Shape(
            "phi-tiny-moe", "llama", 16, 1024, 16, 4, 64, 1792, 32064, is_tied=False, experts=16,
            experts_used=2,
        ),
        Shape("smollm-1.7b-cut", "llama", 12, 2048, 32, 32, 64, 8192, 49152, context=2048),
        Shape("qwen3-8b-cut", "qwen3", 3, 4096, 32, 8, 128, 12288, 151936, is_tied=False),
        Shape("llama-160m", "llama", 12, 768, 12, 12, 64, 3072, 32000, is_tied=False),
        Shape("amber-3b-cut", "llama", 8, 2560, 20, 20, 128, 6912, 32000, is_tied=False),
        Shape(
            "gemma3-4b-cut", "gemma3", 8, 2560, 8, 4, 256, 10240, 262144, window=1024, full_every=6
        ),
        Shape(
            "granite-moe-small", "qwen3moe", 12, 1024, 16, 8, 64, 512, 49152, experts=32,
            experts_used=8,
        ),
        Shape(
            "lfm2-700m-cut", "lfm2", 10, 1536, 24, 8, 64, 6912, 65536, attention_layers=(2, 5, 8)
        ),
        Shape("deep-narrow", "llama", 40, 640, 10, 5, 64, 1728, 50304),
    )
}  # fmt: skip


def with_layers(shape: Shape, layers: int) -> Shape:
    """Return the shape with another number of layers, for tests that must be quick."""
    return replace(shape, name=f"{shape.name}-{layers}", layers=layers)


def tensors_of(shape: Shape) -> list[Tensor]:
    """List a shape's tensors as llama.cpp's `load_arch_tensors` of its architecture expects them.

    Source: `src/models/<architecture>.cpp`, llama.cpp b11549.
    """
    n = shape.embedding
    norm = "token_embd_norm" if shape.architecture == "lfm2" else "output_norm"
    tensors: list[Tensor] = [("token_embd.weight", (n, shape.vocabulary), "embedding")]
    for layer in range(shape.layers):
        block = [
            ("attn_norm.weight", (n,), "f32"), *_mixer(shape, layer),
            *([] if shape.is_recurrent else _feed_forward(shape, layer)),
        ]  # fmt: skip
        tensors += [(f"blk.{layer}.{name}", sizes, kind) for name, sizes, kind in block]
    tensors.append((f"{norm}.weight", (n,), "f32"))
    if not shape.is_tied:
        tensors.append(("output.weight", (n, shape.vocabulary), "output"))
    return tensors


def _mixer(shape: Shape, layer: int) -> list[Tensor]:
    if shape.is_recurrent:
        return _mamba(shape)
    if shape.attention_layers and layer not in shape.attention_layers:
        n = shape.embedding
        return [
            ("shortconv.in_proj.weight", (n, 3 * n), "matrix"),
            ("shortconv.conv.weight", (3, n), "f32"),
            ("shortconv.out_proj.weight", (n, n), "matrix"),
        ]
    return _mla(shape) if shape.kv_rank else _attention(shape)


def _attention(shape: Shape) -> list[Tensor]:
    n, size, arch = shape.embedding, shape.head_size, shape.architecture
    q, kv = shape.heads * size, shape.kv_heads * size
    if arch == "phi3":
        block: list[Tensor] = [("attn_qkv.weight", (n, q + 2 * kv), "qkv")]
    else:
        block = [
            ("attn_q.weight", (n, q), "matrix"),
            ("attn_k.weight", (n, kv), "matrix"),
            ("attn_v.weight", (n, kv), "value"),
        ]
    block.append(("attn_output.weight", (q, n), "matrix"))
    if arch == "qwen2":
        block += [
            ("attn_q.bias", (q,), "f32"),
            ("attn_k.bias", (kv,), "f32"),
            ("attn_v.bias", (kv,), "f32"),
        ]
    if arch in ("qwen3", "qwen3moe", "gemma3", "lfm2"):
        block += [("attn_q_norm.weight", (size,), "f32"), ("attn_k_norm.weight", (size,), "f32")]
    if arch.startswith("gemma"):
        block.append(("post_attention_norm.weight", (n,), "f32"))
    return block


def _mla(shape: Shape) -> list[Tensor]:
    n, rank, heads, rope = shape.embedding, shape.kv_rank, shape.heads, shape.rope_size
    plain, value = shape.head_size - rope, shape.head_size - rope
    return [
        ("attn_q_a.weight", (n, Q_RANK), "matrix"),
        ("attn_q_a_norm.weight", (Q_RANK,), "f32"),
        ("attn_q_b.weight", (Q_RANK, heads * shape.head_size), "matrix"),
        ("attn_kv_a_mqa.weight", (n, rank + rope), "matrix"),
        ("attn_kv_a_norm.weight", (rank,), "f32"),
        ("attn_k_b.weight", (plain, rank, heads), "matrix"),
        ("attn_v_b.weight", (rank, value, heads), "matrix"),
        ("attn_output.weight", (heads * value, n), "matrix"),
    ]


def _mamba(shape: Shape) -> list[Tensor]:
    n, state = shape.embedding, shape.state_size
    inner, rank = 2 * n, n // 16
    return [
        ("ssm_in.weight", (n, 2 * inner), "matrix"),
        ("ssm_conv1d.weight", (4, inner), "f32"),
        ("ssm_conv1d.bias", (inner,), "f32"),
        ("ssm_x.weight", (inner, rank + 2 * state), "matrix"),
        ("ssm_dt.weight", (rank, inner), "matrix"),
        ("ssm_dt.bias", (inner,), "f32"),
        ("ssm_a", (state, inner), "f32"),
        ("ssm_d", (inner,), "f32"),
        ("ssm_out.weight", (inner, n), "matrix"),
    ]


def _feed_forward(shape: Shape, layer: int) -> list[Tensor]:
    n, width, arch = shape.embedding, shape.feed_forward, shape.architecture
    block: list[Tensor] = [("ffn_norm.weight", (n,), "f32")]
    if shape.experts:
        block += [
            ("ffn_gate_inp.weight", (n, shape.experts), "f32"),
            ("ffn_gate_exps.weight", (n, width, shape.experts), "matrix"),
            ("ffn_down_exps.weight", (width, n, shape.experts), "down"),
            ("ffn_up_exps.weight", (n, width, shape.experts), "matrix"),
        ]
    elif arch == "phi3":
        block += [
            ("ffn_up.weight", (n, 2 * width), "matrix"),
            ("ffn_down.weight", (width, n), "down"),
        ]
    else:
        block += [
            ("ffn_gate.weight", (n, width), "matrix"),
            ("ffn_up.weight", (n, width), "matrix"),
            ("ffn_down.weight", (width, n), "down"),
        ]
    if arch.startswith("gemma"):
        block.append(("post_ffw_norm.weight", (n,), "f32"))
    return block


def metadata_of(shape: Shape) -> dict[str, int | float | list[int]]:
    """Return the `<architecture>.*` keys that llama.cpp reads for the shape."""
    keys: dict[str, int | float | list[int]] = {
        "block_count": shape.layers,
        "context_length": shape.context,
        "embedding_length": shape.embedding,
        "vocab_size": shape.vocabulary,
        "feed_forward_length": shape.feed_forward,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.head_count": shape.heads,
    }
    if shape.is_recurrent:
        keys |= {
            "ssm.conv_kernel": 4, "ssm.inner_size": 2 * shape.embedding,
            "ssm.state_size": shape.state_size, "ssm.time_step_rank": shape.embedding // 16,
        }  # fmt: skip
        return keys
    keys |= {
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_size,
        "attention.value_length": shape.head_size,
        "rope.dimension_count": shape.rope_size or shape.head_size,
        "rope.freq_base": 500000.0,
    }
    if shape.window:
        keys["attention.sliding_window"] = shape.window
    if shape.experts:
        keys |= {
            "expert_count": shape.experts, "expert_used_count": shape.experts_used,
            "expert_feed_forward_length": shape.feed_forward,
        }  # fmt: skip
    if shape.attention_layers:
        keys["attention.head_count_kv"] = [
            shape.kv_heads if layer in shape.attention_layers else 0
            for layer in range(shape.layers)
        ]
        keys["shortconv.l_cache"] = 3
    if shape.kv_rank:
        keys |= {
            "attention.kv_lora_rank": shape.kv_rank, "attention.q_lora_rank": Q_RANK,
            "attention.key_length": shape.kv_rank + shape.rope_size,
            "attention.value_length": shape.kv_rank,
            "attention.key_length_mla": shape.head_size,
            "attention.value_length_mla": shape.head_size - shape.rope_size,
            "leading_dense_block_count": shape.layers, "expert_shared_count": 0,
            "expert_feed_forward_length": shape.feed_forward,
        }  # fmt: skip
    return keys
