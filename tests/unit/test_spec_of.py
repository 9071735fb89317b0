"""Where a name that a client pulls is looked for, and that it is never a path."""

from __future__ import annotations

import pytest

from enginehouse.app_gateway import spec_of
from enginehouse.core.errors import UserError

SPECS = {
    "hf.co/me/tiny": "hf:me/tiny",
    "huggingface.co/me/tiny": "hf:me/tiny",
    "HF.co/Me/Tiny-GGUF": "hf:Me/Tiny-GGUF",
    "hf.co/me/tiny:latest": "hf:me/tiny",
    "hf.co/me/tiny:Q4_K_M": "hf:me/tiny:Q4_K_M",
    "hf.co/me/tiny/tiny.gguf": "hf:me/tiny/tiny.gguf",
    "hf.co/me/tiny/q4/part/tiny.gguf": "hf:me/tiny/q4/part/tiny.gguf",
    "hf.co/me": "hf:me",
    "smollm2-135m": "smollm2-135m",
    "smollm2-135m:latest": "smollm2-135m",
    "llama3.2": "ollama:llama3.2",
    "llama3.2:3b": "ollama:llama3.2:3b",
    "llama3.2:3b-instruct-q4_K_M": "ollama:llama3.2:3b-instruct-q4_K_M",
    "me/mine": "ollama:me/mine",
    "registry.ollama.ai/library/llama3.2:3b": "ollama:registry.ollama.ai/library/llama3.2:3b",
    "hf.company/me/tiny": "ollama:hf.company/me/tiny",
    "smollm2-135m:other": "ollama:smollm2-135m:other",
    "file": "ollama:file",
    "x.gguf": "ollama:x.gguf",
    "pypi:evil": "ollama:pypi:evil",  # a model `pypi` with a tag, and no package
    "ollama:x": "ollama:ollama:x",
}
EVIL = (
    "", " ", ".", "..", "/", "/etc/passwd", "./x", "../x", "a/../../b", "a..b", "x:..", "x/..",
    "~", "~/.ssh/id_rsa", "~root/x", "$HOME", "$(id)", "`id`", "x;id", "x|id", "x&y", "-rf",
    "--help", "hf:me/tiny", "pypi:evil==1.0", "file:///etc/passwd",
    "http://127.0.0.1:1/x", "https://evil.example/x.gguf", "hf.co/../../etc/passwd",
    "hf.co//etc/passwd", "hf.co/me/../../x", "hf.co/me/tiny/../../../x", "hf.co/-me/tiny",
    "hf.co/", "hf.co/me/", "hf.co/me/tiny@main", "hf.co/me/tiny:q:r", "hf.co/me/tiny?x=1",
    "hf.co/me/tiny#x", "hf.co/me/%2e%2e/x", "..%2f..%2fetc", "a\\b", "\\\\host\\share", "C:\\x",
    "x\n", "\nx", "x\r\nHost: evil", "x\x00", "x\x1b[31m", "a b", "x\u202e", "é", "ｘ", "x:ï", "٣",
    "/x", "x/", "x//y", "x/.hidden", ".hidden", "x:", ":x", "manifests/a/b/c/d", "a/b/c/d:e",
    "a" * 257, "a/" * 200 + "a", "hf.co/" + "a" * 300, "x:" + "y" * 300,
)  # fmt: skip


@pytest.mark.parametrize(("name", "spec"), SPECS.items())
def test_a_name_says_where_it_is_looked_for(name: str, spec: str) -> None:
    """A hub's prefix means that hub, a known name the table, all else Ollama's store."""
    assert spec_of(name) == spec


@pytest.mark.parametrize("name", EVIL)
def test_what_is_no_name_is_not_found(name: str) -> None:
    """Paths, URLs, other sources, and what no name has in it mean no model, and are cut short."""
    with pytest.raises(UserError) as refused:
        spec_of(name)
    assert refused.value.report.id == "model_not_found"
    assert len(refused.value.report.what) < 200
