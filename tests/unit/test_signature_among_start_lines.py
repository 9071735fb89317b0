"""The lines of an ordinary start before a failure neither hide its cause nor replace it."""

from __future__ import annotations

from enginehouse.core.diagnose_scan import scan
from enginehouse.core.diagnose_signature import Kind
from enginehouse.core.diagnose_verdict import judge
from tests.unit.test_signatures import BOOK, facts_for, read_log, verdict_on

NATIVE = (
    "llama.cpp",
    "ggml",
    "ollama",
    "llama-cpp-python",
    "cuda",
    "driver",
    "kernel",
    "hub",
    "os",
)
START = """\
level=DEBUG source=gpu.go:558 msg="discovered GPU libraries" paths="[/usr/lib/libcuda.so.550]"
dlsym: cuInit - 0x7f928be76e00
calling cuInit
load_backend: loaded CUDA backend from /app/libggml-cuda.so
load_backend: failed to find ggml_backend_score in /app/libggml-cpu.so
load_backend: loaded CPU backend from /app/libggml-cpu-haswell.so
ggml_cuda_init: found 1 CUDA devices:
  Device 0: NVIDIA GeForce RTX 4090, compute capability 8.9, VMM: yes
llama_model_loader: loaded meta data with 26 key-value pairs and 292 tensors from /models/x.gguf
llama_model_loader: Dumping metadata keys/values. Note: KV overrides do not apply in this output.
load: control-looking token: 128247 '</s>' was not control-type; this is probably a bug in the model
load_tensors: offloaded 33/33 layers to GPU
"""


def test_a_failure_is_named_after_the_lines_of_a_start() -> None:
    """The cause that a log has alone is named with a start before it too."""
    lost = []
    for signature in BOOK.signatures:
        if signature.group not in NATIVE or signature.kind is not Kind.FAILURE:
            continue
        alone = verdict_on(signature)
        log = (START + read_log(signature)).encode()
        verdict = judge(BOOK, scan([log], BOOK), facts_for(signature))
        if alone.cause not in {verdict.cause, *(other.cause for other in verdict.alternatives)}:
            lost.append(f"{signature.key}: {alone.cause} <- {verdict.cause}")
    assert lost == []
