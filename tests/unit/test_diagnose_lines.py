"""A raw line → its text, its writer and its role, whoever carried the log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.diagnose_lines import normalise
from enginehouse.core.diagnose_signature import Role

TABLE = [
    (
        "(EngineCore_0 pid=123) ERROR 11-10 10:11:12 [core.py:700] RuntimeError: boom",
        ("RuntimeError: boom", Role.EXCEPTION, "EngineCore_0 pid=123"),
    ),
    ("[rank0]: ValueError: boom", ("ValueError: boom", Role.EXCEPTION, "rank0")),
    (
        "(RayWorkerWrapper pid=33, ip=10.0.0.1) ValueError: x",
        ("ValueError: x", Role.EXCEPTION, "RayWorkerWrapper pid=33, ip=10.0.0.1"),
    ),
    (
        "\x1b[0;36m(Worker_TP0 pid=3)\x1b[0;0m INFO 09-10 12:00:00 [x.py:2] hi",
        ("hi", Role.INFO, "Worker_TP0 pid=3"),
    ),
    (
        "INFO 10-25 00:26:24 registry.py:272] No module named x",
        ("No module named x", Role.INFO, ""),
    ),
    (
        "Nov 10 10:11:12 host kernel: [ 123.456789] Out of memory: Killed process 12",
        ("Out of memory: Killed process 12", Role.KERNEL, "host kernel"),
    ),
    ("[ 1234.567890] NVRM: Xid 79", ("NVRM: Xid 79", Role.KERNEL, "")),
    (
        "Nov 10 10:11:12 box systemd[1]: a.service: Failed with result 'oom-kill'.",
        ("a.service: Failed with result 'oom-kill'.", Role.EXIT, "box systemd[1]"),
    ),
    ("2025-11-10T10:11:12.123456789Z stderr F Killed", ("Killed", Role.EXIT, "")),
    ("2025-11-10T10:11:12.123456789Z Killed", ("Killed", Role.EXIT, "")),
    ("vllm-1  | Killed", ("Killed", Role.EXIT, "vllm-1")),
    ("[pod/a/b] 2025-11-10T10:11:12Z hello", ("hello", Role.PLAIN, "a/b")),
    (
        "time=2025-11-10T10:11:12.1Z level=WARN source=sched.go:646 msg=slow",
        ("msg=slow", Role.WARNING, ""),
    ),
    ('level=ERROR source=s.go:1 msg="x" error="y"', ('msg="x" error="y"', Role.ERROR, "")),
    ("E srv  send_error: task 2", ("srv  send_error: task 2", Role.ERROR, "")),
    ("0.00.123.456 W srv  init: slow", ("srv  init: slow", Role.WARNING, "")),
    ("[TensorRT-LLM][ERROR] boom", ("boom", Role.ERROR, "")),
    ("[11/10/2025-10:11:12] [TRT-LLM] [E] boom", ("boom", Role.ERROR, "")),
    ("[TRT] [W] boom", ("boom", Role.WARNING, "")),
    ("I1110 10:11:12.123456 123 grpc.cc:22] started", ("started", Role.INFO, "")),
    ("ERROR:root:boom", ("boom", Role.ERROR, "")),
    ("ERROR:    Exception in ASGI application", ("Exception in ASGI application", Role.ERROR, "")),
    ("2025-11-10 10:11:12,123 - vllm.engine - ERROR - boom", ("boom", Role.ERROR, "")),
    ('{"level":"error","msg":"x"}', ('{"level":"error","msg":"x"}', Role.ERROR, "")),
    ("Error: listen tcp: in use", ("Error: listen tcp: in use", Role.ERROR, "")),
    ("error loading model: boom", ("error loading model: boom", Role.ERROR, "")),
    (
        "/usr/lib/x.py:12: UserWarning: error ahead",
        ("/usr/lib/x.py:12: UserWarning: error ahead", Role.WARNING, ""),
    ),
    (
        "ggml.c:12: GGML_ASSERT(x) failed",
        ("ggml.c:12: GGML_ASSERT(x) failed", Role.EXCEPTION, ""),
    ),
    ("make: *** [x.o] Error 137", ("make: *** [x.o] Error 137", Role.EXIT, "")),
    ("Segmentation fault (core dumped)", ("Segmentation fault (core dumped)", Role.EXIT, "")),
    ("llama_model_loader: loaded", ("llama_model_loader: loaded", Role.PLAIN, "")),
]


@pytest.mark.parametrize(("raw", "expected"), TABLE, ids=[raw[:40] for raw, _ in TABLE])
def test_prefixes_come_off_and_say_who_wrote_it_and_how_severe_it_is(
    raw: str, expected: tuple[str, Role, str]
) -> None:
    """Every known carrier's prefix is off; severity and writer are kept from it."""
    line = normalise(7, raw.encode())
    assert (line.text, line.role, line.who) == expected
    assert line.number == 7


@given(st.binary(max_size=4000))
def test_any_bytes_are_a_line(raw: bytes) -> None:
    """No line, whatever its bytes, is refused; NULs do not reach the reader."""
    assert "\x00" not in normalise(1, raw).text


def test_an_english_sentence_keeps_its_first_word() -> None:
    """Only severities in capitals or brackets are prefixes, not words that begin a sentence."""
    for text in ("I am fine", "error while loading", "Warning: x", "info about x"):
        assert normalise(1, text.encode()).text == text
