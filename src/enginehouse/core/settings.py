"""Every setting, declared once: its kind, default and meaning; and how values are resolved."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from enginehouse.core.errors import UserError
from enginehouse.core.workload import WORKLOADS

Value = str | int | float | bool

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_S = 100 * 366 * 86400.0
BYTE_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9,
    "kib": 2**10, "mib": 2**20, "gib": 2**30,
}  # fmt: skip
WANTED = {
    "text": "a text",
    "integer": "a whole number",
    "number": "a number that is not negative",
    "duration": 'a duration such as "90s" or "5m"',
    "bytes": 'a size such as "512MiB"',
}
RESERVED = ("STATE_DIR", "CACHE_DIR", "CONFIG_DIR", "LEASE", "API_KEY")


@dataclass(frozen=True)
class Setting:
    """One setting; `kind` is text, integer, number, duration (seconds), bytes, or choice."""

    key: str
    kind: str
    default: Value
    summary: str
    choices: tuple[str, ...] = ()

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "ENGINEHOUSE_" + self.key.upper().replace(".", "_")


SETTINGS: dict[str, Setting] = {
    setting.key: setting
    for setting in (
        Setting("gateway.host", "text", "127.0.0.1", "address the endpoint listens on"),
        Setting("gateway.port", "integer", 11434, "port the endpoint listens on"),
        Setting("gateway.queue_limit", "integer", 256, "requests that may wait"),
        Setting("gateway.request_limit", "bytes", "64MiB", "largest request body"),
        Setting(
            "gateway.truncation",
            "choice",
            "error",
            "what to do with a prompt that is too long",
            ("error", "warn", "shift"),
        ),
        Setting("gateway.body_limit", "duration", "60s", "time for a request's body; 0s for ever"),
        Setting("gateway.time_limit", "duration", "0s", "time for a whole answer; 0s for ever"),
        Setting("gateway.stall_limit", "duration", "60s", "time a client may read nothing"),
        Setting(
            "gateway.responses_kept", "integer", 1000, "responses kept for later ones; 0: none"
        ),
        Setting("gateway.responses_memory", "bytes", "64MiB", "most memory for them"),
        Setting("gateway.responses_retention", "duration", "1h", "time they stay; 0s for ever"),
        Setting("gateway.origins", "text", "", "web pages that may ask, e.g. https://home.lan"),
        Setting("gateway.hosts", "text", "", "further names this endpoint is reached by"),
        Setting(
            "gateway.insecure",
            "choice",
            "no",
            "listen wider than the loopback without keys",
            ("no", "yes"),
        ),
        Setting("gateway.tls_certificate", "text", "", "PEM file of the endpoint's certificate"),
        Setting("gateway.tls_key", "text", "", "PEM file of its key"),
        Setting("log.requests", "choice", "yes", "keep a log of requests", ("yes", "no")),
        Setting("log.content", "choice", "no", "keep prompts and answers in it too", ("no", "yes")),
        Setting("log.retention", "duration", "720h", "how long it is kept; 0s for ever"),
        Setting(
            "telemetry.otlp_endpoint",
            "text",
            "",
            "collector of traces and metrics, e.g. http://127.0.0.1:4318",
        ),
        Setting("engine.llama_cpp.path", "text", "", "a llama-server (or ik_llama.cpp's) to try"),
        Setting("engine.vllm.python", "text", "", "the Python of an environment with vLLM"),
        Setting("engine.ollama.path", "text", "", "an ollama program to try"),
        Setting("engine.llama_cpp.image", "text", "", "an image with a llama-server to try"),
        Setting("engine.vllm.image", "text", "", "an image with vLLM to try"),
        Setting("engine.tensorrt_llm.image", "text", "", "an image with TensorRT-LLM to try"),
        Setting(
            "engine.containers",
            "choice",
            "auto",
            "try known images that are here, in containers",
            ("auto", "off"),
        ),
        Setting("find.workload", "choice", "chat", "workload to find for", tuple(WORKLOADS)),
        Setting("find.budget", "duration", "3m", "time for the trials"),
        Setting("find.ttft_limit", "duration", "0s", "TTFT that a good request keeps; 0s is none"),
        Setting("find.itl_limit", "duration", "0s", "time per token it keeps; 0s is none"),
        Setting("trials.memory_reserve", "bytes", "512MiB", "MemAvailable that trials leave"),
        Setting("trials.disk_budget", "bytes", "20GiB", "most disk for re-quantized models"),
        Setting("trials.disk_reserve", "bytes", "2GiB", "free disk that trials leave"),
        Setting(
            "trials.may_drop_page_cache",
            "choice",
            "no",
            "may a trial empty the page cache (as root)",
            ("no", "yes"),
        ),
        Setting(
            "trials.cgroup",
            "choice",
            "auto",
            "put engines into a memory cgroup where possible",
            ("auto", "off"),
        ),
        Setting(
            "trials.cool_down", "duration", "60s", "longest wait when it throttles; 0s is none"
        ),
        Setting("trials.start_deadline", "duration", "20s", "limit to start the process"),
        Setting("trials.load_deadline", "duration", "5m", "limit to load the model"),
        Setting("trials.first_token_deadline", "duration", "60s", "limit to the first token"),
        Setting("trials.measure_deadline", "duration", "5m", "limit to measure a workload"),
        Setting("quality.kl_limit", "number", 0.20, "most mean KL divergence, nat"),
        Setting("quality.top1_limit", "number", 0.65, "least share of equal most likely tokens"),
        Setting("quality.repeat_limit", "number", 0.35, "most share of text that repeats besides"),
        Setting(
            "serve.models",
            "choice",
            "all",
            "what is offered beside the model that is served",
            ("all", "chosen", "none"),
        ),
        Setting("serve.keep_alive", "duration", "5m", "idle time until such a model is unloaded"),
        Setting("serve.load_wait", "duration", "5m", "longest wait for a model to be loaded"),
        Setting("serve.pin", "text", "", "models that stay loaded, separated by commas"),
        Setting("serve.aliases", "text", "", "further names: gpt-4o=smollm2-135m,…"),
        Setting("serve.fallback", "text", "", "the model to serve by when nothing else starts"),
        Setting("serve.prefix_limit", "bytes", "512MiB", "most memory for saved prompt prefixes"),
        Setting("serve.probe_interval", "duration", "3s", "time between liveness probes"),
        Setting("serve.token_interval", "duration", "15s", "idle time until a token is asked for"),
        Setting("serve.probe_deadline", "duration", "4s", "limit for a liveness probe"),
        Setting("serve.drain_deadline", "duration", "10s", "time for requests to end at stop"),
    )
}


@dataclass(frozen=True)
class Resolved:
    """A setting's value and where it came from."""

    value: Value
    origin: str


@dataclass(frozen=True)
class Settings:
    """All settings with their origins."""

    values: Mapping[str, Resolved]

    def text(self, key: str) -> str:
        """Return a text setting."""
        return str(self.values[key].value)

    def integer(self, key: str) -> int:
        """Return a whole number."""
        return int(self.values[key].value)

    def number(self, key: str) -> float:
        """Return a number."""
        return float(self.values[key].value)

    def seconds(self, key: str) -> float:
        """Return a duration in seconds."""
        return float(self.values[key].value)

    def bytes(self, key: str) -> int:
        """Return a size in bytes."""
        return int(self.values[key].value)


@dataclass(frozen=True)
class Given:
    """A value that somebody gave for a key, and where: `config.toml:3`, a variable, a flag."""

    key: str
    raw: object
    origin: str


def resolve(given: tuple[Given, ...]) -> Settings:
    """Resolve settings: the defaults, overridden by `given` in order (the last one wins).

    Raises:
        UserError: `settings.unknown_key` or `settings.wrong_type`.
    """
    values = {
        setting.key: Resolved(parse_value(setting, setting.default, "default"), "default")
        for setting in SETTINGS.values()
    }
    for item in given:
        setting = SETTINGS.get(item.key)
        if setting is None:
            raise unknown_key(item)
        values[item.key] = Resolved(parse_value(setting, item.raw, item.origin), item.origin)
    return Settings(values)


def given_by_environment(environment: Mapping[str, str]) -> tuple[Given, ...]:
    """Return the settings that environment variables give.

    Raises:
        UserError: `settings.unknown_key` for an ENGINEHOUSE_ variable that means nothing.
    """
    keys = {setting.variable: setting.key for setting in SETTINGS.values()}
    reserved = {f"ENGINEHOUSE_{name}" for name in RESERVED}
    found = []
    for name in sorted(environment):
        if not name.startswith("ENGINEHOUSE_") or name in reserved:
            continue
        if name not in keys:
            nearest = difflib.get_close_matches(name, keys, 1)
            raise UserError(
                "settings.unknown_key",
                f"the environment variable {name} means nothing to Enginehouse",
                evidence=(f"{name}={environment[name]}",),
                remedies=(f"did you mean {nearest[0]}?" if nearest else "unset it",),
            )
        found.append(Given(keys[name], environment[name], f"environment {name}"))
    return tuple(found)


def unknown_key(item: Given) -> UserError:
    """Build the error for a key that does not exist, naming the nearest one."""
    nearest = difflib.get_close_matches(item.key, SETTINGS, 1)
    remedy = f"did you mean {nearest[0]}?" if nearest else "see `enginehouse config show`"
    return UserError(
        "settings.unknown_key",
        f"there is no setting {item.key}",
        evidence=(f"{item.origin}: {item.key} = {item.raw!r}",),
        remedies=(remedy,),
    )


def parse_value(setting: Setting, raw: object, origin: str) -> Value:
    """Parse a raw value by its setting's kind.

    Raises:
        UserError: `settings.wrong_type`, with the key, the value, where it stands, what is wanted.
    """
    value = _parse(setting, raw)
    if value is None:
        wanted = WANTED.get(setting.kind) or "one of " + ", ".join(setting.choices)
        raise UserError(
            "settings.wrong_type",
            f"{setting.key} cannot be {raw!r}",
            evidence=(origin,),
            remedies=(f"{setting.key} wants {wanted}",),
        )
    return value


def _parse(setting: Setting, raw: object) -> Value | None:
    if isinstance(raw, bool):
        return None
    if setting.kind == "text":
        return raw if isinstance(raw, str) else None
    if setting.kind == "choice":
        return raw if isinstance(raw, str) and raw in setting.choices else None
    if setting.kind == "integer":
        if isinstance(raw, str):
            return int(raw) if re.fullmatch(r"-?\d{1,18}", raw) else None
        return raw if isinstance(raw, int) else None
    if setting.kind == "number":
        return _parse_number(raw)
    if setting.kind == "duration":
        return parse_duration(raw)
    return parse_bytes(raw)


def _parse_number(raw: object) -> float | None:
    if isinstance(raw, str) and not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", raw.strip()):
        return None
    value = float(raw) if isinstance(raw, str | int | float) else -1.0
    return value if math.isfinite(value) and value >= 0 else None


def parse_duration(raw: object) -> float | None:
    """Parse `5m`, `1h30m`, `250ms` or a number of seconds; None when it is none of these.

    What is longer than anybody lives is no duration either.
    """
    seconds = _seconds_of(raw)
    return seconds if seconds is not None and 0 <= seconds <= LONGEST_S else None


def _seconds_of(raw: object) -> float | None:
    if isinstance(raw, int | float):
        return min(raw, LONGEST_S + 1.0)
    text = str(raw).strip().lower()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return float(text)
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * DURATION_UNITS[unit] for number, unit in parts)


def parse_bytes(raw: object) -> int | None:
    """Parse `512MiB`, `2GB` or a number of bytes; None when it is none of these."""
    if isinstance(raw, int):
        return raw if raw >= 0 else None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(raw).strip().lower())
    if match is None or match[2] not in BYTE_UNITS:
        return None
    return int(float(match[1]) * BYTE_UNITS[match[2]])
