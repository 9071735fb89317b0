"""One model on one machine: every engine × KV type that is asked about, judged and ranked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from enginehouse.core.estimate import MemoryEstimate
from enginehouse.core.estimate_kv import BYTES_PER_ELEMENT, full_cache_bytes, window_cache_bytes
from enginehouse.core.estimate_llama import LlamaSettings, estimate_llama
from enginehouse.core.estimate_speed import Rates, Speed, estimate_speed, speed_from_rates
from enginehouse.core.estimate_vllm import VllmSettings, kv_bytes_per_token
from enginehouse.core.fit import (
    NOT,
    Correction,
    FitRow,
    budget_of,
    judge,
    largest_context,
    most_sequences,
)
from enginehouse.core.fit_vllm import fit_vllm
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model

ENGINES = ("llama.cpp", "vllm")
LLAMA_KV_TYPES = ("f16", "q8_0", "q4_0")
USUAL_CONTEXT = 4096
FP8_COMPUTE_CAPABILITY = 8.9


@dataclass(frozen=True)
class FitRequest:
    """What is asked. 0 or "" leaves it to us; `utilization` is vLLM's share of the total memory.

    `prompt_cache_bytes` is llama.cpp's `--cache-ram`; `has_gpu_build` tells that the llama.cpp in
    question uses the GPU.
    """

    context: int = 0
    sequences: int = 1
    engine: str = ""
    kv_type: str = ""
    utilization: float = 0.0
    reserve_bytes: float = 0.0
    prompt_cache_bytes: float = 0.0
    has_gpu_build: bool = False

    def context_for(self, model: Model) -> int:
        """Return the context to judge: the one asked for, else a usual one the model has."""
        return self.context or min(USUAL_CONTEXT, model.context_length or USUAL_CONTEXT)


@dataclass(frozen=True)
class Known:
    """What was measured of this machine before: corrections and rates of the engines' builds."""

    correction: Correction | None = None
    rates: Rates | None = None


def fit_model(
    model: Model, machine: Machine, request: FitRequest, known: Known | None = None
) -> tuple[FitRow, ...]:
    """Judge a model for every engine and KV type asked about, in the order of engines."""
    rows = list(_rows(model, machine, request, known or Known()))
    return tuple(rows)


def _rows(model: Model, machine: Machine, request: FitRequest, known: Known) -> Iterator[FitRow]:
    for engine in ENGINES:
        if request.engine not in ("", engine):
            continue
        refusal = _refusal(engine, model, machine)
        if refusal and request.engine == engine:
            yield _refused(engine, model, machine, request, refusal)
        elif not refusal and engine == "llama.cpp":
            for kv_type in _types(request, LLAMA_KV_TYPES):
                yield _llama(model, machine, request, kv_type, known)
        elif not refusal:
            for kv_type in _types(request, _vllm_types(machine)):
                yield _vllm(model, machine, request, kv_type)


def _types(request: FitRequest, types: Sequence[str]) -> tuple[str, ...]:
    return (request.kv_type,) if request.kv_type else tuple(types)


def _vllm_types(machine: Machine) -> tuple[str, ...]:
    capability = max((_number(gpu.arch) for gpu in machine.gpus), default=0.0)
    return ("auto", "fp8") if capability >= FP8_COMPUTE_CAPABILITY else ("auto",)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _refusal(engine: str, model: Model, machine: Machine) -> str:
    """Say why an engine is out of the question, "" when it is not."""
    if engine == "llama.cpp":
        return "" if model.format == "gguf" else f"llama.cpp reads GGUF, not {model.format}"
    if model.format == "gguf":
        return "vLLM is asked about safetensors only"
    return "" if machine.gpus else "no GPU is here that vLLM could use"


def _refused(
    engine: str, model: Model, machine: Machine, request: FitRequest, reason: str
) -> FitRow:
    return FitRow(
        engine=engine,
        quantization=model.quantization,
        kv_type=request.kv_type or "f16",
        context=request.context_for(model),
        sequences=request.sequences,
        estimate=MemoryEstimate(()),
        budget=budget_of(machine, request.reserve_bytes, False),
        verdict=NOT,
        reason=reason,
    )


def _llama(
    model: Model, machine: Machine, request: FitRequest, kv_type: str, known: Known
) -> FitRow:
    uses_gpu = request.has_gpu_build and bool(machine.gpus)
    budget = budget_of(machine, request.reserve_bytes, uses_gpu)
    factor = known.correction.factor if known.correction else 1.0
    context = request.context_for(model)
    base = LlamaSettings(
        context, request.sequences, kv_type=kv_type, isa=machine.isa, has_gpu=uses_gpu,
        prompt_cache_bytes=request.prompt_cache_bytes,
    )  # fmt: skip

    def estimate(tokens: int, sequences: int) -> MemoryEstimate:
        settings = replace(base, context=tokens, slots=sequences)
        return estimate_llama(model, settings).corrected(factor)

    flags = f"--ctx-size {context * request.sequences} --parallel {request.sequences}"
    if kv_type != "f16":
        flags += f" --cache-type-k {kv_type} --cache-type-v {kv_type}"
    row = FitRow(
        engine="llama.cpp",
        quantization=model.quantization,
        kv_type=kv_type,
        context=context,
        sequences=request.sequences,
        estimate=estimate(context, request.sequences),
        budget=budget,
        verdict=NOT,
        reason="",
        most_context=largest_context(estimate, request.sequences, model.context_length, budget),
        most_sequences=most_sequences(estimate, context, budget),
        speed=_speed(model, machine, uses_gpu, known.rates, 0.0, 0),
        speed_at_context=_speed(
            model, machine, uses_gpu, known.rates, _kv_bytes(model, base), context
        ),
        correction=known.correction,
        settings=flags,
    )
    return judge(row)


def _kv_bytes(model: Model, settings: LlamaSettings) -> float:
    one = replace(settings.cache, slots=1)
    return full_cache_bytes(model, one) + window_cache_bytes(model, one)


def _vllm(model: Model, machine: Machine, request: FitRequest, kv_type: str) -> FitRow:
    context, sequences = request.context_for(model), request.sequences
    budget = budget_of(machine, request.reserve_bytes, True)
    owner = None
    if request.utilization:
        owner = VllmSettings(context, sequences, request.utilization, kv_type)
    row = fit_vllm(model, machine, owner, budget, context, sequences, kv_type)
    kv = kv_bytes_per_token(model, kv_type) * context
    return replace(
        row,
        speed=_speed(model, machine, True, None, 0.0, 0),
        speed_at_context=_speed(model, machine, True, None, kv, context),
    )


def _speed(
    model: Model,
    machine: Machine,
    uses_gpu: bool,
    rates: Rates | None,
    kv_bytes: float,
    cells: int,
) -> Speed | None:
    if rates is not None and not uses_gpu:
        measured = speed_from_rates(model, rates, machine.isa, kv_bytes, cells)
        if measured is not None:
            return measured
    return estimate_speed(
        model, bandwidth_of(machine, uses_gpu), kv_bytes,
        None if uses_gpu else machine.compute_flop_per_s,
    )  # fmt: skip


def bandwidth_of(machine: Machine, uses_gpu: bool) -> float | None:
    """Return the bandwidth that bounds decode: the card's own when weights lie in it."""
    if uses_gpu:
        cards = [gpu for gpu in machine.gpus if not gpu.unified]
        stated = [gpu.stated_bandwidth_bytes_per_s for gpu in cards]
        own = [value for value in stated if value]
        if own:
            return max(own)
    return machine.decode_bandwidth_bytes_per_s


def is_kv_type(name: str) -> bool:
    """Whether llama.cpp or vLLM has a KV cache of this type."""
    return name in ("auto", "fp8") or name in BYTES_PER_ELEMENT
