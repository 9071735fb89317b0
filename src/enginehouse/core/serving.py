"""Which families of engines can serve a model as it is, and why the others cannot.

What a family reads, not what a machine can run. Sources: llama.cpp b11549, src/llama-arch.cpp;
vLLM's pages on quantization ("Supported Hardware") and its GGUF plugin; Ollama's docs/import;
TensorRT-LLM's pages on supported models and numerical precision.
"""

from __future__ import annotations

from enginehouse.core.llama_archs import LLAMA_ARCHS, ONLY_DRAFTS
from enginehouse.core.model import Model, Servable
from enginehouse.core.ollama_store import TRANSLATED

VLLM_METHODS = frozenset(
    {"none", "awq", "gptq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4", "modelopt",
     "gptq_marlin", "awq_marlin", "quark", "torchao", "auto-round", "inc"}
)  # fmt: skip
CONVERTIBLE = frozenset(
    {"none", "gptq", "fp8", "compressed-tensors", "modelopt", "bitnet", "mxfp4"}
)  # fmt: skip
"""What `convert_hf_to_gguf.py` unpacks (llama.cpp b11549, conversion/base.py), not every format."""
TENSORRT_METHODS = frozenset({"none", "awq", "gptq", "fp8", "modelopt", "mxfp4"})


def servable_by(model: Model) -> tuple[Servable, ...]:
    """Return a verdict for each family: llama.cpp, Ollama, vLLM, TensorRT."""
    if model.role != "model":
        reason = {
            "projector": "it is a projector: it goes beside the model it was made for",
            "adapter": "it is an adapter: it goes on top of "
            + (model.base_model or "the model it was made for"),
        }.get(model.role, f"it is not a model but a {model.role}")
        return tuple(
            Servable(engine, False, reason)
            for engine in ("llama.cpp", "Ollama", "vLLM", "TensorRT")
        )
    rules = (_llama_cpp, _ollama, _vllm, _tensorrt)
    return tuple(rule(model) for rule in rules)


def _llama_cpp(model: Model) -> Servable:
    if model.format != "gguf":
        method = model.weight_quantization.method if model.weight_quantization else "none"
        if method in CONVERTIBLE:
            why = "it reads GGUF: convert with convert_hf_to_gguf.py"
        else:
            why = f"it reads GGUF, and its converter does not take {method}: use the original"
        return Servable("llama.cpp", False, why)
    if model.source.startswith("ollama:") and model.architecture in TRANSLATED:
        why = f"Ollama's {model.architecture} blobs need Ollama's own patches"
        return Servable("llama.cpp", False, why)
    if model.architecture not in LLAMA_ARCHS:
        why = f"b11549 does not know the architecture {model.architecture}"
        return Servable("llama.cpp", False, why)
    if model.architecture in ONLY_DRAFTS:
        return Servable("llama.cpp", False, "it is a draft for another model (--model-draft)")
    if any(note.startswith("tensors of the types") for note in model.notes):
        return Servable("llama.cpp", False, "it has tensors of a type that b11549 does not read")
    if model.tokenizer is None:
        return Servable("llama.cpp", False, "the file has no tokenizer")
    return Servable("llama.cpp", True, "GGUF of an architecture it knows")


def _ollama(model: Model) -> Servable:
    if model.source.startswith("ollama:"):
        return Servable("Ollama", True, "it is in Ollama's store")
    if model.format == "gguf":
        as_llama = _llama_cpp(model)
        if not as_llama.is_possible:
            return Servable("Ollama", False, f"it runs llama.cpp, and {as_llama.reason}")
        return Servable("Ollama", True, "import it: a Modelfile with FROM and the file's path")
    method = model.weight_quantization.method if model.weight_quantization else "none"
    if method != "none":
        return Servable("Ollama", False, f"it imports unquantized safetensors, not {method}")
    return Servable("Ollama", True, "imports safetensors of the architectures it converts")


def _vllm(model: Model) -> Servable:
    if model.format == "gguf":
        if len([part for part in model.parts if part.role == "weights"]) > 1:
            return Servable("vLLM", False, "its GGUF plugin takes one file: merge the parts")
        return Servable(
            "vLLM", True, "on a GPU with vllm-gguf-plugin, where it maps the architecture"
        )
    method = model.weight_quantization.method if model.weight_quantization else "none"
    if method not in VLLM_METHODS:
        return Servable("vLLM", False, f"it has no kernels for {method}")
    if not model.blocks:
        return Servable("vLLM", False, "there is no config.json to build the model from")
    kind = "unquantized" if method == "none" else method
    needs = {
        "fp8": ", in hardware from compute capability 8.9",
        "bitsandbytes": ", on NVIDIA GPUs",
        "modelopt": ", NVFP4 in hardware on Blackwell",
    }.get(method, "")
    return Servable("vLLM", True, f"safetensors, {kind}{needs}")


def _tensorrt(model: Model) -> Servable:
    if model.format == "gguf":
        return Servable("TensorRT", False, "it builds from safetensors, not from GGUF")
    method = model.weight_quantization.method if model.weight_quantization else "none"
    if method not in TENSORRT_METHODS:
        return Servable("TensorRT", False, f"it does not read {method} checkpoints")
    if not model.blocks:
        return Servable("TensorRT", False, "there is no config.json to build the model from")
    return Servable("TensorRT", True, "where its list of models has the architecture; NVIDIA GPUs")
