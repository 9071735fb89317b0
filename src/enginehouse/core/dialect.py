"""The contract that every API dialect fills, in `dialects/`, one file each: pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from enginehouse.core.errors import ErrorReport


class RouteKind(str, Enum):
    """What the gateway does with a route.

    `forward`: the body goes to the engine as it is and its answer comes back as it is.
    `models`: the list of served models, answered by the gateway itself.
    `model`: one served model.
    """

    FORWARD = "forward"
    MODELS = "models"
    MODEL = "model"


@dataclass(frozen=True)
class Route:
    """One route that a dialect declares; `upstream_path` is the engine's path for it."""

    method: str
    path: str
    kind: RouteKind
    upstream_path: str = ""
    operation: str = ""


@dataclass(frozen=True)
class Rendered:
    """An answer that the gateway itself gives."""

    status: int
    body: bytes
    content_type: str = "application/json"


class Dialect(Protocol):
    """One API dialect."""

    @property
    def name(self) -> str:
        """The dialect's name, used in metrics and docs."""

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes that `gateway/asgi.py` mounts."""

    def render_error(self, report: ErrorReport, status: int) -> Rendered:
        """Render an error before the first byte of an answer, in the dialect's own shape."""

    def render_stream_error(self, report: ErrorReport, status: int) -> bytes:
        """Render an error after an answer began, as one event of the dialect's stream."""

    def render_models(self, names: tuple[str, ...], created: int) -> Rendered:
        """Render the list of served models."""

    def render_model(self, name: str, created: int) -> Rendered:
        """Render one served model."""
