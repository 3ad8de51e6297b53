"""The path of personalized Bradley-Terry: what its points are worth on held-out pairs, and which of them counts."""

import numpy as np
import pytest
from helpers.parts import make_pairs, make_teacher

from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.evaluation.reference_path import CHOSEN, RULES, Point, accuracies_of, best_points, multiple_of, score_path
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.models.base_models import load_tokenizer


def point(multiple, **of_groups):
    """A point with accuracies of two groups of 90 and 10 pairs."""
    summary = {f"accuracy/{group}": {"value": value} for group, value in of_groups.items()}
    summary["overall"] = {"value": 0.9 * of_groups["many"] + 0.1 * of_groups["few"]}
    return {"multiple": multiple, "steps": int(10 * multiple), "validation": summary}


def test_each_rule_chooses_by_its_own_number():
    accuracies = {0.5: (0.9, 0.33), 1: (0.88, 0.5), 2: (0.6, 0.7), 4: (0.64, 0.65)}
    points = [point(multiple, many=many, few=few) for multiple, (many, few) in accuracies.items()]
    assert best_points(points) == {"group_balanced": 1, "worst_group": 4, "overall": 0.5}
    assert set(CHOSEN.values()) < set(RULES)


def test_of_equals_the_fewest_steps_are_chosen_whatever_the_order():
    points = [point(4, many=0.75, few=0.5), point(2, many=0.75, few=0.5), point(1, many=0.75, few=0.25)]
    assert set(best_points(points).values()) == {2}


def test_the_methods_are_the_points_that_their_rules_choose():
    path = {"chosen": 2.0, "best": {"group_balanced": 2.0, "worst_group": 4.0, "overall": 1.0}}
    assert {method: multiple_of(method, path) for method in CHOSEN} == {"personalized_bt": 2.0, "worst_group_bt": 4.0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models whose accuracies differ."""
    folder = tmp_path_factory.mktemp("path")
    return {Point(m, int(10 * m)): make_teacher("decoder", folder / f"{m:g}", seed) for seed, m in enumerate((2, 1, 0.5))}


@pytest.fixture(scope="module")
def held_out(folders):
    tokenizer = load_tokenizer(folders[Point(1, 10)])
    return render_history(make_pairs(num_users=8), HistoryCutter(tokenizer, 2))


def test_accuracies_are_those_of_a_plain_loop(folders, held_out):
    path = score_path(folders, held_out, ["majority", "minority", "rare"], "worst_group", 50, 0, batch_size=4)
    assert [(found["multiple"], found["steps"]) for found in path["points"]] == [(0.5, 5), (1, 10), (2, 20)]
    expected = {}
    for found, model in zip(path["points"], sorted(folders, key=lambda model: model.steps), strict=True):
        correct = np.greater(*score_rows(folders[model], held_out))
        of_groups = {
            name: [c for c, g in zip(correct, held_out["group"], strict=True) if g == name] for name in ("majority", "minority")
        }
        values = {name: sum(c) / len(c) for name, c in of_groups.items()}
        for name, value in values.items():
            entry = found["validation"][f"accuracy/{name}"]
            assert entry["value"] == pytest.approx(value)
            assert set(entry) == {"value", "low", "high"}
            assert found["validation"][f"num_pairs/{name}"] == len(of_groups[name])
        expected[found["multiple"]] = {
            "group_balanced": sum(values.values()) / 2,
            "worst_group": min(values.values()),
            "overall": correct.mean(),
        }
    assert len({tuple(values.values()) for values in expected.values()}) == 3
    for rule, multiple in path["best"].items():
        assert expected[multiple][rule] == pytest.approx(max(values[rule] for values in expected.values()))
    chosen = path["chosen"]
    assert chosen == path["best"]["worst_group"]
    wording = f"personalized BT of {10 * chosen:g} steps, {chosen:g} times the student's, the best of its path by worst group"
    assert wording in path["sentence"]
    assert "on 40 held-out pairs (majority 30, minority 10, rare 0)" in path["sentence"]


def test_without_held_out_pairs_the_student_s_steps_are_the_reference(folders):
    path = score_path(folders, None, ["majority", "minority"], "group_balanced", 50, 0)
    assert (path["chosen"], path["best"]) == (1, {})
    assert path["sentence"] == (
        "The reference is personalized BT of 10 steps, 1 times the student's: no pairs are held out to choose by (--validation_share)."
    )


def test_accuracies_and_their_counts_are_kept_of_a_summary():
    summary = {"overall": 1, "accuracy/a": 2, "num_users": 3, "num_pairs/a": 4, "user_gini": 5, "confidence": 0.95}
    assert accuracies_of(summary) == {"overall": 1, "accuracy/a": 2, "num_users": 3, "num_pairs/a": 4}
