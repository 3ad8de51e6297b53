"""The best checkpoint by groups: what is filled in, what is refused, and that its weights are the ones that stay."""

import logging
import math

import pytest
import torch
from helpers.parts import make_pairs, make_teachers
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import RewardConfig

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.trainer.best_checkpoint import choose_checkpoint

CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}
METRICS = {"group_balanced": "accuracy_group_mean", "worst_group": "accuracy_group_min", "overall": "accuracy"}
HELD_OUT = make_pairs(num_users=8, seed=1)
UNGROUPED = HELD_OUT.remove_columns("group")


def config(tmp_path, best_checkpoint="group_balanced", **more) -> PAFOConfig:
    return PAFOConfig(str(tmp_path), best_checkpoint=best_checkpoint, **CPU, **more)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("steps", 0.1, "steps", 0.1)),
        ({"save_steps": 50}, ("steps", 50, "steps", 50)),
        ({"eval_strategy": "steps"}, ("steps", 0.1, "steps", 0.1)),
        ({"eval_steps": 20}, ("steps", 20, "steps", 20)),
        ({"eval_strategy": "steps", "eval_steps": 20, "save_steps": 20}, ("steps", 20, "steps", 20)),
        ({"eval_strategy": "epoch"}, ("epoch", None, "epoch", 500)),
        ({"save_strategy": "epoch"}, ("epoch", None, "epoch", 500)),
        ({"save_strategy": "best", "eval_strategy": "epoch"}, ("epoch", None, "best", 500)),
        ({"save_strategy": "best"}, ("steps", 0.1, "best", 500)),
    ],
    ids=str,
)
def test_evaluations_and_checkpoints_are_matched_where_they_are_left_open(given, expected, tmp_path):
    args = config(tmp_path, **given)
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == expected
    choose_checkpoint(args, None, HELD_OUT)  # again, by the trainer
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == expected


@pytest.mark.parametrize(("choice", "metric"), METRICS.items())
def test_what_transformers_needs_is_set_also_after_the_options_were_made(choice, metric, tmp_path):
    late = PAFOConfig.from_reward_config(RewardConfig(str(tmp_path), **CPU))
    assert not late.load_best_model_at_end
    late.best_checkpoint = choice
    choose_checkpoint(late, None, HELD_OUT)
    for args in (config(tmp_path, choice), late):
        assert (args.load_best_model_at_end, args.greater_is_better, args.save_total_limit) == (True, True, 2)
        assert args.metric_for_best_model == f"eval_{metric}"
    assert config(tmp_path, choice, save_total_limit=5).save_total_limit == 5


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"best_checkpoint": "minority"}, "must be one of group_balanced, worst_group, overall, got 'minority'"),
        ({"save_strategy": "no"}, r"save_strategy='no' writes none\. Leave that option out"),
        ({"greater_is_better": False}, "Leave out greater_is_better=False"),
        ({"metric_for_best_model": "loss"}, "by accuracy_group_mean, not by metric_for_best_model='loss'. Leave out one"),
        ({"eval_strategy": "epoch", "save_steps": 50}, "'epoch' .* is not save_strategy='steps' .save_steps=50."),
        ({"eval_strategy": "steps", "save_strategy": "epoch"}, r"eval_strategy='steps' .* is not save_strategy='epoch'"),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_steps": 20}, "eval_steps=10.* Leave out the options of one"),
    ],
    ids=str,
)
def test_options_that_contradict_it_are_refused(given, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        config(tmp_path, **given)


@pytest.mark.parametrize(
    ("choice", "metric", "rows", "error", "match"),
    [
        ("overall", None, None, ConfigError, "and there is none. Give one"),
        ("worst_group", None, UNGROUPED, DataError, "needs the column `group` in `eval_dataset`"),
        ("worst_group", None, UNGROUPED.add_column("group", [None] * len(HELD_OUT)), DataError, "or set 'overall'"),
        (
            "worst_group",
            None,
            {"new": HELD_OUT, "old": HELD_OUT},
            ConfigError,
            "Set it to .* eval_new_accuracy_group_min or eval_old_",
        ),
        ("overall", "user_accuracy", HELD_OUT, ConfigError, "is of no evaluation dataset"),
        ("worst_group", "new_accuracy_group_min", {"new": UNGROUPED, "old": HELD_OUT}, DataError, "needs the column `group`"),
    ],
)
def test_data_that_cannot_choose_are_refused_before_a_model_is_loaded(choice, metric, rows, error, match, tmp_path, pairs):
    args = config(tmp_path, choice, metric_for_best_model=metric)
    with pytest.raises(error, match=match):
        PAFORewardTrainer("nowhere", args, train_dataset=pairs, eval_dataset=rows)


def test_groups_that_have_no_say_are_named(tmp_path, pairs, caplog):
    few = HELD_OUT.filter(lambda row: row["group"] == "majority")
    with caplog.at_level(logging.WARNING):
        choose_checkpoint(config(tmp_path), pairs, few)
        choose_checkpoint(config(tmp_path), pairs, HELD_OUT)
        choose_checkpoint(config(tmp_path), pairs, few.to_iterable_dataset())  # whose groups are not known yet
    (record,) = caplog.records
    assert "the evaluation pairs have no say for minority, of which they hold no pair" in record.getMessage()


@pytest.fixture
def build(encoder, training, tmp_path):
    def make(out="out", eval_dataset=HELD_OUT, model=encoder, teachers=None, peft_config=None, **more):
        given = {**training, "max_steps": 8, "learning_rate": 3e-2, "eval_steps": 1, "save_total_limit": 8, **more}
        given.pop("save_strategy")
        args = PAFOConfig(str(tmp_path / out), eos_token="[SEP]", num_history=1, **given)
        parts = {"train_dataset": make_pairs(), "eval_dataset": eval_dataset, "teachers": teachers, "peft_config": peft_config}
        return PAFORewardTrainer(model, args, **parts)

    return make


def logged(trainer, key):
    return {log["step"]: log[key] for log in trainer.state.log_history if key in log}


def test_the_weights_of_the_best_step_stay(build, tmp_path):
    """Of the first of equals, for each choice; another choice keeps another step, and losses are those without it."""
    plain = build("plain")
    plain.train()
    kept = {}
    for choice, metric in METRICS.items():
        trainer = build(choice, best_checkpoint=choice)
        trainer.train()
        values = logged(trainer, f"eval_{metric}")
        assert list(values) == list(range(1, 9))
        kept[choice] = max(values, key=values.__getitem__)  # the first of equals
        assert trainer.state.best_global_step == kept[choice]
        assert trainer.evaluate()[f"eval_{metric}"] == values[kept[choice]]
        weights = load_file(tmp_path / choice / f"checkpoint-{kept[choice]}/model.safetensors")
        own = trainer.model.state_dict()
        assert all(torch.equal(own[name], weights[name]) for name in weights)
        assert logged(trainer, "loss") == logged(plain, "loss")
    assert len(set(kept.values())) > 1
    assert min(kept.values()) < 8


def test_of_equals_the_earlier_one_stays_and_two_are_kept(build, tmp_path):
    trainer = build(best_checkpoint="worst_group", learning_rate=0.0, max_steps=4, save_total_limit=None)
    trainer.train()
    assert len(set(logged(trainer, "eval_accuracy_group_min").values())) == 1
    assert trainer.state.best_global_step == 1
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-4"}


def test_with_teachers_an_adapter_and_several_evaluation_sets(build, tmp_path):
    trainer = build(
        eval_dataset={"new": HELD_OUT, "old": make_pairs(seed=2)},
        teachers=make_teachers("encoder", tmp_path),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]),
        best_checkpoint="worst_group",
        metric_for_best_model="eval_old_accuracy_group_min",
    )
    trainer.train()
    values = logged(trainer, "eval_old_accuracy_group_min")
    best = max(values, key=values.__getitem__)
    assert trainer.state.best_global_step == best < 8
    assert trainer.evaluate()["eval_old_accuracy_group_min"] == values[best]


def test_a_training_without_a_best_checkpoint_says_so(build, caplog):
    trainer = build(best_checkpoint="overall", max_steps=2)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(math.nan)
    trainer.train()
    assert "had no checkpoint to choose: none was evaluated, or all gave NaN" in caplog.text


class Stop(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


def test_resumed_it_ends_with_the_same_weights(build):
    unbroken = build("unbroken", best_checkpoint="group_balanced")
    unbroken.train()
    stopped = build("stopped", best_checkpoint="group_balanced")
    stopped.add_callback(Stop())
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = build("stopped", best_checkpoint="group_balanced")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step == unbroken.state.best_global_step < 5
    own = resumed.model.state_dict()
    assert all(torch.equal(own[name], value) for name, value in unbroken.model.state_dict().items())
