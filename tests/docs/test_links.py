"""Links lead somewhere, paths that are named are there, tables are whole, pages are on the map."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest

from support.pages import ROOT, Page, pages

PAGES = pages()
MAP = Page(ROOT / "docs/README.md")
FOLDERS = ("charts", "crds", "docs", "examples", "operator", "runtime_image", "tests")
"""A path in backticks that begins with one of these is one of the repository."""


def ids(each: Page) -> str:
    return each.name


@pytest.mark.parametrize("each", PAGES, ids=ids)
def test_links_lead_to_files_and_headings_that_are_there(each: Page) -> None:
    for link in each.links:
        address = urlsplit(link)
        if address.scheme:
            assert address.scheme in ("http", "https"), link
            assert re.fullmatch(r"[a-z0-9.-]+\.[a-z]+", address.netloc), link
            continue
        target = each.path.parent / address.path if address.path else each.path
        assert target.exists(), f"{each.name}: {link}"
        if address.fragment:
            anchors = Page(target.resolve()).anchors
            assert address.fragment in anchors, f"{each.name}: {link}"


@pytest.mark.parametrize("each", PAGES, ids=ids)
def test_paths_in_backticks_are_there(each: Page) -> None:
    for code in each.inline_code:
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", code) and "NNNN" not in code:
            assert (ROOT / code).exists(), f"{each.name}: {code}"


@pytest.mark.parametrize("each", PAGES, ids=ids)
def test_rows_of_a_table_have_as_many_cells_as_its_head(each: Page) -> None:
    """A bare ``|`` in a cell cuts it in two wherever Markdown is shown."""
    head = 0
    for line in each.prose.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        head = (head or cells) if cells else 0
        assert cells == head, f"{each.name}: {line[:100]}"


def test_blocks_of_code_are_closed() -> None:
    for each in PAGES:
        assert len(re.findall(r"^ *```", each.text, re.MULTILINE)) == 2 * len(each.fences), (
            each.name
        )


def test_metrics_that_pages_name_are_in_the_reference() -> None:
    reference = (ROOT / "docs/metrics.md").read_text()
    for each in PAGES:
        for name in re.findall(r"terrace_(?:runtime|gateway|operator)_\w*[a-z]", each.text):
            assert name in reference, f"{each.name}: {name}"


def test_every_page_is_on_the_map() -> None:
    linked = {(MAP.path.parent / link.partition("#")[0]).resolve() for link in MAP.links}
    for each in PAGES:
        if each.path.parent == MAP.path.parent and each.path != MAP.path:
            assert each.path in linked, f"{each.name} is not linked from docs/README.md"


def test_pictures_have_words_for_those_who_do_not_see_them() -> None:
    for each in PAGES:
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", each.prose):
            if target.startswith("pictures/"):
                assert len(text.split()) > 5, f"{each.name}: {target}"
                assert "<title" in (each.path.parent / target).read_text()


def test_every_example_is_in_the_table_of_examples() -> None:
    folders = {path.name for path in (ROOT / "examples").iterdir() if path.is_dir()}
    rows = re.findall(r"^\| \[([\w-]+)\]", (ROOT / "examples/README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(folders)
