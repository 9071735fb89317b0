"""Measure what the gateway costs, against a direct connection to the same fast fake engine.

    ./dev bench gateway [--rounds 5] [--requests 100000] [--idle 2000] [--only ttft,chunks,…]
                        [--nginx PATH] [--litellm PATH]

Everything runs on this machine: the fake engine, what stands before it, and the load, each a
process of its own. Ways are measured in turn (direct, gateway, direct, …) in one run. Parts:

- ttft: time from a request to its first token, with 1 and with 32 streams;
- chunks: processor time of the process before the engine for a streamed chunk, in the same dialect
  (OpenAI) and translated (Ollama);
- carry: 64 streams of 50 tokens a second each: tokens carried, and the time between them;
- memory: resident memory and descriptors over many requests, after a tenth of them;
- idle: open streams on which nothing comes.

nginx (its binary) and LiteLLM (its `litellm` command) are measured beside it where they are given.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

HERE = Path(__file__).parent
PACE_S = 0.02
PARTS = ("ttft", "chunks", "carry", "memory", "idle")
OPENAI = "/v1/chat/completions"
OLLAMA = "/api/chat"


@dataclass(frozen=True)
class Way:
    """One way to the engine: where it listens, and the processes that stand before the engine."""

    name: str
    port: int
    pids: tuple[int, ...] = ()
    path: str = OPENAI
    model: str = "fake"

    def cpu_s(self) -> float:
        total = 0.0
        for pid in self.pids:
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
        return total


@dataclass
class Heard:
    """What one stream gave: seconds to its first token, between tokens, and how many came."""

    first_s: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0


class Stream(asyncio.Protocol):
    """A client's connection; reads nothing but where tokens and answers end."""

    def __init__(self, is_lines: bool) -> None:
        self._mark = b'"done":false' if is_lines else b"data: {"
        self.done: asyncio.Future[None] | None = None
        self.heard = Heard()
        self._tail = b""
        self._asked_at = 0.0
        self._last_at = 0.0
        self._is_whole = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, request: bytes, is_whole: bool = False) -> asyncio.Future[None]:
        self.done = asyncio.get_running_loop().create_future()
        self.heard = Heard()
        self._is_whole = is_whole
        self._tail = b""
        self._asked_at = time.perf_counter()
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        count = data.count(self._mark)
        if count:
            if not self.heard.tokens:
                self.heard.first_s = now - self._asked_at
            else:
                self.heard.gaps.append(now - self._last_at)
            self._last_at = now
            self.heard.tokens += count
        self._tail = (self._tail + data)[-600:]
        assert self.done is not None
        if not self.done.done() and (
            self._tail.endswith(b"0\r\n\r\n") or (self._is_whole and self._tail.endswith(b"}"))
        ):
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError("the stream was cut"))


def request_of(way: Way, tokens: int, is_stream: bool = True) -> bytes:
    """Return a request's bytes."""
    flag = b"true" if is_stream else b"false"
    head = b'{"model":"%s","messages":[{"role":"user","content":"Say hi to everybody."}],'
    body = head % way.model.encode()
    if way.path == OLLAMA:
        body += b'"options":{"num_predict":%d},"stream":%s}' % (tokens, flag)
    else:
        body += b'"max_tokens":%d,"stream":%s}' % (tokens, flag)
    return (
        b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer none\r\nContent-Length: %d\r\n\r\n%s"
        % (way.path.encode(), len(body), body)
    )


async def connect(way: Way) -> Stream:
    loop = asyncio.get_running_loop()
    _, made = await loop.create_connection(
        lambda: Stream(way.path == OLLAMA), "127.0.0.1", way.port
    )
    return made


async def wave(way: Way, streams: int, each: int, tokens: int, spread_s: float) -> list[Heard]:
    """Hold so many streams; each asks so often, one after the other, at its own moment."""
    request = request_of(way, tokens)

    async def one() -> list[Heard]:
        stream = await connect(way)
        told = []
        for _ in range(each):
            await asyncio.sleep(random.uniform(0, spread_s))
            await stream.ask(request)
            told.append(stream.heard)
        stream.transport.close()
        return told

    return [
        heard for told in await asyncio.gather(*(one() for _ in range(streams))) for heard in told
    ]


def at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def set_pace(engine_port: int, seconds: float) -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{engine_port}/pace?seconds={seconds}").read()


def say(text: str) -> None:
    print(text, flush=True)


def measure_ttft(ways: list[Way], rounds: int) -> None:
    say("\nTTFT in ms over a direct connection: median of the rounds' differences (each round's)")
    for streams in (1, 32):
        p50: dict[str, list[float]] = {way.name: [] for way in ways}
        p99: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                each = 200 if streams == 1 else 12
                heard = asyncio.run(
                    wave(way, 1, each, 2, 0.02) if streams == 1 else wave(way, 32, each, 16, 0.3)
                )
                firsts = [one.first_s * 1e3 for one in heard]
                p50[way.name].append(at(firsts, 0.5))
                p99[way.name].append(at(firsts, 0.99))
        base = ways[0].name
        say(f"  {streams} streams; direct p50 {median(p50[base]):.2f} p99 {median(p99[base]):.2f}")
        for way in ways[1:]:
            for label, table in (("p50", p50), ("p99", p99)):
                added = [a - b for a, b in zip(table[way.name], table[base], strict=True)]
                each_round = " ".join(f"{value:.2f}" for value in added)
                say(f"    {way.name:18} +{label} {median(added):6.2f}   ({each_round})")


def measure_chunks(ways: list[Way], rounds: int) -> None:
    say("\nprocessor time before the engine in µs a streamed chunk, 50 chunks/s a stream")
    for streams in (16, 64):
        told: dict[str, list[float]] = {way.name: [] for way in ways if way.pids}
        for _ in range(rounds):
            for way in ways:
                if not way.pids:
                    continue
                before = way.cpu_s()
                heard = asyncio.run(wave(way, streams, 1, 400, 0.02))
                chunks = sum(one.tokens for one in heard)
                assert chunks >= streams * 400, (way.name, chunks)
                told[way.name].append((way.cpu_s() - before) / chunks * 1e6)
        say(f"  {streams} streams")
        for name, values in told.items():
            say(f"    {name:18} {median(values):6.1f}   ({' '.join(f'{v:.0f}' for v in values)})")


def measure_carry(ways: list[Way], rounds: int) -> None:
    say("\n64 streams of 50 tokens/s: tokens/s carried, ms between tokens p50 p99, added p50")
    told: dict[str, list[tuple[float, float, float]]] = {way.name: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            began = time.perf_counter()
            heard = asyncio.run(wave(way, 64, 1, 400, 0.0))
            took = time.perf_counter() - began
            gaps = [gap * 1e3 for one in heard for gap in one.gaps]
            rate = sum(one.tokens for one in heard) / took
            told[way.name].append((rate, at(gaps, 0.5), at(gaps, 0.99)))
    base = told[ways[0].name]
    for name, values in told.items():
        rate, p50, p99 = (median(column) for column in zip(*values, strict=True))
        added = median(one[1] - two[1] for one, two in zip(values, base, strict=True))
        say(f"    {name:18} {rate:7.0f} tok/s   {p50:6.2f} {p99:6.2f}   {added:+.2f}")


def measure_memory(way: Way, requests: int) -> None:
    say(f"\n{requests:,} requests to {way.name}: a third each streamed, whole, and by Ollama's API")
    process = psutil.Process(way.pids[0])

    async def some(count: int) -> None:
        asked = [
            (request_of(way, 2), False), (request_of(way, 1, False), True),
            (request_of(Way("", way.port, path=OLLAMA), 2), False),
        ]  # fmt: skip

        async def one(share: int) -> None:
            streams = [await connect(way), await connect(way)]
            streams.append(await connect(Way("", way.port, path=OLLAMA)))
            for number in range(share):
                request, is_whole = asked[number % 3]
                await streams[number % 3].ask(request, is_whole)
            for stream in streams:
                stream.transport.close()

        await asyncio.gather(*(one(count // 16) for _ in range(16)))

    begun = time.perf_counter()
    asyncio.run(some(requests // 10))
    time.sleep(1)
    warm, descriptors = process.memory_info().rss, process.num_fds()
    for step in range(3):
        asyncio.run(some(requests * 3 // 10))
        time.sleep(1)
        grown = (process.memory_info().rss - warm) / 1e6
        done = requests // 10 + (step + 1) * requests * 3 // 10
        say(
            f"    after {done:,}: {grown:+.1f} MB over {warm / 1e6:.0f} MB, "
            f"{process.num_fds() - descriptors:+d} descriptors"
        )
    say(f"    {requests / (time.perf_counter() - begun):.0f} requests/s")


def measure_idle(way: Way, count: int, engine_port: int) -> None:
    say(f"\n{count:,} open streams on which nothing comes")
    process = psutil.Process(way.pids[0])
    before = process.memory_info().rss
    set_pace(engine_port, -1)

    async def hold() -> None:
        request = request_of(way, 2)
        streams = []
        for _ in range(count):
            stream = await connect(way)
            stream.ask(request)
            streams.append(stream)
        while sum(stream.heard.tokens > 0 for stream in streams) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        cpu = way.cpu_s()
        await asyncio.sleep(5)
        share = (way.cpu_s() - cpu) / 5 * 100
        memory = (process.memory_info().rss - before) / 1e6
        probe = await connect(way)
        await probe.ask(request_of(way, 1, False), is_whole=True)
        say(f"    all have their first token; {memory:.0f} MB, {share:.1f} % of a core while idle")
        await asyncio.to_thread(set_pace, engine_port, 0)
        await asyncio.gather(*(stream.done for stream in streams if stream.done))
        for stream in [*streams, probe]:
            stream.transport.close()
        say("    all ended whole")

    asyncio.run(hold())


@contextlib.contextmanager
def running(
    argv: list[str], port: int, path: str, env: dict[str, str] | None = None
) -> Iterator[int]:
    """Run a server in a group of its own until the end; give its pid once it answers."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            argv, env={**os.environ, **(env or {})}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            ends = time.monotonic() + 120
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read()
                    break
                except OSError:
                    if child.poll() is not None or time.monotonic() > ends:
                        log.seek(0)
                        raise SystemExit(log.read().decode(errors="replace")) from None
                    time.sleep(0.1)
            yield child.pid
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(20)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve_gateway(socket_path: str, port: int) -> None:
    """Serve the fake engine by the real gateway, as `enginehouse serve` does."""
    from enginehouse.core.catalog import Served
    from enginehouse.core.engine import Endpoint
    from enginehouse.edges.leases import LeaseBook
    from enginehouse.gateway.router import Offer, Step
    from enginehouse.gateway.serve import serve
    from enginehouse.gateway.serving import Serving
    from enginehouse.gateway.supervisor import ServerPlan

    folder = Path(socket_path).parent
    plan = ServerPlan(
        model_name="fake", engine="fake", env=(), ready_path="/health", slots=1 << 16,
        argv=(sys.executable, str(HERE / "fast_engine.py"), "--socket", socket_path,
              "--port", os.environ["ENGINE_PORT"]),
        endpoint=Endpoint(socket_path=socket_path), log_path=folder / "engine.log",
    )  # fmt: skip
    offer = Offer(Served("fake"), (Step("fake", lambda context: plan),))
    serving = Serving("127.0.0.1", port, queue_limit=1 << 16)
    asyncio.run(serve((offer,), serving, LeaseBook(folder / "leases"), lambda url: None))


NGINX = """
daemon off; pid {folder}/pid; error_log {folder}/error; worker_processes 1;
events {{ worker_connections 9000; }}
http {{
  access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
  fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""
LITELLM = """
model_list:
  - model_name: fake
    litellm_params: {{model: openai/fake, api_base: "http://127.0.0.1:{engine}/v1", api_key: none}}
"""


@contextlib.contextmanager
def other_ways(folder: Path, engine: int, nginx: str, litellm: str) -> Iterator[list[Way]]:
    """Run the proxies that were given."""
    with contextlib.ExitStack() as stack:
        ways = []
        if nginx:
            port = free_port()
            config = folder / "nginx.conf"
            config.write_text(NGINX.format(folder=folder, engine=engine, port=port))
            pid = stack.enter_context(running([nginx, "-c", str(config)], port, "/health"))
            children = tuple(child.pid for child in psutil.Process(pid).children())
            ways.append(Way("nginx", port, (pid, *children)))
        if litellm:
            port = free_port()
            config = folder / "litellm.yaml"
            config.write_text(LITELLM.format(engine=engine))
            argv = [litellm, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
            unguarded = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
            pid = stack.enter_context(running(argv, port, "/health/liveliness", unguarded))
            ways.append(Way("LiteLLM", port, (pid,)))
        yield ways


def main() -> None:
    """Measure the parts that are wanted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--idle", type=int, default=2000)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--nginx", default="")
    parser.add_argument("--litellm", default="")
    parser.add_argument("--serve", nargs=2, metavar=("SOCKET", "PORT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve_gateway(given.serve[0], int(given.serve[1]))
        return
    wanted = given.only.split(",")
    engine, port = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="enginehouse-bench-") as name:
        folder = Path(name)
        argv = [sys.executable, __file__, "--serve", str(folder / "engine.sock"), str(port)]
        with (
            running(argv, port, "/health", {"ENGINE_PORT": str(engine)}) as pid,
            other_ways(folder, engine, given.nginx, given.litellm) as others,
        ):
            direct = Way("direct", engine)
            ours = Way("gateway", port, (pid,))
            translated = Way("gateway as Ollama", port, (pid,), OLLAMA)
            ways = [direct, ours, translated, *others]
            set_pace(engine, PACE_S)
            say(f"load average {os.getloadavg()[0]:.2f}")
            if "ttft" in wanted:
                measure_ttft(ways, given.rounds)
            if "chunks" in wanted:
                measure_chunks(ways, given.rounds)
            if "carry" in wanted:
                measure_carry(ways, given.rounds)
            set_pace(engine, 0)
            if "memory" in wanted:
                measure_memory(ours, given.requests)
            if "idle" in wanted:
                measure_idle(ours, given.idle, engine)


if __name__ == "__main__":
    main()
