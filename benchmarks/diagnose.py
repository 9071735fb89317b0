"""How often the diagnosis is right, how wrong it is when it is wrong, and how fast it reads.

    ./dev bench diagnose --cases FILE      the given cases: exact, named, confidently wrong, unknown
    ./dev bench diagnose --speed           100 MB of ordinary log, and hostile logs

A case is one JSON object a line: `id`, `log`, `platform`, `exit_code_or_signal`, `cause`. In the
leave-one-source-out run whatever was written from a case (`written_from` of a signature) is
withheld for that case, and for every case that comes from the same source.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from enginehouse.core.diagnose_facts import Facts, ending_of, facts_of_text
from enginehouse.core.diagnose_scan import scan
from enginehouse.core.diagnose_signature import Confidence
from enginehouse.core.diagnose_verdict import Verdict, judge
from enginehouse.knowledge.patterns import SignatureBook, load_book

GIVEN = Path(__file__).parents[2] / "shared" / "reference" / "failures" / "cases.jsonl"
SURE = (Confidence.CERTAIN, Confidence.LIKELY)
MEGABYTE = 1_000_000
ORDINARY = (
    b"INFO 11-10 10:11:12 [loggers.py:123] Engine 000: Avg prompt throughput: 0.0 tokens/s\n"
    b"(EngineCore_0 pid=77) DEBUG 11-10 10:11:13 [core.py:401] step 12345 took 0.0123 s\n"
    b"2025-11-10T10:11:12.123Z time=2025-11-10T10:11:12Z level=INFO source=sched.go:1 msg=fine\n"
    b"load_tensors: layer  12 assigned to device CPU_REPACK, is_swa = 0, n_head_kv = 8\n"
)


@dataclass(frozen=True)
class Score:
    """One case's confirmed cause and what was said of it."""

    case: dict[str, Any]
    verdict: Verdict

    @property
    def is_exact(self) -> bool:
        return bool(self.verdict.cause == self.case["cause"])

    @property
    def is_named(self) -> bool:
        return self.is_exact or self.case["cause"] in {a.cause for a in self.verdict.alternatives}

    @property
    def is_confidently_wrong(self) -> bool:
        is_sure = self.verdict.cause is not None and self.verdict.confidence in SURE
        return is_sure and not self.is_named

    @property
    def is_unknown(self) -> bool:
        return self.verdict.cause is None


def facts_of(case: dict[str, Any], platform: str | None) -> Facts:
    """Return what the command line would be told of a case."""
    code, signal = ending_of(str(case["exit_code_or_signal"] or ""))
    facts = facts_of_text(case["platform"] if platform is None else platform)
    return replace(facts, exit_code=code, signal=signal)


def judge_case(book: SignatureBook, case: dict[str, Any], platform: str | None) -> Score:
    """Return a case's score under a book."""
    digest = scan([case["log"].encode()], book)
    return Score(case, judge(book, digest, facts_of(case, platform)))


def without_own(book: SignatureBook, cases: Sequence[dict[str, Any]]) -> Iterator[SignatureBook]:
    """Yield, for each case, the book without what was written from it or from its source."""
    by_source = defaultdict(set)
    for case in cases:
        by_source[case["source"]].add(case["id"])
    for case in cases:
        own = by_source[case["source"]] | {case["id"]}
        kept = [s for s in book.signatures if not own & set(s.written_from)]
        is_whole = len(kept) == len(book.signatures)
        yield book if is_whole else SignatureBook(kept, book.confusions)


def report(name: str, scores: Sequence[Score]) -> dict[str, float]:
    """Print a run's figures, and return them in per cent."""
    count = max(len(scores), 1)
    figures = {
        "exact": 100 * sum(score.is_exact for score in scores) / count,
        "named": 100 * sum(score.is_named for score in scores) / count,
        "confidently wrong": 100 * sum(score.is_confidently_wrong for score in scores) / count,
        "unknown": 100 * sum(score.is_unknown for score in scores) / count,
    }
    told = "  ".join(f"{what} {value:5.1f} %" for what, value in figures.items())
    print(f"{name:<28} {len(scores):>4} cases  {told}")
    return figures


def show_alternatives(scores: Sequence[Score]) -> None:
    """Print how many alternatives a reader meets, and how many of them only the table names."""
    named = [score.verdict for score in scores if score.verdict.cause is not None]
    counts = [len(verdict.alternatives) for verdict in named] or [0]
    common = sum(other.is_common for verdict in named for other in verdict.alternatives)
    mean = sum(counts) / len(counts)
    print(f"alternatives: median {median(counts):g}, mean {mean:.1f}, most {max(counts)}, "
          f"by the table of confusions {common} of {sum(counts)}")  # fmt: skip


def show_misses(scores: Sequence[Score]) -> None:
    """Print the cases that were not named exactly."""
    for score in scores:
        if not score.is_exact:
            word = (
                "named" if score.is_named else "WRONG" if score.is_confidently_wrong else "missed"
            )
            said = f"{score.verdict.cause} ({score.verdict.confidence.value})"
            print(f"  {word:<6} {score.case['id']}: {score.case['cause']} <- {said}"
                  f" [{score.verdict.signature}]")  # fmt: skip


def run_cases(path: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Judge all cases, with the whole book and with what was written from each withheld."""
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    book = load_book()
    if options.without_confusions:
        book = SignatureBook(book.signatures)
    whole = [judge_case(book, case, None) for case in cases]
    apart = [
        judge_case(own, case, None)
        for case, own in zip(cases, without_own(book, cases), strict=True)
    ]
    changed = sum(bool({c["id"] for c in cases} & set(s.written_from)) for s in book.signatures)
    print(f"{len(book.signatures)} signatures, of which {changed} declare a given case")
    figures = {
        "all": report("whole book", whole),
        "literal": report("  of these: literal logs", _literal(whole)),
        "apart": report("leave one source out", apart),
        "apart literal": report("  of these: literal logs", _literal(apart)),
    }
    show_alternatives(whole)
    if options.verbose:
        print("whole book:")
        show_misses(whole)
        print("leave one source out:")
        show_misses(apart)
    wrong = Counter(s.verdict.signature for s in apart if s.is_confidently_wrong)
    if wrong:
        print(f"confidently wrong by: {dict(wrong)}")
    return figures


def _literal(scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if score.case.get("log_kind") == "literal"]


def hostile() -> dict[str, Callable[[], Iterator[bytes]]]:
    """Return logs that would hurt: each makes its pieces of one megabyte."""
    error = b"ERROR 11-10 10:11:12 [core.py:700] RuntimeError: failed to do something, 12345\n"
    return {
        "one line of 100 MB": lambda: _repeat(b"x" * MEGABYTE, 100),
        "100 MB of NULs": lambda: _repeat(b"\x00" * MEGABYTE, 100),
        "100 MB of newlines": lambda: _repeat(b"\n" * MEGABYTE, 100),
        "invalid UTF-8": lambda: _repeat(bytes(range(128, 256)) * 7812 + b"\n", 100),
        "only errors": lambda: _repeat(error * (MEGABYTE // len(error)), 100),
        "only carriage returns": lambda: _repeat(b"Loading:  50%|#####\r" * 50_000, 100),
        "only escapes": lambda: _repeat(b"\x1b[31m" * 200_000, 100),
        "half a pattern, repeated": lambda: _repeat(
            b"CUDA out of memory. Tried to allocate " * 26_000 + b"\n", 100
        ),
        "quotes and brackets": lambda: _repeat(b"tensor '" * 62_500 + b"((((" * 125_000, 100),
        "every message at once": lambda: _repeat(_every_message(), 100),
    }


def _every_message() -> bytes:
    """A megabyte made of the signatures' own examples, over and over."""
    texts = "\n".join(s.example for s in load_book().signatures if s.example) or "Killed"
    block = texts.encode() + b"\n"
    return (block * (MEGABYTE // len(block) + 1))[:MEGABYTE]


def _repeat(piece: bytes, times: int) -> Iterator[bytes]:
    for _ in range(times):
        yield piece


def run_speed(times: int) -> dict[str, float]:
    """Read 100 MB of ordinary log and as much of each hostile one, and print what it took."""
    book = load_book()
    ordinary = ORDINARY * (MEGABYTE // len(ORDINARY))
    logs = {"ordinary": lambda: _repeat(ordinary, 100), **hostile()}
    figures = {}
    for name, pieces in logs.items():
        taken = []
        for _ in range(times):
            began = time.perf_counter()
            verdict = judge(book, scan(pieces(), book), Facts())
            taken.append(time.perf_counter() - began)
        figures[name] = min(taken)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name:<26} {min(taken):6.2f} s   peak {peak:5.0f} MiB   {verdict.cause}")
    return figures


def main() -> None:
    """Run what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=Path, default=GIVEN if GIVEN.exists() else None)
    parser.add_argument("--speed", action="store_true", help="time 100 MB and hostile logs")
    parser.add_argument("--times", type=int, default=1, help="repeats of each timed log")
    parser.add_argument("--verbose", action="store_true", help="list the cases that were missed")
    parser.add_argument("--without-confusions", action="store_true", help="leave out the table")
    parser.add_argument("--json", action="store_true", help="end with one JSON line of figures")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    if options.speed:
        figures["speed"] = run_speed(options.times)
    elif options.cases is None:
        sys.exit("no cases: give --cases FILE (the shared reference is not beside this checkout)")
    else:
        figures["cases"] = run_cases(options.cases, options)
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
