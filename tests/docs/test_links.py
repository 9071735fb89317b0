"""Every relative link in the documents leads somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.documents import DOCUMENTS, anchors_of, links_of, name_of


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_relative_links_resolve(document: Path) -> None:
    """A link's file exists, and a link's heading is one of that file's headings."""
    for link in links_of(document.read_text(encoding="utf-8")):
        if "://" in link or link.startswith("mailto:"):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target.read_text(encoding="utf-8")), f"no heading {link}"


def test_links_and_anchors_are_found() -> None:
    """The reader of documents sees links in prose only, and makes anchors of headings."""
    text = "# A: first, thing\n[a](b.md#c) `[x](y)`\n```sh\n[z](w)\n# not a heading\n```\n"
    assert links_of(text) == ["b.md#c"]
    assert anchors_of(text) == {"a-first-thing"}
