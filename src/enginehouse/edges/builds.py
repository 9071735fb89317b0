"""Find the engine builds that are here: one finder an engine."""

from __future__ import annotations

from enginehouse.core.candidate import Build
from enginehouse.edges import builds_llama_cpp
from enginehouse.edges.builds_ollama import find_ollama
from enginehouse.edges.builds_tensorrt import find_tensorrt
from enginehouse.edges.builds_vllm import find_vllm


def find_builds(
    llama_server: str = "", vllm_python: str = "", ollama: str = ""
) -> tuple[Build, ...]:
    """Return llama.cpp's builds (the wheel, a `llama-server` named here or on PATH, native ones),
    then vLLM's environments, Ollama's program and TensorRT's.

    What is found in two ways, as a native build is that is named as well, is one build.

    Raises:
        UserError: `engine.not_usable`, when a named program cannot be one.
    """
    found = (
        *builds_llama_cpp.find(llama_server),
        *find_vllm(vllm_python),
        *find_ollama(ollama),
        *find_tensorrt(),
    )
    return tuple({(build.engine, build.digest): build for build in found}.values())
