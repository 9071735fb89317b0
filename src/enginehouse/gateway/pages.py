"""Web pages of other origins: what a browser has to be told before it lets them ask (CORS).

`access` refuses the pages that may not ask; this tells browsers of those that may. Without origins
there is nothing between the socket and the app.
"""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

METHODS = ("GET", "HEAD", "POST", "DELETE")
SHOWN = ("x-request-id", "request-id", "retry-after", "x-enginehouse-error", "x-enginehouse-notes",
         "x-enginehouse-truncated")  # fmt: skip
REMEMBER_S = 600


def open_to_pages(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """Return the app with answers that browsers hand to pages of these origins ("*" is any).

    A key is what lets a page in, never a cookie, so credentials are not allowed. A page that may
    ask may send any header: vendors' SDKs add new ones with each release, and none does harm here.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=sorted(origins), allow_methods=METHODS, allow_headers=["*"],
        expose_headers=SHOWN, max_age=REMEMBER_S,
    )  # fmt: skip
