"""What `serve` and `up` offer: the model that was asked for, and others on demand."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from enginehouse.core.candidate import Build, Candidate, show_setting
from enginehouse.core.catalog import Served, plain_name
from enginehouse.core.choice import Choice
from enginehouse.core.engine import Engine
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.core.settings import Settings
from enginehouse.core.trial import Deadlines
from enginehouse.core.workload import Workload
from enginehouse.edges.lazy_header import LazyHeader
from enginehouse.engines import load_engines

if TYPE_CHECKING:
    from enginehouse.gateway.router import Offer, Step
    from enginehouse.gateway.supervisor import ServerPlan


@dataclass(frozen=True)
class Way:
    """One way to serve a model: a build with a candidate, and the file it reads."""

    build: Build
    candidate: Candidate
    form: Model


@dataclass(frozen=True)
class OfferMaker:
    """Makes offers of choices and of models without one.

    `machine` and `builds` are asked for when a plan is made: looking costs time at the start.
    """

    settings: Settings
    state: Path
    workload: Workload
    deadlines: Deadlines
    look: Callable[[], Machine]
    builds: Callable[[], Sequence[Build]]

    def of_choice(self, choice: Choice, model: Model, is_first: bool) -> Offer:
        """Return the offer of a model that a search has chosen for.

        Its chain: the choice, the minimal settings of the same build, other engines and builds
        that are installed, and the model of `serve.fallback`.
        """
        form = dataclasses.replace(choice.form or model, name=model.name)
        first = Way(choice.build, choice.candidate, form)
        return self._offer(model, first, is_first)

    def of_model(self, model: Model) -> Offer | None:
        """Return the offer of a model that nobody has searched for: minimal settings.

        None when no installed engine can serve it.
        """
        machine = self.look()
        for build in self.builds():
            engine = load_engines()[build.engine]
            if model.format in engine.formats and engine.refuse(model, machine) is None:
                candidate = self._minimal(engine, build, model)
                return self._offer(model, Way(build, candidate, model), False)
        return None

    def _minimal(self, engine: Engine, build: Build, model: Model) -> Candidate:
        return engine.minimal(build, model, self.workload)

    def _offer(self, model: Model, first: Way, is_first: bool) -> Offer:
        from enginehouse.gateway.router import Offer

        engine = load_engines()[first.build.engine]
        pinned = _pins(self.settings)
        keep_s = None if is_first else self.settings.seconds("serve.keep_alive")
        return Offer(
            served_of(model, first, engine, aliases_of(self.settings, model.name)),
            self._chain(model, first),
            is_pinned=model.name in pinned,
            keep_alive_s=None if model.name in pinned else keep_s,
            request_names=engine.request_names,
            tokens_api=engine.tokens_api,
            tells_length=engine.quirks.tells_length,
            has_own_tools=engine.name == "llama.cpp"
            and model.template is not None
            and model.template.has_tools,
        )

    def _chain(self, model: Model, first: Way) -> tuple[Step, ...]:
        from enginehouse.gateway.router import Step

        engine = load_engines()[first.build.engine]
        ways = [("as chosen", first)]
        minimal = Way(first.build, self._minimal(engine, first.build, first.form), first.form)
        if minimal.candidate.settings != first.candidate.settings:
            ways.append(("minimal settings", minimal))
        steps = [self._step(model, label, way) for label, way in ways]
        other = self.settings.text("serve.fallback")
        if other and other != model.name:
            steps.append(Step(f"the model {other}", other_model=other))
        return tuple(steps)

    def _step(self, model: Model, label: str, way: Way) -> Step:
        from enginehouse.gateway.router import Step

        engine = load_engines()[way.build.engine]
        estimate = engine.estimate_memory(way.form, way.candidate)
        return Step(
            label,
            lambda context: self.plan(model, way, context),
            int(estimate.total.expected),
            int(way.candidate.get("context") or 0),
        )

    def plan(self, model: Model, way: Way, context: int | None = None) -> ServerPlan:
        """Return how to start a way's server, for a larger context where one is given."""
        from enginehouse.edges.launches import prepare
        from enginehouse.gateway.supervisor import ServerPlan

        engine = load_engines()[way.build.engine]
        candidate = way.candidate
        if context:
            candidate = candidate.with_settings(context=context)
        ready = prepare(engine, way.build, candidate, way.form, self.look)
        deadlines = self.deadlines.times(float(candidate.get("patience") or 1))
        settings = self.settings
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in model.name)[:60]
        return ServerPlan(
            model_name=model.name,
            engine=engine.name,
            argv=ready.argv,
            env=ready.env,
            calls=engine.setup(ready.launch),
            stop_signal=engine.stop_signal,
            container=ready.container,
            endpoint=ready.endpoint,
            ready_path=engine.ready_path,
            log_path=self.state / "serve" / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}.log",
            slots=int(candidate.get("slots") or candidate.get("max_num_seqs") or 1),
            scratch=Path(ready.launch.scratch),
            shared_slots=engine.shared_slots(candidate),
            most_choices=engine.most_choices(candidate),
            prefix_limit_bytes=settings.bytes("serve.prefix_limit"),
            can_embed=model.can_embed,
            context_tokens=int(candidate.get("context") or 0),
            load_deadline_s=deadlines.load_s,
            first_token_deadline_s=deadlines.first_token_s,
            probe_interval_s=settings.seconds("serve.probe_interval"),
            token_interval_s=settings.seconds("serve.token_interval"),
            probe_deadline_s=settings.seconds("serve.probe_deadline"),
        )


def served_of(model: Model, way: Way, engine: Engine, aliases: tuple[str, ...]) -> Served:
    """Return how a model is shown in lists."""
    form = way.form
    template = model.template
    capabilities = ["completion"]
    if model.can_embed:
        capabilities = ["embedding"]
    else:
        capabilities.append("tools")  # the gateway has a form for templates that know none
    if template and template.has_thinking:
        capabilities.append("thinking")
    if model.encoder is not None:
        capabilities.append("vision")
    try:
        modified_at = Path(form.path).stat().st_mtime
    except OSError:
        modified_at = 0.0
    return Served(
        name=model.name,
        digest=form.digest or form.header_digest,
        bytes=form.file_bytes,
        modified_at=modified_at,
        format=form.format,
        family=model.architecture,
        parameters=model.parameters,
        quantization=form.quantization,
        context_length=model.context_length,
        served_context=int(way.candidate.get("context") or 0),
        embedding_length=model.embedding_length,
        capabilities=tuple(capabilities),
        license=model.license,
        engine=engine.name,
        settings=tuple((f"enginehouse_{n}", show_setting(v)) for n, v in way.candidate.settings
                       if n != "context"),
        metadata=LazyHeader(Path(form.path)) if form.format == "gguf" else {},
        aliases=aliases,
    )  # fmt: skip


def unknown_pins(settings: Settings, offers: Sequence[Offer]) -> tuple[str, ...]:
    """Return the names in `serve.pin` that none of the offers has."""
    offered = {offer.served.name for offer in offers}
    return tuple(name for name in _pins(settings) if name not in offered)


def _pins(settings: Settings) -> tuple[str, ...]:
    return tuple(plain_name(name) for name in names_in(settings.text("serve.pin")))


def aliases_of(settings: Settings, name: str) -> tuple[str, ...]:
    """Return the further names that the settings give a model."""
    pairs = (item.partition("=") for item in names_in(settings.text("serve.aliases")))
    return tuple(alias.strip() for alias, _, model in pairs if model.strip() == name)


def names_in(text: str) -> tuple[str, ...]:
    """Return the names of a list that is separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
