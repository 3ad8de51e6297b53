"""The links of the documentation lead somewhere, and the index names every page."""

import re
import runpy
from pathlib import Path

import pytest

import trl_pafo
from trl_pafo.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples/README.md",
    *sorted(DOCS.glob("*.md")),
]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
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


def test_the_site_shows_every_page_every_command_and_every_public_name(tmp_path: Path) -> None:
    build = runpy.run_path(str(DOCS / "site/build.py"))
    build["assemble"](tmp_path)
    shown = re.findall(r"^docs/(\w+)$", (tmp_path / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {*shown, "README"} == {page.stem for page in (tmp_path / "docs").glob("*.md")}
    assert len(shown) == len(set(shown))
    options = (tmp_path / "docs" / "options.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        section = options.partition(f"\n## trl-pafo {command}")[2].partition("\n## ")[0]
        assert "| `--" in section, command
    assert "| `--distillation_loss` | " in options
    assert "| `--label_noise` | Share of labels that are flipped. (`0.0`) |" in options
    assert "(`bradley_terry personalized_bt pafo group_routed`) |" in options
    assert "`--per_device_train_batch_size`" not in options  # of transformers, as `--help` leaves out
    api = (tmp_path / "docs" / "api.md").read_text(encoding="utf-8")
    for name in trl_pafo.__all__:
        assert name.startswith("__") or f":: trl_pafo.{name}\n" in api


@pytest.mark.parametrize(
    ("markdown", "rst"),
    [
        ("    *args, **kwargs:", r"    \*args, \*\*kwargs:"),
        ("As in *their paper*, **ours** alone: `a * b`", "As in *their paper*, **ours** alone: ``a * b``"),
    ],
)
def test_the_site_tells_what_a_docstring_stresses_from_the_stars_of_arguments(markdown: str, rst: str) -> None:
    assert runpy.run_path(str(DOCS / "site/conf.py"))["inline"](markdown) == rst
