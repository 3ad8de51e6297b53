"""The best checkpoint by groups: transformers' own options take the numbers of an evaluation."""

import pytest
import torch
from helpers.parts import make_pairs
from safetensors.torch import load_file

from trl_pafo import PAFOConfig, PAFORewardTrainer


@pytest.mark.parametrize("metric", ["eval_accuracy_group_mean", "eval_accuracy_group_min", "eval_accuracy_difference"])
def test_the_weights_of_the_best_step_stay(metric, encoder, training, tmp_path):
    """Of the first of equals; lower is better for a difference."""
    options = {"load_best_model_at_end": True, "metric_for_best_model": metric, "max_steps": 8, "learning_rate": 3e-2}
    options |= {f"{what}_strategy": "steps" for what in ("eval", "save")} | {"eval_steps": 1, "save_steps": 1}
    args = PAFOConfig(str(tmp_path), eos_token="[SEP]", num_history=1, **training | options)
    trainer = PAFORewardTrainer(encoder, args, train_dataset=make_pairs(), eval_dataset=make_pairs(num_users=8, seed=1))
    trainer.train()
    values = {log["step"]: log[metric] for log in trainer.state.log_history if metric in log}
    assert list(values) == list(range(1, 9))
    best = (min if metric.endswith("difference") else max)(values, key=values.__getitem__)
    assert trainer.state.best_global_step == best
    assert trainer.evaluate()[metric] == values[best]
    weights, own = load_file(tmp_path / f"checkpoint-{best}/model.safetensors"), trainer.model.state_dict()
    assert all(torch.equal(own[name], weights[name]) for name in weights)
