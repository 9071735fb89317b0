"""Read a request's JSON body and its fields, with errors that name the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn

from enginehouse.core.errors import UserError

NOT_JSON = "request.not_json"
INVALID = "request.invalid"


def read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body.

    Raises:
        UserError: `request.not_json`, for anything else, invalid UTF-8 and bottomless nesting too.
    """
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as problem:
        raise _not_json(f"byte {problem.start} is no UTF-8") from problem
    except RecursionError as problem:
        raise _not_json("it is nested too deeply") from problem
    except ValueError as problem:
        raise _not_json(str(problem)) from problem
    if not isinstance(value, dict):
        raise _not_json(f"Expected `object`, got `{_kind(value)}`")
    return value


def _not_json(why: str) -> UserError:
    return UserError(NOT_JSON, "the body is not the JSON it should be", evidence=(why,))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")


def invalid(field: str, wanted: str, value: object) -> UserError:
    """Return the error for a field of the wrong kind."""
    return UserError(
        INVALID, f"{field} must be {wanted}, not {_kind(value)}", remedies=(f"send {wanted}",)
    )


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
