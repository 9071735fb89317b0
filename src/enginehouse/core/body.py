"""Read a request's JSON body and its fields, with errors that name the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from enginehouse.core.errors import UserError

NOT_JSON = "request.not_json"
INVALID = "request.invalid"
DEEPEST = 200
"""Levels of nesting that a body may have; what reads and writes it is recursive."""
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        UserError: `request.not_json`, for anything else, and for what could not be sent on: invalid
            UTF-8, half a surrogate pair, numbers beyond a double, bottomless nesting.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as problem:
        raise not_json(f"byte {problem.start} is no UTF-8") from problem
    except UnicodeEncodeError as problem:
        raise not_json("half a surrogate pair is no character") from problem
    except RecursionError as problem:
        raise not_json("it is nested too deeply") from problem
    except ValueError as problem:
        raise not_json(str(problem)) from problem
    if not isinstance(value, dict):
        raise not_json(f"Expected `object`, got `{_kind(value)}`")
    if body.count(b"[") + body.count(b"{") > DEEPEST and _is_deeper(value, DEEPEST):
        raise not_json("it is nested too deeply")
    return value


def _is_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is beyond what a number can be")
    return number


def not_json(why: str) -> UserError:
    """Return the error for a body that cannot be read."""
    return UserError(
        NOT_JSON, "the body is not the JSON it should be",
        evidence=(why,), remedies=("send one JSON object, in UTF-8",),
    )  # fmt: skip


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def invalid(field: str, wanted: str, value: object) -> UserError:
    """Return the error for a field of the wrong kind."""
    return UserError(
        INVALID, f"{field} must be {wanted}, not {_kind(value)}",
        evidence=(f"{field}: {json.dumps(value)[:60]}",), remedies=(f"send {wanted}",),
    )  # fmt: skip


def missing(field: str, wanted: str) -> UserError:
    """Return the error for a field that has to be there."""
    return UserError(
        INVALID, f"{field}: field required",
        evidence=("it is absent or empty",), remedies=(f"send {wanted}",),
    )  # fmt: skip


def unknown(field: str, value: str, known: tuple[str, ...]) -> UserError:
    """Return the error for a value that is none of those that mean something."""
    return UserError(
        INVALID, f"{field} {value[:60]!r} is not supported",
        evidence=(f"supported: {', '.join(known)}",), remedies=(f"send one of {', '.join(known)}",),
    )  # fmt: skip


def image_url(wanted: str) -> UserError:
    """Return the error for an image that would have to be fetched."""
    return UserError(
        "request.image_url", f"an image must be sent as {wanted}",
        evidence=("nothing is fetched from the network for a request",),
        remedies=("send the image's own bytes",),
    )  # fmt: skip


def _kind(value: object) -> str:
    kinds = {
        type(None): "null", bool: "a boolean", int: "a number", float: "a number",
        str: "a string", list: "an array", dict: "an object",
    }  # fmt: skip
    return kinds.get(type(value), "something else")


def text_of(fields: Mapping[str, Any], name: str, default: str = "") -> str:
    """Return a text field; absent and null are the default."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise invalid(name, "a string", value)
    return value


def bool_of(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """Return a boolean field; absent and null are the default."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(name, "a boolean", value)
    return value


def number_of(fields: Mapping[str, Any], name: str) -> int | float | None:
    """Return a number field; absent and null are None."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(name, "a number", value)
    return value


def list_of(fields: Mapping[str, Any], name: str) -> list[Any]:
    """Return an array field; absent and null are empty."""
    value = fields.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(name, "an array", value)
    return value


def object_of(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object field; absent and null are empty."""
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(name, "an object", value)
    return value


def objects_of(fields: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return an array of objects; absent and null are empty."""
    values = list_of(fields, name)
    for position, value in enumerate(values):
        if not isinstance(value, dict):
            raise invalid(f"{name}[{position}]", "an object", value)
    return values
