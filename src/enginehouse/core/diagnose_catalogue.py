"""Signatures → the failure catalogue: one page a cause, as data, as text and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from enginehouse.core.diagnose_signature import Kind, Signature, When
from enginehouse.core.remedies import ACTIONS

DOMAINS = {
    "memory": "Memory",
    "driver": "Driver",
    "gpu": "What the GPU can do",
    "cpu": "What the CPU can do",
    "container": "Containers",
    "dependency": "Packages and libraries",
    "build": "Building",
    "model": "The model's files",
    "engine": "The engine's version",
    "config": "Settings",
    "access": "Access to models",
    "network": "Network",
    "orchestration": "Orchestration",
    "permission": "Permissions",
    "request": "Requests",
    "resource": "Limits and disks",
    "runtime": "It runs, but not as wanted",
    "hardware": "Hardware",
    "system": "The operating system",
    "tooling": "Tools",
    "misleading": "What only looks like a failure",
}
"""The first word of a cause → a heading, in the order of the index."""
HEADER = "<!-- made by docs/generate_failures.py from the signatures; do not edit -->\n\n"


@dataclass(frozen=True)
class Prose:
    """What a cause means, in one line, and why it happens."""

    meaning: str = ""
    why: str = ""


@dataclass(frozen=True)
class Look:
    """How one signature sees a cause."""

    signature: Signature
    title: str
    conditions: str
    remedies: tuple[str, ...]
    actions: tuple[str, ...]
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """What the catalogue tells of one cause."""

    cause: str
    prose: Prose
    looks: tuple[Look, ...]
    misleading: tuple[tuple[str, str], ...]
    """The line's pattern, and why it is not the cause."""
    confused_with: tuple[tuple[str, str], ...]
    """Another cause that the same text may mean, and what decides."""

    @property
    def engines(self) -> tuple[str, ...]:
        """Who speaks in the logs of this cause."""
        return tuple(sorted({look.signature.group for look in self.looks}))


def page_for(
    cause: str,
    prose: Prose,
    signatures: Sequence[Signature],
    lines: Mapping[str, Sequence[str]],
) -> Page:
    """Gather what the signatures say of a cause; `lines` has decisive lines by signature."""
    looks: list[Look] = []
    for signature in signatures:
        looks += _looks(cause, signature, tuple(lines.get(signature.key, ())))
    own = [look.signature for look in looks]
    return Page(
        cause=cause,
        prose=prose,
        looks=tuple(looks),
        misleading=tuple(dict.fromkeys((m.pattern, m.says) for s in own for m in s.misleading)),
        confused_with=_confused(cause, own),
    )


def _looks(cause: str, signature: Signature, lines: tuple[str, ...]) -> list[Look]:
    found = []
    if signature.cause == cause:
        title, when = signature.title, _in_words(signature.when)
        found.append(Look(signature, _plain(title), when, *_help_of(signature), lines))
    for context in signature.contexts:
        if context.cause == cause and signature.cause != cause:
            remedies, actions = _help_of(signature)
            if context.remedies is not None:
                remedies = tuple(_plain(remedy) for remedy in context.remedies)
            actions = actions if context.actions is None else context.actions
            title = _plain(context.title or signature.title)
            when = _in_words(context.when)
            found.append(Look(signature, title, when, remedies, actions, lines))
    return found


def _help_of(signature: Signature) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(_plain(remedy) for remedy in signature.remedies), signature.actions


def _confused(cause: str, signatures: Sequence[Signature]) -> tuple[tuple[str, str], ...]:
    """Return the other causes of the same text, with the first question that decides each."""
    found: dict[str, str] = {}
    for signature in signatures:
        if signature.cause == cause:
            for other in signature.alternatives:
                found.setdefault(other.cause, other.decide)
        for context in signature.contexts:
            if context.cause == cause:
                for other in context.alternatives or ():
                    found.setdefault(other.cause, other.decide)
            elif signature.cause == cause:
                found.setdefault(context.cause, f"is it so: {_in_words(context.when)}?")
    found.pop(cause, None)
    return tuple(found.items())


def _in_words(when: When) -> str:
    """Return conditions as a phrase; empty where there are none."""
    parts = []
    if when.platform:
        parts.append(f"on {' or '.join(when.platform)}")
    if when.not_platform:
        parts.append(f"not on {' or '.join(when.not_platform)}")
    if when.l4t:
        parts.append(f"L4T {when.l4t}")
    endings = [*when.signals, *(f"exit code {code}" for code in when.exit_codes)]
    if endings:
        parts.append(f"ended with {' or '.join(endings)}")
    if when.stages:
        parts.append(f"in stage {' or '.join(stage.value for stage in when.stages)}")
    return ", ".join(parts)


def _plain(text: str) -> str:
    """Put a gap where a log's own figure would stand."""
    return re.sub(r"\{\w+\}", "…", text)


def page_document(page: Page) -> dict[str, object]:
    """Return a page as plain data; the keys are a contract."""
    return {
        "cause": page.cause,
        "meaning": page.prose.meaning,
        "why": page.prose.why,
        "engines": list(page.engines),
        "looks_like": [_look_document(look) for look in page.looks],
        "not_this": [{"pattern": pattern, "says": says} for pattern, says in page.misleading],
        "confused_with": [{"cause": other, "decide": ask} for other, ask in page.confused_with],
    }


def _look_document(look: Look) -> dict[str, object]:
    signature = look.signature
    return {
        "signature": signature.key,
        "title": look.title,
        "kind": signature.kind.value,
        "confidence": signature.confidence.value,
        "conditions": look.conditions,
        "lines": list(look.lines),
        "remedies": list(look.remedies),
        "actions": [{"id": action, "says": ACTIONS[action]} for action in look.actions],
        "status": signature.status,
        "checked": signature.checked.isoformat(),
        "sources": list(signature.sources),
    }


def page_markdown(page: Page, *, is_linked: bool = True) -> str:
    """Return a page as Markdown; without links where it is read in a terminal."""
    parts = [f"# {page.cause}", page.prose.meaning, page.prose.why]
    if page.engines:
        parts.append(f"Seen in logs of: {', '.join(page.engines)}.")
    parts += ["## What it looks like", *[_look_markdown(look) for look in page.looks]]
    if not page.looks:
        parts.append("No signature names it yet.")
    if page.misleading or page.confused_with:
        parts.append("## What it is not")
    if page.misleading:
        parts.append("\n".join(f"- `{pattern}`: {says}." for pattern, says in page.misleading))
    if page.confused_with:
        rows = [f"- {_link(o, is_linked)}: {ask}" for o, ask in page.confused_with]
        parts.append("The same text may mean another cause; the question decides:")
        parts.append("\n".join(rows))
    parts += _help_markdown(page.looks)
    if page.looks:
        parts += ["## Where it is confirmed", _sources_markdown(page.looks)]
    body = "\n\n".join(part for part in parts if part) + "\n"
    return HEADER + body if is_linked else body


def _look_markdown(look: Look) -> str:
    kind = {Kind.GENERIC: "when nothing else fits, ", Kind.DEGRADED: "it runs nevertheless, "}
    told = f"{kind.get(look.signature.kind, '')}{look.signature.confidence.value}"
    when = f"; {look.conditions}" if look.conditions else ""
    head = f"**{look.title}** (`{look.signature.key}`, {told}{when})"
    if not look.lines:
        return head
    return "\n".join([head, "", "```text", *(line.replace("```", "'''") for line in look.lines),
                      "```"])  # fmt: skip


def _help_markdown(looks: Sequence[Look]) -> list[str]:
    """Return what to do; where signatures differ in it, one list for each."""
    by_help: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for look in looks:
        if look.remedies:
            by_help.setdefault((look.remedies, look.actions), []).append(look.title)
    if not by_help:
        return []
    parts = ["## What to do"]
    for (remedies, actions), titles in by_help.items():
        if len(by_help) > 1:
            parts.append(f"Where {'; or '.join(dict.fromkeys(titles))}:")
        parts.append("\n".join(f"{n}. {remedy}" for n, remedy in enumerate(remedies, start=1)))
        if actions:
            parts.append("By itself, `find` tries: " + ", ".join(ACTIONS[a] for a in actions) + ".")
    return parts


def _sources_markdown(looks: Sequence[Look]) -> str:
    rows = ["| signature | status | checked | sources |", "|---|---|---|---|"]
    for signature in dict.fromkeys(look.signature for look in looks):
        sources = ", ".join(_source(source) for source in signature.sources)
        rows.append(f"| `{signature.key}` | {signature.status} | {signature.checked} | {sources} |")
    return "\n".join(rows)


def _source(source: str) -> str:
    return f"<{source}>" if source.startswith("https://") else f"`{source}`"


def _link(cause: str, is_linked: bool) -> str:
    return f"[{cause}]({cause}.md)" if is_linked else cause


def index_markdown(pages: Sequence[Page]) -> str:
    """Return the catalogue's first page: every cause by its domain."""
    parts = [
        "# The failure catalogue",
        "One page a cause that `enginehouse explain` can name: what it looks like, why it happens, "
        "what it is not, what to do, and where it is confirmed. In a terminal: "
        "`enginehouse explain --cause memory.device.oom`, or a domain such as "
        "`enginehouse explain --cause memory`. How a signature is written: "
        "[diagnose.md](../diagnose.md).",
        f"{len(pages)} causes, {len({x.signature.key for p in pages for x in p.looks})} signatures "
        "that name one. Made by `python docs/generate_failures.py`.",
    ]
    for domain, heading in DOMAINS.items():
        rows = [page for page in pages if page.cause.partition(".")[0] == domain]
        if rows:
            parts += [f"## {heading}", "\n".join([TABLE_HEAD, *map(_index_row, rows)])]
    return HEADER + "\n\n".join(parts) + "\n"


TABLE_HEAD = "| cause | what it means | in logs of |\n|---|---|---|"


def _index_row(page: Page) -> str:
    engines = ", ".join(page.engines)
    return f"| [{page.cause}]({page.cause}.md) | {page.prose.meaning} | {engines} |"
