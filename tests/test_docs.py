"""The links of the documentation lead somewhere, and the index names every page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]


def prose(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page, and those that it sets itself."""
    text = prose(page)
    found = set(re.findall(r'<a id="([^"]+)">', text))
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-"))
    return found


def links(page: Path) -> list[str]:
    """What the page links to within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name if page.parent == ROOT else f"docs/{page.name}")
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name} links to {link}, which does not exist"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}: no such heading"


def test_the_index_names_every_page() -> None:
    assert {link.partition("#")[0] for link in links(DOCS / "README.md")} >= {page.name for page in DOCS.glob("*.md")} - {
        "README.md"
    }


def test_the_pages_that_code_names_exist() -> None:
    for folder in ("trl_pafo", "examples", "benchmarks", "tests"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in {".py", ".yaml"}:
                for name in re.findall(r"\bdocs/[\w/]+\.(?:md|png)\b", file.read_text(encoding="utf-8")):
                    assert (ROOT / name).exists(), f"{file} names {name}"
