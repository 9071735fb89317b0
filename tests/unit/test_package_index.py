"""What a package index says of source distributions, and what pip is told of indexes."""

from __future__ import annotations

import json

import pytest

from enginehouse.core.package_index import (
    DEFAULT_INDEX,
    Sdist,
    page_url,
    pick_sdist,
    read_page,
    read_pip_settings,
)

URL = "https://index.example/simple/a-source/"
JSON_PAGE = json.dumps(
    {
        "meta": {"api-version": "1.1"},
        "name": "a-source",
        "files": [
            {
                "filename": "a_source-2026.9.900.tar.gz",
                "url": "../../files/a_source-2026.9.900.tar.gz",
                "hashes": {"sha256": "9" * 64},
                "size": 9,
            },
            {
                "filename": "a_source-2026.10.1000.tar.gz",
                "url": "https://files.example/a_source-2026.10.1000.tar.gz",
                "hashes": {"sha256": "a" * 64},
                "yanked": False,
            },
            {"filename": "a_source-2026.11.1.tar.gz", "url": "y", "hashes": {}, "yanked": "broken"},
            {"filename": "a_source-2027.1rc1.tar.gz", "url": "z", "hashes": {}},
            {"filename": "a_source-2026.10.1000-cp311-none-any.whl", "url": "w", "hashes": {}},
            {"filename": "a_source_more-9.0.tar.gz", "url": "m", "hashes": {}},
            "not a file",
        ],
    }
)
HTML_PAGE = f"""<!DOCTYPE html><html><body><h1>Links</h1>
<a href="../../files/a_source-2026.9.900.tar.gz#sha256={"9" * 64}">a_source-2026.9.900.tar.gz</a>
<a href="https://files.example/a_source-2026.10.1000.tar.gz#sha256={"a" * 64}"
   data-requires-python="&gt;=3.10">a</a>
<a href="y/a_source-2026.11.1.tar.gz" data-yanked="broken">b</a>
<a href="a_source-2027.1rc1.tar.gz">c</a><a>no target</a>
<a href="a_source-2026.10.1000-cp311-none-any.whl">d</a>
</body></html>"""


@pytest.mark.parametrize(("page", "size"), [(JSON_PAGE, 9), (HTML_PAGE, None)])
def test_both_forms_of_a_page_say_the_same(page: str, size: int | None) -> None:
    """Releases with a source are listed with address and digest; yanked ones and others are not."""
    older, newer = read_page(page, URL, "a-source")
    name = "a_source-2026.9.900.tar.gz"
    where = f"https://index.example/files/{name}"
    assert older == Sdist(name, "2026.9.900", where, "9" * 64, size)
    assert newer.url == "https://files.example/a_source-2026.10.1000.tar.gz"
    assert newer.sha256 == "a" * 64
    assert newer.version == "2026.10.1000"


@pytest.mark.parametrize("page", ["", "{}", "{", '{"files": 3}', "<html>not found</html>", "[1]"])
def test_a_page_that_cannot_be_read_lists_nothing(page: str) -> None:
    """Whatever an index answers, reading it does not fail."""
    assert read_page(page, URL, "a-source") == ()


def test_the_newest_or_the_named_version_is_taken() -> None:
    """Versions are compared number by number; of one version the first index's file counts."""
    listed = [
        Sdist("a-2026.9.900.tar.gz", "2026.9.900", "first"),
        Sdist("a-2026.10.100.tar.gz", "2026.10.100", "second"),
        Sdist("a-2026.10.100.tar.gz", "2026.10.100", "third"),
    ]
    newest = pick_sdist(listed)
    assert newest is not None
    assert newest.url == "second"
    named = pick_sdist(listed, "2026.9.900")
    assert named is not None
    assert named.url == "first"
    assert pick_sdist(listed, "1.0") is None
    assert pick_sdist(()) is None


def test_pips_settings_say_where_to_look() -> None:
    """The environment comes before the files; without a word from pip it is PyPI."""
    assert read_pip_settings("").indexes == (DEFAULT_INDEX,)
    said = read_pip_settings(
        ":env:.index-url='https://env.example/simple'\n"
        ":env:.cert='/etc/ssl/own.pem'\n"
        "global.extra-index-url='https://a.example/simple https://b.example/simple'\n"
        "global.index-url='https://global.example/simple'\n"
        "install.find-links='/wheels'\n"
    )
    assert said.indexes == (
        "https://env.example/simple",
        "https://a.example/simple",
        "https://b.example/simple",
    )
    assert said.certificates == "/etc/ssl/own.pem"
    assert read_pip_settings("global.no-index='true'\n").indexes == ()


def test_a_packages_page_is_under_its_normal_name() -> None:
    """PEP 503: lower case, runs of separators are one hyphen, a slash at the end."""
    assert page_url("https://i.example/simple/", "A_Source.x") == (
        "https://i.example/simple/a-source-x/"
    )
