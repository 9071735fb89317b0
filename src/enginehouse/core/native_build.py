"""How an engine is built for the machine in front of us: machine → CMake's flags, jobs, space.

llama.cpp and its fork ik_llama.cpp are. Options as in llama.cpp b11549 (`CMakeLists.txt`,
`ggml/CMakeLists.txt`); its `LLAMA_CURL` is gone, a server without HTTPS needs `LLAMA_OPENSSL` off.
The fork's as in the source inside ik-llama-cpp-python 0.1.5.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from enginehouse.core.errors import UserError
from enginehouse.core.machine import Gpu, Machine, digest_of

SERVER = "llama-server"
TARGETS = (SERVER, "llama-quantize", "llama-bench", "llama-perplexity")
JOB_BYTES = 3 << 29
"""Memory for one compiler: 1.5 GiB. On x86 with GCC 12 none took more than 616 MiB of it."""
SOURCE_BYTES = 260 << 20
"""The source, packed (36 MiB) and unpacked (180 MiB), with room for it to grow; the fork's is
smaller."""
OBJECTS_BYTES, CUDA_OBJECTS_BYTES = 300 << 20, 3 << 30
"""Objects and programs: 118 MiB without CUDA (x86, GCC 12); with CUDA a cautious guess."""
OLDEST_CMAKE, OLDEST_CMAKE_FOR_CUDA = (3, 14), (3, 18)
CMAKE_WITH_NATIVE = (3, 24)
"""Since then CMake finds the architecture of the GPU itself (`native`)."""
THOR_IN_OLD_CUDA = {"110": "101"}
"""Thor's compute capability is 11.0 since CUDA 13, and was 10.1 before."""

Flags = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Source:
    """What is built: an engine, out of a folder of a package's source distribution.

    `flags` are CMake's for every machine. `files` are text by its path in that folder: what the
    package left out of it and the build wants.
    """

    engine: str
    package: str
    folder: str
    flags: Flags
    files: tuple[tuple[str, str], ...] = ()


COMMON_FLAGS = (
    ("CMAKE_BUILD_TYPE", "Release"),
    ("GGML_NATIVE", "ON"),
    ("BUILD_SHARED_LIBS", "OFF"),  # programs that can be moved, and one digest for all that runs
    ("GGML_CCACHE", "OFF"),
    ("LLAMA_BUILD_TESTS", "OFF"),
)
LLAMA_CPP = Source(
    "llama.cpp",
    "xllamacpp",
    "thirdparty/llama.cpp",
    (
        *COMMON_FLAGS,
        ("LLAMA_BUILD_EXAMPLES", "OFF"),
        ("LLAMA_BUILD_APP", "OFF"),
        ("LLAMA_BUILD_UI", "OFF"),
        ("LLAMA_USE_PREBUILT_UI", "OFF"),  # else the build fetches a web page from a model hub
        ("LLAMA_OPENSSL", "OFF"),
    ),
)
BUILD_INFO = """set(BUILD_NUMBER 0)
set(BUILD_COMMIT "unknown")
set(BUILD_COMPILER "${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")
set(BUILD_TARGET "unknown")
configure_file("common/build-info.cpp.in" "common/build-info.cpp")
"""
"""A CMake script that writes what `--version` says: the distribution has lost its own, which asks
git, and there is no checkout to ask about."""
IK_LLAMA_CPP = Source(
    "ik_llama.cpp",
    "ik-llama-cpp-python",
    "vendor/ik_llama.cpp",
    (
        *COMMON_FLAGS,
        ("LLAMA_ALL_WARNINGS", "OFF"),  # else 660,000 lines of them with GCC 12
        ("GGML_ALL_WARNINGS", "OFF"),
        ("LLAMA_CURL", "OFF"),
        ("LLAMA_SERVER_SSL", "OFF"),
        ("GGML_IQK_FA_ALL_QUANTS", "OFF"),  # caches of q6_0 and iq4_nl, for minutes of compiling
    ),
    (("common/cmake/build-info-gen-cpp.cmake", BUILD_INFO),),
)
SOURCES = {source.engine: source for source in (LLAMA_CPP, IK_LLAMA_CPP)}
"""All that can be built, by engine."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: the path of its compiler, and its version such as (13, 0)."""

    nvcc: str
    version: tuple[int, ...]


@dataclass(frozen=True)
class Toolchain:
    """What is there to build with; the versions are as the programs print them."""

    cmake: str
    cmake_version: tuple[int, ...]
    ninja: str
    compiler: str = ""
    toolkit: Toolkit | None = None


@dataclass(frozen=True)
class Recipe:
    """What is built here: CMake's flags, whether with CUDA, and why so, in words."""

    flags: Flags
    has_cuda: bool
    why: str

    @property
    def defines(self) -> tuple[str, ...]:
        """The flags as CMake's command line takes them."""
        return tuple(f"-D{name}={value}" for name, value in self.flags)

    @property
    def disk_bytes(self) -> int:
        """The space that a build takes at its largest."""
        return SOURCE_BYTES + (CUDA_OBJECTS_BYTES if self.has_cuda else OBJECTS_BYTES)


def choose_recipe(
    machine: Machine,
    toolkit: Toolkit | None,
    wants_cuda: bool | None,
    source: Source = LLAMA_CPP,
) -> Recipe:
    """Return how to build a source on a machine; with CUDA where it can be, unless the user says.

    Raises:
        UserError: `build.no_cuda`, when CUDA is asked for and cannot be had.
    """
    gpus = tuple(gpu for gpu in machine.gpus if gpu.vendor.lower() == "nvidia")
    missing = _missing_for_cuda(gpus, toolkit)
    if wants_cuda and missing:
        raise UserError(
            "build.no_cuda",
            f"{source.engine} cannot be built with CUDA here: {missing}",
            evidence=(f"GPUs: {', '.join(gpu.name for gpu in machine.gpus) or 'none seen'}",),
            remedies=(
                "install NVIDIA's driver and CUDA toolkit (nvcc); on a Jetson: nvidia-jetpack",
                f"enginehouse engines build {source.engine} --no-cuda",
            ),
        )
    if toolkit is None or missing or wants_cuda is False:
        why = "--no-cuda was asked for" if wants_cuda is False else missing
        return Recipe(source.flags, False, f"for this CPU, without CUDA: {why}")
    architectures = cuda_architectures(gpus, toolkit)
    flags = [
        *source.flags,
        ("GGML_CUDA", "ON"),
        ("CMAKE_CUDA_COMPILER", toolkit.nvcc),
        ("CMAKE_CUDA_ARCHITECTURES", architectures),
    ]
    if is_tegra(machine):
        flags.append(("GGML_CUDA_NO_VMM", "ON"))
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    version = ".".join(str(part) for part in toolkit.version)
    return Recipe(tuple(flags), True, f"for this CPU and {names}, with CUDA {version}")


def _missing_for_cuda(gpus: Sequence[Gpu], toolkit: Toolkit | None) -> str:
    """Say what a build with CUDA lacks, empty when nothing."""
    if not gpus:
        return "no NVIDIA GPU is seen here"
    return "" if toolkit else "no CUDA toolkit is found (no nvcc)"


def is_tegra(machine: Machine) -> bool:
    """Return whether it is a Jetson, whose driver has no virtual memory management for CUDA."""
    return bool(machine.l4t) or "jetson" in machine.kinds


def cuda_architectures(gpus: Sequence[Gpu], toolkit: Toolkit) -> str:
    """Return CMake's list of the GPUs' compute capabilities; `native` where one is not known."""
    known = [re.fullmatch(r"(\d+)\.(\d+)", gpu.arch) for gpu in gpus]
    numbers = {match[1] + match[2] for match in known if match}
    if not all(known) or not numbers:
        return "native"
    if toolkit.version < (13,):
        numbers = {THOR_IN_OLD_CUDA.get(number, number) for number in numbers}
    return ";".join(f"{number}-real" for number in sorted(numbers, key=int))


def choose_jobs(machine: Machine) -> int:
    """Return how many compilers run at once: a core each, fewer where memory is short."""
    return max(1, min(machine.usable_cores, machine.memory_available_bytes // JOB_BYTES))


def oldest_cmake(recipe: Recipe) -> tuple[int, ...]:
    """Return the oldest CMake that can do this."""
    if ("CMAKE_CUDA_ARCHITECTURES", "native") in recipe.flags:
        return CMAKE_WITH_NATIVE
    return OLDEST_CMAKE_FOR_CUDA if recipe.has_cuda else OLDEST_CMAKE


def name_build(version: str, recipe: Recipe) -> str:
    """Return a build's version: llama.cpp's own build number where the package's tells it."""
    number = build_number(version)
    return (f"b{number}" if number else version) + ("-cuda" if recipe.has_cuda else "")


def build_number(version: str) -> str:
    """Return llama.cpp's build number out of `2026.10.11549`, empty when there is none in it."""
    match = re.fullmatch(r"\d{4}\.\d+\.(\d{4,})(?:\.post\d+)?", version)
    return match[1] if match else ""


def key_of(source_sha256: str, flags: Flags, toolchain: Toolchain, machine: Machine) -> str:
    """Name all that a build depends on, in 12 hex digits: equal ones need no second build.

    The CPU is among it: a native build made on one machine need not run on another that shares the
    folder.
    """
    parts = (
        source_sha256, flags, toolchain.compiler, toolchain.toolkit, machine.architecture,
        machine.cpu_model, machine.isa,
    )  # fmt: skip
    return digest_of(repr(parts))[:12]


def read_step(line: str) -> tuple[int, int] | None:
    """Return done and all of ninja's `[12/223] Building …`, None when it is another line."""
    match = re.match(r"\[(\d+)/(\d+)\] ", line)
    return (int(match[1]), int(match[2])) if match else None


def read_version(text: str) -> tuple[int, ...]:
    """Return the first dotted number in what a program prints, empty when there is none."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def read_nvcc_version(text: str) -> tuple[int, ...]:
    """Return the release that `nvcc --version` prints, such as (12, 6); empty when none."""
    match = re.search(r"release (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else ()
