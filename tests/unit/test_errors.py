"""Errors as the terminal shows them."""

from __future__ import annotations

import pytest

from enginehouse.core.errors import ErrorReport, render_error, split_what


def test_the_form_is_the_designs() -> None:
    """Head, what happened, evidence, what to try, in one column; further lines stand below."""
    report = ErrorReport(
        "memory.device.oom",
        "vLLM could not load llama-3.2-3b: it needed 8.9 GiB; 7.1 GiB was available",
        ("exit code 1 after 41 s\nCUDA out of memory", "trials/0007/engine.log"),
        ("enginehouse find llama-3.2-3b",),
        "machine",
    )
    assert render_error(report) == (
        "error[memory.device.oom]: vLLM could not load llama-3.2-3b\n"
        "  what happened  it needed 8.9 GiB; 7.1 GiB was available\n"
        "  evidence       exit code 1 after 41 s\n"
        "                 CUDA out of memory\n"
        "                 trials/0007/engine.log\n"
        "  try            enginehouse find llama-3.2-3b"
    )


def test_whose_turn_it_is_stands_where_no_reason_is_given() -> None:
    """An error of one part says who refused, and never an empty line."""
    text = render_error(ErrorReport("port.in_use", "port 1 is in use", turn="machine"))
    assert text == "error[port.in_use]: port 1 is in use\n  what happened  the machine refused"


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("a: b: c", ("a", "b: c")),
        ("a; b", ("a", "b")),
        ("http://x/y is odd", ("http://x/y is odd", "")),
        ("gateway.port cannot be 'a: b'", ("gateway.port cannot be 'a: b'", "")),
    ],
)
def test_a_sentence_is_split_before_any_quotation(what: str, parts: tuple[str, str]) -> None:
    """The head ends at the first colon or semicolon; what is quoted is never cut."""
    assert split_what(what) == parts
