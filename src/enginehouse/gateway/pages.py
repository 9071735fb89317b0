"""Web pages of other origins: what a browser has to be told before it lets them ask (CORS).

`access` refuses the pages that may not ask; this tells browsers of those that may. Without origins
there is nothing between the socket and the app.
"""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST", "DELETE")
HEADERS = (
    "authorization", "x-api-key", "api-key", "content-type", "accept", "user-agent",
    "x-request-id", "x-requested-with", "anthropic-version", "anthropic-beta",
    "anthropic-dangerous-direct-browser-access", "openai-organization", "openai-project",
    "openai-beta", "x-stainless-arch", "x-stainless-async", "x-stainless-custom-poll-interval",
    "x-stainless-helper-method", "x-stainless-lang", "x-stainless-os",
    "x-stainless-package-version", "x-stainless-poll-helper", "x-stainless-retry-count",
    "x-stainless-runtime", "x-stainless-runtime-version", "x-stainless-timeout",
)  # fmt: skip
"""What the clients of the three dialects send from a browser (their SDKs, and Ollama's list)."""
SHOWN = ("x-request-id", "request-id", "retry-after", "x-enginehouse-error", "x-enginehouse-notes",
         "x-enginehouse-truncated")  # fmt: skip
REMEMBER_S = 600


def open_to_pages(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """Return the app with answers that browsers hand to pages of these origins ("*" is any).

    A key is what lets a page in, never a cookie, so credentials are not allowed.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=sorted(origins), allow_methods=METHODS, allow_headers=HEADERS,
        expose_headers=SHOWN, max_age=REMEMBER_S,
    )  # fmt: skip
