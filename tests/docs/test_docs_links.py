"""What the pages name exists: links, files, tests, modules."""

import re
from pathlib import Path
from typing import Final

import pytest

TOP: Final = Path(__file__).parents[2]
PAGES: Final = sorted({*TOP.glob("*.md"), *TOP.glob("docs/**/*.md")})
ARCHITECTURE: Final = (TOP / "docs" / "architecture.md").read_text(encoding="utf-8")
FOLDERS: Final = ("fedmq", "aggregator", "edge_agent", "broker")


def anchors(page: Path) -> set[str]:
    """A page's headings as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_each_link_leads_somewhere(page: Path) -> None:
    """Files by their path, sections by their anchor; addresses on the web are not tried."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page

        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_each_file_that_a_page_names_exists(page: Path) -> None:
    """Paths between backticks that begin in a folder of ours."""
    pattern = rf"`((?!fedmq/v\d)(?:{'|'.join(FOLDERS)}|tests|docs|scripts|deploy|examples)/[\w/.-]*)`"
    for path in re.findall(pattern, page.read_text(encoding="utf-8")):
        assert (TOP / path).exists(), path


def test_each_test_that_the_architecture_names_is_there() -> None:
    """In the file that is named before it."""
    cells = re.findall(r"`(tests/[\w/]+\.py)`:? ?((?:`test_\w+`(?:, )?)*)", ARCHITECTURE)
    assert len(cells) > 10
    for path, names in cells:
        code = (TOP / path).read_text(encoding="utf-8")
        for name in re.findall(r"test_\w+", names):
            assert f"def {name}(" in code, f"{path}: {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_architecture_names_each_module(folder: str) -> None:
    """Under its folder, or with its sub-package."""
    listing = ARCHITECTURE.split(f"### `{folder}/`")[1].split("\n### ")[0]
    named = set(re.findall(r"`(\w+)/?`", listing))
    modules = {
        path.parent.name if path.stem == "__init__" else path.stem
        for path in (TOP / folder).rglob("*.py")
        if "commands" not in path.parent.parts and path.stem != "__main__"
    }

    assert set() == modules - {folder} - named
