"""Help comes at once, and says what the parsers do."""

import re
import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest

from trl_pafo.cli import COMMANDS, TRAINING, main
from trl_pafo.cli.portfolio import COMMANDS as PORTFOLIO
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.options import PAFOOptions


def test_help_of_every_command_loads_no_heavy_library():
    asked = [[], ["--help"], *([name, "--help"] for name in COMMANDS), *(["portfolio", name, "-h"] for name in PORTFOLIO)]
    code = (
        "import contextlib, sys\nfrom trl_pafo.cli import main\n"
        f"for argv in {asked}:\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main(argv)\n"
        "    heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'peft', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "    assert not heavy, f'{argv} loads {heavy}'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"  {name}" in done.stdout
        assert f"usage: trl-pafo {name}" in done.stdout
    assert all(f"  {name}" in done.stdout and f"usage: trl-pafo portfolio {name}" in done.stdout for name in PORTFOLIO)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_every_command_explains_its_flags(name, flag, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, flag])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: trl-pafo {name}" in text
    if name in TRAINING:
        kind = PAFOConfig if flag == "--help-all" else PAFOOptions
        # Python 3.13 names the value once, after the last spelling: `--train_users, --train-users N`
        assert all(re.search(rf"--{f.name}[ ,]", text) for f in fields(kind) if f.init)


def flags_of(parser):
    return {flag: (action.default, action.help, action.nargs) for action in parser._actions for flag in action.option_strings}


@pytest.mark.parametrize("name", TRAINING)
def test_the_short_page_says_what_the_parser_does(name):
    command = import_module(f"trl_pafo.cli.{name}")
    short, whole = command.make_parser(short=True), command.make_parser()
    shown, taken = flags_of(short), flags_of(whole)
    assert shown == {flag: taken[flag] for flag in shown}
    known = set(re.findall(r"--\w+", short.epilog.replace("--help-all", "")))
    assert {"--output_dir", "--learning_rate", "--use_cpu"} <= known <= set(taken) - set(shown)


def test_the_page_of_the_quickstart_shows_all_that_it_sets():
    quickstart = import_module("trl_pafo.cli.quickstart")
    parser = quickstart.make_parser(short=True)
    shown = {action.dest: action.default for action in parser._actions}
    for name, value in quickstart.DEFAULTS.items():
        assert shown.get(name) == value or f" --{name} {value}" in parser.epilog
