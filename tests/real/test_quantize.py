"""Variants of the demo model are made, loaded and answered with by the real wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginehouse.core.model import Model
from enginehouse.edges.model_sources import resolve_model
from enginehouse.edges.paths import cache_dir
from enginehouse.edges.progress import SilentProgress
from enginehouse.edges.quantize import VariantStore, make_variant
from enginehouse.edges.quantize_run import Tools, find_tools
from enginehouse.edges.records import Records
from tests.real.live_wheel import ask_text, serve_wheel

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The demo model, from the user's cache."""
    records = Records(tmp_path_factory.mktemp("state") / "records.db")
    records.open()
    try:
        return resolve_model("demo", records, cache_dir(), SilentProgress())
    finally:
        records.close()


@pytest.mark.parametrize("quantization", ["Q4_0", "Q8_0", "Q4_K_M"])
async def test_a_variant_is_served(tmp_path: Path, demo: Model, quantization: str) -> None:
    """It loads, and goes on counting as the model does."""
    store = VariantStore(tmp_path, Tools(library=find_tools().library), 1 << 30, 0)
    made = make_variant(demo, quantization, store)
    async with serve_wheel(made.path, tmp_path) as endpoint:
        text = await ask_text(endpoint, "1, 2, 3, 4, 5, 6, 7, 8,")
    assert text.startswith(" 9, 10, 11")
