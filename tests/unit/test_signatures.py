"""Every failure signature explains its own log, and no other's unless it was said which wins."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

from enginehouse.core.diagnose_facts import Facts
from enginehouse.core.diagnose_scan import Digest, scan
from enginehouse.core.diagnose_signature import Kind, Signature
from enginehouse.core.diagnose_verdict import Verdict, judge, standing_matches
from enginehouse.knowledge.patterns import load_book
from enginehouse.knowledge.signatures_loader import load_causes

LOGS = Path(__file__).parents[1] / "fixtures" / "logs"
BOOK = load_book()
CONSTRUCTED = "constructed from the engine's source, not observed"


def read_log(signature: Signature) -> str:
    """Return the log that is a signature's evidence."""
    if signature.example:
        return signature.example
    return (LOGS / signature.group / signature.evidence).read_text(encoding="utf-8")


def facts_for(signature: Signature) -> Facts:
    """Return facts under which a signature's conditions hold."""
    when = signature.when
    quiet = (Kind.BENIGN, Kind.DEGRADED)
    code = 1 if signature.kind not in quiet and not when.signals else None
    return Facts(
        tags=frozenset(when.platform[:1]),
        l4t=tuple(int(n) for n in re.findall(r"\d+", when.l4t.split(",")[0])[:3]),
        exit_code=when.exit_codes[0] if when.exit_codes and not when.signals else code,
        signal=when.signals[0] if when.signals else "",
        outcome=when.outcomes[-1] if when.outcomes else None,
    )


@cache
def digest_of(signature: Signature) -> Digest:
    """Return what the scan keeps of a signature's own log."""
    return scan([read_log(signature).encode()], BOOK)


@cache
def verdict_on(signature: Signature) -> Verdict:
    """Return the whole book's verdict on a signature's own log."""
    return judge(BOOK, digest_of(signature), facts_for(signature))


def causes_of(signature: Signature) -> set[str]:
    """Return every cause that a signature may name."""
    return {signature.cause, *(context.cause for context in signature.contexts)}


def test_each_signature_explains_its_own_log() -> None:
    """Among all signatures a log's own one decides its cause; a benign line is at least named."""
    wrong = {}
    for signature in BOOK.signatures:
        found = verdict_on(signature)
        if signature.kind is Kind.BENIGN and found.signature != signature.key:
            if not any(signature.title == misled.says for misled in found.misleading):
                wrong[signature.key] = f"not named: {found.title}"
        elif (found.cause or "") not in causes_of(signature):
            wrong[signature.key] = f"{found.cause} by {found.signature}"
        elif not found.evidence and (signature.all_of or signature.any_of):
            wrong[signature.key] = "no evidence"
    assert not wrong


def test_no_other_cause_is_read_from_the_same_line_unless_it_was_said_which_wins() -> None:
    """A second cause on the decisive line must be declared: precedence, overrides, alternative."""
    wrong = {}
    for signature in BOOK.signatures:
        standing = standing_matches(BOOK, digest_of(signature), facts_for(signature))
        for own in (match for match in standing if match.signature.key == signature.key):
            named = {own.cause, *(other.cause for other in own.alternatives)}
            clashes = [m for m in standing if m.line == own.line and m.cause not in named]
            if clashes:
                wrong[signature.key] = [match.signature.key for match in clashes]
    assert not wrong


def test_the_mere_mention_of_an_engine_switches_no_signature_off() -> None:
    """Logs name what is installed beside them; only what was said may speak against a cause."""
    said = ["torch", "vllm", "ollama", "transformers 4.57.1", "/venv/lib/vllm/__init__.py"]
    off = {
        signature.key: pattern
        for signature in BOOK.signatures
        for pattern in signature.none_of
        if any(BOOK.captures(BOOK.id_of(pattern), line) is not None for line in said)
    }
    assert not off


def test_a_start_that_went_well_has_no_diagnosis() -> None:
    """Frightening warnings of a start that succeeded are not a failure."""
    logs = sorted((LOGS / "success").rglob("*.log"))
    found = {path: judge(BOOK, scan([path.read_bytes()], BOOK), Facts()) for path in logs}
    assert len(logs) >= 40
    assert not {path.name: verdict.cause for path, verdict in found.items() if verdict.cause}
    assert not any(verdict.remedies for verdict in found.values())


def test_every_log_is_the_evidence_of_one_signature() -> None:
    """No log lies about without its signature, and none is shared."""
    groups = {signature.group for signature in BOOK.signatures}
    folders = [LOGS / group for group in sorted(groups) if (LOGS / group).is_dir()]
    logs = sorted((f.name, path.name) for f in folders for path in f.glob("*.log"))
    assert logs == sorted((s.group, s.evidence) for s in BOOK.signatures if s.evidence)


def test_a_log_names_no_path_of_the_machine_it_came_from() -> None:
    """Logs are published, so personal folders are replaced by /models."""
    personal = re.compile(r"/(home|Users|tmp|work)/")
    logs = sorted(LOGS.rglob("*.log"))
    assert not [path for path in logs if personal.search(path.read_text(encoding="utf-8"))]


def test_a_log_that_nobody_saw_says_so() -> None:
    """Only the log of an inferred signature is constructed, and its first line tells."""
    kept = [signature for signature in BOOK.signatures if signature.evidence]
    is_constructed = {s.key: CONSTRUCTED in read_log(s).splitlines()[0] for s in kept}
    assert is_constructed == {s.key: s.status == "inferred" for s in kept}


def test_an_id_names_the_problem_in_plain_words() -> None:
    """Ids are lower-case words with dashes, unique within a group."""
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", s.id) for s in BOOK.signatures)
    assert len({s.key for s in BOOK.signatures}) == len(BOOK.signatures)


def test_what_a_signature_names_exists() -> None:
    """`overrides` and `consequence_of` name signatures, causes, or the start of causes."""
    causes = load_causes()
    keys = {signature.key for signature in BOOK.signatures}
    for signature in BOOK.signatures:
        for name in (*signature.overrides, *signature.consequence_of):
            is_start = name.endswith("*") and any(cause.startswith(name[:-1]) for cause in causes)
            assert is_start or name in causes | keys, (signature.key, name)


def test_causes_are_dotted_and_listed_once() -> None:
    """The taxonomy is a list of dotted names, and the guard's, the signals' are among them."""
    causes = load_causes()
    assert all(re.fullmatch(r"[a-z]+(\.[a-z0-9_]+)+", cause) for cause in causes)
    own = {"memory.host.insufficient", "memory.host.oom_killed", "cpu.isa_unsupported"}
    assert own | {"runtime.load_timeout"} <= causes


def test_each_signature_still_holds_behind_other_prefixes() -> None:
    """A container's, a journal's and a rank's prefix change no verdict."""
    prefixes = (
        "2025-11-10T10:11:12.123456789Z ",
        "server-1  | ",
        "Nov 10 10:11:12 host engine[12]: ",
        "\x1b[31m",
    )
    for signature in BOOK.signatures[::3]:
        for prefix in prefixes:
            log = "".join(f"{prefix}{line}\n" for line in read_log(signature).splitlines())
            found = judge(BOOK, scan([log.encode()], BOOK), facts_for(signature))
            assert found.cause == verdict_on(signature).cause, (signature.key, prefix)


def test_withholding_a_signature_leaves_a_book_that_works() -> None:
    """The benchmark takes signatures out; what is left still judges."""
    rest = replace(BOOK.signatures[0], id="alone")
    book = type(BOOK)([rest])
    assert judge(book, scan([read_log(rest).encode()], book), facts_for(rest)).signature == rest.key


def test_the_check_of_the_threads_is_enough_where_the_line_before_it_was_not_written() -> None:
    """llama.cpp writes its log from a thread of its own, which the abort may come before."""
    line = b"/src/ggml/src/ggml-cpu/ggml-cpu.c:3395: GGML_ASSERT(cplan->n_threads > 0) failed\n"
    verdict = judge(BOOK, scan([line], BOOK), Facts(exit_code=None, signal="SIGABRT"))
    assert verdict.cause == "config.invalid_value"
