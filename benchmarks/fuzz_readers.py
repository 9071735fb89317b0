"""Fuzz the readers of models for a given time: `./dev bench fuzz_readers --seconds 60`.

With atheris (coverage-guided; `pip install atheris`, not in any extra), else with Hypothesis.
Inputs that reached new code are kept in --corpus; a find is written there as `crash-…`, and the
exit code is 1. Small ones go to tests/fixtures/fuzz, where a test replays them.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
KEPT = ROOT / "tests" / "fixtures" / "fuzz"
MOST_SECONDS_EACH, MOST_MIB = 5, 300
"""Generous in time: instrumented code is slower, and the machine may be busy; the replay is not."""


def main() -> int:
    """Run one of the fuzzers and say what it did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, default=ROOT / ".fuzz")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fuzzer", choices=("auto", "atheris", "hypothesis"), default="auto")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return run_atheris_inside()
    has_atheris = importlib.util.find_spec("atheris") is not None
    if options.fuzzer == "atheris" or (options.fuzzer == "auto" and has_atheris):
        return run_atheris(options.seconds, options.corpus, options.seed)
    return run_hypothesis(options.seconds, options.corpus, options.seed)


def run_atheris(seconds: int, corpus: Path, seed: int) -> int:
    """Run atheris in a process of its own, since it ends the process that it runs in."""
    from tests.fuzz.target import seeds

    corpus.mkdir(exist_ok=True)
    for name, data in seeds().items():
        (corpus / f"seed-{name}").write_bytes(data)
    command = [
        sys.executable, __file__, "--inside", str(corpus), str(KEPT), f"-seed={seed}",
        f"-max_total_time={seconds}", f"-timeout={MOST_SECONDS_EACH}", f"-rss_limit_mb={MOST_MIB}",
        "-max_len=8192", "-print_final_stats=1", f"-artifact_prefix={corpus}/", "-verbosity=1",
    ]  # fmt: skip
    # libFuzzer takes every argument that begins with one dash for its own.
    done = subprocess.run(command, env={**os.environ, "FUZZ_INSIDE": "1"}, check=False)
    return 1 if done.returncode else 0


def run_atheris_inside() -> int:
    """Fuzz until the time is over; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["enginehouse"]):
        from tests.fuzz.target import check
    arguments = [argument for argument in sys.argv if argument != "--inside"]
    atheris.Setup(arguments, lambda data: check(data) and None)
    atheris.Fuzz()
    return 0


def run_hypothesis(seconds: int, corpus: Path, seed: int) -> int:
    """Draw inputs from the replay test's strategy until the time is over."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from tests.fuzz.strategies import inputs

    corpus.mkdir(exist_ok=True)
    from tests.fuzz.target import check

    ends, done, slowest, slow = time.monotonic() + seconds, 0, 0.0, b""

    def one(data: bytes) -> None:
        nonlocal done, slowest, slow
        if time.monotonic() > ends:
            return
        started = time.process_time()
        check(data)
        taken = time.process_time() - started
        if taken > slowest:
            slowest, slow = taken, data
        done += 1

    while time.monotonic() < ends:
        quiet = [HealthCheck.too_slow]
        limits = settings(max_examples=2000, deadline=None, suppress_health_check=quiet,
                          phases=[Phase.generate, Phase.shrink], database=None)  # fmt: skip
        seeded(seed)(limits(given(inputs)(one)))()
        seed += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    (corpus / "slowest").write_bytes(slow)
    print(f"{done} executions in {seconds} s, peak {peak} MiB")
    print(f"slowest {slowest * 1e3:.0f} ms of processor time: {corpus / 'slowest'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_atheris_inside() if "FUZZ_INSIDE" in os.environ else main())
