"""Say that an answer ended at its limit, for an engine that says `stop` of every answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from enginehouse.core.body import number_of
from enginehouse.core.chat import Completion, Delta, Usage

LIMITS = ("max_completion_tokens", "max_tokens", "n_predict")
"""How a request says its limit, in the order in which the names count."""


class LengthTeller:
    """Reads one answer to a request, of which `context` tokens fit; 0 where that is not known."""

    def __init__(self, body: Mapping[str, Any], context: int) -> None:
        limits = (number_of(body, name) for name in LIMITS)
        self._most = int(next((limit for limit in limits if limit is not None), 0))
        self._context = context
        self._held: Delta | None = None

    def take(self, delta: Delta) -> Delta:
        """Return a piece; the reason is given with the usage, which tells how long it became."""
        if delta.finish == "stop" and delta.usage is None:
            self._held = delta
            return replace(delta, finish="")
        if delta.usage is None or not (self._held or delta.finish):
            return delta
        held = self._held or delta
        self._held = None
        finish = self._reason(held.finish, delta.usage)
        return replace(delta, finish=finish, stopped_by=held.stopped_by)

    def rest(self) -> Delta | None:
        """Return the piece with the reason, where no usage came."""
        held, self._held = self._held, None
        return None if held is None else Delta(finish=held.finish, stopped_by=held.stopped_by)

    def whole(self, completion: Completion) -> Completion:
        """Return a whole answer with its reason."""
        return replace(completion, finish=self._reason(completion.finish, completion.usage))

    def _reason(self, finish: str, usage: Usage) -> str:
        if finish != "stop":
            return finish
        is_cut = 0 < self._most <= usage.output_tokens
        is_full = 0 < self._context <= usage.prompt_tokens + usage.output_tokens
        return "length" if is_cut or is_full else finish
