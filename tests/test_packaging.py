"""What is built for PyPI: all that the package reads is in it, and what its files say of it agrees."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import trl_pafo

ROOT = Path(trl_pafo.__file__).parent.parent


def files_of_the_package() -> set[str]:
    found = (path for path in (ROOT / "trl_pafo").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sdist and wheel, built in a copy: setuptools writes beside what it reads."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT / "trl_pafo", copy / "trl_pafo", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for kind in ("sdist", "wheel"):  # a process each, as builders do
        code = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(built: Path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert names == files_of_the_package()


def test_the_source_archive_holds_what_the_wheel_is_built_from(built: Path):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of_the_package() | {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == trl_pafo.__version__
    assert [reference["url"].rpartition("/")[2] for reference in citation["references"]] == ["2606.07988", "2604.04144"]


def test_the_workflow_runs_what_make_test_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["tests"]
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    checks = ("ruff check .", "ruff format --check .", "mypy", "python -m pytest -n 2 -q")
    for check in checks:
        assert check in commands
        assert check in makefile
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"):
        assert f"{name}={workflow['env'][name]}" in makefile
