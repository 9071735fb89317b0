"""How a model's facts look in a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby

from enginehouse.core.model import Block, Model
from enginehouse.core.serving import servable_by

BAR = 24
LABEL = 16


def model_text(model: Model) -> str:
    """Show a model's facts in sections: what it is, its weights, its memory, who can serve it."""
    sections = (
        _identity(model),
        _weights(model),
        _attention(model),
        _words(model),
        _serving(model),
        [("note", note) for note in model.notes],
    )
    return "\n\n".join(
        "\n".join(f"{clean(name):<{LABEL}}{clean(value)}".rstrip() for name, value in section)
        for section in sections
        if section
    )


def layers_text(model: Model) -> str:
    """Show every layer on a line: its kind, heads, what it keeps, and its weights."""
    from enginehouse.cli_render import table

    rows = [
        (
            str(number),
            _kind(block) + (" (draft head)" if block.is_draft else ""),
            f"{block.heads}/{block.kv_heads}",
            f"{block.key_length}/{block.value_length}",
            f"{block.k_elements + block.v_elements + block.index_elements:,}",
            mib(block.state_bytes) if block.state_bytes else "-",
            f"{block.feed_forward_length:,}",
            mib(block.weight_bytes),
        )
        for number, block in enumerate(model.blocks)
    ]
    header = (
        "LAYER",
        "ATTENTION",
        "HEADS/KV",
        "K/V SIZE",
        "KV ELEMENTS",
        "STATE",
        "FFN",
        "WEIGHTS",
    )
    return table(header, rows)


def clean(text: str) -> str:
    """Take control characters out of a file's own words, so that they cannot steer a terminal."""
    return "".join(
        letter if unicodedata.category(letter)[0] != "C" else "�" for letter in text
    )  # fmt: skip


def mib(size: float) -> str:
    """Show a size in KiB, MiB or GiB."""
    if size < 2**20:
        return f"{size / 2**10:.1f} KiB"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def short_count(count: float) -> str:
    """Show a count of parameters or tokens in few letters: 134.5 M, 7.2 B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.1f} {letter}"
    return f"{count:,.0f}"


def attention_words(blocks: Sequence[Block]) -> str:
    """Say the layers' attention in one line, such as `26 full, 4 sliding 1,024`.

    A pattern that repeats is told after it: `(5 sliding 1,024, 1 full, repeated)`.
    """
    kinds = [_kind(block) for block in blocks if not block.is_draft]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    if len(runs) > len(counts):
        period = next(n for n in range(1, len(runs) + 1) if _repeats(runs, n))
        told = ", ".join(f"{count} {kind}" for kind, count in runs[: min(period, 8)])
        if period < len(runs):
            text += f" ({told}, repeated)"
        else:
            text += f" (in order {told}{' …' if period > 8 else ''})"
    drafts = sum(block.is_draft for block in blocks)
    return text + (f", {drafts} draft head" if drafts else "")


def _repeats(runs: Sequence[tuple[str, int]], period: int) -> bool:
    """Whether runs repeat after `period`; the last run may be cut short."""
    last = len(runs) - 1
    for place, (kind, count) in enumerate(runs[period:], start=period):
        before = runs[place - period]
        if kind != before[0] or not (count == before[1] or (place == last and count < before[1])):
            return False
    return True


def _kind(block: Block) -> str:
    words = f"{block.kind} {block.window:,}" if block.window else block.kind
    parallel = block.state_bytes and block.kind != "recurrent"
    return f"{words} with recurrent state" if parallel else words


def _identity(model: Model) -> list[tuple[str, str]]:
    # A file's own words may hold anything: only their beginning is shown.
    size = f"{short_count(model.parameters)} parameters"
    if model.experts and 0 < model.active_parameters < model.parameters:
        size += f", {short_count(model.active_parameters)} active"
    facts = [
        ("model", f"{model.name}" + (f" — {model.title[:80]}" if model.title else "")),
        ("architecture", f"{model.architecture[:80]}, {size}"),
        ("quantization", _quantization(model)),
        ("where", model.path),
        ("source", model.source),
        ("license", model.license[:80] or "not stated"),
    ]
    if model.role != "model":
        facts.insert(1, ("role", _role(model)))
    weights = [part for part in model.parts if part.role == "weights"]
    if len(weights) > 1:
        facts.append(("parts", f"{len(weights)} files, {mib(model.file_bytes)} together"))
    facts += [
        (part.role, f"{part.path} ({mib(part.bytes)})")
        for part in model.parts
        if part.role in ("projector", "adapter")
    ]
    digest = model.digest or "not computed yet: `models add` or the first trial does"
    return [*facts, ("sha256", digest)]


def _role(model: Model) -> str:
    if model.role == "adapter":
        rank = f", rank {model.adapter_rank}" if model.adapter_rank else ""
        return f"adapter (LoRA{rank}) for {model.base_model or 'a model that it does not name'}"
    if model.encoder is None:
        return model.role
    encoder = model.encoder
    shape = f"{encoder.blocks} blocks of {encoder.embedding_length}"
    image = f", images of {encoder.image_size} px" if encoder.image_size else ""
    return f"{encoder.kind} projector ({encoder.projector or 'unnamed'}), {shape}{image}"


def _quantization(model: Model) -> str:
    how = model.weight_quantization
    if how is None:
        return model.quantization
    words = [model.quantization]
    if how.detail and how.detail != model.quantization:
        words.append(how.detail)
    if how.method == "gguf" and how.bits:
        words.append(f"{how.bits:.2f} bits a weight")
    if how.group_size:
        words.append(f"groups of {how.group_size}")
    if how.kv_bits:
        words.append(f"KV cache in {how.kv_bits} bits")
    return ", ".join(words)


def _weights(model: Model) -> list[tuple[str, str]]:
    rows = [("weights", f"{mib(model.weight_bytes)} in {_tensors(model)} tensors")]
    for name, size in model.bytes_by_class().items():
        share = size / max(1, model.weight_bytes)
        types = [group.type for group in model.groups if group.tensor_class == name]
        shown = " ".join(types[:5]) + (" …" if len(types) > 5 else "")
        bar = "█" * round(share * BAR)
        rows.append(
            ("", f"{name:<16}{mib(size):>10} {share:>5.0%}  {bar:<{BAR}}  {shown}".rstrip())
        )
    if model.role != "model":
        return rows
    read = f"{mib(model.bytes_per_token)} for each decoded token"
    if model.experts is not None:
        experts = model.experts
        shared = f" and {experts.shared} shared" if experts.shared else ""
        read += f": {experts.used} of {experts.count} experts{shared} are active"
    if model.is_output_tied:
        read += "; the output is tied to the embedding"
    return [*rows, ("read", read)]


def _tensors(model: Model) -> int:
    return sum(group.tensors for group in model.groups)


def _attention(model: Model) -> list[tuple[str, str]]:
    if not model.blocks:
        return []
    facts = [
        ("layers", f"{attention_words(model.blocks)}"),
        ("width", f"{model.embedding_length:,}, feed-forward {model.feed_forward_length:,}"),
    ]
    if model.mla is not None:
        form = "the latent is cached" if model.mla.is_absorbed else "full heads are cached"
        facts.append(("MLA", f"KV rank {model.mla.kv_rank}, Q rank {model.mla.q_rank}; {form}"))
    facts.append(("context", _context(model)))
    if model.k_elements_per_token:
        facts.append(("KV cache", _kv(model)))
    if model.state_bytes:
        facts.append(("state", f"{mib(model.state_bytes)} for each sequence, at any length"))
    return facts


def _context(model: Model) -> str:
    text = f"{model.context_length:,} tokens" if model.context_length else "not stated"
    rope = model.rope
    if rope is not None and rope.scaling not in ("", "none") and rope.factor > 1:
        text += f", by {rope.scaling} × {rope.factor:g}"
        text += f" from {rope.original_context:,}" if rope.original_context else ""
    return text


def _kv(model: Model) -> str:
    """Say what one token costs in f16, and one sequence of the whole context, windows counted."""
    elements = model.k_elements_per_token + model.v_elements_per_token
    text = f"{2 * elements / 1024:,.1f} KiB a token in f16"
    if not model.context_length:
        return text
    total = sum(
        2 * (block.k_elements + block.v_elements)
        * (min(block.window, model.context_length) if block.window else model.context_length)
        for block in model.blocks
    )  # fmt: skip
    return f"{text}; {mib(total)} for {model.context_length:,} tokens"


def _words(model: Model) -> list[tuple[str, str]]:
    if model.role != "model":
        return []
    facts = []
    tokenizer = model.tokenizer
    if tokenizer is not None:
        kind = tokenizer.kind[:60] + (f" ({tokenizer.pre[:60]})" if tokenizer.pre else "")
        facts.append(("tokenizer", f"{kind}, {model.vocabulary_size:,} tokens"))
    else:
        facts.append(("tokenizer", f"not in the files; {model.vocabulary_size:,} tokens"))
    facts.append(("chat template", _template(model)))
    if not model.is_causal or model.can_embed:
        pooling = f" ({model.pooling} pooling)" if model.pooling else ""
        facts.append(("embeddings", f"yes{pooling}" if model.can_embed else "an encoder"))
    return facts


def _template(model: Model) -> str:
    template = model.template
    if template is None:
        return "yes" if model.has_chat_template else "none"
    tools = "tools" if template.has_tools else "no tools"
    if template.dialect:
        tools += f" ({template.dialect} form)"
    words = [tools]
    if template.has_thinking:
        words.append("thinking")
    return f"from {template.origin}, {template.bytes:,} bytes: {', '.join(words)}"


def _serving(model: Model) -> list[tuple[str, str]]:
    rows = []
    for number, verdict in enumerate(servable_by(model)):
        mark = "yes" if verdict.is_possible else "no"
        rows.append(
            ("served by" if not number else "", f"{verdict.engine:<11}{mark:<5}{verdict.reason}")
        )
    return rows
