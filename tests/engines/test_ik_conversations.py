"""The conversations of `test_conversations.py` over ik_llama.cpp and over llama.cpp.

It needs `enginehouse engines build ik_llama.cpp`. What the fork cannot be made to do is listed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from enginehouse.edges.builds_llama_cpp import FORK, find_native
from tests.engines.houses import served
from tests.engines.shapes import additions
from tests.engines.test_conversations import (
    ADDED,
    ASKED,
    OURS,
    Asked,
    Told,
    as_openai,
    ask,
    code_of,
    shapes,
)

pytestmark = [
    pytest.mark.ik_llama_cpp,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not find_native(FORK), reason="no ik_llama.cpp was built here"),
]
KNOWN = {
    "chat of two choices": "an answer of the engine's own: no prompt_tokens_details, always stop",
    "chat with logprobs": "the same",
    "text": "the same",
    "ollama tool": "whether a small model calls a tool is not the engine's to say",
    "chat error: a bad number": "a temperature that is no number is taken for none",
}
"""What differs, by the request's name."""


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo GGUF served by the fork."""
    with served(FORK, "demo", tmp_path_factory.mktemp("fork")) as url:
        yield url


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The same served by llama.cpp."""
    with served("llama.cpp", "demo", tmp_path_factory.mktemp("llama")) as url:
        yield url


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.name)
def test_the_fork_answers_in_the_same_shape(fork: str, llama: str, asked: Asked) -> None:
    """Status, type and shape of an answer do not tell which of the two gave it."""
    ours, theirs = ask(fork, asked), ask(llama, asked)
    if asked.name in KNOWN:
        assert ours.status == 200
        return
    assert (ours.status, ours.kind) == (theirs.status, theirs.kind), (ours.said, theirs.said)
    if asked.is_own:
        assert additions(ours.said) <= ADDED["llama.cpp"] | OURS
        ours, theirs = (Told(t.status, t.kind, as_openai(t.said)) for t in (ours, theirs))
    if "error" in asked.name:
        assert code_of(ours.said) == code_of(theirs.said)
    assert shapes(ours) == shapes(theirs), (ours.said, theirs.said)
