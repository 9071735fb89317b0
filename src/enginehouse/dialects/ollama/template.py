"""Render the small part of Go's templates that an Ollama request's own `template` uses.

`{{ .System }}`, `{{ .Prompt }}`, `{{ .Response }}`, `{{ .Suffix }}`, and `{{ if .X }} … {{ else }}
… {{ end }}`, with trimming dashes. What comes after `.Response` is not sent: the model writes it.
Source: Ollama's page on templates (docs/template).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from enginehouse.core.errors import UserError

ACTION = re.compile(r"(\s*)\{\{(-?)\s*([^{}]*?)\s*(-?)\}\}(\s*)")
VARIABLE = re.compile(r"\$?\.(\w+)")


def render_template(template: str, values: Mapping[str, str]) -> str:
    """Return the prompt that a template makes of `System`, `Prompt` and the like.

    Raises:
        UserError: `request.template`, for what is not understood.
    """
    shown: list[str] = []
    is_on = [True]
    end = 0
    for match in ACTION.finditer(template):
        before = template[end : match.start()] + ("" if match[2] else match[1])
        if all(is_on):
            shown.append(before)
        end = match.end() if match[4] else match.start(5)
        words = match[3]
        if words == ".Response" and all(is_on):
            return "".join(shown) + values.get("Response", "")
        _act(words, values, shown, is_on)
    if len(is_on) != 1:
        raise _refusal("an {{ if }} has no {{ end }}")
    if "{{" in ACTION.sub("", template):
        raise _refusal("a {{ has no }}")
    return "".join(shown) + template[end:]


def _act(words: str, values: Mapping[str, str], shown: list[str], is_on: list[bool]) -> None:
    condition = words.removeprefix("if ").strip()
    if words.startswith("if ") and (named := VARIABLE.fullmatch(condition)):
        is_on.append(bool(values.get(named[1])))
    elif words in ("else", "end"):
        if len(is_on) == 1:
            raise _refusal(f"{{{{ {words} }}}} without an {{{{ if }}}}")
        was_on = is_on.pop()
        if words == "else":
            is_on.append(not was_on)
    elif named := VARIABLE.fullmatch(words):
        if all(is_on):
            shown.append(values.get(named[1], ""))
    else:
        raise _refusal(f"{{{{ {words} }}}} is not understood")


def _refusal(why: str) -> UserError:
    return UserError(
        "request.template",
        "the request's own template cannot be rendered",
        evidence=(why,),
        remedies=("send the finished prompt with raw: true",),
    )
