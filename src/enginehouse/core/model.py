"""What a model is, as facts read from its files' headers."""

from __future__ import annotations

from dataclasses import dataclass

FACTS_VERSION = 2
"""Raised when `Model` learns something new: facts kept under an older version are read again."""

CLASSES = (
    "token embedding", "output", "attention", "recurrent", "feed-forward", "experts", "norms",
    "projector", "other",
)  # fmt: skip
"""Tensor classes. `token embedding` holds every table of which a token reads one row; `experts`
only the routed ones (routers and shared experts are `feed-forward`, being read for every token);
`projector` is a vision or audio encoder with its projection."""


@dataclass(frozen=True)
class Block:
    """One layer, and what it keeps of the past.

    `kind` is `full`, `sliding` (the last `window` tokens), `chunked` (the tokens of the current
    chunk of `window`), `recurrent`, or `none` (no attention at all). A parallel hybrid (falcon-h1)
    is `full` with `state_bytes` besides. `window` is 0 but for sliding and chunked.
    `k_elements` and `v_elements` are what the KV cache holds for one token, 0 where the layer keeps
    none of its own (recurrent, shared with another layer, an encoder, a draft head); with MLA, K
    is the compressed latent and V is 0. `index_elements` is the key of a sparse attention's
    indexer, in a cache of its own. `state_bytes` is one sequence's recurrent state (f32) at any
    length. `expert_bytes` is part of `weight_bytes`. `is_draft` marks a multi-token-prediction
    block, which ordinary decoding does not run.
    """

    kind: str
    heads: int = 0
    kv_heads: int = 0
    key_length: int = 0
    value_length: int = 0
    window: int = 0
    k_elements: int = 0
    v_elements: int = 0
    index_elements: int = 0
    state_bytes: int = 0
    feed_forward_length: int = 0
    weight_bytes: int = 0
    expert_bytes: int = 0
    is_draft: bool = False


@dataclass(frozen=True)
class TensorGroup:
    """All tensors of one class (see `CLASSES`) and one type (ggml's or safetensors' spelling)."""

    tensor_class: str
    type: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class Experts:
    """A mixture of experts; `feed_forward_length` is one expert's."""

    count: int
    used: int
    shared: int = 0
    feed_forward_length: int = 0


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: ranks, and a head's sizes once decompressed.

    `is_absorbed` tells whether the file has the latent cached (K only) rather than full heads.
    """

    kv_rank: int
    q_rank: int = 0
    key_length: int = 0
    value_length: int = 0
    is_absorbed: bool = True


@dataclass(frozen=True)
class Rope:
    """Rotary position encoding; `original_context` is the context before it was stretched."""

    dimensions: int = 0
    base: float = 0.0
    scaling: str = ""
    factor: float = 0.0
    original_context: int = 0


@dataclass(frozen=True)
class WeightQuantization:
    """How weights are stored: `method` is `gguf`, `none`, `awq`, `gptq`, `fp8`, `bitsandbytes`,
    `compressed-tensors` or what the file says; `kv_bits` is 0 unless the checkpoint asks for a
    quantized KV cache.
    """

    method: str
    bits: float = 0.0
    group_size: int = 0
    kv_bits: int = 0
    detail: str = ""


@dataclass(frozen=True)
class Template:
    """A chat template and what its text tells; `dialect` names the wire form of a tool call."""

    bytes: int
    has_tools: bool = False
    has_system: bool = False
    has_thinking: bool = False
    dialect: str = ""
    origin: str = ""


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer's kind (ggml's or Hugging Face's name) and how it splits before merging."""

    kind: str
    pre: str = ""
    tokens: int = 0
    merges: int = 0


@dataclass(frozen=True)
class Encoder:
    """A vision or audio encoder of a projector file or checkpoint."""

    kind: str
    projector: str = ""
    blocks: int = 0
    embedding_length: int = 0
    feed_forward_length: int = 0
    heads: int = 0
    image_size: int = 0
    patch_size: int = 0


@dataclass(frozen=True)
class Part:
    """One file of a model: `role` is `weights`, `projector`, `adapter`, `template`, `parameters`,
    `system` or `license`.
    """

    path: str
    bytes: int
    role: str = "weights"


@dataclass(frozen=True)
class Servable:
    """Whether a family of engines can serve a model as it is, and why (not)."""

    engine: str
    is_possible: bool
    reason: str


@dataclass(frozen=True)
class Model:
    """A model on disk; all sizes in bytes. What its files do not say is 0, empty or None.

    `weight_bytes` is the sum of the tensors; `bytes_per_token` is what one decoded token reads of
    them: every tensor once, but of the token-embedding table only one row when the output
    projection is a tensor of its own, of experts only the share that is active, and nothing of
    draft heads and projectors. `k_elements_per_token` and `v_elements_per_token` count the elements
    of K and of V, over all layers, for one token, as if no window limited them; `blocks` has each
    layer's. `layers` counts the blocks, draft heads included, and so does `blocks`.
    `digest` is the SHA-256 of the file (of all parts' digests when there are several), or "" where
    only the header was read; `header_digest` is the SHA-256 of what was read and of the parts'
    sizes. `role` is `model`, `projector` or `adapter`. `adapter_rank` is the LoRA's largest.
    `notes` are what a reader must know that no field says.
    """

    name: str
    path: str
    source: str
    format: str
    digest: str
    file_bytes: int
    architecture: str
    quantization: str
    parameters: int
    weight_bytes: int
    bytes_per_token: int
    context_length: int
    layers: int
    embedding_length: int
    vocabulary_size: int
    k_elements_per_token: int
    v_elements_per_token: int
    has_chat_template: bool = False
    pooling: str = ""
    license: str = ""
    facts_version: int = 0
    header_digest: str = ""
    role: str = "model"
    title: str = ""
    is_causal: bool = True
    active_parameters: int = 0
    blocks: tuple[Block, ...] = ()
    groups: tuple[TensorGroup, ...] = ()
    feed_forward_length: int = 0
    is_output_tied: bool = False
    experts: Experts | None = None
    mla: Mla | None = None
    rope: Rope | None = None
    weight_quantization: WeightQuantization | None = None
    template: Template | None = None
    tokenizer: Tokenizer | None = None
    encoder: Encoder | None = None
    parts: tuple[Part, ...] = ()
    base_model: str = ""
    adapter_rank: int = 0
    notes: tuple[str, ...] = ()

    @property
    def can_embed(self) -> bool:
        """Whether the file declares a pooling type, as embedding models do."""
        return bool(self.pooling) and self.pooling != "none"

    @property
    def state_bytes(self) -> int:
        """The recurrent state of one sequence, over all layers."""
        return sum(block.state_bytes for block in self.blocks)

    @property
    def projector_bytes(self) -> int:
        """The bytes of a vision or audio encoder, inside the file or beside it."""
        beside = sum(part.bytes for part in self.parts if part.role == "projector")
        return beside or self.bytes_of("projector")

    def bytes_of(self, *classes: str) -> int:
        """Return the bytes of the tensors of these classes."""
        return sum(group.bytes for group in self.groups if group.tensor_class in classes)

    def bytes_by_class(self) -> dict[str, int]:
        """Return the bytes of each tensor class that the model has, in the order of `CLASSES`."""
        return {name: size for name in CLASSES if (size := self.bytes_of(name))}

    def bytes_by_type(self) -> dict[str, int]:
        """Return the bytes of each tensor type, the largest first."""
        totals: dict[str, int] = {}
        for group in self.groups:
            totals[group.type] = totals.get(group.type, 0) + group.bytes
        return dict(sorted(totals.items(), key=lambda item: -item[1]))
