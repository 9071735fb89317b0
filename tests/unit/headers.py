"""Headers of made-up GGUF files, as values."""

from __future__ import annotations

from enginehouse.core.gguf_header import GgufHeader, Scalar, TensorInfo


def header(
    arch: str,
    metadata: dict[str, Scalar | tuple[Scalar, ...]],
    tensors: tuple[TensorInfo, ...] = (),
) -> GgufHeader:
    """Return a header; keys without a dot at their start get the architecture's prefix."""
    scalars: dict[str, Scalar] = {"general.architecture": arch}
    arrays: dict[str, tuple[Scalar, ...]] = {}
    for key, value in metadata.items():
        full = key[1:] if key.startswith("/") else f"{arch}.{key}"
        if isinstance(value, tuple):
            arrays[full] = value
        else:
            scalars[full] = value
    lengths = {key: len(items) for key, items in arrays.items()}
    return GgufHeader(3, scalars, arrays, lengths, tensors, 0, 0, {}, {})
