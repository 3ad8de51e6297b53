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


def decided(folder, **options):
    return RunConfig(str(folder), use_cpu=True, **options).with_number_format()


def keep(folder, args):
    folder.mkdir(exist_ok=True)
    (folder / "run.yaml").write_text(run_config(RunArguments(), args, ModelConfig()))


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_keeps_what_was_measured_first(first, measured, tmp_path):
    measured += [first, not first]
    args = decided(tmp_path / "run")
    assert (args.bf16, args.mixed_precision) == (first, "bf16" if first else "no")
    keep(tmp_path / "run", args)
    assert decided(tmp_path / "run").bf16 is first
    assert measured == [not first]
    assert decided(tmp_path / "other").bf16 is not first


def test_what_is_given_decides_and_is_not_measured(measured, tmp_path):
    keep(tmp_path / "run", RunConfig(str(tmp_path / "run"), use_cpu=True, bf16=True))
    assert decided(tmp_path / "run", bf16=False).bf16 is False
    assert decided(tmp_path / "run").bf16 is True  # kept, also if it was given


def test_a_file_that_cannot_be_read_is_told(measured, tmp_path):
    (tmp_path / "run.yaml").write_text("bf16: [")
    with pytest.raises(RunFolderError, match=r"run.yaml is no YAML. Remove it, and pass --bf16"):
        decided(tmp_path)


def test_quickstart_and_run_measure_and_other_commands_do_not(encoder, measured, monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr("trl_pafo.pipeline.run.student_model", lambda *_: {}["what follows the measurement"])
    monkeypatch.setattr("trl_pafo.cli.reward.main", lambda script, args, *_: taken.append(args.bf16))
    flags = ["--output_dir", str(tmp_path / "out"), "--use_cpu", "true", "--model_name_or_path", encoder]
    measured += [True, False]
    for left, command in ((1, "quickstart"), (0, "run")):
        with pytest.raises(KeyError, match="what follows the measurement"):
            main([command, *flags])
        assert len(measured) == left
    assert main(["reward", *flags]) == 0
    assert taken == [True]  # the default of TRL


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--model_name_or_path", "nowhere"], "No tokenizer can be loaded from 'nowhere'"),
        (["--num_history", "0"], "--num_history 0 shows no histories"),
    ],
)
def test_nothing_is_measured_before_the_options_and_the_model_are_checked(flags, match, encoder, measured, capsys, tmp_path):
    model = [] if "--model_name_or_path" in flags else ["--model_name_or_path", encoder]
    assert main(["run", "--output_dir", str(tmp_path / "out"), "--use_cpu", "true", *model, *flags]) > 0
    assert match in capsys.readouterr().err  # and no IndexError, as nothing could be measured
