"""Metrics of an evaluation and of training steps, against plain loops over the pairs."""

import math

import numpy as np
import pytest
import torch
from helpers.naive import naive_metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.errors import DataError
from trl_pafo.trainer import pair_metrics
from trl_pafo.trainer.pair_metrics import ScoredPairs, each_once, evaluation_metrics, pair_losses, training_metrics


def scored(pairs: list[dict]) -> dict[str, np.ndarray]:
    return {
        "rewards": np.array([[p["chosen"], p["rejected"]] for p in pairs], dtype=np.float32),
        "margin": np.array([p.get("margin", 0.0) for p in pairs]),
        "pair_group": np.array([p.get("group", "") for p in pairs]),
        "pair_user": np.array([p.get("user", "") for p in pairs]),
    }


# Halves are exact in float32, and give ties.
reward = st.integers(-6, 6).map(lambda n: n / 2)
pair = st.fixed_dictionaries(
    {
        "chosen": reward,
        "rejected": reward,
        "margin": reward,
        "group": st.sampled_from(["", "a", "b", "c"]),
        "user": st.sampled_from(["", *(f"u{i}" for i in range(12))]),
    }
)


@settings(max_examples=100)
@given(pairs=st.lists(pair, min_size=1, max_size=25), center=st.sampled_from([None, 0.3]))
def test_evaluation_metrics_equal_a_plain_loop(pairs, center):
    metrics = evaluation_metrics(scored(pairs), ["a", "absent"], center)
    assert metrics == pytest.approx(naive_metrics(pairs, ["a", "absent"], center), abs=1e-12, nan_ok=True)
    assert all(type(value) is (int if key.startswith("count/") else float) for key, value in metrics.items())


def test_a_nan_reward_makes_all_but_the_counts_nan():
    pairs = [{"chosen": math.nan, "rejected": 0.0, "group": "a", "user": "u"}, {"chosen": 1.0, "rejected": 0.0, "group": "b"}]
    metrics = evaluation_metrics(scored(pairs), ["a", "b", "c"])
    assert {key: value for key, value in metrics.items() if not math.isnan(value)} == {"count/a": 1, "count/b": 1, "count/c": 0}


def test_losses_are_finite_where_an_exponential_would_overflow():
    losses = pair_losses(scored([{"chosen": -2000.0, "rejected": 2000.0}, {"chosen": 2000.0, "rejected": -2000.0}]))
    assert losses.tolist() == [4000.0, 0.0]


# --- training steps


labeled_row = st.fixed_dictionaries(
    {"chosen": reward, "rejected": reward, "label": st.booleans(), "group": st.sampled_from([-1, 0, 1])}
)


@settings(max_examples=50)
@given(batches=st.lists(st.lists(labeled_row, min_size=1, max_size=5), min_size=1, max_size=4))
def test_training_metrics_equal_a_plain_loop(batches):
    steps = ScoredPairs()
    for number, rows in enumerate(batches):
        steps.add(
            rewards=torch.tensor([[row["chosen"], row["rejected"]] for row in rows]),
            has_label=torch.tensor([row["label"] for row in rows]),
            group_id=torch.tensor([row["group"] for row in rows]),
            bradley_terry=torch.tensor([float(number)]),
            distillation=torch.tensor([2.0]),
            **{"weight/a": torch.tensor([float(number + 1)])},
        )
    rows = [row for batch in batches for row in batch]
    assert len(steps) == len(rows)
    metrics = training_metrics(steps.gather(), ["b", "a", "never"])
    assert len(steps) == 0

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    labeled = [row for row in rows if row["label"]]
    right = [1.0 if r["chosen"] > r["rejected"] else 0.5 if r["chosen"] == r["rejected"] else 0.0 for r in labeled]
    rewards = [row[side] for row in rows for side in ("chosen", "rejected")]
    of_losses = sum(range(len(batches)))
    expected = {
        "min_reward": min(rewards),
        "mean_reward": mean(rewards),
        "max_reward": max(rewards),
        "accuracy": mean(right),
        "margin": mean([row["chosen"] - row["rejected"] for row in labeled]),
        "bradley_terry_loss": of_losses / len(labeled) if labeled else math.inf if of_losses else math.nan,
        "distillation_loss": 2.0 * len(batches) / len(rows),
        "weight/a": (of_losses + len(batches)) / len(rows),
    }
    for number, group in enumerate(["b", "a", "never"]):
        expected[f"accuracy/{group}"] = mean([r for r, row in zip(right, labeled, strict=True) if row["group"] == number])
    assert metrics == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_without_labels_and_groups_every_row_counts():
    metrics = training_metrics({"rewards": np.array([[1.0, 0.0], [0.0, 0.0]], dtype=np.float32)})
    assert metrics == {"min_reward": 0.0, "mean_reward": 0.25, "max_reward": 1.0, "accuracy": 0.75, "margin": 0.5}


# --- from batches of several processes to pairs


def test_pairs_of_all_processes_are_joined_and_each_counts_once(monkeypatch):
    """The second process has filled up its last batch with a copy; the third has had no batch."""

    def process(*batches):
        scored = ScoredPairs()
        for numbers, width in batches:
            scored.add(
                pair_number=numbers,
                pair_user=["long name" * n for n in numbers],
                rewards=torch.tensor([[n, 0.5] for n in numbers], dtype=torch.bfloat16),
                inputs=torch.full((len(numbers), 2, width), numbers[0]),
                margin=None,
            )
        return scored

    others: list[dict] = []
    monkeypatch.setattr(pair_metrics, "gather_object", lambda found: others.extend(found) or found)
    for scored in (process(([4, 0], 2)), process()):
        scored.gather()
    monkeypatch.setattr(pair_metrics, "gather_object", lambda found: [*found, *others])
    pairs = each_once(process(([3, 1], 3), ([2], 1)).gather())
    assert pairs["pair_number"].tolist() == [0, 1, 2, 3, 4]
    assert pairs["rewards"].dtype == np.float32
    assert pairs["rewards"].tolist() == [[n, 0.5] for n in range(5)]
    assert pairs["pair_user"].tolist() == ["long name" * n for n in range(5)]
    assert pairs["inputs"][[1, 2]].tolist() == [[[3, 3, 3]] * 2, [[2, -100, -100]] * 2]
    assert "margin" not in pairs


def test_numbers_of_tokens_are_whole():
    scored = ScoredPairs()
    for tokens in (2**24, 1):
        scored.add(rewards=torch.zeros(1, 2), num_tokens=torch.tensor([tokens]))
    assert scored.total("num_tokens") == scored.gather()["num_tokens"].sum() == 2**24 + 1


def test_no_pair_is_refused():
    with pytest.raises(DataError, match=r"has no pair\. Give it rows; if it has some, all are longer than `max_length`"):
        each_once({})
