"""`enginehouse doctor`: the machine's facts and its problems, as a page or as JSON."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from enginehouse.cli_call import Call
from enginehouse.cli_progress import say
from enginehouse.core.conditions import show_size
from enginehouse.core.doctor import COSTS
from enginehouse.core.facts import Facts, show_value
from enginehouse.core.machine_of import users_of

if TYPE_CHECKING:
    from enginehouse.core.doctor import Problem
    from enginehouse.core.examination import Examination

Row = tuple[str, str]
KIND_NAMES = {
    "jetson": "Jetson", "raspberry-pi": "Raspberry Pi", "wsl2": "WSL2", "apple": "Apple",
    "virtual-machine": "virtual machine", "container": "in a container",
}  # fmt: skip
WIDTH = 100
FOLDER = click.Path(path_type=Path, file_okay=False)


@click.option("--measure", is_flag=True, help="Measure bandwidth and compute now (some seconds).")
@click.option("--facts", is_flag=True, help="List every fact with its origin and age.")
@click.option("--snapshot", type=FOLDER, metavar="DIR", help="Examine a recorded machine.")
@click.option("--record", type=FOLDER, metavar="DIR", help="Record this one, without secrets.")
def doctor(
    call: Call, measure: bool, facts: bool, snapshot: Path | None, record: Path | None
) -> None:
    """Show this machine, its engines and its problems.

    Every fact comes from a file, a command or a library, and says which (--facts, --json).
    """
    if snapshot is not None:
        from enginehouse.edges.examination import examine_recording

        show(call, examine_recording(snapshot), facts)
        return
    if record is not None:
        from enginehouse.edges.examination import record_here

        count = record_here(record)
        say("no names, serial numbers, addresses or keys are in it; look through it all the same")
        call.show(
            {"recorded": str(record), "files": count},
            lambda: f"recorded {count} files in {record}",
        )
        return
    with call.house() as house:
        if measure:
            house.measure(again=True)
        found, builds = house.examine(), house.builds()
    show(call, found, facts, {"builds": builds})


def show(
    call: Call, found: Examination, facts: bool, more: dict[str, object] | None = None
) -> None:
    """Write an examination to stdout."""
    colour, width = sys.stdout.isatty(), WIDTH
    if colour:
        width = min(width, shutil.get_terminal_size().columns)
    call.show(
        document_of(found) | (more or {}),
        lambda: facts_text(found) if facts else page(found, colour, width),
    )


def document_of(found: Examination) -> dict[str, object]:
    """Return an examination as one JSON document."""
    return {
        "name": found.name,
        "kind": found.kind,
        "taken_at": show_time(found.taken_at),
        "sources": found.sources,
        "note": found.note,
        "problems": found.problems,
        "machine": found.machine,
        "facts": [
            {
                "id": fact.id,
                "value": fact.value,
                "origin": fact.origin,
                "age_s": found.age_s(fact),
            }
            for fact in found.facts
        ],
    }


def show_time(at: float) -> str:
    """Return a time as `2026-11-25T03:00:00Z`."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def facts_text(found: Examination) -> str:
    """List every fact: name, value, origin, age."""
    from enginehouse.cli_render import table

    rows = [
        (
            fact.id,
            show_value(fact.value),
            "now" if found.age_s(fact) < 60 else show_age(found.age_s(fact)),
            fact.origin,
        )
        for fact in found.facts
    ]
    return table(("FACT", "VALUE", "AGE", "ORIGIN"), rows)


def show_age(seconds: float) -> str:
    """Return an age in words, in its largest unit."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def page(found: Examination, colour: bool = False, width: int = WIDTH) -> str:
    """Show an examination for people: what the machine is, then its problems with remedies."""
    facts = found.facts
    lines = [_bold(headline(facts), colour)]
    if found.kind != "live":
        lines.append(f"{found.name}: {found.kind}, as of {show_time(found.taken_at)[:10]}")
    rows = [
        *_system(facts), *_cpu(facts), *_memory(found), *_gpus(facts), *_jetson(facts),
        *_engines(facts), *_containers(facts), *_disks(facts),
    ]  # fmt: skip
    lines.append("")
    before = ""
    for name, text in rows:
        lines += _wrapped(f"  {name if name != before else '':<11}", text, width)
        before = name
    lines += ["", *_problems(found.problems, colour, width)]
    return "\n".join(line.rstrip() for line in lines)


def headline(facts: Facts) -> str:
    """Say in one line what the machine is."""
    l4t, jetpack = facts.text("jetson.l4t"), facts.text("jetson.jetpack")
    kinds = [KIND_NAMES[kind] for kind in facts.texts("machine.kinds") if kind != "jetson"]
    parts = [
        facts.text("jetson.module") or facts.text("machine.board") or facts.text("cpu.model"),
        f"JetPack {jetpack or 'unknown'} (L4T {l4t})" if l4t else "",
        facts.text("machine.os"),
        *(kind for kind in kinds if kind not in ("Raspberry Pi", "Apple")),
    ]
    return " · ".join(part for part in parts if part)


def _system(facts: Facts) -> Iterator[Row]:
    board = facts.text("machine.board")
    if board and facts.text("jetson.module"):
        yield "board", f"{board} ({facts.text('jetson.part')})"
    yield (
        "kernel",
        " ".join(
            part for part in (facts.text("machine.kernel"), facts.text("machine.machine")) if part
        ),
    )
    virtual, container = facts.text("machine.virtual"), facts.text("machine.container")
    if virtual or container:
        where = [f"virtual machine ({virtual})"] if virtual else []
        where += [f"container ({container})"] if container else []
        yield "inside", ", ".join(where)


def _cpu(facts: Facts) -> Iterator[Row]:
    usable, physical = facts.whole("cpu.usable_cores"), facts.whole("cpu.physical_cores")
    logical = facts.whole("cpu.logical_cores")
    cores = f"{physical} cores"
    if logical and physical and logical > physical:
        cores += f", {logical} threads"
    if usable and usable != logical:
        cores += f", {usable} usable"
    if quota := facts.number("cpu.quota_cores"):
        cores += f", a quota of {quota:g} of them"
    if offline := facts.whole("cpu.offline_cores"):
        cores += f", {offline} more are switched off"
    yield "CPU", f"{facts.text('cpu.model')}; {cores}"
    details = [" ".join(facts.texts("cpu.isa")) or "none of the instruction sets looked for"]
    if governor := facts.text("cpu.governor"):
        details.append(f"governor {governor}")
    if (nodes := facts.whole("cpu.numa_nodes") or 1) > 1:
        details.append(f"{nodes} NUMA nodes")
    yield "CPU", "; ".join(details)
    if compute := facts.number("cpu.compute_flop_per_s"):
        yield "CPU", f"{compute / 1e9:.0f} GFLOP/s measured (Q8_0 matrix product, llama.cpp's)"


def _memory(found: Examination) -> Iterator[Row]:
    facts = found.facts
    shared = ", shared with the GPU" if facts.holds("memory.unified") else ""
    total = _size(facts, "memory.total_bytes")
    yield "memory", f"{_size(facts, 'memory.available_bytes')} available of {total}{shared}"
    details = [f"{_size(facts, 'memory.free_bytes')} free"]
    if "memory.page_cache_bytes" in facts:
        details.append(f"{_size(facts, 'memory.page_cache_bytes')} page cache")
    if facts.whole("memory.swap_total_bytes"):
        used, swap = _size(facts, "memory.swap_used_bytes"), _size(facts, "memory.swap_total_bytes")
        details.append(f"swap {used} of {swap}{' (zram)' if 'memory.zram_bytes' in facts else ''}")
    else:
        details.append("no swap")
    yield "memory", ", ".join(details)
    if "memory.limit_bytes" in facts:
        used, limit = _size(facts, "memory.limit_used_bytes"), _size(facts, "memory.limit_bytes")
        yield "memory", f"limited by its cgroup to {limit}, of which {used} is in use"
    speeds = []
    if stated := facts.number("memory.stated_bandwidth_bytes_per_s"):
        speeds.append(f"{stated / 1e9:.0f} GB/s stated by the vendor")
    measured = facts.fact("memory.bandwidth_bytes_per_s")
    if measured and isinstance(measured.value, float):
        age = show_age(found.age_s(measured))
        speeds.append(f"{measured.value / 1e9:.1f} GB/s read by the CPU, measured {age}")
    elif found.kind == "live":
        speeds.append("bandwidth not measured yet: enginehouse doctor --measure")
    if speeds:
        yield "memory", "; ".join(speeds)


def _gpus(facts: Facts) -> Iterator[Row]:
    members = facts.members("gpu")
    for number, member in enumerate(members):
        label = f"GPU {number}" if len(members) > 1 else "GPU"
        parts = [facts.text(f"{member}.name")]
        if arch := facts.text(f"{member}.arch"):
            parts[0] += f" ({'compute capability ' if arch[0].isdigit() else ''}{arch})"
        for name, word in (("driver", "driver"), ("cuda", "CUDA up to")):
            if value := facts.text(f"{member}.{name}"):
                parts.append(f"{word} {value}")
        yield label, ", ".join(parts)
        yield label, _gpu_memory(facts, member)
        users = users_of(facts, member)
        if users:
            named = (
                f"{user.name} {show_size(user.memory_bytes) if user.memory_bytes else '?'}"
                f" (pid {user.pid})"
                for user in users
            )
            yield label, f"held by {', '.join(named)}"
    if not members:
        yield "GPU", "none seen"
    if facts.holds("nvidia.smi_lacks_memory"):
        nor = ", nor by whom" if facts.holds("nvidia.smi_lacks_users") else ""
        yield "GPU", f"nvidia-smi cannot say here how much memory is used{nor}"


def _gpu_memory(facts: Facts, member: str) -> str:
    speed = facts.number(f"{member}.stated_bandwidth_bytes_per_s")
    stated = f", {speed / 1e9:.0f} GB/s stated by the vendor" if speed else ""
    if facts.holds(f"{member}.unified"):
        carved = facts.whole(f"{member}.carve_out_bytes")
        own = f", {show_size(carved)} of it set aside for it" if carved else ""
        return f"uses the main memory{own}"
    total = facts.whole(f"{member}.memory_total_bytes")
    if total is None:
        return f"its driver does not say how much memory it has{stated}"
    free = _size(facts, f"{member}.memory_free_bytes")
    return f"{free} free of {show_size(total)}{stated}"


def _jetson(facts: Facts) -> Iterator[Row]:
    if "jetson.l4t" not in facts and "jetson.soc" not in facts:
        return
    mode, modes = facts.text("jetson.power_mode"), facts.texts("jetson.power_modes")
    if mode or modes:
        yield "power", f"mode {mode or 'unknown'}; this board has {', '.join(modes) or 'unknown'}"
    clocks = []
    for id, label in (("now", "now"), ("max", "at most in this mode"), ("best", "at best")):
        if rate := facts.number(f"jetson.gpu_clock_{id}_hz"):
            clocks.append(f"{rate / 1e6:.0f} MHz {label}")
    if clocks:
        yield "power", f"GPU clock {', '.join(clocks)}"
    if rate := facts.number("jetson.memory_clock_hz"):
        yield "power", f"memory clock {rate / 1e6:.0f} MHz"
    if "jetson.temperatures" in facts:
        yield "power", f"hottest {facts.number('jetson.hottest_celsius'):.0f} °C"


def _engines(facts: Facts) -> Iterator[Row]:
    members = facts.members("engine")
    for member in members:
        text = f"{facts.text(f'{member}.name')} {facts.text(f'{member}.version')}"
        details = [facts.text(f"{member}.kind")] if f"{member}.kind" in facts else []
        if built := facts.texts(f"{member}.built_for"):
            details.append(f"for {', '.join(built)}")
        if torch := facts.text(f"{member}.torch"):
            details.append(f"torch {torch}")
        text += f" ({'; '.join(details)})" if details else ""
        if path := facts.text(f"{member}.path"):
            text += f" in {path}"
        yield "engines", text
        if models := facts.texts(f"{member}.models"):
            more = f" and {len(models) - 6} more" if len(models) > 6 else ""
            yield "engines", f"  its models: {', '.join(models[:6])}{more}"
    if not members:
        yield "engines", "none is installed: pip install xllamacpp"


def _containers(facts: Facts) -> Iterator[Row]:
    reaches = {True: "reaches the GPU", False: "does not reach the GPU"}
    has_gpu = bool(facts.members("gpu"))
    if version := facts.text("container.docker"):
        said = reaches[facts.holds("container.docker_reaches_gpu")] if has_gpu else ""
        yield "containers", ", ".join(part for part in (f"Docker {version}", said) if part)
    elif refusal := facts.text("container.docker_refuses"):
        yield "containers", f"Docker is installed but cannot be asked: {refusal}"
    if version := facts.text("container.podman"):
        said = reaches[facts.holds("container.podman_reaches_gpu")] if has_gpu else ""
        yield "containers", ", ".join(part for part in (f"Podman {version}", said) if part)
    images = [facts.text(f"{member}.name") for member in facts.members("image")]
    if images:
        yield "containers", f"images of engines: {', '.join(images)}"


def _disks(facts: Facts) -> Iterator[Row]:
    if "disk.models.free_bytes" in facts:
        yield "disk", f"{_size(facts, 'disk.models.free_bytes')} free for models"
    held = [f"{fact.id.split('.')[1]} by {fact.value}" for fact in facts.under("port")]
    if held:
        yield "ports", f"held: {', '.join(held)}"


def _problems(problems: Sequence[Problem], colour: bool, width: int) -> Iterator[str]:
    if not problems:
        yield "no problems found"
        return
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    yield _bold(f"{count}, the most costly first", colour)
    before = 0
    for problem in problems:
        if problem.cost != before:
            yield from ("", f"  {'!' * problem.cost} {COSTS[problem.cost]}")
            before = problem.cost
        yield ""
        what = _bold(problem.what, colour)
        yield f"  {what}  [{problem.id}]"
        yield from _wrapped("    costs     ", problem.costs, width)
        yield from _wrapped("    evidence  ", problem.evidence, width)
        for number, remedy in enumerate(problem.remedies):
            yield f"    {'' if number else 'try':<10}{remedy}"


def _wrapped(head: str, text: str, width: int) -> list[str]:
    """Lay out a text beside its head; long words stay whole, so that paths can be copied."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head]


def _size(facts: Facts, id: str) -> str:
    number = facts.number(id)
    return "unknown" if number is None else show_size(number)


def _bold(text: str, colour: bool) -> str:
    return click.style(text, bold=True) if colour else text
