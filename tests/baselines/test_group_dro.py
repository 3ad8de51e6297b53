"""Group DRO against a plain loop in float64, and its weights in checkpoints."""

import math

import pytest
import torch
from transformers import TrainerCallback

from trl_pafo.baselines import GroupDRORewardTrainer
from trl_pafo.errors import ConfigError

BATCHES = [
    (["majority", "minority", "majority", "minority"], [2.0, -1.5, 0.25, 0.5]),
    (["majority", "majority", "majority", "majority"], [1.0, -0.5, 0.0, 3.0]),
    (["minority", "majority", "minority", "minority"], [-2.0, 1.0, 0.1, -0.3]),
]
SIZES = {"majority": 20, "minority": 10}


def naive(eta, adjustment):
    """The losses of the batches, and the weights after each."""
    q, found = dict.fromkeys(SIZES, 0.5), []
    for names, differences in BATCHES:
        losses = {}
        for group in SIZES:
            own = [math.log(1 + math.exp(-d)) for d, name in zip(differences, names, strict=True) if name == group]
            losses[group] = sum(own) / len(own) if own else 0.0
        q = {g: q[g] * math.exp(eta * (losses[g] + adjustment / math.sqrt(SIZES[g]))) for g in q}
        q = {g: q[g] / sum(q.values()) for g in q}
        found.append((sum(q[g] * losses[g] for g in q), dict(q)))
    return found


@pytest.mark.parametrize("constants", [{}, {"eta": 1.0, "adjustment": 3.0}])
def test_losses_and_weights_are_those_of_a_plain_loop(build, batch_of, constants):
    trainer = build(GroupDRORewardTrainer, constants=constants)
    eta, adjustment = constants.get("eta", 0.01), constants.get("adjustment", 0.0)  # by default those of the paper
    trainer.model.train()
    for (names, differences), (loss, q) in zip(BATCHES, naive(eta, adjustment), strict=True):
        found, parts = trainer.pair_loss(torch.tensor(differences), batch_of(trainer, names))
        assert float(found) == pytest.approx(loss, rel=1e-5)
        assert {name: float(part) for name, part in parts.items()} == pytest.approx(
            {f"group_weight/{group}": weight for group, weight in q.items()}, rel=1e-5
        )


def test_the_gradient_is_that_of_the_weighted_losses(build, batch_of):
    trainer = build(GroupDRORewardTrainer, constants={"eta": 1.0})
    trainer.model.train()
    names, differences = BATCHES[0]
    difference = torch.tensor(differences, requires_grad=True)
    loss, parts = trainer.pair_loss(difference, batch_of(trainer, names))
    loss.backward()
    q = {name: float(parts[f"group_weight/{name}"]) for name in SIZES}
    expected = [-q[name] / 2 / (1 + math.exp(d)) for name, d in zip(names, differences, strict=True)]
    assert difference.grad.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("constants", "match"),
    [({"eta": 0.0}, "`eta` must be above 0, got 0.0"), ({"adjustment": -1.0}, "`adjustment` must be at least 0, got -1.0")],
)
def test_constants_out_of_range_are_refused(build, constants, match):
    with pytest.raises(ConfigError, match=match):
        build(GroupDRORewardTrainer, constants=constants)


class TestCheckpoints:
    """A training that goes on from a checkpoint has the weights of the unbroken one."""

    OPTIONS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "disable_dropout": False}
    CONSTANTS = {"eta": 0.5}

    @staticmethod
    def logged(trainer):
        keys = ("loss", "group_weight/majority", "group_weight/minority")
        return [[entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry]

    @pytest.fixture
    def unbroken(self, build):
        trainer = build(GroupDRORewardTrainer, out="unbroken", constants=self.CONSTANTS, **self.OPTIONS)
        trainer.train()
        return trainer

    def test_losses_and_weights_and_a_second_training_starts_with_equal_ones(self, build, unbroken, tmp_path):
        assert len({weight for _, weight, _ in self.logged(unbroken)}) == 6
        for restores in (False, True):
            options = {**self.OPTIONS, "restore_callback_states_from_checkpoint": restores}
            trainer = build(GroupDRORewardTrainer, out="resumed", constants=self.CONSTANTS, **options)
            trainer.train(resume_from_checkpoint=str(tmp_path / "unbroken/checkpoint-4"))
            assert self.logged(trainer) == self.logged(unbroken)
            assert trainer.group_weights.weights.tolist() == unbroken.group_weights.weights.tolist()
        seen = []

        class Look(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                seen.append(unbroken.group_weights.weights.tolist())

        unbroken.add_callback(Look())
        unbroken.train()
        assert seen[0] == [0.5, 0.5]
