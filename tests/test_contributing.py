"""The recipes of CONTRIBUTING.md, followed to the letter in a copy of the package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

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
    shutil.copytree(ROOT / "trl_pafo", tmp_path / "trl_pafo")  # with what is compiled already
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


def test_the_make_targets_on_the_page_are_those_that_are_there():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)`", PAGE))
    assert named <= targets <= named | {"setup", "help", "clean"}


def test_every_path_on_the_page_is_there():  # links: tests/test_docs.py
    paths = re.findall(r"`(t\w+/[\w./]*)`", PAGE)
    assert len(paths) > 10
    assert not [path for path in paths if not (ROOT / path).exists()]
