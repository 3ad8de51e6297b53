"""A room (a first-level file or folder of the package) imports only rooms that stand below it in one list."""

import ast
import re
from pathlib import Path

import pytest

import trl_pafo

PACKAGE = Path(trl_pafo.__file__).parent
PAGE = PACKAGE.parent / "docs/architecture.md"

ROOMS = tuple(
    "cli study pipeline audit report palm serving baselines trainer evaluation models metrics data prefix_sharing storage errors".split()
)
FLAT = {"__init__", "errors"}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports, at its top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "trl_pafo":
            modules |= {f"trl_pafo.{alias.name}" for alias in node.names if alias.name in ROOMS}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return {module.split(".")[1] for module in modules if module.startswith("trl_pafo.")}


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_room_is_in_the_list() -> None:
    assert {room_of(path) for path in FILES} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == FLAT


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    own = ROOMS.index(room_of(path))
    up = sorted(room for room in imported_rooms(path) - {ROOMS[own]} if room not in ROOMS[own:])
    assert not up, f"{path.relative_to(PACKAGE)} imports {up}, which do not stand below {ROOMS[own]!r} in ROOMS"


def test_the_page_shows_the_list() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert tuple(re.findall(r"^  (\w+)(?:/|\.py) ", page, re.M)) == ROOMS


@pytest.mark.parametrize("room", [name for name in ROOMS if name not in FLAT])
def test_every_wing_says_what_it_is_for(room: str) -> None:
    assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))
