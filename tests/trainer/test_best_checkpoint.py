"""The best checkpoint by groups: what is filled in, what is refused, and that its weights are the ones that stay."""

import logging
import math

import pytest
import torch
from helpers.parts import StoppedAfter, make_pairs
from safetensors.torch import load_file
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
        ({"eval_steps": 20}, ("steps", 20, "steps", 20)),
        ({"eval_strategy": "epoch"}, ("epoch", None, "epoch", 500)),
        ({"save_strategy": "epoch"}, ("epoch", None, "epoch", 500)),
        ({"save_strategy": "best", "eval_strategy": "epoch"}, ("epoch", None, "best", 500)),
    ],
    ids=str,
)
def test_evaluations_and_checkpoints_are_matched_where_they_are_left_open(given, expected, tmp_path):
    args = config(tmp_path, **given)
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == expected
    choose_checkpoint(args, None, HELD_OUT)  # again, by the trainer
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == expected


def test_what_transformers_needs_is_set_also_after_the_options_were_made(tmp_path):
    for choice, metric in METRICS.items():
        late = PAFOConfig.from_reward_config(RewardConfig(str(tmp_path), **CPU))
        assert not late.load_best_model_at_end
        late.best_checkpoint = choice
        choose_checkpoint(late, None, HELD_OUT)
        assert (late.load_best_model_at_end, late.greater_is_better, late.save_total_limit) == (True, True, 2)
        assert late.metric_for_best_model == f"eval_{metric}"
    assert config(tmp_path, save_total_limit=5).save_total_limit == 5


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"best_checkpoint": "minority"}, "must be one of group_balanced, worst_group, overall, got 'minority'"),
        ({"save_strategy": "no"}, r"save_strategy='no' writes none\. Leave that option out"),
        ({"greater_is_better": False}, "Leave out greater_is_better=False"),
        ({"metric_for_best_model": "loss"}, "by accuracy_group_mean, not by metric_for_best_model='loss'. Leave out one"),
        ({"eval_strategy": "steps", "save_strategy": "epoch"}, r"eval_strategy='steps' .* is not save_strategy='epoch'"),
        ({"eval_strategy": "steps", "eval_steps": 10, "save_steps": 20}, "eval_steps=10.* Leave out the options of one"),
        ({"eval_strategy": "steps", "eval_steps": 20, "save_steps": 10}, "eval_steps=20.* Leave out the options of one"),
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
        ("worst_group", None, {"new": HELD_OUT, "old": HELD_OUT}, ConfigError, "Set it to .* eval_new_acc.* or eval_old_"),
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
    def make(out="out", eval_dataset=HELD_OUT, **more):
        given = {**training, "max_steps": 8, "learning_rate": 3e-2, "eval_steps": 1, "save_total_limit": 8, **more}
        given.pop("save_strategy")
        args = PAFOConfig(str(tmp_path / out), eos_token="[SEP]", num_history=1, **given)
        return PAFORewardTrainer(encoder, args, train_dataset=make_pairs(), eval_dataset=eval_dataset)

    return make


def logged(trainer, key):
    return {log["step"]: log[key] for log in trainer.state.log_history if key in log}


@pytest.mark.parametrize("several", [False, True], ids=["one set", "one of several"])
def test_the_weights_of_the_best_step_stay_also_where_the_training_was_stopped(build, tmp_path, several):
    """Of the first of equals; losses are those without it."""
    rows, which = ({"new": make_pairs(seed=2), "old": HELD_OUT}, "old_") if several else (HELD_OUT, "")
    key = f"eval_{which}accuracy_group_min"
    options = {"eval_dataset": rows, "best_checkpoint": "worst_group", "metric_for_best_model": key}
    trainer = build("unbroken", **options)
    trainer.train()
    values = logged(trainer, key)
    assert list(values) == list(range(1, 9))
    best = max(values, key=values.__getitem__)  # the first of equals
    assert trainer.state.best_global_step == best < 5
    assert trainer.evaluate()[key] == values[best]
    weights = load_file(tmp_path / f"unbroken/checkpoint-{best}/model.safetensors")
    own = trainer.model.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in weights)
    if several:
        plain = build("plain")
        plain.train()
        assert logged(trainer, "loss") == logged(plain, "loss")
        return
    stopped = build("stopped", **options)
    stopped.add_callback(StoppedAfter(5))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = build("stopped", **options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.best_global_step == best
    resumed_weights = resumed.model.state_dict()
    assert all(torch.equal(resumed_weights[name], value) for name, value in own.items())


def test_the_last_checkpoint_stays_beside_the_best(build, tmp_path):
    trainer = build(best_checkpoint="worst_group", learning_rate=0.0, max_steps=3, save_total_limit=None)
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}


def test_a_training_without_a_best_checkpoint_says_so(build, caplog):
    trainer = build(best_checkpoint="overall", max_steps=2)
    with torch.no_grad():
        trainer.model.classifier.bias.fill_(math.nan)
    trainer.train()
    assert "had no checkpoint to choose: none was evaluated, or all gave NaN" in caplog.text
