"""Run the llama.cpp server of the `xllamacpp` wheel as a program of its own.

    python -m enginehouse.edges.wheel_server --model FILE --host ADDRESS --port N …

It takes the part of `llama-server`'s own flags that Enginehouse uses, in their own spelling, so
one descriptor starts the wheel and a `llama-server` binary alike. The engine never shares a process
with Enginehouse: a crash or an out-of-memory kill ends only this one.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import Any

SPECULATION = {
    "none": "NONE",
    "ngram-simple": "NGRAM_SIMPLE",
    "ngram-map-k": "NGRAM_MAP_K",
    "ngram-mod": "NGRAM_MOD",
    "ngram-cache": "NGRAM_CACHE",
}


def parse_flags(argv: list[str]) -> argparse.Namespace:
    """Parse llama-server's flags; an unknown one ends the program with exit code 2."""
    parser = argparse.ArgumentParser(prog="wheel_server", allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--ctx-size", type=int)
    parser.add_argument("--parallel", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--threads-batch", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--ubatch-size", type=int)
    parser.add_argument("--cache-type-k")
    parser.add_argument("--cache-type-v")
    parser.add_argument("--flash-attn", choices=("auto", "on", "off"))
    parser.add_argument("--spec-type", choices=tuple(SPECULATION))
    parser.add_argument("--cache-ram", type=int)
    parser.add_argument("--slot-save-path", default="")
    parser.add_argument("--fit", choices=("on", "off"))
    parser.add_argument("--kv-unified", action="store_true")
    parser.add_argument("--n-gpu-layers", type=int)
    parser.add_argument("--no-mmap", action="store_true")
    parser.add_argument("--mlock", action="store_true")
    parser.add_argument("--chat-template", default="")
    parser.add_argument("--jinja", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--embedding", action="store_true")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--no-webui", action="store_true")
    return parser.parse_args(argv)


def build_params(flags: argparse.Namespace) -> Any:
    """Turn the flags into the wheel's `CommonParams`; what is not given keeps the default."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = flags.model
    params.hostnames = [flags.host]
    params.port = flags.port
    if flags.alias:
        params.model_alias = {flags.alias}
    plain = {
        "n_ctx": flags.ctx_size,
        "n_parallel": flags.parallel,
        "n_batch": flags.batch_size,
        "n_ubatch": flags.ubatch_size,
        "cache_ram_mib": flags.cache_ram,
        "n_gpu_layers": flags.n_gpu_layers,
    }
    for name, value in plain.items():
        if value is not None:
            setattr(params, name, value)
    if flags.threads is not None:
        params.cpuparams.n_threads = flags.threads
    if flags.threads_batch is not None:
        params.cpuparams_batch.n_threads = flags.threads_batch
    if flags.cache_type_k:
        params.cache_type_k = _ggml_type(xllamacpp, flags.cache_type_k)
    if flags.cache_type_v:
        params.cache_type_v = _ggml_type(xllamacpp, flags.cache_type_v)
    if flags.flash_attn:
        name = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[flags.flash_attn]
        params.flash_attn_type = getattr(
            xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{name}"
        )
    if flags.spec_type:
        kind = f"COMMON_SPECULATIVE_TYPE_{SPECULATION[flags.spec_type]}"
        params.speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    if flags.fit:
        params.fit_params = flags.fit == "on"
    if flags.slot_save_path:
        params.slot_save_path = flags.slot_save_path.rstrip("/") + "/"
    if flags.no_mmap or flags.mlock:
        params.load_mode = _load_mode(xllamacpp, not flags.no_mmap, flags.mlock)
    params.chat_template = flags.chat_template
    params.use_jinja = flags.jinja
    params.kv_unified = flags.kv_unified
    params.embedding = flags.embedding
    params.endpoint_metrics = flags.metrics
    params.ui = not flags.no_webui
    return params


def _load_mode(xllamacpp: Any, has_mmap: bool, has_mlock: bool) -> Any:
    """Return how the weights are loaded: mapped or read, locked in memory or not."""
    name = ("MMAP_" if has_mmap and has_mlock else "") + ("MLOCK" if has_mlock else "NONE")
    return getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{name}")


def _ggml_type(xllamacpp: Any, name: str) -> Any:
    kind = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{name.upper()}", None)
    if kind is None:
        sys.exit(f"wheel_server: Unsupported cache type: {name}")
    return kind


def main() -> None:
    """Serve until a signal ends the process; a failed start exits with code 1."""
    params = build_params(parse_flags(sys.argv[1:]))
    import xllamacpp

    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError) as problem:
        sys.exit(f"wheel_server: {problem}")
    sys.stderr.write(f"wheel_server: listening on {server.listening_address}\n")
    sys.stderr.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
