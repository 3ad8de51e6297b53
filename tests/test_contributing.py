"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = ("A loss", "A metric", "A data source", "A baseline", "An oracle")
TRY = "to try it"


def blocks_of(title: str) -> list[tuple[str, str]]:
    """Where each Python block of a recipe goes, by its first line, and the code."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n# (.+?)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def put(where: str, code: str, root: Path) -> None:
    """A new file; or code before a table of an existing one; or an entry at the top of a table."""
    name, _, place = where.partition(", ")
    path = root / name
    if not place:
        assert not path.exists()
        path.write_text(code, encoding="utf-8")
        return
    kind, table = place.split()
    text = path.read_text(encoding="utf-8")
    (start,) = re.findall(rf"^{table}\b.*= {{\n", text, re.MULTILINE)
    new = {"before": f"{code}\n\n{start}", "in": start + code}[kind]
    path.write_text(text.replace(start, new), encoding="utf-8")


def test_every_recipe_works(tmp_path):
    shutil.copytree(ROOT / "trl_pafo", tmp_path / "trl_pafo", ignore=shutil.ignore_patterns("__pycache__"))
    checks = []
    for title in RECIPES:
        blocks = blocks_of(title)
        assert [where for where, _ in blocks].count(TRY) == 1
        checks += [code for where, code in blocks if where == TRY]
        for where, code in blocks:
            if where != TRY:
                put(where, code, tmp_path)
    script = tmp_path / "check.py"
    script.write_text("\n".join([*checks, "import trl_pafo; print(trl_pafo.__file__)"]), encoding="utf-8")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'tests'}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == str(tmp_path / "trl_pafo" / "__init__.py")
    ruff = Path(sys.executable).with_name("ruff")
    if ruff.exists():
        options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
        assert not subprocess.run([ruff, "format", "--check", *options, tmp_path / "trl_pafo"], check=False).returncode


@pytest.mark.parametrize("target", re.findall(r"`make ([\w-]+)`", PAGE))
def test_every_make_target_is_there(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_every_make_target_is_on_the_page():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(targets) - {"help", "clean"} == set(re.findall(r"make ([a-z-]+)", PAGE)) & set(targets)


@pytest.mark.parametrize("path", re.findall(r"`(t\w+/[\w./]*)`", PAGE) + re.findall(r"\]\(([\w./]+)", PAGE))
def test_every_path_on_the_page_is_there(path):
    assert (ROOT / path).exists()
