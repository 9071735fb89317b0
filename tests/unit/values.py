"""Values that several unit tests need: a machine, a model, a build, trials."""

from __future__ import annotations

from enginehouse.core.candidate import Build, Candidate
from enginehouse.core.machine import Machine
from enginehouse.core.measurement import Measurement, percentiles_of
from enginehouse.core.model import Model
from enginehouse.core.trial import Diagnosis, Outcome, Trial

MACHINE = Machine("x86_64", "a CPU", ("avx2",), 4, 4, 16 << 30, 12 << 30)
MODEL = Model(
    name="tiny",
    path="/models/tiny.gguf",
    source="file",
    format="gguf",
    digest="d" * 64,
    file_bytes=100 << 20,
    architecture="llama",
    quantization="Q4_0",
    parameters=135_000_000,
    weight_bytes=96 << 20,
    bytes_per_token=96 << 20,
    context_length=8192,
    layers=30,
    embedding_length=576,
    vocabulary_size=49152,
    k_elements_per_token=5760,
    v_elements_per_token=5760,
)
WHEEL = Build(
    "llama.cpp", "wheel", "2026.10", "w" * 64, ("python", "-m", "wheel_server"), "/lib/x.so"
)
BINARY = Build(
    "llama.cpp", "binary", "b11434", "b" * 64, ("/bin/llama-server",), "/bin/llama-server"
)


def measurement(output_tok_per_s: float) -> Measurement:
    """A measurement with only its rate set."""
    none = percentiles_of(())
    return Measurement(
        "chat", 1, 0, 1.0, output_tok_per_s, 1.0, 1, 0, 1, none, none, none, none, 0.0
    )


def trial(
    candidate: Candidate,
    output_tok_per_s: float | None,
    outcome: Outcome = Outcome.MEASURED,
    title: str = "",
) -> Trial:
    """A trial record with a rate, or a failed one."""
    return Trial(
        run_id="r",
        model_digest=MODEL.digest,
        model_name=MODEL.name,
        workload="chat",
        candidate=candidate,
        build=WHEEL,
        argv=(),
        env=(),
        started_at=0.0,
        outcome=outcome,
        measurement=None if output_tok_per_s is None else measurement(output_tok_per_s),
        diagnosis=Diagnosis(None, title) if title else None,
    )
