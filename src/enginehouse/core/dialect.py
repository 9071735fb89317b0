"""The contract that every API dialect fills, in `dialects/`, one module or folder each: pure.

A dialect declares routes. For `forward` routes the body goes to the engine as it is and its answer
comes back as it is: the gateway parses nothing but the model's name. For all others the dialect
reads a request into one intent (below), the gateway carries it out, and the dialect's voice renders
what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from enginehouse.core.catalog import Served
from enginehouse.core.chat import Completion, Delta, Embeddings, Moment
from enginehouse.core.errors import ErrorReport
from enginehouse.core.kept import NOTHING, Kept, Shelf


class RouteKind(str, Enum):
    """What the gateway does with a route.

    `forward`: the body goes to the engine as it is and its answer comes back as it is.
    `read`: the dialect reads the request into an intent.
    """

    FORWARD = "forward"
    READ = "read"


@dataclass(frozen=True)
class Route:
    """One route that a dialect declares; `upstream_path` is the engine's path for it.

    `summary` goes into the API description; `engines` names those that have an engine's own route,
    empty for all. `is_shared` tells that clients of other dialects ask it too: its answers suit
    them all, its errors are in the shape of the dialect that the request speaks.
    """

    method: str
    path: str
    kind: RouteKind
    upstream_path: str = ""
    operation: str = ""
    summary: str = ""
    engines: tuple[str, ...] = ()
    scope: str = "use"
    is_shared: bool = False


@dataclass(frozen=True)
class Rendered:
    """An answer that the gateway itself gives."""

    status: int
    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True)
class Received:
    """A client's request as a dialect reads it; `at` is Unix time.

    `answer_id` is unique, where `request_id` may be the client's own. `kept` are the earlier
    answers that this client may point to.
    """

    body: bytes
    request_id: str = ""
    at: float = 0.0
    path_params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    answer_id: str = ""
    kept: Shelf = NOTHING


class Voice(Protocol):
    """Renders one answer in a dialect. It keeps the state of one stream."""

    @property
    def stream_type(self) -> str:
        """The content type of a stream."""

    def begin(self, moment: Moment) -> bytes:
        """Render what a stream begins with."""

    def delta(self, delta: Delta, moment: Moment) -> bytes:
        """Render one piece; empty where it shows nothing."""

    def end(self, moment: Moment) -> bytes:
        """Render the end of a stream that the engine ended properly."""

    def keep_alive(self, moment: Moment) -> bytes:
        """Render what keeps a waiting client patient and every client library reads past."""

    def whole(self, answer: Completion | Embeddings, moment: Moment) -> bytes:
        """Render a whole answer."""


@dataclass(frozen=True)
class Memory:
    """A conversation that the client carries as tokens: `before` are those it sent.

    `remember` takes the tokens so far once the answer is known; `for_completions` turns a chat
    request's body into one for a finished prompt.
    """

    before: tuple[int, ...]
    remember: Callable[[list[int]], None]
    for_completions: Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Ask:
    """A request to a model: the engine's path and the internal request (`core/chat.py`).

    `notes` name what cannot be honoured. `keep_alive_s` is how long the model shall stay loaded
    afterwards (negative: for ever). `context_tokens` is the context that the client counts on.
    `begins_with_usage` wants the prompt's tokens known when the stream begins, `names_stop` the
    stop sequence that ended the answer.
    With `may_cut` a text to embed that is too long is cut, which is told.
    `kept` returns what later requests may point to, once the answer has ended whole.
    """

    model: str
    upstream_path: str
    body: dict[str, Any]
    voice: Voice
    is_stream: bool = False
    notes: tuple[str, ...] = ()
    keep_alive_s: float | None = None
    context_tokens: int | None = None
    begins_with_usage: bool = False
    names_stop: bool = False
    memory: Memory | None = None
    may_cut: bool = False
    kept: Callable[[], Kept] | None = None


@dataclass(frozen=True)
class Show:
    """An answer that is known already."""

    rendered: Rendered


@dataclass(frozen=True)
class Count:
    """How many tokens a request's prompt has; `render` makes the answer of the number."""

    model: str
    body: dict[str, Any]
    render: CountRender


@dataclass(frozen=True)
class Tokenize:
    """The tokens of a text or a conversation, or the text of tokens; llama-server's and vLLM's
    names of the fields are both understood.
    """

    model: str
    fields: dict[str, Any]
    is_back: bool = False


class CountRender(Protocol):
    """Renders a number of tokens."""

    def __call__(self, tokens: int) -> Rendered:
        """Return the answer."""


@dataclass(frozen=True)
class Load:
    """Load a model, or with a `keep_alive_s` of 0 unload it."""

    model: str
    keep_alive_s: float | None
    voice: LoadVoice


class LoadVoice(Protocol):
    """Renders that a model was loaded or unloaded."""

    def loaded(self, is_unload: bool, is_stream: bool, moment: Moment) -> Rendered:
        """Return the answer."""


@dataclass(frozen=True)
class Pull:
    """Fetch a model that is not here yet; a known name succeeds at once."""

    model: str
    is_stream: bool
    voice: PullVoice


class PullVoice(Protocol):
    """Renders the progress of a pull."""

    @property
    def stream_type(self) -> str:
        """The content type of a stream."""

    def progress(self, status: str, digest: str, total: int, completed: int) -> bytes:
        """Render one line of progress."""

    def done(self) -> bytes:
        """Render the success."""

    def failed(self, report: ErrorReport) -> bytes:
        """Render a failure after lines were sent."""


@dataclass(frozen=True)
class Copy:
    """Give a model another name besides; told line by line where a voice is given."""

    source: str
    destination: str
    voice: PullVoice | None = None
    is_stream: bool = True


@dataclass(frozen=True)
class Delete:
    """Take a name away; the model's file stays."""

    model: str


@dataclass(frozen=True)
class Forget:
    """Let a kept answer of this client go."""

    id: str
    rendered: Rendered


Intent = Ask | Show | Count | Tokenize | Load | Pull | Copy | Delete | Forget


class Dialect(Protocol):
    """One API dialect."""

    @property
    def name(self) -> str:
        """The dialect's name, used in metrics and docs."""

    @property
    def id_header(self) -> str:
        """The header in which the API's clients look for a request's id."""

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes that `gateway/asgi.py` mounts."""

    def read(self, route: Route, received: Received, catalog: tuple[Served, ...]) -> Intent:
        """Read a request of a route that is not forwarded.

        Raises:
            UserError: `request.…` or `model_not_found`, when it cannot be understood.
        """

    def render_error(self, report: ErrorReport, status: int) -> Rendered:
        """Render an error before the first byte of an answer, in the dialect's own shape."""

    def render_stream_error(self, report: ErrorReport, status: int) -> bytes:
        """Render an error after an answer began, as one event of the dialect's stream."""

    def keep_alive(self) -> bytes:
        """Render what keeps a client of a forwarded stream patient; empty where nothing may."""
