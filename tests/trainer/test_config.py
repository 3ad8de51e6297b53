"""What the options may be, and how they come in: from Python, a command line, YAML, or a RewardConfig."""

import copy
import json
import math
from dataclasses import fields

import pytest
import yaml
from trl import RewardConfig, TrlParser

from trl_pafo import PAFOConfig
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.config import AUTO_ON_OFF, CONDITIONINGS
from trl_pafo.trainer.losses import DISTILLATION_LOSSES

CPU = {"use_cpu": True, "bf16": False}
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]
OWN = [f for f in fields(PAFOConfig) if f.name not in {g.name for g in fields(RewardConfig)}]


def config(tmp_path, **options):
    return PAFOConfig(str(tmp_path), **CPU, **options)


def parse(*argv):
    (parsed,) = TrlParser(PAFOConfig).parse_args_and_config([*argv, *ON_CPU])
    return parsed


class TestValues:
    def test_shares_are_between_0_and_1(self, tmp_path):
        for name, value in (("alpha", -0.01), ("tau", 1.01), ("alpha", math.nan)):
            with pytest.raises(ConfigError, match=rf"`{name}` must be in \[0, 1\], got {value}"):
                config(tmp_path, **{name: value})

    @pytest.mark.parametrize(
        ("name", "choices"),
        [
            ("distillation_loss", tuple(DISTILLATION_LOSSES)),
            ("conditioning", CONDITIONINGS),
            ("prefix_sharing", AUTO_ON_OFF),
            ("padding_free", AUTO_ON_OFF),
        ],
    )
    def test_choices(self, name, choices, tmp_path):
        assert getattr(config(tmp_path, **{name: choices[-1]}), name) == choices[-1]
        with pytest.raises(ConfigError, match=f"`{name}` must be one of {', '.join(choices)}, got 'nonsense'"):
            config(tmp_path, **{name: "nonsense"})

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"distillation_temperature": math.nan}, "`distillation_temperature` must be above 0"),
            ({"min_num_history": -1}, r"`min_num_history` must be from 0 to `num_history` \(None\)"),
            ({"min_num_history": 3, "num_history": 2}, r"`min_num_history` must be from 0 to `num_history` \(2\)"),
            ({"num_history": -1}, "`num_history` must be at least 0"),
            ({"history_max_tokens": 0}, "`history_max_tokens` must be at least 1"),
            ({"history_fields": []}, "`history_fields` must be some of prompt, chosen, rejected"),
            ({"teachers": ["a", "b"]}, "`teachers` must map each group to a path or Hub id, got list.*write it as JSON"),
        ],
    )
    def test_values_that_cannot_be_used(self, options, match, tmp_path):
        with pytest.raises(ConfigError, match=match):
            config(tmp_path, **options)

    def test_of_what_is_unequal_less_is_better(self, tmp_path):
        for metric in ("accuracy_difference", "user_accuracy_std", "user_accuracy_gini", "eval_user_accuracy_theil"):
            assert config(tmp_path, metric_for_best_model=metric).greater_is_better is False
        assert config(tmp_path, metric_for_best_model="user_accuracy_p10").greater_is_better is not False
        assert config(tmp_path, metric_for_best_model=metric, greater_is_better=True).greater_is_better is True
        given = RewardConfig(str(tmp_path), **CPU, metric_for_best_model=metric)  # which has taken it for an accuracy
        assert PAFOConfig.from_reward_config(given).greater_is_better is False
        own = RewardConfig(str(tmp_path), **CPU, metric_for_best_model="eval_reward_std")  # a metric of somebody else
        assert PAFOConfig.from_reward_config(own).greater_is_better is True

    def test_every_option_is_described_where_people_look(self):
        for f in OWN:
            assert f.metadata["help"]
            assert f"\n        {f.name} (`" in PAFOConfig.__doc__


class TestCommandLine:
    def test_teachers_that_are_no_json_are_refused(self, tmp_path):
        with pytest.raises(ConfigError, match="write it as JSON: --teachers"):
            parse("--output_dir", str(tmp_path), "--teachers", "majority=a")

    def test_yaml(self, tmp_path):
        options = {
            **{"output_dir": str(tmp_path), "teachers": {"majority": "a", "minority": "b"}},
            **{"history_fields": ["chosen"], "tau": 0.5},
        }
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(options))
        args = parse("--config", str(file), "--tau", "0.25")
        assert args.teachers == options["teachers"]
        assert args.history_fields == ["chosen"]
        assert args.tau == 0.25  # the command line takes precedence
        args = config(tmp_path, teachers={0: tmp_path / "a"})
        assert json.loads(args.to_json_string())["teachers"] == {"0": str(tmp_path / "a")}  # as texts


class TestFromRewardConfig:
    def test_every_field_is_kept_and_the_given_one_left_alone(self, tmp_path):
        options = {**CPU, "learning_rate": 3e-4, "max_length": 77, "warmup_steps": 5, "logging_steps": 0.5, "report_to": "none"}
        given = RewardConfig(str(tmp_path), **options)
        before = copy.deepcopy(given.to_dict())
        args = PAFOConfig.from_reward_config(given)
        assert type(args) is PAFOConfig
        assert type(given) is RewardConfig
        assert args.to_dict() == PAFOConfig(str(tmp_path), **options).to_dict()
        args.alpha = 0.9
        args.max_length = 5
        assert given.to_dict() == before
