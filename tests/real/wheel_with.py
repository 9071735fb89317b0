"""Run the wheel's server with parameters that Enginehouse's own program for it does not offer.

    python wheel_with.py --with NAME=JSON … (then the flags of `enginehouse.edges.wheel_server`)

NAME is an attribute of the wheel's `CommonParams`, dotted where it is one of a part; `lora` is the
path of an adapter. So a test can ask the real engine for what it refuses.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import reduce
from typing import Any

from enginehouse.edges import wheel_server


def set_parameter(params: Any, name: str, value: Any) -> None:
    """Set one parameter; a name that the wheel does not have is a fault of the test's."""
    import xllamacpp

    if name == "lora":
        adapter = xllamacpp.CommonAdapterLoraInfo()
        adapter.path = value
        params.lora_adapters = [adapter]
        return
    *parts, last = name.split(".")
    owner = reduce(getattr, parts, params)
    getattr(owner, last)
    setattr(owner, last, _plain(value))


def _plain(value: Any) -> Any:
    """Turn `enum A.B` into the wheel's constant, also in lists."""
    import xllamacpp

    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and value.startswith("enum "):
        return reduce(getattr, value[5:].split("."), xllamacpp)
    return value


def main() -> None:
    """Take the own flags off, and start the server with what they say added."""
    parser = argparse.ArgumentParser(prog="wheel_with", allow_abbrev=False)
    parser.add_argument("--with", dest="added", action="append", default=[])
    own, rest = parser.parse_known_args(sys.argv[1:])
    build = wheel_server.build_params

    def build_more(flags: argparse.Namespace) -> Any:
        params = build(flags)
        for text in own.added:
            name, _, value = text.partition("=")
            set_parameter(params, name, json.loads(value))
        return params

    wheel_server.build_params = build_more
    sys.argv[1:] = rest
    wheel_server.main()


if __name__ == "__main__":
    main()
