"""Every cause is explained in words, and its page says what the signatures say."""

from __future__ import annotations

import pytest

from enginehouse.core.diagnose_catalogue import DOMAINS, Prose, page_document, page_for
from enginehouse.core.diagnose_catalogue import page_markdown as markdown
from enginehouse.knowledge.causes import load_pages, load_prose, meaning_of
from enginehouse.knowledge.patterns import load_book
from enginehouse.knowledge.signatures_loader import load_causes

BOOK = load_book()


def test_every_cause_has_its_prose() -> None:
    """A new line in causes.txt needs `meaning` and `why` in causes.toml."""
    missing = sorted(load_causes() - set(load_prose()))
    assert not missing, f"write meaning and why in knowledge/causes.toml for: {missing}"
    assert not set(load_prose()) - load_causes(), "causes.toml explains what causes.txt lacks"


def test_prose_is_one_line_of_whole_sentences() -> None:
    """A meaning fits on a line of a table, and both sentences end."""
    for cause, prose in load_prose().items():
        assert prose.meaning.endswith("."), cause
        assert prose.why.endswith("."), cause
        assert len(prose.meaning) <= 120, cause
        assert "\n" not in prose.meaning + prose.why, cause


def test_a_cause_without_prose_still_has_a_page() -> None:
    """What nobody has explained yet is shown with what its signatures say."""
    page = page_for("memory.device.oom", Prose(), BOOK.signatures, {})
    assert page.looks
    assert "## What to do" in markdown(page)
    assert meaning_of("no.such.cause") == meaning_of(None) == ""


def test_every_domain_has_a_heading() -> None:
    """The index leaves out no cause."""
    assert {cause.partition(".")[0] for cause in load_causes()} <= set(DOMAINS)


@pytest.mark.parametrize("is_linked", [True, False])
def test_a_page_has_every_part(is_linked: bool) -> None:
    """What it looks like, what it is not, what to do, where it is confirmed; gaps for figures."""
    page = load_pages()["memory.device.oom_masked"]
    text = markdown(page, is_linked=is_linked)
    for part in ("What it looks like", "What it is not", "What to do", "Where it is confirmed"):
        assert f"## {part}\n" in text
    assert "INTERNAL ASSERT FAILED" in text
    assert ("](" in text) is is_linked
    document = page_document(page)
    assert document["meaning"] == page.prose.meaning
    assert len(page.looks) == len(document["looks_like"])  # type: ignore[arg-type]


def test_a_context_that_names_another_cause_is_on_that_causes_page() -> None:
    """The same text with another meaning on some machines is found under both causes."""
    signature = next(s for s in BOOK.signatures if s.contexts)
    context = next(c for c in signature.contexts if c.cause != signature.cause)
    page = page_for(context.cause, Prose(), [signature], {})
    assert {look.signature.key for look in page.looks} == {signature.key}
    assert page.looks[0].conditions
    own = page_for(signature.cause, Prose(), [signature], {})
    assert context.cause in dict(own.confused_with)
