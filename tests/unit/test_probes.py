"""Probes over machines made of values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enginehouse.core.machine import Gpu, Machine
from enginehouse.core.machine_of import machine_of
from enginehouse.edges.machine.containers import DOCKER, container_facts
from enginehouse.edges.machine.cpu import count_cpus, cpu_facts
from enginehouse.edges.machine.engines import engine_facts
from enginehouse.edges.machine.jetson import best_mode, jetson_facts
from enginehouse.edges.machine.kind import kind_facts
from enginehouse.edges.machine.memory import memory_facts
from enginehouse.edges.machine.nvidia import nvidia_facts
from enginehouse.edges.machine.other_gpus import other_gpu_facts
from enginehouse.edges.seam import Answer
from tests.unit.fake_source import FakeSource, facts_of, known_facts
from tests.unit.values import MACHINE

MEMINFO = "MemTotal: 8000000 kB\nMemFree: 1000000 kB\nMemAvailable: 6000000 kB\nCached: 5000000 kB"
CPUINFO = "".join(f"processor : {n}\nphysical id : 0\ncore id : {n // 2}\n" for n in range(8))
V2 = {
    "/proc/self/cgroup": "0::/box/inner",
    "/sys/fs/cgroup/box/memory.max": str(2 << 30),
    "/sys/fs/cgroup/box/memory.current": str(1 << 30),
    "/sys/fs/cgroup/box/memory.stat": f"anon 1\ninactive_file {256 << 20}",
    "/sys/fs/cgroup/box/inner/memory.max": "max",
    "/sys/fs/cgroup/box/inner/cpu.max": "150000 100000",
}
V1 = {
    "/proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box",
    "/sys/fs/cgroup/memory/box/memory.limit_in_bytes": str(2 << 30),
    "/sys/fs/cgroup/memory/box/memory.usage_in_bytes": str(1 << 30),
    "/sys/fs/cgroup/memory/box/memory.stat": f"total_inactive_file {256 << 20}",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(1 << 62),
    "/sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000",
    "/sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
}


@pytest.mark.parametrize("limits", [V1, V2], ids=["v1", "v2"])
def test_cgroups_limit_memory_and_cores(limits: dict[str, str]) -> None:
    """The tightest limit over a cgroup and its parents counts, without the cache it could drop."""
    source = FakeSource({"/proc/meminfo": MEMINFO, "/proc/cpuinfo": CPUINFO, **limits})
    memory, cpu = facts_of(memory_facts, source), facts_of(cpu_facts, source)
    assert memory.get("memory.limit_bytes") == 2 << 30
    assert memory.get("memory.limit_used_bytes") == 768 << 20
    assert memory.get("memory.available_bytes") == (2 << 30) - (768 << 20)
    assert cpu.get("cpu.quota_cores") == 1.5
    assert (cpu.get("cpu.usable_cores"), cpu.get("cpu.physical_cores")) == (2, 4)


def test_the_cpuset_limits_the_cores() -> None:
    """Cores that this process may not run on are not usable."""
    files = {"/proc/cpuinfo": CPUINFO, "/proc/self/status": "Cpus_allowed_list:\t0,2-3"}
    assert facts_of(cpu_facts, FakeSource(files)).get("cpu.usable_cores") == 3


@pytest.mark.parametrize(("ranges", "count"), [("0-3,7", 5), ("0", 1), ("", 0)])
def test_count_cpus(ranges: str, count: int) -> None:
    """The kernel's lists are counted."""
    assert count_cpus(ranges) == count


def test_zram_and_pressure_are_seen() -> None:
    """Swap in memory and tasks that wait for memory are facts."""
    files = {
        "/proc/meminfo": MEMINFO,
        "/sys/block/zram0/disksize": "1000",
        "/sys/block/zram0/mm_stat": "900 300 320 0 320 0 0",
        "/sys/block/zram1/disksize": "0",
        "/proc/pressure/memory": "some avg10=12.50 avg60=1.0\nfull avg10=3.00 avg60=0",
    }
    facts = facts_of(memory_facts, FakeSource(files))
    assert facts.get("memory.zram_bytes") == 1000
    assert facts.get("memory.zram_used_bytes") == 320
    assert facts.get("memory.pressure_some_percent") == 12.5


@pytest.mark.parametrize(
    ("modes", "best"),
    [
        ([("0", "15W"), ("1", "25W"), ("2", "MAXN_SUPER"), ("3", "7W")], ("2", "MAXN_SUPER")),
        ([("0", "MAXN"), ("1", "10W"), ("3", "25W")], ("0", "MAXN")),
        ([("2", "MODE_15W_6CORE"), ("6", "MODE_20W_2CORE"), ("8", "MODE_20W_6CORE")],
         ("8", "MODE_20W_6CORE")),
    ],
)  # fmt: skip
def test_the_best_power_mode_is_found_by_name(
    modes: list[tuple[str, str]], best: tuple[str, str]
) -> None:
    """Ids say nothing: MAXN_SUPER, then MAXN, then the most watts and cores."""
    assert best_mode(modes) == best


def test_l4t_without_its_file_is_asked_of_the_package() -> None:
    """In a container the release file is missing; the package still says the version."""
    package = ("dpkg-query", "-W", "-f=${Version}", "nvidia-l4t-core")
    source = FakeSource(
        {"/proc/device-tree/model": "NVIDIA Jetson AGX Orin"},
        {package: Answer(0, "36.4.7-20250918154033")},
    )
    facts = facts_of(jetson_facts, source)
    assert (facts.get("jetson.l4t"), facts.get("jetson.l4t_major")) == ("36.4.7", 36)


def test_other_machines_have_no_jetson_facts() -> None:
    """Nothing of a Jetson is said of another machine."""
    assert not facts_of(jetson_facts, FakeSource({"/proc/meminfo": MEMINFO})).all


def test_nvidia_smi_that_fails_is_a_fact() -> None:
    """A driver that does not answer is said with the first line of the complaint."""
    query = "--query-gpu=name,driver_version,memory.total,memory.free,compute_cap"
    argv = ("nvidia-smi", query, "--format=csv,noheader,nounits")
    source = FakeSource({}, {argv: Answer(9, "NVIDIA-SMI has failed\nMake sure that")})
    facts = facts_of(nvidia_facts, source)
    assert facts.get("nvidia.smi_error") == "NVIDIA-SMI has failed"


def test_nvml_that_knows_no_memory_leaves_it_unknown() -> None:
    """Unified memory: no size is made up where NVML says «not supported»."""
    device = {
        "name": "NVIDIA GB10", "arch": "12.1", "memory_total_bytes": None,
        "memory_free_bytes": None, "users": [[7, "python3", None]],
    }  # fmt: skip
    nvml = {"driver": "580.1", "cuda": "13.0", "devices": [device]}
    facts = facts_of(nvidia_facts, FakeSource(answers={"nvml": nvml}))
    assert facts.holds("gpu.nvidia0.unified")
    assert "gpu.nvidia0.memory_total_bytes" not in facts
    (gpu,) = machine_of(facts).gpus
    assert (gpu.users[0].name, gpu.users[0].memory_bytes) == ("python3", None)


def amd(vram: int, gtt: int, version: int) -> Gpu:
    """The GPU that an AMD card's files show."""
    folder = "/sys/class/drm/card0/device"
    files = {
        f"{folder}/vendor": "0x1002",
        f"{folder}/mem_info_vram_total": str(vram),
        f"{folder}/mem_info_vram_used": "0",
        f"{folder}/mem_info_gtt_total": str(gtt),
        "/sys/class/kfd/kfd/topology/nodes/1/properties": f"gfx_target_version {version}",
    }
    return machine_of(facts_of(other_gpu_facts, FakeSource(files))).gpus[0]


def test_an_apu_is_told_from_a_card() -> None:
    """A GPU in the processor shares the memory, unless most of it was carved out for it."""
    assert amd(1 << 30, 60 << 30, 110501).unified
    assert not amd(96 << 30, 15 << 30, 110501).unified
    card = amd(16 << 30, 128 << 30, 110000)
    assert (card.unified, card.memory_total_bytes, card.arch) == (False, 16 << 30, "gfx1100")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0"}, "raspberry-pi"),
        ({"/proc/sys/kernel/osrelease": "5.15.146.1-microsoft-standard-WSL2"}, "wsl2"),
        ({"/.dockerenv": ""}, "container"),
        ({"/proc/self/cgroup": "0::/kubepods/pod1"}, "container"),
        ({"/sys/class/dmi/id/sys_vendor": "QEMU"}, "virtual-machine"),
        ({"/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3"}, "jetson"),
    ],
)
def test_the_kind_of_machine_is_named(files: dict[str, str], kind: str) -> None:
    """Boards, WSL2, containers and virtual machines are named as such."""
    assert facts_of(kind_facts, FakeSource(files)).get("machine.kinds") == (kind,)


def test_engines_say_what_they_were_built_for() -> None:
    """llama-server, vLLM and Ollama tell backend, CUDA and models."""
    site = "~/env/lib/python3.12/site-packages"
    store = "~/.ollama/models/manifests"
    source = FakeSource(
        {
            f"{site}/vllm-0.20.2.dist-info": "",
            f"{site}/torch/version.py": "__version__ = '2.10.0+cu129'\ncuda = '12.9'",
            f"{store}/registry.ollama.ai/library/qwen3/4b": "",
            f"{store}/registry.ollama.ai/me/mine/latest": "",
        },
        {
            ("llama-server", "--version"): Answer(0, "version: 9 (abc)\nbuilt with gcc for x86"),
            ("llama-server", "--list-devices"): Answer(0, "Available devices:\n  Vulkan0: a GPU"),
        },
    )
    facts = facts_of(engine_facts, source)
    assert facts.get("engine.llama_server.built_for") == ("Vulkan",)
    assert facts.get("engine.python0.cuda_major") == 12
    assert facts.get("engine.python0.path") == site
    assert facts.get("engine.ollama.models") == ("qwen3:4b", "me/mine:latest")


def test_the_fork_of_llama_cpp_is_told_by_its_flags() -> None:
    """Both servers say their version alike; a high number is llama.cpp's without asking more."""

    def name_of(number: int, flags: str) -> object:
        commands: dict[tuple[str, ...], Answer] = {
            ("llama-server", "--version"): Answer(0, f"version: {number} (abc)"),
            ("llama-server", "--help"): Answer(0, flags),
        }
        facts = facts_of(engine_facts, FakeSource({}, commands))
        return facts.get("engine.llama_server.name")

    assert name_of(4000, "-rtr, --run-time-repack  repack") == "ik_llama.cpp"
    assert name_of(4000, "--repack") == "llama.cpp"
    assert name_of(9000, "--run-time-repack") == "llama.cpp"


def test_docker_without_its_daemon_is_said() -> None:
    """What was configured still tells whether containers would reach the GPU."""
    files = {"/etc/docker/daemon.json": '{"runtimes": {"nvidia": {}}}'}
    facts = facts_of(container_facts, FakeSource(files, {DOCKER: Answer(1, "||\nError: denied")}))
    assert facts.get("container.docker_refuses") == "Error: denied"
    assert facts.holds("container.docker_reaches_gpu")


def test_the_fingerprint_of_known_machines_stays() -> None:
    """Choices that were stored before drivers and power modes were known still hold."""
    assert MACHINE.fingerprint() == "76b847d4f559960e"
    gpu = Gpu("NVIDIA GeForce RTX 3090", "nvidia")
    before = Machine("x86_64", "c", ("avx2",), 2, 2, 1 << 34, 1 << 33, gpus=(gpu,))
    assert before.fingerprint() == "a0eb3f9f6d2c0912"
    updated = replace(before, gpus=(replace(gpu, driver="580.1"),))
    assert updated.fingerprint() != before.fingerprint()


def test_the_roofline_of_unified_memory_is_the_vendors() -> None:
    """What the CPU reads does not bound a GPU on the same memory; elsewhere measuring wins."""
    one = replace(MACHINE, memory_bandwidth_bytes_per_s=30e9, stated_bandwidth_bytes_per_s=102e9)
    assert one.decode_bandwidth_bytes_per_s == 30e9
    shared = replace(one, gpus=(Gpu("NVIDIA Orin", "nvidia", unified=True),))
    assert shared.decode_bandwidth_bytes_per_s == 102e9


def test_a_machine_without_facts_is_still_one() -> None:
    """Nothing known makes an empty machine, not an error."""
    empty = machine_of(known_facts())
    assert (empty.cpu_model, empty.usable_cores, empty.gpus) == ("unknown", 1, ())
