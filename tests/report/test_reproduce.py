import json

import pytest
import yaml
from helpers.fake_runs import make_run

from trl_pafo.cli.run import make_parser
from trl_pafo.report.records import read_record
from trl_pafo.report.reproduce import as_yaml, given_teachers, run_config
from trl_pafo.storage.canonical import canonical
from trl_pafo.trainer.cache_keys import student_inputs, training_inputs


@pytest.fixture
def record(tmp_path):
    return read_record(
        make_run(tmp_path / "run", source="dsp", minority_ratio=0.2, majority=["academy"], data_path="a b: #c.json")
    )


def test_the_command_line_takes_the_configuration_and_gets_the_same_options(record, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(as_yaml(run_config(record)), encoding="utf-8")
    run, args, model = make_parser().parse_args_and_config(
        ["--config", str(path), "--output_dir", str(tmp_path / "new"), "--use_cpu", "true"]
    )
    assert run.data_inputs() == record.results["data"]
    assert (run.methods, run.reference, run.num_resamples) == (list(record.methods), "personalized_bt", 60)
    assert (run.teacher_start, run.teacher_min_steps) == ("warm", 7)
    assert (args.alpha, args.learning_rate, args.seed, args.num_history) == (0.25, 1e-4, 42, 1)
    assert model.model_name_or_path == "minilm"


def test_every_input_of_a_training_is_a_flag(record, tmp_path):
    """All that `stages` keeps in the manifest comes back through the YAML unchanged."""
    _, args, model = make_parser().parse_args_and_config(["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false"])
    inputs = training_inputs(args, model) | student_inputs(args)
    more = {"optim_args": "momentum=0.9", "optim_target_modules": ["q_proj"], "model_init_kwargs": {"attention_dropout": 0.1}}
    kept = {**inputs, **more, "num_train_epochs": 7.0, "alpha": 0.9, "bf16": False, "num_history": 1, "max_length": None}
    record.stages["pafo"]["inputs"] = json.loads(json.dumps(kept, default=str))  # as a manifest keeps them
    config = run_config(record)
    path = tmp_path / "run.yaml"
    path.write_text(as_yaml(config), encoding="utf-8")
    _, again, _ = make_parser().parse_args_and_config(["--config", str(path), "--output_dir", str(tmp_path), "--use_cpu", "true"])
    assert training_inputs(again, model) | student_inputs(again) == canonical(kept)


def test_controls_do_not_change_the_students_options(record):
    record.stages["pafo_own_group"] = {"inputs": {"alpha": 0.25, "counterfactual_share": 0.0}, "output": "x"}
    record.stages["pafo"]["inputs"]["counterfactual_share"] = 0.5
    assert run_config(record)["counterfactual_share"] == 0.5
    del record.stages["pafo"]["inputs"]["counterfactual_share"]
    assert "counterfactual_share" not in run_config(record)


@pytest.mark.parametrize(("of_teachers", "kind"), [(False, "full"), (True, None)])
def test_full_teachers_beside_an_adapter(record, of_teachers, kind):
    record.stages["teacher:minority"] = {"inputs": {"use_peft": of_teachers}, "output": "x"}
    record.stages["pafo"]["inputs"]["use_peft"] = True
    config = run_config(record)
    assert config["use_peft"] is True
    assert config.get("teacher_kind") == kind


def test_identities_and_empty_options_are_no_flags(record):
    record.stages["pafo"]["inputs"] |= {"teachers": {"majority": "abc"}, "instead": "abc"}
    config = run_config(record)
    assert not {
        "teachers",
        "instead",
        "method",
        "base",
        "data",
        "models",
        "start",
        "min_steps",
        "tokenizer",
        "lora_target_modules",
    } & set(config)
    assert yaml.safe_load(as_yaml(config)) == config


def test_without_a_manifest_there_is_nothing(record):
    record.stages = {}
    assert run_config(record) == {}


def test_given_teachers_are_told(record):
    assert not given_teachers(record)
    for group in ("majority", "minority"):
        del record.stages[f"teacher:{group}"]
    assert given_teachers(record)
