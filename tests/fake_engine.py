"""A scriptable engine: a real child process that speaks llama-server's HTTP, and can fail.

A stand-in where the real one cannot be made to fail on purpose; `tests/real` runs the real one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

WORDS = ("the", "clock", "had", "stopped", "and", "nobody", "could", "say", "when", "or", "why")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--token-s", type=float, default=0.001)
    parser.add_argument("--fail", default="", help="print this and exit with code 3")
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--no-token", action="store_true", help="200 on /health, 500 on chat")
    parser.add_argument("--garbage", action="store_true", help="answer what is not HTTP")
    parser.add_argument("--die-after-tokens", type=int, default=0)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--grandchild", action="store_true")
    parser.add_argument("--close-after-stream", action="store_true")
    parser.add_argument("--slot-save-path", default="")
    parser.add_argument("--conversation", default="", help="answer chats with this recording")
    parser.add_argument("--end-early", action="store_true", help="end a stream without a reason")
    parser.add_argument("--reason", default="length", help="why every answer ended, however it did")
    parser.add_argument("--stall-after-tokens", type=int, default=0)
    parser.add_argument("--context", type=int, default=0, help="refuse prompts of more words")
    parser.add_argument("--system-first", action="store_true", help="its template wants that")
    parser.add_argument("--embed", action="store_true")
    parser.add_argument("--fill-bytes", type=int, default=0, help="make every token this long")
    parser.add_argument("--eat-mib-per-s", type=int, default=0)
    return parser.parse_args()


TOO_LONG = {
    "code": 400,
    "message": "the request exceeds the available context size, try increasing it",
    "type": "exceed_context_size_error",
}


OUT_OF_ORDER = {
    "code": 500,
    "message": "Error: Jinja Exception: System message must be at the beginning.",
    "type": "server_error",
}


def is_out_of_order(body: dict[str, Any]) -> bool:
    """Whether a system message stands where some templates take none."""
    return any(message["role"] == "system" for message in body["messages"][1:])


def words_of(body: dict[str, Any]) -> int:
    """Count a conversation's words, which are this engine's tokens."""
    return sum(len(str(message["content"]).split()) for message in body["messages"])


class Engine:
    """Serves until it is told otherwise."""

    def __init__(self, script: argparse.Namespace) -> None:
        self.script = script
        self.ready = False
        self.cancelled = 0
        self.served = 0
        self.eaten: list[bytes] = []
        self.asked: list[str] = []
        self.bodies: list[dict[str, Any]] = []

    async def health(self, request: web.Request) -> web.Response:
        if not self.ready:
            return web.json_response({"error": {"message": "Loading model"}}, status=503)
        return web.json_response({"status": "ok"})

    async def state(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "cancelled": self.cancelled,
                "served": self.served,
                "asked": self.asked,
                "bodies": self.bodies[-8:],
            }
        )

    async def slot(self, request: web.Request) -> web.Response:
        action, name = request.query["action"], (await request.json())["filename"]
        self.asked.append(f"{request.match_info['slot']}: {action}")
        path = os.path.join(self.script.slot_save_path, name)
        if not self.script.slot_save_path:
            return web.json_response({"error": {"message": "not supported"}}, status=501)
        if action == "save":
            Path(path).write_bytes(b"state")
        elif not os.path.exists(path):
            return web.json_response({"error": {"message": "no such file"}}, status=400)
        return web.json_response({"n_saved": 5})

    async def tokenize(self, request: web.Request) -> web.Response:
        text = (await request.json())["content"]
        return web.json_response({"tokens": list(range(len(text.split())))})

    async def tokens(self, count: int) -> AsyncIterator[str]:
        for n in range(count):
            await asyncio.sleep(self.script.token_s)
            if self.script.die_after_tokens and n >= self.script.die_after_tokens:
                os._exit(9)
            if self.script.stall_after_tokens and n >= self.script.stall_after_tokens:
                await asyncio.sleep(3600)
            yield WORDS[n % len(WORDS)] + " " + "x" * self.script.fill_bytes

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if self.script.conversation and len(body["messages"]) + len(body.get("tools", ())) > 1:
            return await self.replay(request, bool(body.get("stream")))
        if self.script.context and words_of(body) > self.script.context:
            return web.json_response({"error": TOO_LONG}, status=400)
        if self.script.system_first and is_out_of_order(body):
            return web.json_response({"error": OUT_OF_ORDER}, status=500)
        slot, last = body.get("id_slot", -1), body["messages"][-1]["content"]
        self.asked.append(f"{slot}: {str(last)[:20]} ({body.get('max_tokens')})")
        if self.script.no_token:
            return web.json_response({"error": {"message": "no token today"}}, status=500)
        count = body.get("max_tokens") or 16
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        if not body.get("stream"):
            text = "".join([word async for word in self.tokens(count)])
            message = {"role": "assistant", "content": text}
            choice = {"message": message, "finish_reason": self.script.reason}
            self.served += 1
            return web.json_response({"choices": [choice], "usage": usage})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        try:
            async for word in self.tokens(count):
                chunk = {"choices": [{"index": 0, "delta": {"content": word}}]}
                await answer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        except (ConnectionError, asyncio.CancelledError):
            self.cancelled += 1
            raise
        if self.script.end_early:
            await answer.write_eof()
            return answer
        reason = self.script.reason
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        await answer.write(b"data: " + json.dumps(end).encode() + b"\n\n")
        if (body.get("stream_options") or {}).get("include_usage"):
            last = {"choices": [], "usage": usage}
            await answer.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        await answer.write_eof()
        self.served += 1
        if self.script.close_after_stream and request.transport is not None:
            asyncio.get_running_loop().call_soon(request.transport.close)
        return answer

    async def replay(self, request: web.Request, is_stream: bool) -> web.StreamResponse:
        """Answer with what a real engine said once."""
        recording = json.loads(Path(self.script.conversation).read_text())
        if not is_stream:
            return web.json_response(recording["whole"])
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for chunk in recording["stream"]:
            await answer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        await answer.write_eof()
        return answer

    async def template(self, request: web.Request) -> web.Response:
        messages = (await request.json())["messages"]
        return web.json_response({"prompt": " ".join(str(m["content"]) for m in messages)})

    async def detokenize(self, request: web.Request) -> web.Response:
        tokens = (await request.json())["tokens"]
        return web.json_response({"content": " ".join(WORDS[t % len(WORDS)] for t in tokens)})

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        text = "".join([word async for word in self.tokens(body.get("max_tokens") or 4)])
        usage = {"prompt_tokens": len(str(body["prompt"]).split()), "completion_tokens": 4}
        choice = {"text": text, "finish_reason": "length"}
        if not body.get("stream"):
            return web.json_response({"choices": [choice], "usage": usage})
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        for chunk in ({"choices": [choice]}, {"choices": [], "usage": usage}):
            await answer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def embeddings(self, request: web.Request) -> web.Response:
        texts = (await request.json())["input"]
        texts = [texts] if isinstance(texts, str) else texts
        if "break" in texts:
            raise web.HTTPInternalServerError
        sizes = [len(t.split() if isinstance(t, str) else t) for t in texts]
        if self.script.context and max(sizes) > self.script.context:
            return web.json_response({"error": TOO_LONG}, status=400)
        data = [{"index": i, "embedding": [len(t), 1.0, 0.5]} for i, t in enumerate(texts)]
        return web.json_response({"data": data, "usage": {"prompt_tokens": 3}})

    async def eat(self) -> None:
        while True:
            self.eaten.append(os.urandom(1) * (self.script.eat_mib_per_s << 20) + os.urandom(1))
            await asyncio.sleep(1.0)

    async def run(self) -> None:
        if self.script.garbage:
            server = await asyncio.start_unix_server(_answer_garbage, self.script.host)
            await server.serve_forever()
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/fake/state", self.state)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/detokenize", self.detokenize)
        app.router.add_post("/apply-template", self.template)
        app.router.add_post("/v1/completions", self.complete)
        if self.script.embed:
            app.router.add_post("/v1/embeddings", self.embeddings)
        app.router.add_post("/slots/{slot}", self.slot)
        app.router.add_post("/v1/chat/completions", self.chat)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.UnixSite(runner, self.script.host).start()
        await asyncio.sleep(self.script.load_s)
        self.ready = not self.script.never_ready
        eater = asyncio.create_task(self.eat()) if self.script.eat_mib_per_s else None
        await asyncio.Event().wait()
        del eater


async def _answer_garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x00\x01 this is not HTTP\r\n\r\n")
    writer.close()


def main() -> None:
    script = parse()
    if script.fail:
        sys.stderr.write(script.fail + "\n")
        sys.exit(3)
    if script.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if script.grandchild:
        code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    asyncio.run(Engine(script).run())


if __name__ == "__main__":
    main()
