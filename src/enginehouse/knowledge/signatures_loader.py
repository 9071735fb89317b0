"""Load and validate the failure signatures; `docs/diagnose.md` is the schema in words."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from enginehouse.core.diagnose_facts import SIGNAL_NUMBERS
from enginehouse.core.diagnose_signature import (
    PLATFORM_TAGS,
    Alternative,
    Confidence,
    Context,
    Kind,
    Misleading,
    Role,
    Signature,
    When,
)
from enginehouse.core.errors import InternalError
from enginehouse.core.remedies import ACTIONS
from enginehouse.core.trial import Outcome, Stage
from enginehouse.knowledge.pattern_check import check_pattern
from enginehouse.knowledge.toml import ROOT, parse_toml

GROUPS = frozenset(
    """
    llama.cpp ggml ollama llama-cpp-python vllm sglang pytorch triton transformers tensorrt-llm
    tensorrt-edge-llm tensorrt onnxruntime cuda driver kernel systemd container hub python build os
    generic
    """.split()  # noqa: SIM905
)
"""What may speak in a log: the folders that signatures lie in."""
STATUSES = ("observed", "reported", "inferred")
EXPLAINABLE = (Outcome.EXITED, Outcome.BAD_ANSWER, Outcome.TIMED_OUT)
"""Outcomes that a log may explain; the others are our own doing."""
SOURCE = re.compile(r"https://\S+|[\w.-]+/[\w.-]+:\S+|man:\S+|[a-z][\w.-]+ (source|docs): .+")
L4T_RANGE = re.compile(r"(?:[<>=]=?|==)\d+(?:\.\d+)*(?:,(?:[<>=]=?|==)\d+(?:\.\d+)*)*")
SIGNALS = frozenset((*SIGNAL_NUMBERS.values(),))
REQUIRED = frozenset(("title", "sources", "status", "checked"))
DERIVED = frozenset(("id", "group"))
TOP_FIELDS = frozenset(f.name for f in fields(Signature)) - DERIVED | {
    "stages", "context", "alternative",
}  # fmt: skip
TOP_FIELDS -= {"contexts", "alternatives"}
MUST_HAVE_CAUSE = frozenset((Kind.FAILURE, Kind.GENERIC, Kind.DEGRADED))
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def load_causes() -> frozenset[str]:
    """Return the dotted causes of the taxonomy, the only ones a signature may name."""
    return frozenset((ROOT / "causes.txt").read_text(encoding="utf-8").split())


def load_signatures(group: str | None = None) -> tuple[Signature, ...]:
    """Return every failure signature (of one group, if given), validated, by group and id.

    Raises:
        InternalError: `knowledge.bad_signature`, naming the file and what is wrong with it.
    """
    causes = load_causes()
    return tuple(
        _read_signature(folder, name, text, causes) for folder, name, text in _files(group)
    )


def _files(group: str | None) -> Iterator[tuple[str, str, str]]:
    for folder in sorted((ROOT / "signatures").iterdir(), key=lambda entry: entry.name):
        if folder.is_dir() and group in (None, folder.name):
            for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
                if file.name.endswith(".toml"):
                    yield folder.name, file.name, file.read_text(encoding="utf-8")


def _read_signature(group: str, name: str, text: str, causes: frozenset[str]) -> Signature:
    try:
        return signature_of(group, name.removesuffix(".toml"), parse_toml(text), causes)
    except (TypeError, ValueError, KeyError, re.error) as problem:
        raise InternalError(
            "knowledge.bad_signature",
            f"the signature {group}/{name} is not valid",
            evidence=(f"{type(problem).__name__}: {problem}",),
            remedies=("mend the file, or install Enginehouse again",),
        ) from problem


def signature_of(
    group: str, id: str, table: Mapping[str, Any], causes: frozenset[str]
) -> Signature:
    """Validate one signature's table.

    Raises:
        TypeError, ValueError: for what is missing, misspelt, of the wrong kind or not linear.
    """
    _check_fields(table)
    if group not in GROUPS:
        raise ValueError(f"the folder {group!r} is not one of {', '.join(sorted(GROUPS))}")
    kind = Kind(table.get("kind", "failure"))
    signature = Signature(
        id=id,
        group=group,
        kind=kind,
        cause=_cause_of(kind, table, causes),
        title=_text(table, "title"),
        confidence=Confidence(table.get("confidence", "likely")),
        all_of=_patterns(table, "all_of"),
        any_of=_patterns(table, "any_of"),
        none_of=_patterns(table, "none_of"),
        roles=tuple(Role(role) for role in _texts(table, "roles")),
        within=_number(table, "within"),
        same_process=_flag(table, "same_process"),
        when=_when(table.get("when", {}), _texts(table, "stages")),
        contexts=tuple(_context(entry, causes) for entry in _tables(table, "context")),
        alternatives=tuple(_alternative(entry, causes) for entry in _tables(table, "alternative")),
        misleading=tuple(_misleading(entry) for entry in _tables(table, "misleading")),
        consequence_of=_texts(table, "consequence_of"),
        overrides=_texts(table, "overrides"),
        precedence=_number(table, "precedence"),
        recovered_by=_patterns(table, "recovered_by"),
        remedies=_texts(table, "remedies"),
        actions=_actions(table),
        sources=_texts(table, "sources"),
        evidence=table.get("evidence", ""),
        example=table.get("example", ""),
        status=_text(table, "status"),
        checked=table["checked"],
        written_from=_texts(table, "written_from"),
    )
    _check_whole(signature)
    return signature


def _check_fields(table: Mapping[str, Any]) -> None:
    if unknown := set(table) - TOP_FIELDS:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")
    if missing := REQUIRED - set(table):
        raise ValueError(f"missing fields: {', '.join(sorted(missing))}")
    if type(table["checked"]) is not datetime.date:
        raise TypeError("checked is not a date")


def _check_whole(signature: Signature) -> None:
    """Check what single fields cannot tell."""
    if signature.status not in STATUSES:
        raise ValueError(f"status {signature.status!r} is not one of {STATUSES}")
    for source in signature.sources:
        if not SOURCE.fullmatch(source):
            raise ValueError(
                f"a source is a URL, owner/repository:path, man:page or `x docs: title`: {source!r}"
            )
    if not signature.sources:
        raise ValueError("sources is not a list of texts that says something")
    ends = signature.when.signals or signature.when.exit_codes
    if not (signature.all_of or signature.any_of or ends):
        raise ValueError("all_of and any_of are empty, and so are when.signals and when.exit_codes")
    if bool(signature.evidence) == bool(signature.example):
        raise ValueError("give either evidence (the name of a log) or example (the log itself)")
    if signature.evidence and not re.fullmatch(r"[\w.-]+\.log", signature.evidence):
        raise ValueError("evidence is not the name of a log")
    if signature.kind in MUST_HAVE_CAUSE and not signature.remedies:
        raise ValueError("remedies is empty")
    _check_placeholders(signature)


def _check_placeholders(signature: Signature) -> None:
    """Every `{name}` of a text must be captured by some pattern."""
    patterns = (*signature.all_of, *signature.any_of)
    captured = {name for p in patterns for name in re.findall(r"\(\?P<(\w+)>", p)}
    texts = [signature.title, *signature.remedies]
    texts += [context.title for context in signature.contexts]
    wanted = {name for text in texts for name in PLACEHOLDER.findall(text)}
    if lost := wanted - captured:
        raise ValueError(f"no pattern captures {', '.join(sorted(lost))}")


def _cause_of(kind: Kind, table: Mapping[str, Any], causes: frozenset[str]) -> str:
    cause = table.get("cause", "misleading.benign_warning" if kind is Kind.BENIGN else "")
    if not isinstance(cause, str):
        raise TypeError("cause is not a text")
    if not cause and kind in MUST_HAVE_CAUSE:
        raise ValueError("missing fields: cause")
    return _known(cause, causes) if cause else ""


def _known(cause: str, causes: frozenset[str]) -> str:
    if cause not in causes:
        raise ValueError(f"the cause {cause!r} is not in causes.txt")
    return cause


def _when(table: Mapping[str, Any], stages: Sequence[str] = ()) -> When:
    _only(
        table, {f.name for f in fields(When)} - {"stages"} | ({"stages"} if not stages else set())
    )
    for name in ("platform", "not_platform"):
        if odd := set(_texts(table, name)) - PLATFORM_TAGS:
            raise ValueError(f"unknown platform tags: {', '.join(sorted(odd))}")
    if odd := set(_texts(table, "signals")) - SIGNALS:
        raise ValueError(f"unknown signals: {', '.join(sorted(odd))}")
    if (l4t := table.get("l4t", "")) and not L4T_RANGE.fullmatch(l4t):
        raise ValueError(f"l4t is not a range such as >=36.4.7,<36.5: {l4t!r}")
    outcomes = tuple(Outcome(outcome) for outcome in _texts(table, "outcomes"))
    if own := set(outcomes) - set(EXPLAINABLE):
        raise ValueError(f"no log explains {', '.join(sorted(outcome.value for outcome in own))}")
    codes = table.get("exit_codes", [])
    if not isinstance(codes, list) or any(type(code) is not int for code in codes):
        raise TypeError("exit_codes is not a list of whole numbers")
    return When(
        platform=_texts(table, "platform"),
        not_platform=_texts(table, "not_platform"),
        l4t=l4t,
        signals=_texts(table, "signals"),
        exit_codes=tuple(codes),
        stages=tuple(Stage(stage) for stage in stages or _texts(table, "stages")),
        outcomes=outcomes,
    )


def _context(table: Mapping[str, Any], causes: frozenset[str]) -> Context:
    _only(table, {f.name for f in fields(Context)} - {"alternatives"} | {"alternative"})
    when = _when(table.get("when", {}))
    if when == When():
        raise ValueError("a context without conditions is the signature itself")
    confidence = table.get("confidence")
    return Context(
        when=when,
        cause=_known(_text(table, "cause"), causes),
        confidence=None if confidence is None else Confidence(confidence),
        title=table.get("title", ""),
        alternatives=tuple(_alternative(a, causes) for a in _tables(table, "alternative"))
        if "alternative" in table
        else None,
        remedies=_texts(table, "remedies") if "remedies" in table else None,
        actions=_actions(table) if "actions" in table else None,
    )


def _alternative(table: Mapping[str, Any], causes: frozenset[str]) -> Alternative:
    _only(table, {"cause", "decide"})
    return Alternative(_known(_text(table, "cause"), causes), _text(table, "decide"))


def _misleading(table: Mapping[str, Any]) -> Misleading:
    _only(table, {"pattern", "says"})
    pattern = _text(table, "pattern")
    check_pattern(pattern)
    return Misleading(pattern, _text(table, "says"))


def _actions(table: Mapping[str, Any]) -> tuple[str, ...]:
    actions = _texts(table, "actions")
    if odd := set(actions) - set(ACTIONS):
        raise ValueError(f"unknown actions: {', '.join(sorted(odd))}")
    return actions


def _patterns(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    patterns = _texts(table, name)
    for pattern in patterns:
        check_pattern(pattern)
    return patterns


def _only(table: object, known: set[str]) -> None:
    if not isinstance(table, Mapping):
        raise TypeError("when, context, alternative and misleading are tables")
    if unknown := set(table) - known:
        raise ValueError(f"unknown fields: {', '.join(sorted(unknown))}")


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{name} is not a text")
    return value


def _texts(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A list of texts; empty when left out, refused when given and empty."""
    if name not in table:
        return ()
    value = table[name]
    is_texts = isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)
    if not is_texts or not value:
        raise TypeError(f"{name} is not a list of texts that says something")
    return tuple(value)


def _tables(table: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise TypeError(f"{name} is not a list of tables ([[{name}]])")
    return tuple(value)


def _number(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name, 0)
    if type(value) is not int:
        raise TypeError(f"{name} is not a whole number")
    return value


def _flag(table: Mapping[str, Any], name: str) -> bool:
    value = table.get(name, False)
    if type(value) is not bool:
        raise TypeError(f"{name} is neither true nor false")
    return value
