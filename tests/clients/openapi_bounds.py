"""What keeps schemathesis' requests small and at home: it loads this file as its hooks.

A request may ask for any number of tokens, fetch any model from the hub, and take the only model's
name away. None of that is what the test is about, so it is bounded just before it is sent; what
makes a request wrong is left as it is.
"""

from __future__ import annotations

from typing import Any

import schemathesis

MODEL = "smollm2-135m"
ALIAS = "copied-by-the-test"
MOST_TOKENS = 1
LIMITS = {
    "/v1/completions": "max_tokens", "/v1/chat/completions": "max_tokens",
    "/chat/completions": "max_tokens", "/completion": "n_predict", "/completions": "n_predict",
    "/infill": "n_predict", "/v1/responses": "max_output_tokens", "/responses": "max_output_tokens",
}  # fmt: skip
"""The field that limits an answer, of requests that are good without it."""
NUMBERS = {"max_tokens": MOST_TOKENS, "max_completion_tokens": MOST_TOKENS,
           "n_predict": MOST_TOKENS,
                     "max_output_tokens": MOST_TOKENS, "num_predict": MOST_TOKENS, "n": 2,
           "num_ctx": 256}  # fmt: skip
"""The most that is asked for; -1 would be no limit at all."""
NOWHERE = "no-such-model"


def bound(path: str, body: Any) -> Any:
    """Return a body that asks for little and reaches nothing outside."""
    if isinstance(body, bytes):
        return b"{" if path in ("/api/pull", "/api/delete") else body
    if not isinstance(body, dict):
        return body
    body = {name: _small(name, value) for name, value in body.items()}
    if path in LIMITS:
        body = {**body, LIMITS[path]: body.get(LIMITS[path]) or MOST_TOKENS}
    if path in ("/api/chat", "/api/generate") and isinstance(body.get("options", {}), dict):
        options = body.get("options", {})
        options = {name: _small(name, value) for name, value in options.items()}
        body["options"] = {"num_predict": MOST_TOKENS, **options}
    for name in ("model", "name"):
        value = body.get(name)
        if path == "/api/pull" and isinstance(value, str) and value not in ("", MODEL, ALIAS):
            body[name] = NOWHERE
        if path == "/api/delete" and isinstance(value, str) and value:
            body[name] = ALIAS
    if path == "/api/copy" and isinstance(body.get("destination"), str) and body["destination"]:
        body["destination"] = ALIAS
    if isinstance(body.get("keep_alive"), int | float | str):
        body["keep_alive"] = "1m" if isinstance(body["keep_alive"], str) else 60
    return body


def _small(name: str, value: Any) -> Any:
    most = NUMBERS.get(name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return most if most and is_number and not 1 <= value <= most else value


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """Bound a request."""
    case.body = bound(case.operation.path, case.body)
