"""The quality gate with the real wheel and the demo model: what passes it, and what does not."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from benchmarks.live_wheel import serve_wheel
from benchmarks.quality import damage, demo_file, kv

from enginehouse.core.quality import Quality, QualityLimits, QualityTrace, compare
from enginehouse.edges.model_files import read_place
from enginehouse.edges.quantize import VariantStore, make_variant
from enginehouse.edges.quantize_run import Tools, find_tools
from enginehouse.knowledge.exam import load_exam
from enginehouse.trials.quality import Examined, measure_quality

pytestmark = [pytest.mark.real, pytest.mark.long, pytest.mark.timeout(400)]
EXAM = dataclasses.replace(load_exam(), places=10, questions=load_exam().questions[:2])


async def examine(
    path: Path | str, folder: Path, *flags: str, drafts: bool = False
) -> QualityTrace:
    """Serve a file with the wheel and put a shorter exam to it."""
    async with serve_wheel(str(path), folder, *flags) as endpoint:
        return await measure_quality(Examined(endpoint, "m", drafts=drafts), EXAM)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> QualityTrace:
    """What the demo model's own file says."""
    return asyncio.run(examine(demo_file(), tmp_path_factory.mktemp("reference")))


def judge(reference: QualityTrace, trace: QualityTrace) -> Quality:
    """The verdict under the default limits."""
    return compare(reference, trace, QualityLimits())


async def test_the_same_file_says_the_same(reference: QualityTrace, tmp_path: Path) -> None:
    """At temperature 0 nothing is left to chance."""
    found = judge(reference, await examine(demo_file(), tmp_path))
    assert (found.kl_mean, found.top1_agreement, found.positions) == (0.0, 1.0, 80)
    assert found.passes


async def test_drafting_does_not_change_the_text(reference: QualityTrace, tmp_path: Path) -> None:
    """With n-gram drafting the text is the one that single tokens make."""
    trace = await examine(demo_file(), tmp_path, "--spec-type", "ngram-mod", drafts=True)
    assert trace.draft is not None
    assert trace.draft.positions > 5
    assert trace.draft.off <= 1
    assert judge(reference, trace).passes


@pytest.mark.parametrize("quantization", [pytest.param("Q8_0", marks=pytest.mark.long), "Q4_0"])
async def test_usual_formats_pass(
    reference: QualityTrace, tmp_path: Path, quantization: str
) -> None:
    """What llama.cpp's users serve every day is not refused, and its loss is seen."""
    store = VariantStore(tmp_path, Tools(library=find_tools().library), 1 << 30, 0)
    made = make_variant(read_place(demo_file()), quantization, store)
    found = judge(reference, await examine(made.path, tmp_path))
    assert found.passes, found
    least, most = (0.0005, 0.02) if quantization == "Q8_0" else (0.05, 0.20)
    assert least < found.kl_mean < most


@pytest.mark.long
async def test_a_kv_cache_of_eight_bits_passes(reference: QualityTrace, tmp_path: Path) -> None:
    """Half the cache costs this model next to nothing."""
    found = judge(reference, await examine(demo_file(), tmp_path, *kv("q8_0")))
    assert found.passes, found


@pytest.mark.parametrize(
    ("kind", "share", "words"),
    [
        pytest.param("scales", 0.01, "logits are not numbers", marks=pytest.mark.long),
        ("weights", 0.05, "mean KL divergence"),
    ],
)
async def test_damaged_weights_are_refused(
    reference: QualityTrace, tmp_path: Path, kind: str, share: float, words: str
) -> None:
    """A damaged file loads and answers at full speed; what it says gives it away."""
    broken = damage(demo_file(), tmp_path / "broken.gguf", kind, share)
    found = judge(reference, await examine(broken, tmp_path))
    assert not found.passes
    assert words in found.why
