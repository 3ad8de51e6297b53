"""Metrics of an evaluation and sums of training steps, against plain loops over the pairs."""

import math

import numpy as np
import pytest
import torch
from helpers.naive import naive_metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.errors import DataError
from trl_pafo.trainer.pair_metrics import PairCollector, PairSums, ScoredPairs, evaluation_metrics, merge_pairs, pair_losses


def scored(pairs: list[dict], **more) -> ScoredPairs:
    return ScoredPairs(
        np.arange(len(pairs)),
        np.array([[p["chosen"], p["rejected"]] for p in pairs], dtype=np.float32).reshape(-1, 2),
        np.array([p.get("margin", 0.0) for p in pairs]),
        np.array([p.get("group", "") for p in pairs], dtype=np.str_),
        np.array([p.get("user", "") for p in pairs], dtype=np.str_),
        **more,
    )


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


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(pair, min_size=1, max_size=25), center=st.sampled_from([None, 0.3]))
def test_metrics_equal_a_plain_loop(pairs, center):
    metrics = evaluation_metrics(scored(pairs), ["a", "absent"], center)
    assert metrics == pytest.approx(naive_metrics(pairs, ["a", "absent"], center), abs=1e-12, nan_ok=True)
    assert all(type(value) is (int if key.startswith("count/") else float) for key, value in metrics.items())


def test_an_absent_group_is_nan_with_count_zero_and_is_not_the_worst():
    metrics = evaluation_metrics(scored([{"chosen": 1.0, "rejected": 0.0, "group": "a"}]), ["a", "b"])
    assert math.isnan(metrics["accuracy/b"])
    assert metrics["count/b"] == 0
    assert metrics["accuracy_group_min"] == 1.0
    assert math.isnan(metrics["accuracy_difference"])  # one group has no gap
    assert math.isnan(metrics["accuracy_ratio"])


def test_sets_without_groups_or_users_have_the_plain_keys_alone():
    metrics = evaluation_metrics(scored([{"chosen": 1.0, "rejected": 0.0}]), ["a", "b"])
    assert set(metrics) == {"loss", "accuracy", "margin", "min_reward", "mean_reward", "max_reward"}


def test_a_nan_reward_makes_all_but_the_counts_nan():
    pairs = [{"chosen": math.nan, "rejected": 0.0, "group": "a", "user": "u"}, {"chosen": 1.0, "rejected": 0.0, "group": "b"}]
    metrics = evaluation_metrics(scored(pairs), ["a", "b", "c"])
    assert {key: value for key, value in metrics.items() if not math.isnan(value)} == {"count/a": 1, "count/b": 1, "count/c": 0}
    pairs[0]["chosen"] = 1.0
    assert set(metrics) == set(evaluation_metrics(scored(pairs), ["a", "b", "c"]))


def test_losses_are_finite_where_an_exponential_would_overflow():
    losses = pair_losses(scored([{"chosen": -2000.0, "rejected": 2000.0}, {"chosen": 2000.0, "rejected": -2000.0}]))
    assert losses.tolist() == [4000.0, 0.0]


# --- each pair once


def test_merging_takes_each_pair_once_in_the_order_of_the_dataset():
    pairs = scored([{"chosen": float(i), "rejected": 0.0, "group": f"g{i}", "user": "long name" * i} for i in range(7)])
    parts = [pairs.take(np.array(rows, dtype=int)) for rows in ([4, 5, 6], [2, 3], [], [0, 1, 4])]
    merged = merge_pairs(parts)
    for got, expected in zip(merged, pairs, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_merging_widens_inputs_and_keeps_predictions():
    def part(number, width):
        tokens = np.full((1, 2, width), number)
        one = scored([{"chosen": 0.0, "rejected": 0.0}], predictions=np.array([number * 10.0]), inputs=tokens)
        return one._replace(number=np.array([number]))

    merged = merge_pairs([part(1, 3), part(0, 2)])
    assert merged.predictions.tolist() == [0.0, 10.0]
    assert merged.inputs.tolist() == [[[0, 0, -100]] * 2, [[1, 1, 1]] * 2]


def test_merging_nothing_is_refused():
    with pytest.raises(DataError, match=r"has no pair\. Give it rows; if it has some, all are longer than `max_length`"):
        merge_pairs([scored([])])


def test_collector_keeps_batches_whatever_their_number_format():
    collector = PairCollector()
    collector.add([3, 1], torch.tensor([[1.0, 0.5], [2.0, 0.25]], dtype=torch.bfloat16))
    assert collector.to_host()[0].rewards.dtype == np.float32
    collector.add([0], torch.tensor([[3.0, 0.0]]), torch.tensor([0.5]), ["g"], ["u"], torch.ones(1, dtype=torch.bfloat16))
    assert (collector.num_pairs, collector.num_batches) == (3, 2)
    first, second = collector.to_host()
    assert first.offset.tolist() == [0.0, 0.0]
    assert first.group.tolist() == ["", ""]
    assert second.offset.tolist() == [0.5]
    assert second.predictions.tolist() == [1.0]
    assert merge_pairs([first]).rewards.tolist() == [[2.0, 0.25], [1.0, 0.5]]
    assert collector.unseen(first).number.tolist() == [3, 1]
    assert collector.unseen(first._replace(number=np.array([3, 2]))).number.tolist() == [2]


# --- training sums


def fill(sums: PairSums, rows: list[dict], groups: list[str], parts=None) -> None:
    sums.add(
        torch.tensor([row["chosen"] for row in rows]),
        torch.tensor([row["rejected"] for row in rows]),
        torch.tensor(10 * len(rows)),
        torch.tensor([row["label"] for row in rows]),
        torch.tensor([groups.index(row["group"]) if row["group"] in groups else -1 for row in rows]),
        parts,
    )


labeled_row = st.fixed_dictionaries(
    {"chosen": reward, "rejected": reward, "label": st.booleans(), "group": st.sampled_from(["a", "b", "other"])}
)


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(st.lists(labeled_row, min_size=1, max_size=5), min_size=1, max_size=4))
def test_sums_of_steps_equal_a_plain_loop(batches):
    groups = ["b", "a", "never"]
    sums = PairSums(groups)
    assert not sums
    for number, rows in enumerate(batches):
        terry = float(number) if any(row["label"] for row in rows) else 0.0
        fill(sums, rows, groups, (torch.tensor(terry), torch.tensor(1.0), torch.tensor(0.25)))
    assert sums
    rows = [row for batch in batches for row in batch]
    assert sums.num_tokens() == 10 * len(rows)
    num_tokens, metrics = sums.reduce(lambda vector: vector)
    assert num_tokens == 10 * len(rows)
    assert not sums

    def mean(values):
        return sum(values) / len(values) if values else math.nan

    labeled = [row for row in rows if row["label"]]
    right = [1.0 if r["chosen"] > r["rejected"] else 0.5 if r["chosen"] == r["rejected"] else 0.0 for r in labeled]
    rewards = [row[side] for row in rows for side in ("chosen", "rejected")]
    expected = {
        "min_reward": min(rewards),
        "mean_reward": mean(rewards),
        "max_reward": max(rewards),
        "accuracy": mean(right),
        "margin": mean([row["chosen"] - row["rejected"] for row in labeled]),
        # Means over all rows are sums over those that count, which are fewer.
        "bradley_terry_loss": sum(n * len(batch) for n, batch in enumerate(batches) if any(row["label"] for row in batch))
        / len(labeled)
        if labeled
        else math.nan,
        "distillation_loss": 4.0,
    }
    for group in groups:
        expected[f"accuracy/{group}"] = mean([r for r, row in zip(right, labeled, strict=True) if row["group"] == group])
    assert metrics == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_sums_of_processes_are_added_and_extremes_compared():
    groups = ["a"]
    one, two = PairSums(groups), PairSums(groups)
    fill(one, [{"chosen": 3.0, "rejected": 1.0, "label": True, "group": "a"}], groups)
    fill(two, [{"chosen": -5.0, "rejected": 2.0, "label": True, "group": "a"}] * 3, groups)
    other: list[torch.Tensor] = []
    two.reduce(lambda vector: (other.append(vector), vector)[1])
    num_tokens, metrics = one.reduce(lambda vector: torch.cat([vector, *other]))
    assert num_tokens == 40
    assert metrics == {
        "min_reward": -5.0,
        "mean_reward": (4 - 9) / 8,
        "max_reward": 3.0,
        "accuracy": 0.25,
        "margin": (2 - 21) / 4,
        "accuracy/a": 0.25,
    }


def test_sums_without_labels_and_groups_take_every_row():
    sums = PairSums()
    sums.add(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0]), torch.tensor(7))
    assert sums.reduce(lambda vector: vector)[1]["accuracy"] == 0.75


def test_tokens_are_counted_beyond_what_float32_holds():
    sums = PairSums()
    for tokens in (2**24, 1):
        sums.add(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor(tokens))
    assert sums.reduce(lambda vector: vector)[0] == 2**24 + 1
