"""How llama.cpp is built: machine → flags, as a table; jobs; what names a build; ninja's steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.build_failure import build_failure
from enginehouse.core.diagnose_facts import Facts
from enginehouse.core.diagnose_scan import scan
from enginehouse.core.diagnose_verdict import judge
from enginehouse.core.errors import EngineError, MachineError, UserError
from enginehouse.core.machine import Gpu, Machine
from enginehouse.core.native_build import (
    IK_LLAMA_CPP,
    LLAMA_CPP,
    Recipe,
    Toolchain,
    Toolkit,
    build_number,
    choose_jobs,
    choose_recipe,
    key_of,
    name_build,
    oldest_cmake,
    read_nvcc_version,
    read_step,
    read_version,
)
from enginehouse.knowledge.patterns import load_book
from tests.machines import examine
from tests.unit.values import MACHINE

CUDA_12 = Toolkit("/usr/local/cuda/bin/nvcc", (12, 6))
CUDA_13 = Toolkit("/usr/local/cuda/bin/nvcc", (13, 0))
CPU_ONLY: dict[str, str] = {}


def with_cuda(architectures: str, **more: str) -> dict[str, str]:
    """The flags that a build with CUDA has beside the base."""
    return {
        "GGML_CUDA": "ON",
        "CMAKE_CUDA_COMPILER": "/usr/local/cuda/bin/nvcc",
        "CMAKE_CUDA_ARCHITECTURES": architectures,
        **more,
    }


TEGRA = {"GGML_CUDA_NO_VMM": "ON"}
TABLE = [
    # recorded machine, toolkit, what the user says, the flags beside the base
    ("container-2-cores-4gb", None, None, CPU_ONLY),
    ("container-2-cores-4gb", CUDA_12, None, CPU_ONLY),
    ("old-x86-no-avx2", None, None, CPU_ONLY),
    ("raspberry-pi-5", None, None, CPU_ONLY),
    ("strix-halo", None, None, CPU_ONLY),
    ("x86-one-rtx-3090", CUDA_12, None, with_cuda("86-real")),
    ("x86-one-rtx-3090", CUDA_12, True, with_cuda("86-real")),
    ("x86-one-rtx-3090", CUDA_12, False, CPU_ONLY),
    ("x86-one-rtx-3090", None, None, CPU_ONLY),
    ("x86-two-rtx-4090", CUDA_12, None, with_cuda("89-real")),
    ("wsl2-gtx-1650", CUDA_12, None, with_cuda("75-real")),
    ("dgx-spark", CUDA_13, None, with_cuda("121-real")),
    ("orin-nx-16gb-l4t-36.4.7", CUDA_12, None, with_cuda("87-real", **TEGRA)),
    ("orin-nx-16gb-l4t-36.4.7", None, None, CPU_ONLY),
    ("agx-orin-64gb", CUDA_12, None, with_cuda("87-real", **TEGRA)),
    ("xavier-nx-jetpack-5", CUDA_12, None, with_cuda("72-real", **TEGRA)),
    ("thor", CUDA_13, None, with_cuda("110-real", **TEGRA)),
    ("thor", CUDA_12, None, with_cuda("101-real", **TEGRA)),
]


@pytest.mark.parametrize(("name", "toolkit", "wants", "more"), TABLE)
def test_flags_follow_from_the_machine(
    name: str, toolkit: Toolkit | None, wants: bool | None, more: dict[str, str]
) -> None:
    """CUDA where a GPU of NVIDIA and its toolkit are, for that GPU; no VMM on a Jetson."""
    recipe = choose_recipe(examine(name).machine, toolkit, wants)
    assert dict(recipe.flags) == {**dict(LLAMA_CPP.flags), **more}
    assert recipe.has_cuda is bool(more)


def test_every_build_is_native_and_whole_in_its_programs() -> None:
    """A build uses all this CPU can, is optimised, needs no library beside it and no network."""
    assert LLAMA_CPP.flags == (
        ("CMAKE_BUILD_TYPE", "Release"),
        ("GGML_NATIVE", "ON"),
        ("BUILD_SHARED_LIBS", "OFF"),
        ("GGML_CCACHE", "OFF"),
        ("LLAMA_BUILD_TESTS", "OFF"),
        ("LLAMA_BUILD_EXAMPLES", "OFF"),
        ("LLAMA_BUILD_APP", "OFF"),
        ("LLAMA_BUILD_UI", "OFF"),
        ("LLAMA_USE_PREBUILT_UI", "OFF"),
        ("LLAMA_OPENSSL", "OFF"),
    )
    assert choose_recipe(MACHINE, None, None).defines[:2] == (
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_NATIVE=ON",
    )


def test_the_fork_is_built_for_the_same_machine_with_flags_of_its_own() -> None:
    """As native, whole and offline as llama.cpp, with CUDA for the same GPUs."""
    flags = dict(choose_recipe(MACHINE, None, None, IK_LLAMA_CPP).flags)
    assert (
        flags.items()
        >= {
            "CMAKE_BUILD_TYPE": "Release",
            "GGML_NATIVE": "ON",
            "BUILD_SHARED_LIBS": "OFF",
            "LLAMA_CURL": "OFF",
            "LLAMA_SERVER_SSL": "OFF",
        }.items()
    )
    orin = examine("orin-nx-16gb-l4t-36.4.7").machine
    with_cuda_here = dict(choose_recipe(orin, CUDA_12, None, IK_LLAMA_CPP).flags)
    assert with_cuda_here == {**flags, **with_cuda("87-real", **TEGRA)}
    with pytest.raises(UserError) as refused:
        choose_recipe(MACHINE, None, True, IK_LLAMA_CPP)
    assert "ik_llama.cpp" in str(refused.value)


def test_gpus_of_two_kinds_are_both_built_for() -> None:
    """Each compute capability stands once, in order; one that is not told leaves it to CMake."""
    gpus = [Gpu(f"GPU {arch}", "NVIDIA", arch=arch) for arch in ("8.9", "8.6", "8.6")]
    flags = dict(choose_recipe(replace(MACHINE, gpus=tuple(gpus)), CUDA_12, None).flags)
    assert flags["CMAKE_CUDA_ARCHITECTURES"] == "86-real;89-real"
    silent = replace(MACHINE, gpus=(*gpus, Gpu("a GPU", "nvidia")))
    recipe = choose_recipe(silent, CUDA_12, None)
    assert dict(recipe.flags)["CMAKE_CUDA_ARCHITECTURES"] == "native"
    assert oldest_cmake(recipe) == (3, 24)


@pytest.mark.parametrize(
    ("machine", "toolkit", "missing"),
    [
        (MACHINE, CUDA_12, "no NVIDIA GPU is seen here"),
        (replace(MACHINE, gpus=(Gpu("a GPU", "nvidia", arch="8.9"),)), None, "(no nvcc)"),
        (replace(MACHINE, gpus=(Gpu("Radeon", "amd"),)), CUDA_12, "no NVIDIA GPU is seen here"),
    ],
)
def test_cuda_that_cannot_be_had_is_refused(
    machine: Machine, toolkit: Toolkit | None, missing: str
) -> None:
    """Who asks for CUDA and lacks the GPU or the toolkit is told which, and gets no CPU build."""
    with pytest.raises(UserError) as caught:
        choose_recipe(machine, toolkit, True)
    assert caught.value.report.id == "build.no_cuda"
    assert missing in caught.value.report.what


@pytest.mark.parametrize(
    ("cores", "available_gib", "jobs"), [(4, 12, 4), (4, 4, 2), (8, 1, 1), (1, 64, 1), (2, 3, 2)]
)
def test_jobs_fit_cores_and_memory(cores: int, available_gib: int, jobs: int) -> None:
    """A compiler a core, but each has 1.5 GiB; one always runs."""
    machine = replace(MACHINE, usable_cores=cores, memory_available_bytes=available_gib << 30)
    assert choose_jobs(machine) == jobs


def test_a_build_with_cuda_needs_a_newer_cmake_and_more_room() -> None:
    """What is asked of tools and disk follows from what is built."""
    plain = choose_recipe(MACHINE, None, None)
    cuda = choose_recipe(examine("agx-orin-64gb").machine, CUDA_12, None)
    assert (oldest_cmake(plain), oldest_cmake(cuda)) == ((3, 14), (3, 18))
    assert cuda.disk_bytes > 4 * plain.disk_bytes > 1 << 30


@pytest.mark.parametrize(
    ("version", "number", "name"),
    [
        ("2026.10.11549", "11549", "b11549-cuda"),
        ("2026.10.11549.post1", "11549", "b11549-cuda"),
        ("0.2.7", "", "0.2.7-cuda"),
        ("2026.10.3", "", "2026.10.3-cuda"),
    ],
)
def test_a_build_has_llama_cpps_number(version: str, number: str, name: str) -> None:
    """The package's version ends in llama.cpp's build number; else it stands whole."""
    assert build_number(version) == number
    assert name_build(version, Recipe((), True, "")) == name
    assert name_build(version, Recipe((), False, "")) == name.removesuffix("-cuda")


def test_a_key_names_all_that_a_build_depends_on() -> None:
    """Another source, flag, compiler, toolkit or CPU is another build; anything else is not."""
    tools = Toolchain("/usr/bin/cmake", (3, 25), "/usr/bin/ninja", "gcc 12", CUDA_12)
    key = key_of("s" * 64, LLAMA_CPP.flags, tools, MACHINE)
    others = [
        key_of("t" * 64, LLAMA_CPP.flags, tools, MACHINE),
        key_of("s" * 64, LLAMA_CPP.flags[1:], tools, MACHINE),
        key_of("s" * 64, LLAMA_CPP.flags, replace(tools, compiler="gcc 13"), MACHINE),
        key_of("s" * 64, LLAMA_CPP.flags, replace(tools, toolkit=CUDA_13), MACHINE),
        key_of("s" * 64, LLAMA_CPP.flags, tools, replace(MACHINE, cpu_model="another")),
        key_of("s" * 64, LLAMA_CPP.flags, tools, replace(MACHINE, isa=("avx2", "avx512f"))),
    ]
    assert len({key, *others}) == 7
    busier = replace(MACHINE, memory_available_bytes=1, usable_cores=1)
    moved = replace(tools, cmake="/opt/cmake", cmake_version=(3, 30))
    assert key_of("s" * 64, LLAMA_CPP.flags, moved, busier) == key


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("[12/223] Building CXX object a.o", (12, 223)),
        ("[223/223] Linking CXX executable bin/llama-server", (223, 223)),
        ("FAILED: [code=1] a.o", None),
        ("-- [1/2] is not at the line's start", None),
        ("[ 12%] Building CXX object a.o", None),
    ],
)
def test_ninjas_steps_are_read(line: str, step: tuple[int, int] | None) -> None:
    """Done and all of `[n/m]`; no other line counts."""
    assert read_step(line) == step


def test_versions_are_read_as_programs_print_them() -> None:
    """CMake's dotted number, nvcc's release; nothing of what is no version."""
    assert read_version("cmake version 3.25.1\n\nCMake suite") == (3, 25, 1)
    assert read_version("command not found") == ()
    told = "Cuda compilation tools, release 12.6, V12.6.68\nBuild cuda_12.6.r12.6/compiler"
    assert read_nvcc_version(told) == (12, 6)
    assert read_nvcc_version("gcc 12.2") == ()


def failure_of(log: str) -> EngineError | MachineError:
    """The error of a build that ended with exit code 1 and this log."""
    verdict = judge(load_book(), scan([log.encode()], load_book()), Facts(exit_code=1))
    error = build_failure("building llama.cpp b1", "exit code 1", verdict, "/c/build.log")
    assert isinstance(error, (EngineError, MachineError))
    return error


def test_a_failed_build_is_told_by_its_log() -> None:
    """The cause is the signature book's, with the line, the log and what to do first."""
    log = (
        "[3/9] Building CXX object a.o\nFAILED: [code=1] b.o\n/usr/bin/c++ -o b.o -c b.cpp\n"
        "c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\n"
        "ninja: build stopped: subcommand failed.\n"
    )
    report = failure_of(log).report
    assert report.id == "build.host_oom"
    assert report.turn == "machine"
    assert report.evidence[0] == "exit code 1"
    assert report.evidence[-1] == "/c/build.log"
    assert any("(log line 4)" in line for line in report.evidence)
    assert "--jobs 1" in report.remedies[0]


def test_a_build_that_failed_for_unknown_reasons_says_so() -> None:
    """No signature, no cause: the line that speaks of trouble, and where the log is."""
    report = failure_of("[1/2] Building\nzzz: cannot frobnicate the widget\n").report
    assert report.id == "build.failed"
    assert "the cause is unknown" in report.what
    assert "enginehouse explain /c/build.log" in report.remedies
