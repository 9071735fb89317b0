"""How a Hugging Face checkpoint is quantized, and how many weights its packed tensors hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from enginehouse.core.model import WeightQuantization
from enginehouse.core.safetensors_header import DTYPE_BITS, SafeTensor

Config = Mapping[str, Any]

OVERHEAD = (
    "scales", "qzeros", "g_idx", "scale", "zero_point", "weight_scale", "weight_scale_2",
    "weight_scale_inv", "input_scale", "output_scale", "k_scale", "v_scale", "weight_zero_point",
    "weight_shape", "weight_g_idx", "weight_global_scale", "input_global_scale", "absmax",
    "nested_absmax", "quant_map", "nested_quant_map", "SCB", "weight_format", "q_scale",
)  # fmt: skip
"""Last parts of names of tensors that serve the quantization and hold no weights."""


def quantization_of(config: Config, dtype: str) -> WeightQuantization:
    """Return the method that a config.json states; `dtype` is the weights' own type."""
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, Mapping):
        return WeightQuantization("none", bits=DTYPE_BITS.get(dtype, 0), detail=dtype)
    method = str(stated.get("quant_method") or stated.get("quant_algo") or "unknown").lower()[:40]
    if method == "compressed-tensors":
        return _compressed(stated)
    if method.startswith("bitsandbytes") or "load_in_4bit" in stated:
        return _bitsandbytes(stated)
    if method in ("fp8", "fbgemm_fp8"):
        scheme = str(stated.get("activation_scheme", "dynamic"))[:40]
        return WeightQuantization("fp8", bits=8, detail=f"{scheme} activations")
    if method == "mxfp4":
        return WeightQuantization("mxfp4", bits=4.25, group_size=32)
    if method == "modelopt":
        return _modelopt(stated)
    return WeightQuantization(
        method,
        bits=_number(stated, "bits", "w_bit", "wbits"),
        group_size=int(_number(stated, "group_size", "q_group_size")),
        detail=_detail(stated),
    )


def _detail(stated: Config) -> str:
    parts = [str(stated.get("version") or stated.get("checkpoint_format") or "")[:20].lower()]
    if stated.get("desc_act") is True:
        parts.append("activation order")
    if stated.get("zero_point") is True or stated.get("sym") is False:
        parts.append("zero points")
    return ", ".join(part for part in parts if part)


def _bitsandbytes(stated: Config) -> WeightQuantization:
    four = stated.get("load_in_4bit") is True or stated.get("_load_in_4bit") is True
    kind = str(stated.get("bnb_4bit_quant_type", "fp4"))[:10] if four else "int8"
    nested = ", double quantization" if stated.get("bnb_4bit_use_double_quant") is True else ""
    return WeightQuantization("bitsandbytes", bits=4 if four else 8, detail=kind + nested)


def _compressed(stated: Config) -> WeightQuantization:
    """The first group of `config_groups` is the rule, the rest exceptions."""
    groups = stated.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights") if isinstance(first, Mapping) else None
    weights = weights if isinstance(weights, Mapping) else {}
    activations = first.get("input_activations") if isinstance(first, Mapping) else None
    cache = stated.get("kv_cache_scheme")
    bits = _number(weights, "num_bits")
    taken = int(_number(activations, "num_bits")) if isinstance(activations, Mapping) else 16
    kind = str(weights.get("type", "int"))[:10]
    style = str(stated.get("format") or "")[:40]
    return WeightQuantization(
        "compressed-tensors",
        bits=bits,
        group_size=max(0, int(_number(weights, "group_size"))),
        kv_bits=int(_number(cache, "num_bits")) if isinstance(cache, Mapping) else 0,
        detail=f"W{int(bits)}A{taken} {kind}" + (f", {style}" if style else ""),
    )


def _modelopt(stated: Config) -> WeightQuantization:
    algorithm = str(stated.get("quant_algo", ""))[:40]
    bits = 4.5 if "FP4" in algorithm.upper() else 8.0 if "8" in algorithm else 4.0
    cache = str(stated.get("kv_cache_quant_algo") or stated.get("kv_cache_scheme") or "")
    return WeightQuantization(
        "modelopt", bits=bits, kv_bits=8 if "8" in cache else 0, detail=algorithm
    )


def _number(table: Config, *names: str) -> float:
    for name in names:
        value = table.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6:
            return float(value)
    return 0.0


def weights_in(tensor: SafeTensor, quantization: WeightQuantization) -> int:
    """Return how many weights a tensor holds: packed ones counted each, scales not at all."""
    last = tensor.name.rsplit(".", 1)[-1]
    if last in OVERHEAD or last.endswith("_scales") or "quant_state" in tensor.name:
        return 0
    packed = tensor.dtype in ("I32", "I64", "U8", "I8") and quantization.method != "none"
    if not packed or quantization.bits >= 8 or quantization.bits <= 0:
        return tensor.elements
    is_weight = last in ("qweight", "weight_packed", "weight") or last.endswith("_blocks")
    return tensor.bytes * 8 // max(1, int(quantization.bits)) if is_weight else tensor.elements
