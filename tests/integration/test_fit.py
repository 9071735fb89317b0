"""`fit` over files, recorded machines and records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.random_gguf import write_random_gguf
from benchmarks.shapes import SHAPES
from click.testing import CliRunner

from enginehouse.cli import cli
from enginehouse.core.correction import Observation, correction_from
from enginehouse.core.estimate_kv import largest_window, window_cells
from enginehouse.core.estimate_llama import LlamaSettings, estimate_llama
from enginehouse.core.estimate_vllm import VllmSettings
from enginehouse.core.fit import FITS, NOT, TIGHT
from enginehouse.core.fit_model import FitRequest, fit_model
from enginehouse.core.fit_vllm import fitting_utilization, start_outcome
from enginehouse.core.llama_graph import Batch, compute_buffer
from enginehouse.core.machine import Machine
from enginehouse.core.model import Model
from enginehouse.edges.dry_load import parse_answer
from enginehouse.edges.examination import examine_recording
from enginehouse.edges.model_files import read_place
from enginehouse.edges.records import Records
from tests.checkpoints import LLAMA_3B, QWEN_7B, write_awq

FOUNDING = Path(__file__).parents[1] / "fixtures/machines/orin-nx-16gb-l4t-36.4.3"
UTILIZATIONS = (0.35, 0.40, 0.50, 0.60, 0.70, 0.80)

LOGGED = [
    ("smollm2-135m", "Q4_K_M", 1024, 1, 512, "on", 15.64),
    ("deepseek2-small", "Q4_0", 1024, 1, 512, "on", 51.01),
    ("deepseek2-small", "Q4_0", 4096, 1, 512, "off", 186.01),
    ("deepseek2-small", "Q4_0", 2048, 2, 256, "off", 59.01),
    ("gemma3-270m", "Q8_0", 1024, 1, 512, "on", 20.28),
    ("gemma3-270m", "Q8_0", 4096, 1, 512, "on", 23.28),
    ("gemma3-270m", "Q8_0", 1024, 4, 512, "off", 24.27),
    ("lfm2-350m", "Q4_0", 1024, 1, 512, "on", 38.02),
    ("lfm2-350m", "Q4_0", 4096, 1, 512, "on", 41.02),
    ("mamba-370m", "Q4_0", 1024, 1, 512, "on", 30.16),
    ("phi3-mini-cut", "Q4_K_M", 1024, 1, 512, "on", 79.02),
]
"""What llama.cpp b11549 logged as its compute buffer, MiB (`sched_reserve`), for these settings."""


def hollow(folder: Path, shape: str, mix: str) -> Model:
    """A shape's model as its header says, without weights."""
    path = write_random_gguf(folder / f"{shape}-{mix}.gguf", SHAPES[shape], mix, is_hollow=True)
    return read_place(path)


@pytest.mark.parametrize(("shape", "mix", "context", "slots", "ubatch", "flash", "logged"), LOGGED)
def test_the_compute_buffer_is_what_the_engine_reserves(
    tmp_path: Path, shape: str, mix: str, context: int, slots: int, ubatch: int, flash: str,
    logged: float,
) -> None:  # fmt: skip
    """The planned buffer is within 2 % of what the engine says that it reserved."""
    model = hollow(tmp_path, shape, mix)
    settings = LlamaSettings(context, slots, ubatch)
    cells = window_cells(largest_window(model), settings.cache)
    batch = Batch(
        min(ubatch, context * slots), slots, context, min(cells, context), flash == "on", slots
    )
    assert compute_buffer(model, batch) / 2**20 == pytest.approx(logged, rel=0.02)


def test_a_hollow_file_has_the_size_of_a_real_one(tmp_path: Path) -> None:
    """The generator's hollow file is read like the real one."""
    real = write_random_gguf(tmp_path / "real.gguf", SHAPES["tiny"], "Q4_K_M")
    empty = write_random_gguf(tmp_path / "hollow.gguf", SHAPES["tiny"], "Q4_K_M", is_hollow=True)
    assert read_place(real).weight_bytes == read_place(empty).weight_bytes
    assert abs(real.stat().st_size - empty.stat().st_size) <= 64


@pytest.fixture(name="orin", scope="module")
def _orin() -> Machine:
    return examine_recording(FOUNDING).machine


@pytest.fixture(name="llama", scope="module")
def _llama(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_place(write_awq(tmp_path_factory.mktemp("a") / "Llama-3.2-3B-AWQ", LLAMA_3B))


@pytest.fixture(name="qwen", scope="module")
def _qwen(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return read_place(write_awq(tmp_path_factory.mktemp("b") / "Qwen2.5-Coder-7B-AWQ", QWEN_7B))


def test_the_fixtures_weigh_what_the_owner_downloaded(llama: Model, qwen: Model) -> None:
    """2.2 and 5.2 GB, as the founding report says (its units are GiB and GB mixed)."""
    assert llama.file_bytes / 1e9 == pytest.approx(2.2, rel=0.03)
    assert qwen.file_bytes / 2**30 == pytest.approx(5.2, rel=0.01)


@pytest.mark.parametrize("utilization", UTILIZATIONS)
@pytest.mark.parametrize(("context", "sequences"), [(4096, 8), (2048, 4)])
def test_the_founding_settings_do_not_start_as_the_machine_was(
    llama: Model, qwen: Model, orin: Machine, utilization: float, context: int, sequences: int
) -> None:
    """With the page cache full, none of the owner's settings comes up, whatever the share."""
    for model in (llama, qwen):
        outcome = start_outcome(model, orin, VllmSettings(context, sequences, utilization))
        assert not outcome.is_up
        assert "KV cache" in outcome.text


@pytest.mark.parametrize(
    ("utilization", "stage"),
    [(0.35, "up"), (0.45, "up"), (0.50, "reclaim"), (0.65, "kv-cache"), (0.80, "start")],
)
def test_where_the_founding_start_ends_without_the_page_cache(
    llama: Model, orin: Machine, utilization: float, stage: str
) -> None:
    """A low share comes up; a higher one dies in torch.zeros() of the KV cache, masked by NVML."""
    settings = VllmSettings(4096, 8, utilization)
    outcome = start_outcome(llama, orin, settings, is_cache_dropped=True)
    assert outcome.stage == stage
    if stage in ("reclaim", "kv-cache"):
        assert "torch.zeros() of the KV cache fails" in outcome.text
        assert "NVML_SUCCESS == r INTERNAL ASSERT FAILED" in outcome.text


def test_fit_names_the_setting_that_fits_the_founding_machine(
    llama: Model, qwen: Model, orin: Machine
) -> None:
    """A share is found for both models; the 7B needs the page cache dropped while it loads."""
    assert fitting_utilization(llama, orin, VllmSettings(4096, 8)) == 0.45
    row = fit_model(llama, orin, FitRequest(4096, 8, "vllm"))[0]
    assert row.verdict == TIGHT
    assert row.line.startswith("fits if the page cache is dropped before the start: then ")
    assert "--gpu-memory-utilization 0.45 --max-model-len 4096 --max-num-seqs 8" in row.settings
    share = fitting_utilization(qwen, orin, VllmSettings(2048, 4))
    assert share is not None
    outcome = start_outcome(qwen, orin, VllmSettings(2048, 4, share), is_cache_dropped=True)
    assert outcome.stage == "reclaim"
    assert outcome.sequences == 4


def test_the_owners_share_of_80_percent_is_judged_as_asked(llama: Model, orin: Machine) -> None:
    """A given share is judged and another one recommended beside it."""
    row = fit_model(llama, orin, FitRequest(4096, 8, "vllm", utilization=0.80))[0]
    assert row.verdict == TIGHT
    assert "--gpu-memory-utilization 0.45" in row.line
    assert any(note.startswith("as it is: 0.80 of 15.3 GiB is 12.2 GiB") for note in row.notes)


def test_the_founding_decode_rate_is_27_percent_of_the_roofline(
    tmp_path: Path, orin: Machine
) -> None:
    """13.55 tok/s of Llama-3.2-3B Q4_K_M at 102.4 GB/s."""
    model = hollow(tmp_path, "llama-3.2-3b", "Q4_K_M")
    row = fit_model(model, orin, FitRequest(4096, 1, has_gpu_build=True))[0]
    assert row.verdict == FITS
    assert row.speed is not None
    assert row.speed.share_of_bound(13.55) == pytest.approx(0.27, abs=0.005)


def test_nothing_fits_a_container_of_4_gib(qwen: Model) -> None:
    """Without a GPU vLLM is not proposed at all, and says so when it is asked for."""
    machine = examine_recording(FOUNDING.with_name("container-2-cores-4gb")).machine
    assert fit_model(qwen, machine, FitRequest()) == ()
    asked = fit_model(qwen, machine, FitRequest(engine="vllm"))
    assert [row.verdict for row in asked] == [NOT]


def test_the_command_says_it_in_text_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One answer in two forms: a picture with the verdict, and a document with every part."""
    monkeypatch.setenv("ENGINEHOUSE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ENGINEHOUSE_CACHE_DIR", str(tmp_path / "cache"))
    folder = str(write_awq(tmp_path / "Llama-3.2-3B-Instruct-AWQ", LLAMA_3B))
    asked = ["fit", folder, "--snapshot", str(FOUNDING), "--context", "4096", "--sequences", "8"]
    asked += ["--engine", "vllm", "--observed", "13.55"]
    text = CliRunner().invoke(cli, asked)
    assert text.exit_code == 0, text.output
    assert "fits if the page cache is dropped before the start" in text.output
    assert "█" in text.output
    assert "13.55 tok/s observed is 30% of the decode roofline" in text.output
    document = json.loads(CliRunner().invoke(cli, [*asked, "--json"]).stdout)
    row = document["rows"][0]
    assert row["verdict"] == TIGHT
    assert {part["name"] for part in row["parts"]} >= {"weights", "KV cache", "run time"}
    assert row["total"]["low"] < row["total"]["expected"] < row["total"]["high"]
    assert row["share_of_roofline"] == pytest.approx(0.30, abs=0.005)


def test_fit_without_a_model_ranks_the_local_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models that were added are ranked; none at all is said in words."""
    monkeypatch.setenv("ENGINEHOUSE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("ENGINEHOUSE_CACHE_DIR", str(tmp_path / "cache"))
    assert "no model is registered here" in CliRunner().invoke(cli, ["fit"]).output
    write_random_gguf(tmp_path / "tiny.gguf", SHAPES["tiny"], "Q8_0")
    CliRunner().invoke(cli, ["models", "add", str(tmp_path / "tiny.gguf")])
    document = json.loads(CliRunner().invoke(cli, ["fit", "--json"]).stdout)
    assert [entry["model"] for entry in document["models"]] == ["tiny"]


def test_what_was_observed_corrects_the_next_prediction(tmp_path: Path) -> None:
    """Residuals are kept by machine, build and architecture, and read back as a correction."""
    records = Records(tmp_path / "records.sqlite")
    records.open()
    for trial, ratio in enumerate((1.06, 1.07, 1.08), start=1):
        seen = Observation("machine", "build", "llama", 100.0, 100.0 * ratio, trial)
        records.store_prediction(seen)
    records.store_prediction(Observation("machine", "build", "qwen3", 100.0, 150.0, 4))
    learnt = correction_from(records.predictions("machine", "build", "llama"))
    assert learnt is not None
    assert learnt.factor == pytest.approx(1.06)
    assert learnt.trials == 3
    assert records.predictions("machine", "other build", "llama") == ()
    records.close()


def test_a_dry_loads_answer_is_read() -> None:
    """`llama-fit-params --fit-print on` prints a line a device."""
    assert parse_answer("CUDA0 2048 512 300 \nHost 100 0 20 \n") == (
        ("CUDA0", (2048, 512, 300)),
        ("Host", (100, 0, 20)),
    )


def test_a_longer_prompt_needs_no_less(tmp_path: Path) -> None:
    """Memory is monotone in context, slots and prompt."""
    model = hollow(tmp_path, "gemma3-270m", "Q8_0")
    base = estimate_llama(model, LlamaSettings(2048)).total.expected
    for more in (LlamaSettings(4096), LlamaSettings(2048, 2), LlamaSettings(2048, has_flash=False)):
        assert estimate_llama(model, more).total.expected > base
