"""What vLLM would do at its start on this machine, and which setting fits.

On unified memory three things meet that nobody adds up: a budget that is a share of the *total*
memory, the host's processes, and the page cache (`core/estimate_vllm.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from enginehouse.core.conditions import show_size
from enginehouse.core.estimate import MemoryEstimate
from enginehouse.core.estimate_vllm import VllmPlan, VllmSettings, estimate_vllm, plan_vllm
from enginehouse.core.fit import FITS, NOT, TIGHT, Budget, FitRow, largest_context, most_sequences
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model

STEP = 0.05
HIGHEST_UTILIZATION = 0.95
MASKED = (
    "PyTorch 2.1 to 2.8 shows this as NVML_SUCCESS == r INTERNAL ASSERT FAILED: "
    "an out-of-memory that is masked"
)


@dataclass(frozen=True)
class Outcome:
    """What a start would do: `stage` is `start`, `profile` or `kv-cache` where it ends, `reclaim`
    where it comes up if the page cache is given back meanwhile, else `up`.
    """

    stage: str
    text: str
    plan: VllmPlan
    sequences: int = 0

    @property
    def is_up(self) -> bool:
        """Whether the server comes up."""
        return self.stage == "up"


def device_total(machine: Machine) -> float:
    """Return the memory that vLLM takes its share of, as CUDA states it."""
    totals = [gpu.memory_total_bytes or 0 for gpu in machine.gpus]
    return float(max(totals, default=machine.memory_total_bytes))


def start_outcome(
    model: Model, machine: Machine, settings: VllmSettings, is_cache_dropped: bool = False
) -> Outcome:
    """Say what a start with these settings does, with memory as it is or its page cache dropped."""
    plan = plan_vllm(model, settings, device_total(machine))
    free = _free(machine, is_cache_dropped)
    share = f"{settings.utilization:.2f} of {show_size(device_total(machine))}"
    if plan.requested > free:
        cached = f", {show_size(machine.page_cache_bytes)} is page cache"
        text = (
            f"{share} is {show_size(plan.requested)}, but CUDA sees {show_size(free)} free"
            f"{cached if machine.has_unified_memory and not is_cache_dropped else ''}: it stops "
            "with 'Free memory on device', or the KV cache's allocation fails"
        )
        return Outcome("start", text, plan)
    if plan.kv_available.expected <= 0:
        text = f"{share} leaves nothing for the KV cache beside {show_size(plan.weights)} weights"
        return Outcome("profile", text, plan)
    if plan.kv_tokens < settings.context:
        text = (
            f"{share} leaves {plan.kv_tokens:,} tokens of KV cache, fewer than one context of "
            f"{settings.context:,}"
        )
        return Outcome("profile", text, plan)
    return _after_profile(machine, settings, plan, free)


def _after_profile(
    machine: Machine, settings: VllmSettings, plan: VllmPlan, free: float
) -> Outcome:
    sequences = min(plan.kv_tokens // settings.context, settings.sequences)
    kv = show_size(plan.kv_available.expected)
    if not machine.has_unified_memory:
        return Outcome("up", f"{kv} of KV cache, {plan.kv_tokens:,} tokens", plan, sequences)
    beside = plan.host.expected
    if plan.device + beside > free:
        text = (
            f"{kv} for the KV cache, on top of {show_size(plan.weights)} weights, "
            f"{show_size(plan.overhead.expected)} CUDA and activations and {show_size(beside)} of "
            f"host processes, is more than the {show_size(free)} there is: "
            f"torch.zeros() of the KV cache fails; {MASKED}"
        )
        return Outcome("kv-cache", text, plan, sequences)
    if plan.device + beside + plan.file_pages > free:
        text = (
            f"{kv} of KV cache, {plan.kv_tokens:,} tokens, if the kernel gives back the "
            f"{show_size(plan.file_pages)} of page cache that reading the weights leaves (drop it "
            f"again while they load); else torch.zeros() of the KV cache fails; {MASKED}"
        )
        return Outcome("reclaim", text, plan, sequences)
    return Outcome("up", f"{kv} of KV cache, {plan.kv_tokens:,} tokens", plan, sequences)


def _free(machine: Machine, is_cache_dropped: bool) -> float:
    if machine.has_unified_memory:
        if is_cache_dropped:
            return float(machine.memory_available_bytes)
        return float(machine.memory_free_bytes or machine.memory_available_bytes)
    free = [gpu.memory_free_bytes or gpu.memory_total_bytes or 0 for gpu in machine.gpus]
    return float(max(free, default=0))


def fitting_utilization(model: Model, machine: Machine, settings: VllmSettings) -> float | None:
    """Return the lowest share (in steps of 0.05) that serves the most of the wanted sequences.

    With the page cache dropped before the start; a share that comes up without a condition goes
    before one that needs the cache to be given back while loading. None where neither is there.
    """
    best: tuple[bool, int, float] | None = None
    for number in range(1, int(HIGHEST_UTILIZATION / STEP) + 1):
        share = round(number * STEP, 2)
        outcome = start_outcome(model, machine, replace(settings, utilization=share), True)
        found = (outcome.is_up, outcome.sequences, share)
        if outcome.stage in ("up", "reclaim") and (best is None or found[:2] > best[:2]):
            best = found
    return best[2] if best else None


def fit_vllm(
    model: Model, machine: Machine, settings: VllmSettings | None, budget: Budget,
    context: int, sequences: int, kv_type: str = "auto",
) -> FitRow:  # fmt: skip
    """Judge vLLM; `settings` are an owner's to be judged, or None to look for a share that fits."""
    asked = settings or VllmSettings(context, sequences, kv_type=kv_type)
    best = fitting_utilization(model, machine, asked)
    wanted = replace(asked, utilization=best or asked.utilization) if settings is None else asked

    def estimate(tokens: int, count: int) -> MemoryEstimate:
        return estimate_vllm(model, replace(wanted, context=tokens, sequences=count))

    row = FitRow(
        engine="vllm",
        quantization=model.quantization,
        kv_type=kv_type,
        context=asked.context,
        sequences=asked.sequences,
        estimate=estimate_vllm(model, wanted),
        budget=budget,
        verdict=NOT,
        reason="",
        most_context=largest_context(estimate, asked.sequences, model.context_length, budget),
        most_sequences=most_sequences(estimate, asked.context, budget),
        settings=_flags(wanted),
    )
    return _judged(row, model, machine, wanted, best)


def _judged(
    row: FitRow, model: Model, machine: Machine, wanted: VllmSettings, best: float | None
) -> FitRow:
    now = start_outcome(model, machine, wanted)
    dropped = start_outcome(model, machine, wanted, is_cache_dropped=True)
    notes = [f"as it is: {now.text}"]
    if machine.has_unified_memory:
        notes.append(f"page cache dropped first (sysctl vm.drop_caches=3): {dropped.text}")
    if best is not None:
        notes.append(_recommendation(model, machine, replace(wanted, utilization=best)))
    if now.is_up:
        reason = f"{now.text}; {now.sequences} of {wanted.sequences} sequences at once"
        return replace(row, verdict=FITS, reason=reason, notes=tuple(notes))
    if dropped.stage in ("up", "reclaim"):
        when = "before the start" if dropped.is_up else "before the start and while loading"
        reason = (
            f"the page cache is dropped {when}: then {dropped.plan.kv_tokens:,} tokens of KV "
            f"cache, {dropped.sequences} of {wanted.sequences} sequences at once"
        )
        return replace(row, verdict=TIGHT, reason=reason, notes=tuple(notes))
    if best is not None:
        reason = f"{_flags(replace(wanted, utilization=best))} is used instead: {dropped.text}"
        return replace(row, verdict=TIGHT, reason=reason, notes=tuple(notes))
    return replace(row, verdict=NOT, reason=dropped.text, notes=tuple(notes))


def _recommendation(model: Model, machine: Machine, settings: VllmSettings) -> str:
    outcome = start_outcome(model, machine, settings, is_cache_dropped=True)
    return (
        f"fits: {_flags(settings)}, page cache dropped first: {outcome.text}, "
        f"{outcome.sequences} of {settings.sequences} sequences of {settings.context:,} at once"
    )


def _flags(settings: VllmSettings) -> str:
    flags = (
        f"--gpu-memory-utilization {settings.utilization:.2f} --max-model-len {settings.context} "
        f"--max-num-seqs {settings.sequences}"
    )
    if settings.kv_type not in ("auto", "f16"):
        flags += f" --kv-cache-dtype {settings.kv_type}"
    return flags if settings.has_graphs else f"{flags} --enforce-eager"
