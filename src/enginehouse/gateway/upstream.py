"""Read an engine's answers, in OpenAI's shape with llama-server's or vLLM's additions."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import msgspec

from enginehouse.core.chat import Completion, Delta, Embeddings, Timings, ToolCall, Usage
from enginehouse.core.dialect import Rendered
from enginehouse.core.errors import EnginehouseError, ErrorReport
from enginehouse.core.statuses import passed_on
from enginehouse.edges.engine_stream import EngineStream

Upstream = aiohttp.ClientResponse | EngineStream
"""An engine's answer: of a stream, on a connection of its own."""
DONE = b"[DONE]"
DELTA = b'"delta":{'
REQUEST_FAULT = re.compile(
    rb"\[json\.exception\.|Failed to parse (messages|tools|tool_choice)"
    rb"|::_M_range_check|(image|audio) input is not supported|Jinja Exception"
    rb"|\) is too large to process|exceeds the available context size"
    rb"|Expected 'content' to be"
)
"""What llama-server, or its fork's, says with 500 of requests that it cannot read or take."""
TOO_LONG = ("maximum context length", "exceeds the available context size")
"""What vLLM and llama-server's fork say of a prompt that is too long."""


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: Any = None
    logprobs: Any = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Timings(msgspec.Struct):
    prompt_ms: float | None = None
    predicted_ms: float | None = None
    prompt_n: int = 0
    cache_n: int = 0
    predicted_n: int = 0


class _Vector(msgspec.Struct):
    embedding: Any = None
    index: int = 0


class _Progress(msgspec.Struct):
    total: int = 0
    cache: int = 0


class _Verbose(msgspec.Struct):
    stopping_word: str = ""


class _Answer(msgspec.Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)
    usage: _Usage | None = None
    timings: _Timings | None = None
    prompt_progress: _Progress | None = None
    verbose: _Verbose | None = msgspec.field(default=None, name="__verbose")
    error: Any = None
    data: list[_Vector] = msgspec.field(default_factory=list)


class _End(msgspec.Struct):
    usage: _Usage | None = None
    timings: _Timings | None = None


_ANSWER = msgspec.json.Decoder(_Answer)
_END = msgspec.json.Decoder(_End)


class UpstreamError(Exception):
    """The engine answered with an error; holds its report, and the status where there was one."""

    def __init__(self, report: ErrorReport, status: int = 0) -> None:
        super().__init__(report.what)
        self.report = report
        self.status = status


def read_delta(data: bytes) -> Delta | None:
    """Return one event's piece of an answer, None where it says nothing (`[DONE]`).

    Raises:
        UpstreamError: for an event with an error, and for one that cannot be read.
    """
    if data == DONE:
        return None
    answer = _decode(data)
    if answer.error is not None:
        raise UpstreamError(read_error(answer.error))
    if answer.prompt_progress is not None:
        known = Usage(answer.prompt_progress.total, cached_tokens=answer.prompt_progress.cache)
        return Delta(usage=known)
    usage, timings = _usage(answer.usage), _timings(answer.timings)
    if not answer.choices:
        return Delta(usage=usage, timings=timings)
    choice = answer.choices[0]
    message = choice.delta
    calls: tuple[ToolCall, ...] = ()
    if message is None:
        text, reasoning = choice.text or "", ""
    else:
        text = message.content or ""
        reasoning = message.reasoning_content or message.reasoning or ""
        calls = _calls(message.tool_calls) if message.tool_calls else ()
    logprobs = _logprobs(choice.logprobs) if choice.logprobs else ()
    finish = choice.finish_reason or ""
    stopped_by = _stopped_by(answer, choice) if finish else ""
    return Delta(text, reasoning, calls, finish, usage, timings, logprobs, stopped_by)


def read_completion(body: bytes) -> Completion:
    """Return a whole answer of chat completions or completions."""
    answer = _decode(body)
    if answer.error is not None:
        raise UpstreamError(read_error(answer.error))
    if not answer.choices:
        raise UpstreamError(ErrorReport("engine.bad_answer", "the engine's answer has no choice"))
    choice = answer.choices[0]
    message = choice.message or _Message(content=choice.text)
    return Completion(
        text=message.content or "",
        reasoning=message.reasoning_content or message.reasoning or "",
        tool_calls=_numbered(_calls(message.tool_calls or [])),
        finish=choice.finish_reason or "stop",
        usage=_usage(answer.usage) or Usage(),
        timings=_timings(answer.timings),
        logprobs=_logprobs(choice.logprobs) if choice.logprobs else (),
        stopped_by=_stopped_by(answer, choice),
    )


def read_embeddings(body: bytes) -> Embeddings:
    """Return the vectors of an embeddings answer."""
    answer = _decode(body)
    if answer.error is not None:
        raise UpstreamError(read_error(answer.error))
    vectors = tuple(
        tuple(float(x) for x in item.embedding)
        for item in sorted(answer.data, key=lambda item: item.index)
    )
    return Embeddings(vectors, answer.usage.prompt_tokens if answer.usage else 0)


BATCH = re.compile(r"too large to process.*current batch size: (\d+)", re.DOTALL)
"""llama-server's refusal of a text that must be embedded in one batch, with that batch's size."""


def batch_told(refusal_text: str) -> int:
    """Return the batch that a text did not fit, by the engine's refusal; 0 where it is another."""
    match = BATCH.search(refusal_text)
    return int(match[1]) if match else 0


def read_error(error: object) -> ErrorReport:
    """Return an engine's error: its own words as what happened, its type as the evidence."""
    if isinstance(error, dict):
        message = str(error.get("message") or error)
        kind = str(error.get("type") or "")
        if kind == "exceed_context_size_error" or any(words in message for words in TOO_LONG):
            return context_report(message)
        if batch_told(message):
            return context_report(f"the input length exceeds the context length: {message}")
        return ErrorReport("engine.error", message, (kind,) if kind else (), turn="engine")
    return ErrorReport("engine.error", str(error), turn="engine")


def broke_off(problem: BaseException, reason: str) -> EnginehouseError:
    """Return the error for an engine that broke off; `reason` is what its owner knows of it."""
    return EnginehouseError(
        "engine.broke_off",
        "the engine broke off while it answered",
        evidence=(f"{type(problem).__name__}: {problem}", reason),
        remedies=("send the request again",),
    )


def context_report(message: str) -> ErrorReport:
    """Report a prompt that is longer than the context."""
    return ErrorReport(
        "context_length_exceeded",
        message,
        remedies=("send less", "serve with a larger --context", "set gateway.truncation"),
        turn="user",
    )


def status_to_client(status: int, body: bytes) -> int:
    """Return the status for an engine's error: 400 too where its 500 blames the request."""
    return 400 if status == 500 and REQUEST_FAULT.search(body) else passed_on(status)


def error_of_body(body: bytes, status: int) -> ErrorReport:
    """Return the report of an engine's answer that is no success."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        decoded = None
    turn = "user" if 400 <= status < 500 else "engine"
    if isinstance(decoded, dict):
        error = decoded.get("error") or decoded.get("detail") or decoded
        if error is decoded and decoded.get("object") == "error":
            error = {"message": decoded.get("message"), "type": decoded.get("type")}
        report = read_error(error)
        return ErrorReport(report.id, report.what, report.evidence, report.remedies, turn)
    text = body[:300].decode("utf-8", "replace").strip()
    return ErrorReport("engine.error", text or f"the engine answered {status}", turn=turn)


def refusal(body: bytes, status: int) -> UpstreamError:
    """Return the error for an engine's answer that is no success, with the client's status."""
    status = status_to_client(status, body)
    return UpstreamError(error_of_body(body, status), status)


def with_warning(whole: bytes, warning: str) -> bytes:
    """Return an engine's whole answer with `warnings` beside what else it tells."""
    try:
        fields = msgspec.json.decode(whole)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return whole
    if not isinstance(fields, dict):
        return whole
    return msgspec.json.encode({**fields, "warnings": [warning]})


def with_role(first: bytes) -> bytes:
    """Return a chat stream's first piece with the role that clients look for in it.

    llama-server leaves it out of an answer that begins with a character of several tokens.
    """
    start = first.find(DELTA)
    if start < 0 or b'"role"' in first[: first.find(b"\n\n")]:
        return first
    start += len(DELTA)
    comma = b"" if first[start : start + 1] == b"}" else b","
    return b'%b"role":"assistant"%b%b' % (first[:start], comma, first[start:])


def usage_of(whole: bytes) -> Usage | None:
    """Return the usage that a whole answer tells, reading nothing else of it."""
    try:
        end = _END.decode(whole)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if end.usage is not None:
        return _usage(end.usage)
    if end.timings is not None:
        timings = end.timings
        return Usage(timings.prompt_n + timings.cache_n, timings.predicted_n, timings.cache_n)
    return None


def usage_of_events(tail: bytes) -> Usage | None:
    """Return the usage that the last events of a stream tell, without reading the others."""
    for event in reversed(tail.split(b"\n\n")):
        data = event[6:]
        if event.startswith(b"data: {") and (b'"usage"' in data or b'"timings"' in data):
            return usage_of(data)
    return None


def name_error(rendered: Rendered, body: bytes) -> bytes:
    """Return an engine's own error with our stable code, and from whom it came, added to it.

    What else the engine tells stays as it is, such as llama-server's `n_prompt_tokens`.
    """
    ours = msgspec.json.decode(rendered.body)
    try:
        theirs = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return rendered.body
    error = theirs.get("error") if isinstance(theirs, dict) else None
    if not isinstance(error, dict) or not isinstance(ours.get("error"), dict):
        return rendered.body
    kept = {"code": ours["error"]["code"]}
    if rendered.status < 500 and error.get("type") == "server_error":
        kept["type"] = ours["error"]["type"]
    return msgspec.json.encode({**theirs, "error": {**ours["error"], **error, **kept}})


def _decode(data: bytes) -> _Answer:
    try:
        return _ANSWER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as problem:
        report = ErrorReport(
            "engine.bad_answer", "the engine's answer cannot be read", (str(problem),),
            turn="engine",
        )  # fmt: skip
        raise UpstreamError(report) from problem


def _stopped_by(answer: _Answer, choice: _Choice) -> str:
    """Return the stop sequence that ended a choice; vLLM's `stop_reason` may be a token instead."""
    if isinstance(choice.stop_reason, str):
        return choice.stop_reason
    return answer.verbose.stopping_word if answer.verbose is not None else ""


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return Usage(usage.prompt_tokens, usage.completion_tokens or 0, cached)


def _timings(timings: _Timings | None) -> Timings | None:
    if timings is None or timings.prompt_ms is None or timings.predicted_ms is None:
        return None
    return Timings(timings.prompt_ms / 1e3, timings.predicted_ms / 1e3)


def _calls(calls: list[_Call]) -> tuple[ToolCall, ...]:
    shown = []
    for call in calls:
        function = call.function or _Function()
        arguments = function.arguments
        if arguments is not None and not isinstance(arguments, str):
            arguments = msgspec.json.encode(arguments).decode()
        shown.append(ToolCall(call.index, call.id or "", function.name or "", arguments or ""))
    return tuple(shown)


def _numbered(calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
    """Number the calls of a whole answer, in which engines give no index."""
    return tuple(ToolCall(i, c.id, c.name, c.arguments) for i, c in enumerate(calls))


def _logprobs(logprobs: Any) -> tuple[dict[str, Any], ...]:
    """Return each token's entry in the form of chat completions, without an engine's additions.

    vLLM gives the legacy form of completions on that route; llama-server adds ids.
    """
    if not isinstance(logprobs, dict):
        return ()
    content = logprobs.get("content")
    if isinstance(content, list):
        return tuple(_entry(item) for item in content if isinstance(item, dict))
    tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not isinstance(tokens, list) or not isinstance(values, list):
        return ()
    tops = logprobs.get("top_logprobs") or [{}] * len(tokens)
    return tuple(
        {
            **_named_entry(token, value),
            "top_logprobs": [_named_entry(*pair) for pair in (top or {}).items()],
        }
        for token, value, top in zip(tokens, values, tops, strict=False)
    )


def _entry(item: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {n: item[n] for n in ("token", "logprob", "bytes") if n in item}
    tops = item.get("top_logprobs")
    if isinstance(tops, list):
        shown["top_logprobs"] = [_entry(top) for top in tops if isinstance(top, dict)]
    return shown


def _named_entry(token: str, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
