"""Guides of the documentation, command by command, on a tiny model, and scripts."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from trl_pafo.cli import main

TINY = ["--max_steps", "1", "--reference_steps", "1", "--num_resamples", "20", "--report_to", "none", "--bf16", "false"]


def run_script(script: Path, *flags: str) -> None:
    """As `python SCRIPT FLAGS` does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *flags])
        runpy.run_path(str(script), run_name="__main__")


class Guide:
    """A page of docs/ with one script in Python, commands, and in blocks of no language what they print (`said`).

    `commands` holds those of `trl-pafo` by name. Opened in an empty folder, it runs the script there.
    """

    def __init__(self, page: str):
        text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        lines = "".join(block for kind, block in blocks if kind == "bash").splitlines()
        commands = [shlex.split(line) for line in lines]
        [script] = [block for kind, block in blocks if kind == "python"]
        [[_, name]] = [command for command in commands if command[0] == "python"]
        Path(name).write_text(script)
        subprocess.run([sys.executable, name], check=True)
        self.commands = {command[1]: command[1:] for command in commands if command[0] == "trl-pafo"}
        assert len(self.commands) == len(commands) - 1
        self.said = [block.splitlines() for kind, block in blocks if not kind]

    def do(self, name: str, model: str, *more: str) -> None:
        """A command with a tiny model, of one layer where it takes the first ones."""
        flags = [model if word == "minilm" else word for word in self.commands[name]]
        if "--num_hidden_layers" in flags:
            flags[flags.index("--num_hidden_layers") + 1] = "1"
        assert main([*flags, *(TINY if name == "run" else ()), *more]) == 0
