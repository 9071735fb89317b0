"""What the gateway decides: room, order, keys, rates, bindings, templates, tools, events."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.admit import Waiting, next_in_line
from enginehouse.core.binding import check_binding
from enginehouse.core.body import read_object
from enginehouse.core.catalog import Served, find_served, tagged_name
from enginehouse.core.chat import Completion, Delta, Moment
from enginehouse.core.errors import UserError
from enginehouse.core.keys import ApiKey, digest_of, key_in, make_key, may, recognise
from enginehouse.core.placement import Held, Room, place
from enginehouse.core.rate_limit import charge, full, take
from enginehouse.core.sse import EventSplitter
from enginehouse.core.tools import ToolReader, narrow_choice, tell_tools
from enginehouse.dialects.anthropic.request import read_request as read_anthropic
from enginehouse.dialects.anthropic.voice import MessageVoice
from enginehouse.dialects.ollama.template import render_template
from enginehouse.dialects.openai.responses import read_request
from enginehouse.gateway.upstream import read_completion, read_delta, with_role

HELD = st.builds(
    Held, st.text("abc", min_size=1, max_size=3), st.integers(1, 100), st.integers(0, 1),
    st.booleans(), st.floats(0.1, 60), st.floats(0, 600),
)  # fmt: skip


@given(st.integers(0, 400), st.integers(0, 200), st.lists(HELD, max_size=6))
def test_room_is_made_and_nothing_busy_or_pinned_goes(
    wanted: int, free: int, held: list[Held]
) -> None:
    """What is loaded fits; refused is only what unloading all others would not make fit."""
    decision = place(wanted, free, held)
    gone = [one for one in held if one.name in decision.evict]
    if decision.room is Room.LOAD:
        assert not decision.evict or wanted <= free + sum(one.bytes for one in gone)
        assert decision.evict or wanted <= free
    else:
        assert not decision.evict
        idle = [one for one in held if not one.is_pinned and not one.in_flight]
        assert free + sum(one.bytes for one in idle) < wanted
    if decision.room is Room.REFUSE:
        assert free + sum(one.bytes for one in held if not one.is_pinned) < wanted


def test_what_costs_least_to_load_again_goes_first() -> None:
    """Of models that make enough room the one goes that loads quickly or was not asked for long."""
    quick = Held("quick", 50, load_s=1.0)
    slow = Held("slow", 50, load_s=60.0)
    stale = Held("stale", 50, load_s=60.0, idle_s=36_000.0)
    assert place(40, 0, [slow, quick]).evict == ("quick",)
    assert place(40, 0, [slow, quick, stale]).evict == ("stale",)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), min_size=1, max_size=20))
def test_the_next_in_line_is_urgent_then_fair_then_first(asked: list[tuple[str, int]]) -> None:
    """Nobody of a lower priority, of a busier key or of a later arrival is let in before."""
    waiting = [Waiting(key, priority, n) for n, (key, priority) in enumerate(asked)]
    running = {"a": 2, "b": 1}
    chosen = waiting[next_in_line(waiting, running)]
    for other in waiting:
        assert chosen.priority >= other.priority
        if other.priority == chosen.priority:
            assert running.get(chosen.key, 0) <= running.get(other.key, 0)
            if other.key == chosen.key:
                assert chosen.number <= other.number


def test_a_key_is_recognised_by_its_digest_alone() -> None:
    """Only the whole key passes; revoked and expired ones do not; the admin's scope allows all."""
    text, id = make_key(random.Random(1).randbytes(48))
    kept = {id: ApiKey(id, "n", "salt", digest_of(text, "salt"), expires_at=100.0)}
    assert recognise(text, kept, 50.0) == kept[id]
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    for other, now in ((wrong, 50.0), (text, 100.0), ("", 50.0), (text.upper(), 50.0)):
        assert recognise(other, kept, now) is None
    revoked = {id: ApiKey(id, "n", "salt", digest_of(text, "salt"), revoked_at=1.0)}
    assert recognise(text, revoked, 50.0) is None
    assert may(kept[id], "use")
    assert not may(kept[id], "admin")
    assert key_in({"authorization": "Basic dXNlcjpzZWNyZXQ="}) == "secret"
    assert key_in({"authorization": "Basic ///"}) == ""


@given(st.lists(st.floats(0, 30), max_size=40))
def test_no_more_is_taken_than_the_rate_allows(gaps: list[float]) -> None:
    """Over any time a bucket gives at most its burst and its rate; who waits as told is served."""
    now, bucket, taken = 0.0, full(6, 0.0), 0
    for gap in gaps:
        now += gap
        bucket, wait_s = take(bucket, 1.0, 6, now)
        taken += wait_s == 0
    assert taken <= 6 + now * 6 / 60 + 1e-6
    bucket = charge(bucket, 100.0, 6, now)
    bucket, wait_s = take(bucket, 1.0, 6, now)
    assert wait_s > 0
    assert take(bucket, 1.0, 6, now + wait_s + 1e-6)[1] == 0


def test_an_endpoint_is_open_only_on_purpose() -> None:
    """Wider than the loopback needs a key or a forced setting."""
    for host in ("127.0.0.1", "::1", "localhost"):
        check_binding(host, False, False)
    check_binding("0.0.0.0", True, False)
    check_binding("0.0.0.0", False, True)
    for host in ("0.0.0.0", "::", "192.168.1.5", "box.lan", ""):
        with pytest.raises(UserError, match="open to everybody"):
            check_binding(host, False, False)


@given(st.lists(st.text(max_size=20).filter(lambda t: "\n" not in t and "\r" not in t and t),
                max_size=8), st.data())  # fmt: skip
def test_events_come_whole_however_bytes_are_cut(texts: list[str], data: st.DataObject) -> None:
    """Whatever the cuts and line ends, the same events come out."""
    end = data.draw(st.sampled_from(["\n", "\r\n"]))
    stream = "".join(f": hello{end}data: {text}{end}{end}" for text in texts).encode()
    splitter, seen, rest = EventSplitter(), [], stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        seen += splitter.feed(rest[:size])
        rest = rest[size:]
    assert (seen + splitter.rest()) == [text.encode() for text in texts]


@given(st.text(max_size=60), st.data())
def test_an_answer_in_our_own_form_is_read_piece_by_piece(text: str, data: st.DataObject) -> None:
    """However a model's JSON is cut, the text comes out as it was meant."""
    is_ascii = data.draw(st.booleans())
    raw = json.dumps({"response": text}, ensure_ascii=is_ascii)
    reader, said, rest = ToolReader("x"), "", raw
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        said += reader.take(Delta(text=rest[:size])).text
        rest = rest[size:]
    said += reader.take(Delta(finish="stop")).text
    assert said == text


def test_a_tool_call_in_our_own_form_is_read() -> None:
    """A whole call becomes a tool call, one that was cut off stays visible as text."""
    raw = '{"tool_call": {"name": "f", "arguments": {"a": 1}}}'
    answer = ToolReader("x").whole(Completion(text=raw))
    assert [(c.id, c.name, c.arguments) for c in answer.tool_calls] == [
        ("call_x_0", "f", '{"a": 1}')
    ]
    assert (answer.text, answer.finish) == ("", "tool_calls")
    cut = ToolReader("x").whole(Completion(text=raw[:-4], finish="length"))
    assert (cut.text, cut.tool_calls, cut.finish) == (raw[:-4], (), "length")


def test_tools_are_told_in_words() -> None:
    """Definitions go to the system prompt, calls and results into words, the form is forced."""
    tools = [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}}
             for n in ("f", "g")]  # fmt: skip
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "do"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    told, is_own = tell_tools({"messages": messages, "tools": tools, "top_k": 1})
    assert is_own
    assert "tools" not in told
    assert [m["role"] for m in told["messages"]] == ["system", "user", "assistant", "user"]
    assert "done" in told["messages"][3]["content"]
    schema = told["response_format"]["json_schema"]["schema"]
    assert len(schema["anyOf"]) == 2
    named = {"type": "function", "function": {"name": "g"}}
    told, _ = tell_tools({"messages": messages, "tools": tools, "tool_choice": named})
    only = told["response_format"]["json_schema"]["schema"]["properties"]["tool_call"]
    assert only["properties"]["name"] == {"const": "g"}
    for strange in ({"type": "function", "function": {"name": "h"}}, {"type": "custom"}):
        with pytest.raises(UserError):
            tell_tools({"messages": messages, "tools": tools, "tool_choice": strange})
    told, is_own = tell_tools({"messages": messages, "tools": tools, "tool_choice": "none"})
    assert not is_own
    assert "response_format" not in told


@pytest.mark.parametrize(
    ("choice", "names", "word"),
    [
        ("auto", "fgh", "auto"),
        ({"type": "function", "function": {"name": "g"}}, "g", "required"),
        ({"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "h"}},
                                      {"type": "function", "name": "f"}]}}, "fh", "auto"),
    ],
)  # fmt: skip
def test_a_choice_that_names_tools_leaves_only_them(choice: object, names: str, word: str) -> None:
    """llama-server reads an object as `auto`: the tools are narrowed and the choice is a word."""
    tools = [{"type": "function", "function": {"name": n}} for n in "fgh"]
    body = narrow_choice({"messages": [], "tools": tools, "tool_choice": choice})
    assert "".join(tool["function"]["name"] for tool in body["tools"]) == names
    assert body["tool_choice"] == word


def test_an_anthropic_request_is_read_whole() -> None:
    """Documents are read, pictures in a tool's result are shown, and a schema shapes the answer."""
    picture = {"type": "image", "source": {
        "type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}  # fmt: skip
    text = {"type": "text", "text": "18 degrees"}
    content = [
        {"type": "tool_result", "tool_use_id": "t", "content": [text, picture]},
        {"type": "document", "title": "Sky", "source": {"type": "text", "data": "It is blue."}},
        {"type": "document", "source": {"type": "content", "content": [text]}},
        {"type": "search_result", "title": "Hit", "source": "s", "content": [text]},
    ]
    shape = {"type": "json_schema", "schema": {"type": "object"}}
    fields = {"messages": [{"role": "user", "content": content}]}
    body, notes = read_anthropic({**fields, "output_config": {"format": shape, "effort": "low"}})
    result, said = body["messages"]
    assert result == {"role": "tool", "tool_call_id": "t", "content": "18 degrees"}
    assert said["content"][0]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    texts = [part["text"] for part in said["content"][1:]]
    assert texts == ["Sky", "It is blue.", "18 degrees", "Hit", "18 degrees"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert (body.pop("reasoning_effort"), notes) == ("low", [])
    assert read_anthropic({**fields, "output_format": shape})[0] == body
    pdf = {"type": "document", "source": {"type": "base64", "data": ""}}
    with pytest.raises(UserError, match="source"):
        read_anthropic({"messages": [{"role": "user", "content": [pdf]}]})


def test_a_response_request_says_what_it_cannot_have() -> None:
    """Conversations that are not kept are refused with the way out."""
    with pytest.raises(UserError) as refused:
        read_request({"input": "Hi.", "conversation": "conv_1"})
    assert refused.value.report.id == "request.stateful"
    assert "previous_response_id" in refused.value.report.remedies[0]


def test_which_stop_ended_an_answer_is_told() -> None:
    """llama-server tells it in `__verbose`, vLLM in `stop_reason`; Anthropic's clients read it."""
    choice = {"message": {"content": "On"}, "finish_reason": "stop"}
    for answer in (
        {"choices": [choice], "__verbose": {"stopping_word": "e"}},
        {"choices": [{**choice, "stop_reason": "e"}]},
    ):
        whole = json.loads(
            MessageVoice("m", "1").whole(read_completion(json.dumps(answer).encode()), Moment(0))
        )
        assert (whole["stop_reason"], whole["stop_sequence"]) == ("stop_sequence", "e")
        voice = MessageVoice("m", "1")
        delta = read_delta(json.dumps(answer).replace("message", "delta").encode())
        assert delta is not None
        voice.delta(delta, Moment(0))
        end = voice.end(Moment(0))
        assert b'"stop_reason":"stop_sequence","stop_sequence":"e"' in end
    for reason in (None, 2):
        plain = json.dumps({"choices": [{**choice, "stop_reason": reason}]}).encode()
        assert read_completion(plain).stopped_by == ""


def test_only_allowed_tools_can_be_called() -> None:
    """`allowed_tools` narrows the tools, and says whether one must be called."""
    tools = [{"type": "function", "function": {"name": n}} for n in ("f", "g")]
    of_g: dict[str, Any] = {"type": "function", "function": {"name": "g"}}
    choice: dict[str, Any] = {"type": "allowed_tools"}
    choice["allowed_tools"] = {"mode": "required", "tools": [of_g]}
    told, is_own = tell_tools({"messages": [], "tools": tools, "tool_choice": choice})
    assert is_own
    only = told["response_format"]["json_schema"]["schema"]["properties"]["tool_call"]
    assert only["properties"]["name"] == {"const": "g"}
    flat: list[dict[str, Any]] = [{"type": "function", "name": n} for n in ("f", "g")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [flat[1]]}
    body, notes = read_request({"input": "hi", "tools": flat, "tool_choice": choice})
    assert (body["tools"], body["tool_choice"], notes) == ([of_g], "required", [])
    none_of_ours = {**choice, "tools": [{"type": "function", "name": "h"}]}
    with pytest.raises(UserError):
        read_request({"input": "hi", "tools": flat, "tool_choice": none_of_ours})
    hosted = {"type": "web_search"}
    body, notes = read_request({"input": "hi", "tools": flat, "tool_choice": hosted})
    assert "tool_choice" not in body
    assert notes == ["tool_choice web_search is not supported"]


def test_a_tools_output_is_taken_whole() -> None:
    """Texts of a list are one text, an image stays one, and what is neither is refused."""
    item = {"type": "function_call_output", "call_id": "c"}
    texts = [{"type": "input_text", "text": t} for t in ("a", "b")]
    body, _ = read_request({"input": [{**item, "output": texts}]})
    assert body["messages"] == [{"role": "tool", "tool_call_id": "c", "content": "a\nb"}]
    image = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    body, _ = read_request({"input": [{**item, "output": [image]}]})
    assert body["messages"][0]["content"][0]["type"] == "image_url"
    refused: list[Any] = [None, 5, [{"type": "input_file", "file_data": "x"}]]
    for output in refused:
        with pytest.raises(UserError):
            read_request({"input": [{**item, "output": output}]})
    with pytest.raises(UserError):
        read_request({"input": "hi", "text": {"format": {"type": "json_schema"}}})


def test_references_within_a_tools_schema_still_point_somewhere() -> None:
    """`#/…` is read from the root of the whole schema, where a tool's own root is not."""
    leaf = {"type": "object", "properties": {"leaf": {"$ref": "#/$defs/Leaf"}}}
    defs = {"Leaf": {"type": "object", "properties": {"next": {"$ref": "#"}}}}
    schema = {**leaf, "$defs": defs}
    tools = [{"type": "function", "function": {"name": n, "parameters": p}}
             for n, p in (("f", {"type": "object"}), ("g", schema))]  # fmt: skip
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"messages": [], "tools": tools, "response_format": shape}
    told, _ = tell_tools(body)
    whole = told["response_format"]["json_schema"]["schema"]
    found = list(references(whole))
    assert len(found) == 6
    for reference in found:
        node = whole
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
        assert node["type"] == "object"
    assert schema == {**leaf, "$defs": defs}


def references(node: Any) -> Iterator[str]:
    """Every `$ref` of a schema."""
    for name, child in node.items() if isinstance(node, dict) else enumerate(node):
        if name == "$ref":
            yield child
        elif isinstance(child, dict | list):
            yield from references(child)


def test_ollamas_own_templates_are_rendered() -> None:
    """Variables, conditions and trimming; what comes after the response is the model's."""
    template = "{{ if .System }}S:{{ .System }}\n{{ end }}U:{{- .Prompt }} A:{{ .Response }}<end>"
    assert render_template(template, {"Prompt": "hi", "System": "be"}) == "S:be\nU:hi A:"
    assert render_template(template, {"Prompt": "hi"}) == "U:hi A:"
    for bad in ("{{ range .Messages }}", "{{ end }}", "{{ if .System }}x"):
        with pytest.raises(UserError):
            render_template(bad, {})


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{", b"\xff\xfe{}", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 100_000, b"null",
])  # fmt: skip
def test_what_is_no_object_is_refused(body: bytes) -> None:
    """Whatever a client sends, it is the client's error and never ours."""
    with pytest.raises(UserError) as refused:
        read_object(body)
    assert refused.value.report.id == "request.not_json"


def test_names_with_and_without_the_default_tag_are_equal() -> None:
    """`x` and `x:latest` mean the same model; aliases and another case too."""
    catalog = (Served("A", aliases=("b:latest",)), Served("c:7b"))
    for name, found in (("A:latest", "A"), ("b", "A"), ("a", "A"), ("c:7b", "c:7b"), ("c", None)):
        served = find_served(catalog, name)
        assert (served.name if served else None) == found
    assert [tagged_name(n) for n in ("x", "h/x", "x:1")] == ["x:latest", "h/x:latest", "x:1"]


@pytest.mark.parametrize(
    ("first", "wanted"),
    [
        (b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n',
         b'data: {"choices":[{"delta":{"role":"assistant","content":"x"}}]}\n\n'),
        (b'data: {"choices":[{"delta":{}}]}\n\n',
         b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n', None),
        (b'data: {"choices":[]}\n\n', None),
    ],
)  # fmt: skip
def test_a_chat_stream_begins_with_its_role(first: bytes, wanted: bytes | None) -> None:
    """An engine that leaves it out is helped; nothing else is touched."""
    assert with_role(first) == (wanted or first)
