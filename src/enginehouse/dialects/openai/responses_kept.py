"""Earlier responses: put in front of a request that points to them, shown, and what is kept.

As OpenAI has it: the input and output of the earlier response come before the new input, its
instructions do not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enginehouse.core.body import (
    bool_of,
    invalid,
    missing,
    objects_of,
    text_of,
    unknown,
)
from enginehouse.core.dialect import Forget, Received, Rendered, Show
from enginehouse.core.errors import UserError
from enginehouse.core.kept import Item, Kept, Shelf

PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco",
            "reasoning": "rs"}  # fmt: skip
MOST_SHOWN, SHOWN = 100, 20
"""How many input items one page shows at most, and unasked."""


@dataclass(frozen=True)
class Told:
    """A request with its whole input, and which of its items are kept already."""

    fields: dict[str, Any]
    input: tuple[Item | dict[str, Any], ...]
    is_kept: bool


def whole_request(fields: Mapping[str, Any], shelf: Shelf) -> Told:
    """Return a request whose input has what it points to.

    Raises:
        UserError: `previous_response_not_found`, `item_not_found`, `request.…`.
    """
    is_kept = bool_of(fields, "store", True) and shelf.is_on
    previous = text_of(fields, "previous_response_id")
    before = _before(previous, shelf)
    entries = [*before, *_given(fields, shelf, {item.id for item in before})]
    if not any(isinstance(entry, Item) for entry in entries):
        return Told(dict(fields), tuple(entries), is_kept)
    whole = [json.loads(entry.data) if isinstance(entry, Item) else entry for entry in entries]
    return Told({**fields, "input": whole}, tuple(entries), is_kept)


def _before(previous: str, shelf: Shelf) -> tuple[Item, ...]:
    if not previous:
        return ()
    earlier = shelf.answer(previous)
    if earlier is None:
        raise UserError(
            "previous_response_not_found", f"previous response {_quoted(previous)} not found",
            evidence=(shelf.told,),
            remedies=("send the whole conversation as input", *_more(shelf)),
        )  # fmt: skip
    return earlier.input + earlier.output


def _given(fields: Mapping[str, Any], shelf: Shelf, there: set[str]) -> list[Item | dict[str, Any]]:
    """Return the items of the input itself, those that are kept already as they are kept.

    None may be `there` already: clients that point to the earlier response and send it as well
    would have the model read it twice.
    """
    given = fields.get("input")
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list):
        return []
    found: list[Item | dict[str, Any]] = []
    for position, item in enumerate(objects_of(fields, "input")):
        id = text_of(item, "id")
        is_reference = item.get("type") == "item_reference" or item.keys() == {"id"}
        if is_reference and not id:
            raise missing(f"input[{position}].id", "the id of an earlier item")
        if id in there:
            raise UserError(
                "request.invalid", f"input[{position}]: item {_quoted(id)} is there already",
                evidence=("it is part of the previous response, or stands in the input twice",),
                remedies=("send each item once", "leave out previous_response_id"),
            )  # fmt: skip
        known = shelf.item(id)
        if known is not None and (is_reference or json.loads(known.data) == item):
            found.append(known)
            there.add(id)
        elif is_reference:
            raise UserError(
                "item_not_found", f"item {_quoted(id)} not found",
                evidence=(f"input[{position}] points to it", shelf.told),
                remedies=("send the item itself; clients do with store: false", *_more(shelf)),
            )  # fmt: skip
        else:
            found.append(item)
    return found


def keep_response(told: Told, response: Mapping[str, Any]) -> Kept:
    """Return what is kept of a response that ended whole."""
    id = text_of(response, "id")
    before = tuple(
        entry if isinstance(entry, Item) else _item_of(entry, f"{id}_in_{position}")
        for position, entry in enumerate(told.input)
    )
    after = tuple(Item(item["id"], _dump(item)) for item in response["output"])
    return Kept(id, _dump({**response, "output": None}), before, after)


def _item_of(given: Mapping[str, Any], name: str) -> Item:
    """Return an item of a request as it is kept: with an id of ours, its text as parts."""
    kind = text_of(given, "type", "message")
    id = f"{PREFIXES.get(kind, 'item')}_{name}"
    item = {"status": "completed", **given, "type": kind, "id": id}
    if kind == "message" and isinstance(item.get("content"), str):
        is_answer = item.get("role") == "assistant"
        part = {"type": "output_text", "annotations": []} if is_answer else {"type": "input_text"}
        item["content"] = [{**part, "text": item["content"]}]
    return Item(id, _dump(item))


def read_kept(operation: str, received: Received) -> Show | Forget:
    """Show a kept response or its input, or let it go.

    Raises:
        UserError: `response_not_found`, `request.…`.
    """
    id = received.path_params["id"]
    kept = received.kept.answer(id)
    if kept is None:
        raise UserError(
            "response_not_found", f"response {_quoted(id)} not found",
            evidence=(received.kept.told,),
            remedies=("ask again, without store: false", *_more(received.kept)),
        )  # fmt: skip
    if operation == "forget_response":
        return Forget(id, _rendered({"id": id, "object": "response", "deleted": True}))
    if operation == "input_items":
        return Show(_rendered(_page(kept, received.query)))
    if received.query.get("stream", "false").lower() not in ("", "false", "0"):
        raise UserError(
            "request.stateful", "a response that is kept cannot be streamed again",
            evidence=("only background responses can, which are not supported",),
            remedies=("ask for it without stream",),
        )  # fmt: skip
    output = [json.loads(item.data) for item in kept.output]
    return Show(_rendered({**json.loads(kept.head), "output": output}))


def _page(kept: Kept, query: Mapping[str, str]) -> dict[str, Any]:
    """Return one page of a response's input: the last items first, unless asked otherwise."""
    order = query.get("order") or "desc"
    if order not in ("asc", "desc"):
        raise unknown("order", order, ("asc", "desc"))
    limit = query.get("limit") or str(SHOWN)
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:6]) <= MOST_SHOWN:
        raise invalid("limit", f"a whole number from 1 to {MOST_SHOWN}", limit)
    items = kept.input if order == "asc" else kept.input[::-1]
    if after := query.get("after"):
        places = [position for position, item in enumerate(items) if item.id == after]
        if not places:
            raise UserError(
                "request.invalid", f"after: the input has no item {_quoted(after)}",
                evidence=(f"it has {len(items)} items",), remedies=("send the last_id of a page",),
            )  # fmt: skip
        items = items[places[0] + 1 :]
    shown = items[: int(limit)]
    return {
        "object": "list", "data": [json.loads(item.data) for item in shown],
        "first_id": shown[0].id if shown else None, "last_id": shown[-1].id if shown else None,
        "has_more": len(items) > len(shown),
    }  # fmt: skip


def _more(shelf: Shelf) -> tuple[str, ...]:
    """Return which settings would have kept it."""
    if not shelf.is_on:
        return ("set gateway.responses_kept",)
    return ("raise gateway.responses_kept, _memory or _retention",)


def _quoted(id: str) -> str:
    return repr(id[:80])


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _rendered(value: object) -> Rendered:
    return Rendered(200, _dump(value))
