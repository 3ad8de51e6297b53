"""The number format of a run: given, kept in its folder, or measured, in this order."""

import pytest
from trl import ModelConfig

from trl_pafo.cli import main
from trl_pafo.errors import RunFolderError
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.pipeline import run_options as module
from trl_pafo.pipeline.run_options import RunConfig, run_config


@pytest.fixture
def measured(monkeypatch):
    """What the next measurements find; each is taken out."""
    found = []
    monkeypatch.setattr(module, "fast_bf16", lambda: found.pop(0))
    return found


def keep(folder, args):
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(run_config(RunArguments(), args, ModelConfig()))


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_keeps_what_was_measured_first(first, measured, tmp_path):
    measured += [first, not first]
    args = RunConfig(str(tmp_path / "run"), use_cpu=True)
    assert (args.bf16, args.mixed_precision) == (first, "bf16" if first else "no")
    keep(tmp_path / "run", args)
    assert RunConfig(str(tmp_path / "run"), use_cpu=True).bf16 is first
    assert measured == [not first]
    assert RunConfig(str(tmp_path / "other"), use_cpu=True).bf16 is not first


def test_what_is_given_decides_and_is_not_measured(measured, tmp_path):
    keep(tmp_path / "run", RunConfig(str(tmp_path / "run"), use_cpu=True, bf16=True))
    assert RunConfig(str(tmp_path / "run"), use_cpu=True, bf16=False).bf16 is False
    assert RunConfig(str(tmp_path / "run"), use_cpu=True).bf16 is True  # kept, also if it was given


def test_a_file_that_cannot_be_read_is_told(measured, tmp_path):
    (tmp_path / "run.yaml").write_text("bf16: [")
    with pytest.raises(RunFolderError, match=r"run.yaml is no YAML. Remove it, and pass --bf16"):
        RunConfig(str(tmp_path), use_cpu=True)


def test_quickstart_and_run_measure_and_other_commands_do_not(measured, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr("trl_pafo.cli.run.main", lambda run_args, args, model_args: taken.append(args.bf16))
    monkeypatch.setattr("trl_pafo.cli.reward.main", lambda script, args, *_: taken.append(args.bf16))
    flags = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    measured += [True, False]
    assert main(["quickstart", *flags]) == 0
    assert main(["run", *flags]) == 0
    assert main(["reward", *flags]) == 0
    assert taken == [True, False, True]  # the last is the default of TRL
