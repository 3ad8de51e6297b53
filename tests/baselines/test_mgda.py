"""MGDA: the weights against brute force, and the direction of a step against gradients taken one by one."""

import itertools

import numpy as np
import pytest
import torch
from helpers.parts import make_pairs
from scipy.optimize import minimize

from trl_pafo.baselines import MGDARewardTrainer
from trl_pafo.baselines.mgda import min_norm_weights
from trl_pafo.errors import ConfigError
from trl_pafo.trainer.collator import PairBatch


def test_two_vectors_by_hand():
    of = lambda a, b: min_norm_weights(np.array([a, b]) @ np.array([a, b]).T).tolist()  # noqa: E731
    assert of([1.0, 0.0], [0.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert of([1.0, 0.0], [0.0, 2.0]) == pytest.approx([0.8, 0.2])  # .8 (1, 0) + .2 (0, 2) = (.8, .4), orthogonal to (-1, 2)
    assert of([1.0, 0.0], [3.0, 1.0]) == pytest.approx([1.0, 0.0])  # the short one lowers both
    assert of([3.0, 1.0], [1.0, 0.0]) == pytest.approx([0.0, 1.0])
    assert of([1.0, 0.0], [-3.0, 0.0]) == pytest.approx([0.75, 0.25])  # opposed: nothing lowers both
    assert of([1.0, 1.0], [1.0, 1.0]) == pytest.approx([0.5, 0.5])
    assert of([0.0, 0.0], [0.0, 0.0]) == [0.5, 0.5]


@pytest.mark.parametrize(("number", "scale"), [(2, 1.0), (3, 1e-4), (4, 1e4)])
def test_no_other_weights_give_a_shorter_vector(number, scale):
    rng = np.random.default_rng(number)
    for _ in range(5):
        vectors = scale * (rng.normal(size=(number, 4)) + rng.normal(size=4))
        weights = min_norm_weights(vectors @ vectors.T)
        assert weights.min() >= 0
        assert weights.sum() == pytest.approx(1)
        length = np.linalg.norm(weights @ vectors)
        others = minimize(
            lambda w, v=vectors: ((w @ v / scale) ** 2).sum(),
            np.full(number, 1 / number),
            bounds=number * [(0, 1)],
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert length <= np.linalg.norm(others.x @ vectors) + 1e-6 * scale
        grid = [w for w in itertools.product(np.linspace(0, 1, 11), repeat=number) if abs(sum(w) - 1) < 1e-9]
        assert length <= min(np.linalg.norm(np.array(w) @ vectors) for w in grid) + 1e-9 * scale


@pytest.fixture
def three_groups():
    rows = make_pairs(num_users=6, history=0)
    groups = ["other" if user == "user-5" else group for user, group in zip(rows["user"], rows["group"], strict=True)]
    return rows.remove_columns("group").add_column("group", groups)


def gradient(model):
    """What a backward pass has left in the weights, as one vector."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()]).double()


def gradients_of(trainer, batch):
    """The gradient of the mean loss of each group, each by a forward and a backward pass of its own."""
    found = {}
    for number in sorted(set(batch["group_id"].tolist())):
        trainer.model.zero_grad()
        ids = batch["group_id"]
        rows = {name: batch[name] for name in ("input_ids", "attention_mask")}
        chosen, rejected = torch.chunk(trainer.model(**rows).logits.squeeze(-1), 2)
        losses = -torch.nn.functional.logsigmoid(chosen - rejected)
        losses[ids == number].mean().backward()
        found[trainer.group_names[number]] = gradient(trainer.model)
    trainer.model.zero_grad()
    return found


def test_a_step_is_the_shortest_sum_of_the_gradients_of_the_groups(build, three_groups):
    trainer = build(MGDARewardTrainer, three_groups, per_device_train_batch_size=8, prefix_sharing="off")
    trainer.model.train()
    for batch in itertools.islice(trainer.get_train_dataloader(), 3):
        expected = gradients_of(trainer, batch)
        assert len(expected) > 1
        vectors = torch.stack(list(expected.values())).numpy()
        weights = dict(zip(expected, min_norm_weights(vectors @ vectors.T), strict=True))
        difference = torch.sub(*torch.chunk(trainer.model(batch["input_ids"], batch["attention_mask"]).logits.squeeze(-1), 2))
        loss, parts = trainer.pair_loss(difference, PairBatch(group_id=batch["group_id"]))
        assert not gradient(trainer.model).any()  # no trace in the weights
        named = {f"group_weight/{name}": weights.get(name, 0.0) for name in trainer.group_names}
        assert {name: float(part) for name, part in parts.items()} == pytest.approx(named, abs=1e-3)
        loss.backward()
        step = gradient(trainer.model).numpy()
        shortest = sum(weights[name] * expected[name].numpy() for name in weights)
        np.testing.assert_allclose(step, shortest, atol=1e-3)
        for name, vector in expected.items():  # it lowers the loss of each group
            assert vector.numpy() @ step > -1e-3, name
        trainer.model.zero_grad()


def test_one_group_in_a_batch_is_its_own_mean(build, batch_of):
    trainer = build(MGDARewardTrainer)
    trainer.model.train()
    difference = torch.tensor([1.0, 0.0], requires_grad=True)
    loss, parts = trainer.pair_loss(difference, batch_of(trainer, ["minority", "minority"]))
    assert float(loss) == pytest.approx((np.log1p(np.exp(-1)) + np.log(2)) / 2)
    assert {name: float(part) for name, part in parts.items()} == {"group_weight/majority": 0.0, "group_weight/minority": 1.0}


def test_what_gives_no_single_gradients_is_refused(build):
    reentrant = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ConfigError, match="which torch_compile and reentrant gradient checkpointing does not give"):
        build(MGDARewardTrainer, torch_compile=True, **reentrant)
