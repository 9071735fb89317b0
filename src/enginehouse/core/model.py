"""What a model is, as facts read from its file's header."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A model on disk; all sizes in bytes.

    `weight_bytes` is the sum of the tensors; `bytes_per_token` is what one decoded token reads of
    them: every tensor once, but of the token-embedding table only one row when the output
    projection is a tensor of its own, and of experts only the share that is active.
    `kv_elements_per_token` counts the elements of K and of V, over all layers, for one token.
    `digest` is the SHA-256 of the file.
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

    @property
    def can_embed(self) -> bool:
        """Whether the file declares a pooling type, as embedding models do."""
        return bool(self.pooling) and self.pooling != "none"
