"""Annotator noise of a source: known where labels are made, estimated where people judged the same pairs."""

import numpy as np
import pytest
from datasets import Dataset
from helpers.parts import make_pairs

from trl_pafo.audit.noise import LabelNoise
from trl_pafo.data.sources.arguments import DataArguments


def judged_by_many(num_users=24, num_pairs=60, careless=6, seed=0):
    """Everybody judges half of the pairs; the careless ones by coin, with their own low support rates."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        for pair in rng.permutation(num_pairs)[: num_pairs // 2]:
            first = rng.random() < (0.5 if user < careless else 0.9)
            sides = ("good", "bad") if first else ("bad", "good")
            rows.append(
                {"prompt": f"p{pair}", "chosen": f"{sides[0]} {pair}", "rejected": f"{sides[1]} {pair}", "user": f"u{user:02d}"}
            )
        support = 0.5 if user < careless else 0.8
        for row in rows[-(num_pairs // 2) :]:
            row |= {"group": "minority" if user < careless else "majority", "support_rate": support + user / 1000}
    return Dataset.from_list(rows)


def test_made_labels_have_a_known_ceiling():
    rows = make_pairs(history=0)
    noise = LabelNoise(DataArguments(source="styles", label_noise=0.2), rows, 100, 0)
    assert noise.summary["known"] == 0.8
    assert noise.ceiling_of(rows) is None
    assert noise.trend_apart(np.ones(len(rows)), rows) is None


def test_without_common_pairs_it_is_said_that_nothing_can_be_estimated():
    rows = make_pairs(history=0).add_column("support_rate", [0.5] * 30)
    noise = LabelNoise(DataArguments(source="files"), rows, 100, 0)
    assert "cannot be estimated" in noise.summary["reason"]
    assert noise.ceiling_of(rows) is None


def test_common_pairs_give_a_ceiling_for_each_row_and_tell_carelessness_from_taste():
    rows = judged_by_many()
    noise = LabelNoise(DataArguments(source="files", minority_quantile=0.25), rows, 200, 0)
    ceiling = noise.ceiling_of(rows)
    careless = np.array(rows["group"]) == "minority"
    assert ceiling[careless].mean() == pytest.approx(0.5, abs=0.1)
    assert ceiling[~careless].mean() == pytest.approx(0.9, abs=0.05)
    assert noise.summary["leave_one_out"]["value"] == pytest.approx(ceiling.mean())
    assert noise.summary["taste_or_noise"]["shared_taste"]["low"] < 0.05
    assert noise.ceiling_of(rows.select([5, 3])) == pytest.approx(ceiling[[5, 3]])


def test_a_trend_that_is_only_luck_vanishes_when_measured_apart():
    """All users alike; what each got right is how often it agreed: the same luck twice."""
    alike = judged_by_many(num_users=40, careless=0, seed=1)
    noise = LabelNoise(DataArguments(source="files", minority_quantile=0.25), alike, 200, 0)
    agrees = noise.ceiling_of(alike)
    apart = noise.trend_apart(agrees, alike)
    assert apart["low"] < 0.1
    assert apart["value"] < 0.3
    careless = judged_by_many(num_users=40, careless=15, seed=1)
    noise = LabelNoise(DataArguments(source="files", minority_quantile=0.25), careless, 200, 0)
    assert noise.trend_apart(noise.ceiling_of(careless), careless)["low"] > 0.3
