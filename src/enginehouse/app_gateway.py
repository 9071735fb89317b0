"""What the gateway asks of the rest of the house: settings, memory, models to fetch."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from enginehouse.app_serve import names_in
from enginehouse.core.binding import check_binding, is_loopback, read_origins
from enginehouse.core.catalog import no_model, plain_name
from enginehouse.core.errors import EnginehouseError, UserError
from enginehouse.core.model import Model
from enginehouse.core.settings import Settings
from enginehouse.edges.aliases import read_aliases, write_aliases
from enginehouse.edges.fetch_hub import find_hub_file
from enginehouse.edges.keys_file import KeysFile
from enginehouse.edges.model_sources import resolve_model
from enginehouse.edges.paths import ALIASES_NAME, KEYS_NAME, REQUEST_LOG_NAME, cache_dir
from enginehouse.edges.probes import read_available_bytes
from enginehouse.edges.progress import within
from enginehouse.edges.records import Records
from enginehouse.edges.request_log import RequestLog
from enginehouse.edges.telemetry import open_telemetry
from enginehouse.edges.tls import open_tls
from enginehouse.gateway.access import Guarded
from enginehouse.gateway.contracts import Rules
from enginehouse.gateway.kept import KeepLimits
from enginehouse.gateway.serving import Serving
from enginehouse.knowledge.models import load_models

if TYPE_CHECKING:
    from enginehouse.gateway.router import Offer

TELL_S = 0.1
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*){0,5}(:[\w.-]+)?", re.ASCII)
LONGEST_NAME = 256
MOST_SLASHES = 2
"""Of a name in Ollama's store: host/namespace/model:tag."""
HUBS = ("hf.co/", "huggingface.co/")
UNKNOWN = ("model.unknown", "model.ollama.unknown", "model.hub.no_repository", "model.hub.no_file",
           "model.bad_spec")  # fmt: skip
Report = Callable[[str, str, int, int], None]


class _LeftError(Exception):
    """The client that wanted the model has gone, or the server ends."""


class _PullProgress:
    """Tells a client how a fetch goes, at most ten times a second.

    `has_left` is set when nobody wants the model any more: the transfer is broken off then. It goes
    on where it stopped when the model is asked for again.
    """

    def __init__(self, report: Report, has_left: threading.Event) -> None:
        self._report = report
        self._has_left = has_left
        self._label = ""
        self._total = self._done = 0
        self._told_at = 0.0
        self.digests: dict[int, str] = {}

    def begin(self, label: str, total: int | None, unit: str = "") -> None:
        """Take the start of a piece of work."""
        self._label, self._total, self._done = label, total or 0, 0
        self._tell()

    def advance_to(self, done: int) -> None:
        """Take how much is done."""
        self._done = within(done, self._total)
        if self._has_left.is_set():
            raise _LeftError
        if time.monotonic() - self._told_at > TELL_S:
            self._tell()

    def end(self) -> None:
        """Take the end."""
        self._done = self._total or self._done
        self._tell()

    def _tell(self) -> None:
        """Report; the digest is told only for the transfer of the file that has it."""
        self._told_at = time.monotonic()
        digest = self.digests.get(self._total, "") if self._label.startswith("fetching") else ""
        self._report(self._label, digest, self._total, self._done)


class HouseLibrary:
    """Fetches models by name, hub or Ollama's store, and keeps the names that clients gave."""

    def __init__(
        self, settings: Settings, state: Path, make_offer: Callable[[Model], Offer | None]
    ) -> None:
        self._settings = settings
        self._state = state
        self._make_offer = make_offer

    async def fetch(self, name: str, on_progress: Report) -> Offer:
        """Fetch a model that is not here yet, and offer it with minimal settings.

        Raises:
            UserError, MachineError: when it cannot be had or served.
        """
        on_progress("pulling manifest", "", 0, 0)
        has_left = threading.Event()
        try:
            return await asyncio.to_thread(self._fetch, name, on_progress, has_left)
        finally:
            has_left.set()

    def _fetch(self, name: str, report: Report, has_left: threading.Event) -> Offer:
        progress = _PullProgress(report, has_left)
        try:
            model = self._resolve(name, progress)
        except UserError as problem:
            if problem.report.id in UNKNOWN:
                raise UserError(
                    "model_not_found",
                    f"pull model manifest: {name[:100]} is not known here",
                    evidence=(problem.report.what,),
                    remedies=("pull hf.co/owner/repo", "enginehouse models list"),
                ) from problem
            raise
        except _LeftError as problem:
            raise EnginehouseError("pull.left", "nobody waited for the model") from problem
        report("writing manifest", "", 0, 0)
        offer = self._make_offer(model)
        if offer is None:
            raise UserError(
                "model.no_engine", f"no installed engine can serve {model.name}",
                evidence=("every engine that was found refused it",),
                remedies=("enginehouse engines list",),
            )  # fmt: skip
        return offer

    def _resolve(self, name: str, progress: _PullProgress) -> Model:
        """Return the model, here and hashed; one from a hub is named as it was asked for.

        So two repositories whose files have equal names stay apart, and a client finds the model by
        the name that it pulled.
        """
        spec, given = spec_of(name), ""
        if spec.startswith("hf:"):
            found = find_hub_file(spec.removeprefix("hf:"))
            spec, given = f"hf:{found.spec}", plain_name(name)
            progress.digests[found.bytes] = found.digest
        with Records(self._state / "records.sqlite").opened() as records:
            return resolve_model(spec, records, cache_dir(), progress, given)

    async def forget(self, name: str) -> None:
        """Forget a model; its file stays."""
        with Records(self._state / "records.sqlite").opened() as records:
            records.forget(name)

    def aliases(self) -> dict[str, str]:
        """Return the names that clients gave."""
        return read_aliases(self._state / ALIASES_NAME)

    def keep_aliases(self, aliases: dict[str, str]) -> None:
        """Keep the names that clients gave."""
        write_aliases(self._state / ALIASES_NAME, aliases)


def spec_of(name: str) -> str:
    """Return where a name is looked for: a hub, the known names, Ollama's store.

    Never a path: a client of the endpoint has no business in this machine's files.

    Raises:
        UserError: `model_not_found`, for what is no name.
    """
    if len(name) > LONGEST_NAME or not NAME.fullmatch(name) or ".." in name:
        raise no_model(name)
    plain = plain_name(name)
    for hub in HUBS:
        if plain.lower().startswith(hub):
            return f"hf:{plain[len(hub) :]}"
    if plain in {known.name for known in load_models()}:
        return plain
    if name.count("/") > MOST_SLASHES:
        raise no_model(name)
    return f"ollama:{name}"


def open_serving(settings: Settings, state: Path, library: HouseLibrary) -> Serving:
    """Return how the endpoint listens, by the settings.

    Raises:
        UserError: `gateway.open`, `gateway.origins`, `tls.…`, `telemetry.…`;
            MachineError: `keys.unreadable`.
    """
    reserve = settings.bytes("trials.memory_reserve")
    host = settings.text("gateway.host")
    keys = KeysFile(state / KEYS_NAME)
    check_binding(host, bool(keys.keys()), settings.text("gateway.insecure") == "yes")
    requests = None
    if settings.text("log.requests") == "yes":
        requests = RequestLog(state / REQUEST_LOG_NAME, settings.seconds("log.retention"))
    return Serving(
        host=host,
        port=settings.integer("gateway.port"),
        queue_limit=settings.integer("gateway.queue_limit"),
        drain_deadline_s=settings.seconds("serve.drain_deadline"),
        load_wait_s=settings.seconds("serve.load_wait"),
        rules=Rules(
            request_limit_bytes=settings.bytes("gateway.request_limit"),
            body_limit_s=settings.seconds("gateway.body_limit"),
            time_limit_s=settings.seconds("gateway.time_limit"),
            stall_limit_s=settings.seconds("gateway.stall_limit"),
            truncation=settings.text("gateway.truncation"),
            is_content_logged=settings.text("log.content") == "yes",
            kept=KeepLimits(
                settings.integer("gateway.responses_kept"),
                settings.bytes("gateway.responses_memory"),
                settings.seconds("gateway.responses_retention"),
            ),
        ),
        access=Guarded(
            keys.keys,
            read_origins(names_in(settings.text("gateway.origins"))),
            frozenset(names_in(settings.text("gateway.hosts"))),
            is_loopback(host),
        ),
        library=library,
        tls=open_tls(settings.text("gateway.tls_certificate"), settings.text("gateway.tls_key")),
        log=requests,
        telemetry=open_telemetry(settings.text("telemetry.otlp_endpoint")),
        free_bytes=lambda: read_available_bytes() - reserve,
    )
