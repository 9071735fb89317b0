"""Real trials of files that cannot be served, of settings and of parts that do not fit them.

Beyond `test_provoked.py`, which has the commonest ones without a trial around them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from enginehouse.core.trial import Outcome
from enginehouse.core.workload import Workload
from tests.real.broken import write_llama
from tests.real.failures import Failure, check, file, plain
from tests.real.provoke import Plan

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]
LONG = Workload("long", "one long request", 1, 1, 0, 600, 4)
BAD_ANSWER = Outcome.BAD_ANSWER
DRAFT = "enum common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"
ASKS_ROLES = (
    "{%- if 'hello' in messages[0].content -%}"
    "{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)


def bytes_of(data: bytes) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return make


def edited(change: Callable[[bytearray], None]) -> Callable[[Path], Path]:
    """Write the model with some of its bytes changed."""

    def make(path: Path) -> Path:
        content = bytearray(write_llama(path).read_bytes())
        change(content)
        path.write_bytes(content)
        return path

    return make


def noise_in_metadata(content: bytearray) -> None:
    content[24:2000] = bytes((17 * place + 5) % 251 for place in range(24, 2000))


def nan_weights(content: bytearray) -> None:
    content[-4096:] = b"\xff" * 4096


def odd_type(content: bytearray) -> None:
    """Give a tensor a type that no build knows: it stands behind name and two dimensions."""
    name = b"blk.0.attn_q.weight"
    place = content.index(name) + len(name) + 4 + 16
    content[place : place + 4] = (99).to_bytes(4, "little")


def unnamed_architecture(content: bytearray) -> None:
    name = b"general.architecture"
    place = content.index(name)
    content[place : place + len(name)] = b"general.architectura"


def with_metadata(**changes: Any) -> Callable[[Path], Path]:
    metadata = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda path: write_llama(path, metadata=metadata)


def beside(name: str, **plan: Any) -> Callable[[Path, ExitStack], Plan]:
    """Arrange that a parameter of the wheel names the whole model, where another file belongs."""
    return lambda folder, stack: Plan(more={name: str(folder / "whole.gguf")}, **plan)


FAILURES = (
    # the file
    Failure("a folder", "config.wrong_path", "failed to read magic",
            lambda folder, stack: Plan(model=folder), is_among=True),
    Failure("a git pointer", "model.corrupt", "'vers'",
            file(bytes_of(b"version https://git-lfs.github.com/spec/v1\nsize 98362432\n"))),
    Failure("an archive", "model.corrupt", "invalid magic", file(bytes_of(b"PK\x03\x04" * 99))),
    Failure("noise in the metadata", "model.corrupt", "failed to read key-value pairs",
            file(edited(noise_in_metadata))),
    Failure("weights that are no numbers", "model.corrupt", "found nan value",
            file(edited(nan_weights), more={"check_tensors": True})),
    Failure("a tensor type of the future", "engine.too_old_for_model", "invalid ggml type 99",
            file(edited(odd_type))),
    Failure("no architecture named", "model.conversion_broken", "unknown model architecture: ''",
            file(edited(unnamed_architecture))),
    Failure("no layers", "model.conversion_broken", "n_layer_all > 0",
            file(with_metadata(llama__block_count=0))),
    Failure("no vocabulary", "model.conversion_broken", "cannot find tokenizer vocab",
            file(with_metadata(tokenizer__ggml__tokens=None))),
    Failure("more layers than tensors", "model.conversion_broken", "blk.1.attn_norm.weight",
            file(with_metadata(llama__block_count=2)), is_among=True),
    Failure("the second part", "model.split_parts_order", "illegal split file idx",
            file(lambda path: write_llama(path, split=(1, 2, 22)))),
    Failure("a projector as model", "model.unknown_architecture", "use it with --mmproj",
            file(lambda path: write_llama(path, architecture="clip"))),
    # what belongs to it
    Failure("no adapter", "model.file_missing", "no.gguf", plain(more={"lora": "/models/no.gguf"})),
    Failure("a model as adapter", "model.adapter_mismatch", "'adapter'", beside("lora")),
    Failure("no projector", "model.file_missing", "no.gguf",
            plain(more={"mmproj.path": "/models/no.gguf"})),
    Failure("a model as projector", "model.adapter_mismatch", "Failed to load CLIP model",
            beside("mmproj.path"), is_among=True),
    Failure("no draft model", "model.file_missing", "no.gguf",
            plain(more={"speculative.draft.mparams.path": "/models/no.gguf",
                        "speculative.types": [DRAFT]})),
    # settings
    Failure("a KV cache of integers", "config.invalid_value", "unsupported V-type",
            plain(settings={"kv_type": "i32"})),
    Failure("more slots than the build has", "config.too_many_slots", "n_seq_max must be <= 256",
            plain(settings={"slots": 300})),
    Failure("no threads", "config.invalid_value", "n_threads > 0", plain(settings={"threads": 0})),
    Failure("threads without number", "config.invalid_value", "n_threads = 1000000",
            plain(settings={"threads": 1_000_000})),
    Failure("TLS in a build without it", "build.feature_missing", "without SSL support",
            plain(more={"ssl_file_cert": "/models/a.pem", "ssl_file_key": "/models/a.key"})),
    # refused requests
    Failure("a request longer than its context", "config.context_too_small", "(256 tokens)",
            plain(settings={"context": 256}, workload=LONG), outcome=BAD_ANSWER),
    Failure("a template that refuses at request time", "model.chat_template",
            "raise_exception", plain(more={"chat_template": ASKS_ROLES}), outcome=BAD_ANSWER),
    Failure("a template that needs jinja", "config.missing_flag", "try using --jinja",
            plain(more={"chat_template": "none such", "use_jinja": False}), outcome=BAD_ANSWER),
    Failure("an API key wanted", "access.invalid_token", "Invalid API Key",
            plain(more={"api_keys": ["secret"]}), outcome=BAD_ANSWER),
)  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_a_trial_says_why_the_model_was_not_served(
    tmp_path: Path, failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial's record, and `explain`, name the cause that was provoked and quote its line."""
    with ExitStack() as stack:
        check(failure, tmp_path, stack, monkeypatch)
