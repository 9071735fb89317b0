"""From a GGUF header's metadata to each layer's attention and what it keeps of the past.

The rules follow llama.cpp b11549: `load_arch_hparams` of each file in src/models, the defaults in
src/llama-model.cpp, `n_embd_r`/`n_embd_s` in src/llama-hparams.cpp, `create_memory` and
src/llama-kv-cache.cpp. An architecture that is in no table here is read as full attention, with a
sliding window where the file has both a window and a pattern.
"""

from __future__ import annotations

from dataclasses import dataclass

from enginehouse.core.gguf_header import GgufHeader
from enginehouse.core.model import Block, Mla

MOST_LAYERS = 4096


@dataclass(frozen=True)
class Window:
    """How an architecture slides: every `period`-th layer is full, the first or the last of them.

    A period of 0 makes all layers slide. `window` is the size where the file states none; with
    `is_fixed` also where it does.
    """

    period: int
    dense_first: bool = False
    window: int = 0
    is_fixed: bool = False
    kind: str = "sliding"


WINDOWS = {
    "afmoe": Window(4), "cohere2": Window(4), "cohere2moe": Window(4, dense_first=True),
    "deepseek4": Window(0), "exaone-moe": Window(4, window=128), "exaone4": Window(4, window=4096),
    "gemma-embedding": Window(6), "gemma-embedding2": Window(6), "gemma2": Window(2, window=4096),
    "gemma3": Window(6), "gemma3n": Window(5), "gpt-oss": Window(2),
    "laguna": Window(4, dense_first=True),
    "llama4": Window(4, window=8192, is_fixed=True, kind="chunked"), "mellum": Window(4),
    "modern-bert": Window(3, dense_first=True), "muse-glimmer": Window(4), "olmo2": Window(4),
    "plamo3": Window(8),
    "smallthinker": Window(4, dense_first=True, window=4096, is_fixed=True),
}  # fmt: skip
IGNORE_WINDOW = frozenset({"phi3", "llama", "qwen2", "qwen3", "mistral3"})
"""Files of these may state a window that llama.cpp does not use."""

RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
RECURRENT_WITHOUT_KV_HEADS = frozenset(
    {"jamba", "plamo2", "granitehybrid", "lfm2", "lfm2moe", "kimi-linear", "kimi-k3",
     "bailingmoe3", "glm5-next"}
)  # fmt: skip
RECURRENT_BY_INTERVAL = {
    "qwen3next": 4,
    "qwen35": 4,
    "qwen35moe": 4,
    "qwen4exp": 4,
    "minimax-01": 8,
}
NEMOTRON = frozenset({"nemotron_h", "nemotron_h_moe"})
PARALLEL_HYBRID = frozenset({"falcon-h1"})

WITHOUT_CACHE = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2",
     "jina-bert-v3", "eurobert", "gemma-embedding", "gemma-embedding2", "wavtokenizer-dec",
     "dream", "llada", "llada-moe", "rnd1", "clef", "t5encoder", "clip"}
)  # fmt: skip
"""Encoders and diffusion models: llama.cpp gives them no memory of the past."""

INDEXED = frozenset({"glm-dsa", "deepseek32", "glm5-next", "qwen4exp", "dots3note", "minimax-m3"})


def draft_layers(header: GgufHeader, arch: str) -> int:
    """Return how many of the last blocks are multi-token-prediction heads."""
    layers = header.integer(f"{arch}.block_count")
    return min(layers, header.integer(f"{arch}.nextn_predict_layers"))


def mla_of(header: GgufHeader, arch: str) -> Mla | None:
    """Return the ranks of multi-head latent attention, None without it."""
    rank = header.integer(f"{arch}.attention.kv_lora_rank")
    if not rank or arch in RECURRENT:
        return None
    key = header.integer(f"{arch}.attention.key_length_mla")
    value = header.integer(f"{arch}.attention.value_length_mla")
    return Mla(
        kv_rank=rank,
        q_rank=header.integer(f"{arch}.attention.q_lora_rank"),
        key_length=key or header.integer(f"{arch}.attention.key_length"),
        value_length=value or header.integer(f"{arch}.attention.value_length"),
        is_absorbed=bool(key and value),
    )


def blocks_of(header: GgufHeader) -> tuple[Block, ...]:
    """Return every layer's attention; without the weights, which `model_facts` adds."""
    arch = header.text("general.architecture")
    layers = min(header.integer(f"{arch}.block_count"), MOST_LAYERS)
    heads = header.per_layer(f"{arch}.attention.head_count", layers)
    shape = _Shape(
        heads=heads,
        kv_heads=_kv_heads(header, arch, heads),
        feed_forward=header.per_layer(f"{arch}.feed_forward_length", layers),
        slides=_slides(header, arch, layers),
        recurs=_recurs(header, arch, layers),
    )
    return tuple(_block(header, arch, shape, layer) for layer in range(layers))


@dataclass(frozen=True)
class _Shape:
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    feed_forward: tuple[int, ...]
    slides: tuple[bool, ...]
    recurs: tuple[bool, ...]


def _kv_heads(header: GgufHeader, arch: str, heads: tuple[int, ...]) -> tuple[int, ...]:
    key = f"{arch}.attention.head_count_kv"
    if key in header.metadata or key in header.arrays:
        return header.per_layer(key, len(heads))
    return heads


def _block(header: GgufHeader, arch: str, shape: _Shape, layer: int) -> Block:
    recurs, kv_heads = shape.recurs[layer], shape.kv_heads[layer]
    is_draft = layer >= len(shape.heads) - draft_layers(header, arch)
    attends = kv_heads > 0 and (not recurs or arch in PARALLEL_HYBRID)
    slides = attends and shape.slides[layer]
    key, value = head_sizes(header, arch, slides) if attends else (0, 0)
    keeps = attends and not is_draft and _keeps_own_kv(header, arch, layer, len(shape.heads))
    mla = mla_of(header, arch)
    return Block(
        kind=_kind(arch, attends, slides, recurs),
        heads=shape.heads[layer],
        kv_heads=kv_heads,
        key_length=key,
        value_length=value,
        window=window_of(header, arch) if slides else 0,
        k_elements=kv_heads * key if keeps else 0,
        v_elements=0 if mla is not None and mla.is_absorbed else kv_heads * value * keeps,
        index_elements=header.integer(f"{arch}.attention.indexer.key_length")
        if keeps and arch in INDEXED
        else 0,
        state_bytes=state_bytes(header, arch, shape.heads[0]) if recurs and not is_draft else 0,
        feed_forward_length=shape.feed_forward[layer],
        is_draft=is_draft,
    )


def _kind(arch: str, attends: bool, slides: bool, recurs: bool) -> str:
    if slides:
        return WINDOWS[arch].kind if arch in WINDOWS else "sliding"
    if attends:
        return "full"
    return "recurrent" if recurs else "none"


def head_sizes(header: GgufHeader, arch: str, slides: bool) -> tuple[int, int]:
    """Return a head's key and value sizes; sliding layers may have their own."""
    heads = header.per_layer(f"{arch}.attention.head_count", 1)[0]
    common = header.integer(f"{arch}.embedding_length") // heads if heads else 0
    sizes = []
    for name in ("key_length", "value_length"):
        size = header.integer(f"{arch}.attention.{name}") or common
        if slides:
            size = header.integer(f"{arch}.attention.{name}_swa") or size
        sizes.append(size)
    return sizes[0], sizes[1]


def window_of(header: GgufHeader, arch: str) -> int:
    """Return the size of the sliding window (or chunk), 0 where the model has none."""
    stated = header.integer(f"{arch}.attention.sliding_window")
    key = f"{arch}.attention.sliding_window"
    rule = WINDOWS.get(arch)
    if arch == "exaone4" and header.integer("exaone4.block_count") != 64:
        return 0
    if rule is None:
        return stated
    if rule.is_fixed:
        switched_off = key in header.metadata and not stated
        absent = arch == "smallthinker" and not stated
        return 0 if switched_off or absent else rule.window
    return stated or rule.window


def _slides(header: GgufHeader, arch: str, layers: int) -> tuple[bool, ...]:
    key = f"{arch}.attention.sliding_window_pattern"
    if arch in IGNORE_WINDOW or not window_of(header, arch):
        return (False,) * layers
    if arch in ("lfm2", "lfm2moe"):
        return (True,) * layers
    if key in header.arrays:
        return tuple(bool(value) for value in header.per_layer(key, layers))
    rule = WINDOWS.get(arch)
    if rule is None:
        return (False,) * layers
    period = header.integer(key) if key in header.metadata else rule.period
    trunk = layers - draft_layers(header, arch)
    return tuple(
        layer < trunk
        and (
            period == 0
            or (layer % period != 0 if rule.dense_first else layer % period < period - 1)
        )
        for layer in range(layers)
    )


def _recurs(header: GgufHeader, arch: str, layers: int) -> tuple[bool, ...]:
    if arch in RECURRENT or arch in PARALLEL_HYBRID:
        return (True,) * layers
    heads = header.per_layer(f"{arch}.attention.head_count", layers)
    kv_heads = _kv_heads(header, arch, heads)
    if arch in RECURRENT_WITHOUT_KV_HEADS:
        return tuple(count == 0 for count in kv_heads)
    if arch in NEMOTRON:
        widths = header.per_layer(f"{arch}.feed_forward_length", layers)
        return tuple(kv == 0 and width == 0 for kv, width in zip(kv_heads, widths, strict=True))
    if arch in RECURRENT_BY_INTERVAL:
        return _by_interval(header, arch, layers)
    return (False,) * layers


def _by_interval(header: GgufHeader, arch: str, layers: int) -> tuple[bool, ...]:
    key = f"{arch}.attention.recurrent_layers"
    if key in header.arrays or key in header.metadata:
        return tuple(bool(value) for value in header.per_layer(key, layers))
    interval = header.integer(f"{arch}.full_attention_interval") or RECURRENT_BY_INTERVAL[arch]
    trunk = layers - draft_layers(header, arch)
    return tuple(layer < trunk and (layer + 1) % interval != 0 for layer in range(layers))


def _keeps_own_kv(header: GgufHeader, arch: str, layer: int, layers: int) -> bool:
    if arch in WITHOUT_CACHE:
        return False
    if arch == "gemma3n":
        return layer < 20
    return layer < layers - header.integer(f"{arch}.attention.shared_kv_layers")


def state_bytes(header: GgufHeader, arch: str, heads: int) -> int:
    """Return one layer's state for one sequence, convolution included, in bytes (f32)."""
    embedding = header.integer(f"{arch}.embedding_length")
    convolution = header.integer(f"{arch}.ssm.conv_kernel")
    wkv = header.integer(f"{arch}.wkv.head_size")
    if wkv:
        shifts = header.integer(f"{arch}.token_shift_count") or 2
        return 4 * (shifts * embedding + embedding * wkv)
    short = header.integer(f"{arch}.shortconv.l_cache")
    inner = header.integer(f"{arch}.ssm.inner_size")
    states = header.integer(f"{arch}.ssm.state_size")
    if short:
        return 4 * (embedding * (short - 1) + inner * states)
    kda = header.integer(f"{arch}.kda.head_dim")
    if kda:
        shift = convolution - 1 if convolution else 3
        return 4 * (3 * shift * heads * kda + kda * kda * heads)
    if arch == "minimax-01":
        key, _ = head_sizes(header, arch, slides=False)
        return 4 * key * key * heads
    groups = header.integer(f"{arch}.ssm.group_count")
    shift = convolution - 1 if convolution else 0
    return 4 * (shift * (inner + 2 * groups * states) + states * inner)
