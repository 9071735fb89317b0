"""A log is read once, in bounded memory, whatever it holds."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enginehouse.core.diagnose_facts import Facts
from enginehouse.core.diagnose_scan import MOST_HITS, MOST_VAIN, TAIL_LINES, Digest, scan
from enginehouse.core.diagnose_verdict import judge
from enginehouse.knowledge.patterns import SignatureBook, load_book
from enginehouse.knowledge.signatures_loader import load_causes, signature_of
from tests.unit.test_signature_schema import CAUSES, GOOD

BOOM = signature_of(
    "vllm",
    "boom",
    {
        "cause": "model.corrupt",
        "title": "it went boom",
        "all_of": ["^boom (?P<size>\\d+)$"],
        "remedies": ["do not"],
        "sources": ["owner/engine:boom.cpp"],
        "example": "boom 1",
        "status": "observed",
        "checked": datetime.date(2026, 1, 1),
    },
    load_causes(),
)
BOOK = SignatureBook([BOOM])
ID = BOOK.id_of(BOOM.all_of[0])


def numbers(digest: Digest) -> list[int]:
    """Return the lines in which the pattern was found."""
    return [line.number for line in digest.of(ID)]


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
def test_a_log_may_come_in_any_pieces(size: int) -> None:
    """Line numbers and hits do not depend on how the bytes were cut."""
    data = b"quiet line\n" * 5000 + b"boom 7\n" + b"quiet\n" * 3000 + b"boom 8"
    data = data if size > 7 else data[-30000:]
    digest = scan((data[at : at + size] for at in range(0, len(data), size)), BOOK)
    lines = data.split(b"\n")
    assert numbers(digest) == [n for n, line in enumerate(lines, 1) if line.startswith(b"boom")]
    assert digest.lines == len(lines)


def test_an_anchor_means_the_line_without_its_prefix() -> None:
    """`^` and `$` hold behind a time stamp, a colour and a container's name."""
    log = b"server-1  | \x1b[31m2025-11-10T10:11:12Z boom 7\x1b[0m\r\nno boom 8 here\n"
    assert numbers(scan([log], BOOK)) == [1]


def test_dockers_json_is_unwrapped() -> None:
    """A line of Docker's JSON log file is its text."""
    wrapped = {"log": "boom 7\n", "stream": "stderr", "time": "2025-11-10T10:11:12Z"}
    log = json.dumps(wrapped, separators=(",", ":")).encode() + b"\n"
    assert numbers(scan([log * 2], BOOK)) == [1, 2]


def test_what_a_progress_bar_wrote_over_is_one_line() -> None:
    """Carriage returns start a text anew on the same line."""
    log = b"start\n" + b"\r".join(b"Loading: %d%%" % n for n in range(99)) + b"\rboom 7\nend\n"
    digest = scan([log], BOOK)
    assert (numbers(digest), digest.lines) == ([2], 3)


def test_of_one_message_only_so_many_are_kept_and_the_last_ones_always() -> None:
    """A log of one message fills no memory, and its end is still seen."""
    count = 100_000
    digest = scan([b"boom 7\n" * count], BOOK)
    assert len(numbers(digest)) <= MOST_HITS + TAIL_LINES
    assert (numbers(digest)[0], numbers(digest)[-1]) == (1, count)


def test_the_last_served_request_is_found_however_many_there_were() -> None:
    """Readiness and service are found by their first and last line, in any size of log."""
    served = b'INFO:     127.0.0.1:1 - "POST /v1/x HTTP/1.1" 200 OK\n'
    log = b"INFO:     Application startup complete.\n" + served * 9000 + b"quiet\n" * 9000
    digest = scan([log], BOOK)
    assert (digest.first_ready, digest.last_served, digest.lines) == (1, 9001, 18001)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from(
                [b"boom 7", b"\n", b"\r", b"\x1b[", b'{"log":"', b'\\"', b"Error: ", b"(" * 50]
            ),
        ),
        max_size=40,
    )
)
def test_no_log_makes_the_diagnosis_fail(pieces: list[bytes]) -> None:
    """Any bytes give a verdict: nothing is raised, and evidence has lines of the log."""
    book = load_book()
    digest = scan(pieces, book)
    verdict = judge(book, digest, Facts())
    assert all(1 <= e.line <= digest.lines for e in verdict.evidence)
    assert digest.lines <= b"".join(pieces).count(b"\n") + 1


@pytest.mark.parametrize(
    "line",
    [
        b"x" * 300_000,
        b"(" * 300_000,
        b"tensor '" * 40_000,
        b"Error: " * 40_000,
        b"a.b." * 80_000,
        b"GGML_ASSERT(" * 30_000,
        b": " * 150_000,
        bytes(range(256)) * 1200,
    ],
    ids=["x", "brackets", "quotes", "errors", "dots", "asserts", "colons", "bytes"],
)
@pytest.mark.timeout(20)
def test_a_giant_line_costs_no_more_than_a_long_one(line: bytes) -> None:
    """What patterns see of a line is bounded, so a hundred giant lines are read in moments."""
    verdict = judge(load_book(), scan([line + b"\n"] * 20, load_book()), Facts(exit_code=1))
    assert all(len(e.text) <= 300 for e in verdict.evidence)


def test_a_pattern_that_only_raw_lines_hold_is_given_up_and_the_end_still_read() -> None:
    """An anchored pattern that never fits a line without its prefix is not tried on every line."""
    book = load_book_of("^boom")
    tries = 0
    captures = book.captures

    def counted(id: int, text: str) -> Mapping[str, str] | None:
        nonlocal tries
        tries += 1
        return captures(id, text)

    book.captures = counted  # type: ignore[method-assign]
    digest = scan([b"not at the start: boom\n" * 50_000, b"boom\n"], book)
    assert tries < MOST_VAIN + 50_000 // 10
    assert [line.number for line in digest.of(book.id_of("^boom"))] == [50_001]


def load_book_of(pattern: str) -> SignatureBook:
    """Return a book of one signature with one pattern."""
    return SignatureBook([signature_of("vllm", "s", GOOD | {"all_of": [pattern]}, CAUSES)])
