"""The story: look → propose → try → diagnose → measure → choose → serve.

`House.find` tells it; everything else here opens and hands down what it needs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from enginehouse.app_find import (
    FindResult,
    Noted,
    check_context,
    merge_tunables,
    parse_asked,
    require_builds,
)
from enginehouse.app_generate import planned_argv
from enginehouse.app_inventory import MOST_TRIALS, Inventory
from enginehouse.app_search import (
    FrontResult,
    Search,
    conclude,
    conclude_front,
    say_unproven,
    usable,
)
from enginehouse.app_serve import OfferMaker, unknown_pins
from enginehouse.app_variants import make_variants
from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.candidate import Settings as CandidateSettings
from enginehouse.core.choice import Choice, stale_reasons
from enginehouse.core.engine import Engine
from enginehouse.core.forms import Forms
from enginehouse.core.measurement import Limits
from enginehouse.core.model import Model
from enginehouse.core.quality import QualityLimits
from enginehouse.core.settings import Settings
from enginehouse.core.trial import Deadlines, Trial
from enginehouse.core.workload import WORKLOADS, Workload, together
from enginehouse.edges.paths import cache_dir, state_dir
from enginehouse.engines import load_engines

if TYPE_CHECKING:
    from enginehouse.core.report import Report
    from enginehouse.gateway.router import Offer
    from enginehouse.gateway.serving import Serving
    from enginehouse.trials.bench import Bench
    from enginehouse.trials.contracts import Watch

log = logging.getLogger(__name__)
VARIANTS_SHARE = 0.15
"""How much of a search's time making quantizations may take: each must pay for itself in trials."""


class House(Inventory):
    """What a user can do with what is here."""

    # propose, try, diagnose, measure, choose

    def asked(self, texts: Sequence[str], context: int | None) -> CandidateSettings:
        """Return the settings that a user asks for, checked against what engines take."""
        return parse_asked(texts, context, merge_tunables(load_engines().values()))

    def find(
        self, model: Model, workload_name: str, budget_s: float, watch: Watch,
        asked: CandidateSettings = (), also: Sequence[Model] = (), fresh: bool = False,
    ) -> FindResult:  # fmt: skip
        """Search for the best candidate and store the choice; every trial is recorded.

        What earlier searches measured here with the same builds is gone on from, unless `fresh`.
        When it is interrupted, what was measured until then is chosen from before it ends.
        """
        search = self.prepare(model, workload_name, budget_s, watch, asked, also, fresh)
        try:
            asyncio.run(search.hunt.run())
        except KeyboardInterrupt:
            self.conclude(search)
            raise
        return self.conclude(search)

    def find_front(
        self, model: Model, names: Sequence[str], prefer: str, budget_s: float, watch: Watch,
        asked: CandidateSettings = (), also: Sequence[Model] = (), fresh: bool = False,
    ) -> FrontResult:  # fmt: skip
        """Search under several workloads, and say who stands on the front of their rates.

        Each has its share of the time. A choice is stored for every workload, the preferred one's
        last.
        """
        from enginehouse.trials.front import FrontHunt

        searches = self._prepare(model, names, budget_s, watch, asked, also, fresh)
        hunt = FrontHunt({name: s.hunt for name, s in zip(names, searches, strict=True)}, watch)
        try:
            asyncio.run(hunt.run())
        except KeyboardInterrupt:
            conclude_front(searches, self._records, prefer)
            raise
        return conclude_front(searches, self._records, prefer)

    def prepare(
        self, model: Model, workload_name: str, budget_s: float, watch: Watch,
        asked: CandidateSettings = (), also: Sequence[Model] = (), fresh: bool = False,
    ) -> Search:  # fmt: skip
        """Return a search that can begin: the machine measured, the quantizations made."""
        return self._prepare(model, (workload_name,), budget_s, watch, asked, also, fresh)[0]

    def _prepare(
        self, model: Model, names: Sequence[str], budget_s: float, watch: Watch,
        asked: CandidateSettings, also: Sequence[Model], fresh: bool,
    ) -> tuple[Search, ...]:  # fmt: skip
        """Return a search for each workload; what one learns of answers holds for the others."""
        from enginehouse.trials.lab import BenchLab, Learnt
        from enginehouse.trials.search import Hunt

        for name in names:
            check_context(model, WORKLOADS[name], asked)
        builds = self.builds()
        require_builds(builds)
        watch.on_step("measuring this machine's memory bandwidth and compute")
        machine = self.measure()
        noted = Noted(watch, [])
        began = time.monotonic()
        workloads = together(names)
        bench = self.bench(model, workloads[0], asked, also)
        bench = self._with_variants(bench, builds, budget_s, noted)
        share_s = (budget_s - (time.monotonic() - began)) / len(names)
        builds = self._unblocked(builds, noted)
        say_unproven(builds, noted)
        learnt, found = Learnt(), []
        for workload in workloads:
            own = dataclasses.replace(bench, workload=workload)
            trials = self._records.trials_of(model.digest, workload.name)
            earlier = () if fresh else usable(trials, own, builds, machine)
            if earlier:
                watch.on_step(f"going on from {len(earlier)} trials of earlier searches")
            lab = BenchLab.of(own, noted, learnt)
            hunt = Hunt(lab, builds, share_s, noted, earlier=earlier)
            found.append(Search(own, lab, hunt, machine, noted))
        return tuple(found)

    def find_first(
        self, model: Model, workload_name: str, watch: Watch, asked: CandidateSettings = ()
    ) -> FindResult:
        """Try minimal candidates until one gives a token, and store it as the choice."""
        search = self.prepare(model, workload_name, 0.0, watch, asked, fresh=True)
        asyncio.run(search.hunt.run_first())
        return self.conclude(search)

    def improvement(
        self, model: Model, workload_name: str, budget_s: float, watch: Watch,
        asked: CandidateSettings = (), also: Sequence[Model] = (),
    ) -> Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]:  # fmt: skip
        """Return a search to run while a server is idle, told so by what it is given.

        A trial under way is ended when a request comes, and tried again. What it finds is stored as
        the choice for the next start.
        """
        from enginehouse.trials.lab import IdleLab

        search = self.prepare(model, workload_name, budget_s, watch, asked, also)

        async def improve(is_idle: Callable[[], bool]) -> None:
            lab = IdleLab(search.bench, search.noted, is_idle=is_idle)
            search.hunt.lab = lab
            await search.hunt.run()
            found = self.conclude(dataclasses.replace(search, lab=lab))
            if found.choice is not None:
                label = found.label(found.ranked[0].trial)
                watch.on_step(f"stored for the next start: {label}: {found.ranked[0].reason}")

        return improve

    def conclude(self, search: Search) -> FindResult:
        """Rank what was measured and store the choice."""
        return conclude(search, self._records)

    def _with_variants(
        self, bench: Bench, builds: Sequence[Build], budget_s: float, watch: Watch
    ) -> Bench:
        """Return the bench with the quantizations that are worth a trial and quickly made."""
        from enginehouse.edges.quantize import VariantStore
        from enginehouse.edges.quantize_run import find_tools

        store = VariantStore(
            cache_dir(),
            find_tools(builds),
            self.settings.bytes("trials.disk_budget"),
            self.settings.bytes("trials.disk_reserve"),
        )
        variants = make_variants(bench.model, store, VARIANTS_SHARE * budget_s, watch)
        forms = dataclasses.replace(bench.forms, variants=variants)
        return dataclasses.replace(bench, forms=forms)

    def bench(
        self, model: Model, workload: Workload, asked: CandidateSettings = (),
        also: Sequence[Model] = (),
    ) -> Bench:  # fmt: skip
        """Return what all trials of one search of this model and workload share."""
        from enginehouse.edges.throttling import Cooler
        from enginehouse.knowledge.loader import load_prompts
        from enginehouse.knowledge.patterns import load_book
        from enginehouse.trials.bench import Bench

        passages, questions = load_prompts()
        return Bench(
            run_id=uuid.uuid4().hex,
            engines=load_engines(),
            forms=Forms((model, *also)),
            workload=workload,
            records=self._records,
            leases=self._leases,
            log_folder=self._state / "trials",
            deadlines=self._deadlines(),
            memory_reserve_bytes=self.settings.bytes("trials.memory_reserve"),
            prefix_limit_bytes=self.settings.bytes("serve.prefix_limit"),
            bandwidth_bytes_per_s=self.look().memory_bandwidth_bytes_per_s,
            passages=passages,
            questions=questions,
            book=load_book(),
            look=self.look,
            asked=asked,
            limits=self._limits(),
            quality=QualityLimits(
                self.settings.number("quality.kl_limit"),
                self.settings.number("quality.top1_limit"),
                self.settings.number("quality.repeat_limit"),
            ),
            cooler=Cooler(self.settings.seconds("trials.cool_down")),
            may_use_cgroups=self.settings.text("trials.cgroup") == "auto",
            may_drop_page_cache=self.settings.text("trials.may_drop_page_cache") == "yes",
        )

    def dry_run(
        self, model: Model, workload: Workload, asked: CandidateSettings = ()
    ) -> tuple[tuple[Candidate, str, tuple[str, ...]], ...]:
        """Return what a search could try: candidate, label, and the exact argv."""
        check_context(model, workload, asked)
        machine = self.look()
        planned = []
        for build in self.builds():
            engine = self._engine(build)
            minimal = engine.minimal(build, model, workload).with_settings(**dict(asked))
            steps = [minimal] + [
                minimal.with_settings(**dict(step))
                for lever in engine.levers(machine, model, workload)
                for step in lever.steps
            ]
            for candidate in steps:
                label = candidate.describe_difference(minimal) or "minimal"
                argv = planned_argv(build, candidate, model, machine)
                planned.append((candidate, f"{build.label}: {label}", argv))
        return tuple(planned)

    def choice_for(
        self, model: Model, workload_name: str, asked: CandidateSettings = (),
        workloads: Sequence[str] = (),
    ) -> tuple[Choice | None, tuple[str, ...]]:  # fmt: skip
        """Return the stored choice and, in words, why it no longer holds (empty when it does)."""
        choice = self._records.choice(model.digest, workload_name)
        if choice is None:
            return None, ()
        reasons = stale_reasons(choice, self.look(), model, self.builds(), asked, workloads)
        return choice, reasons

    def newest_choice(self) -> Choice | None:
        """Return the choice that was made last, over all models and workloads."""
        choices = self._records.choices()
        return max(choices, key=lambda choice: choice.chosen_at, default=None)

    # serve

    def check_port(self) -> None:
        """Raise MachineError `port.in_use` when the endpoint's port is taken."""
        from enginehouse.edges.ports import bind_socket

        bind_socket(self._host(), self._port()).close()

    def serve(
        self, choice: Choice, model: Model, on_ready: Callable[[str], None],
        beside: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]] | None = None,
    ) -> None:  # fmt: skip
        """Serve a choice until SIGINT or SIGTERM, then drain and end the engine.

        `beside` is run while it serves, and told whether no request is in flight.
        """
        from enginehouse.gateway.serve import serve

        offers = self._offers(choice, model)
        for name in unknown_pins(self.settings, offers):
            log.warning("serve.pin names %s, which is not served here", name)
        asyncio.run(serve(offers, self._serving(), self._leases, on_ready, beside))

    def _offers(self, choice: Choice, model: Model) -> tuple[Offer, ...]:
        """Return what is served: the choice's model first, others that are known on demand."""
        maker = self._offer_maker(choice.workload)
        offers = [maker.of_choice(choice, model, True)]
        wanted = self.settings.text("serve.models")
        if wanted == "none":
            return tuple(offers)
        newest = {c.model_digest: c for c in sorted(self._records.choices(), key=_chosen_at)}
        for other in self.models():
            if any(other.name == offer.served.name for offer in offers):
                continue
            if not Path(other.path).exists() or other.role != "model":
                continue
            chosen = newest.get(other.digest)
            if chosen is not None:
                offers.append(maker.of_choice(chosen, other, False))
            elif wanted == "all" and (offer := maker.of_model(other)) is not None:
                offers.append(offer)
        return tuple(offers)

    def _offer_maker(self, workload: str) -> OfferMaker:
        return OfferMaker(
            self.settings, self._state, WORKLOADS[workload], self._deadlines(), self.look,
            functools.lru_cache(maxsize=1)(self.builds),
        )  # fmt: skip

    def _serving(self) -> Serving:
        from enginehouse.app_gateway import HouseLibrary, open_serving

        library = HouseLibrary(self.settings, self._state, self._offer_maker("chat").of_model)
        return open_serving(self.settings, self._state, library)

    # records

    def trials(self, limit: int = 50) -> tuple[Trial, ...]:
        """Return the newest trials first."""
        return self._records.trials(limit=limit)

    def trial(self, trial_id: int) -> Trial | None:
        """Return one trial's record."""
        return self._records.trial(trial_id)

    def report(self, model: str | None, workload: str | None, run_id: str | None) -> Report:
        """Return the report of the newest search, or the newest that is asked for.

        Raises:
            UserError: `report.nothing`, when no search of that kind is recorded.
        """
        from enginehouse.app_report import newest_run, sources_of
        from enginehouse.core.report import build_report
        from enginehouse.edges.quantize import kept_variants

        trials = newest_run(self._records.trials(limit=MOST_TRIALS), model, workload, run_id)
        choice = self._records.choice(trials[0].model_digest, workload or trials[0].workload)
        form = next((m for m in self.models() if m.digest == trials[0].model_digest), None)
        variants = kept_variants(cache_dir(), form) if form else {}
        return build_report(
            sources_of(trials, choice, form, load_engines(), self.look(), workload, variants)
        )

    def render(self, report: Report, name: str) -> str:
        """Return a report in one of the formats: md, json, html."""
        from enginehouse.report import load_formats

        return load_formats()[name].render(report)

    def _engine(self, build: Build) -> Engine:
        return load_engines()[build.engine]

    def _host(self) -> str:
        return self.settings.text("gateway.host")

    def _port(self) -> int:
        return self.settings.integer("gateway.port")

    def _limits(self) -> Limits | None:
        """Return what a request must keep to count, None when nothing is asked for."""
        ttft_s, itl_s = (self.settings.seconds(f"find.{n}_limit") or None for n in ("ttft", "itl"))
        return Limits(ttft_s, itl_s) if ttft_s or itl_s else None

    def _deadlines(self) -> Deadlines:
        return Deadlines(
            start_s=self.settings.seconds("trials.start_deadline"),
            load_s=self.settings.seconds("trials.load_deadline"),
            first_token_s=self.settings.seconds("trials.first_token_deadline"),
            measure_s=self.settings.seconds("trials.measure_deadline"),
        )


def _chosen_at(choice: Choice) -> float:
    return choice.chosen_at


def open_house(settings: Settings) -> House:
    """Return the house of this user's state folder, to be entered with `with`."""
    return House(settings, state_dir())
