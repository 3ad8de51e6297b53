"""The guide of docs/guide_audit.md, command by command, on tiny models."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.parts import make_model

from trl_pafo.cli import main

PAGE = (Path(__file__).parents[2] / "docs/guide_audit.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With the files that the guide makes, and models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, seed in (("their-model", 1), ("other-model", 2)):
        make_model("encoder", tmp_path / name, seed=seed)
    for kind, text in BLOCKS:
        if kind == "python" and text.startswith("# "):
            Path(text.split()[1]).write_text(text)
    return tmp_path


def test_the_guide(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    printed = ""
    for command in (shlex.split(line) for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()):
        if command[0] == "python":
            subprocess.run([sys.executable, *command[1:]], check=True)
            continue
        assert command[0] == "trl-pafo"
        assert main(command[1:]) == 0
        printed += capsys.readouterr().out
    for expected in (text for kind, text in BLOCKS if not kind):
        assert expected in printed
    assert "\ntheir-model against other-model: " in printed
    assert "\nscore_a, score_b against other-model: " in printed
    [code] = [text for kind, text in BLOCKS if kind == "python" and not text.startswith("# ")]
    exec(compile(code, "guide", "exec"), {})
    assert capsys.readouterr().out.startswith("Mixed against the reference: more accurate for minority")
