"""From the manifest of a run back to the command that makes it again."""

from dataclasses import fields
from typing import Any

from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.report.records import Record

_RENAMED = {"tokenizer": "model_name_or_path", "start": "teacher_start", "min_steps": "teacher_min_steps"}


def run_config(record: Record) -> dict[str, Any]:
    """The flags of `trl-pafo run` that decide the results of a run, as its manifest knows them; empty without one."""
    from trl import ModelConfig

    from trl_pafo.trainer.config import PAFOConfig

    # Other inputs are identities: of earlier stages, of weights. So are the teachers, which the command line takes as paths.
    defaults = {field.name: field.default for kind in (RunArguments, PAFOConfig, ModelConfig) for field in fields(kind)}
    del defaults["teachers"]
    config: dict[str, Any] = {}
    stages = {name: done["inputs"] for name, done in record.stages.items()}
    if "prepare" not in stages:
        return {}
    # The student's options come last: a control such as pafo_own_group has its own share of counterfactual rows.
    for name in sorted(stages, key=lambda stage: (stage == "pafo", stage == "evaluate")):
        inputs = stages[name]
        if name == "pafo_own_group":
            inputs = {key: value for key, value in inputs.items() if key != "counterfactual_share"}
        config |= {
            key: value for key, value in inputs.items() if key in defaults and (value is not None or defaults[key] is not None)
        }
        config |= {flag: inputs[key] for key, flag in _RENAMED.items() if inputs.get(key) is not None}
    teachers = [inputs for name, inputs in stages.items() if name.startswith("teacher:")]
    if config.get("use_peft") and any(inputs.get("use_peft") is False for inputs in teachers):
        config["teacher_kind"] = "full"
    if record.results.get("methods"):
        config["methods"] = list(record.methods)
    return dict(sorted(config.items()))


def as_yaml(config: dict[str, Any]) -> str:
    """A configuration as `--config` takes it."""
    import yaml

    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)


def given_teachers(record: Record) -> bool:
    """Whether the teachers were given by path, which the manifest does not keep."""
    students = {"pafo", "pafo_own_group"} & set(record.stages)
    return bool(students) and not any(name.startswith("teacher:") for name in record.stages)
