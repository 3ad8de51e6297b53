"""Margins of teachers for pairs that they have not seen, against a loop over the pairs. No model is loaded."""

import math

import numpy as np
import pytest
from datasets import Dataset
from helpers.parts import make_pairs, make_tokenizer

from trl_pafo.data.group_posterior import GroupLikelihood, fit_temperature
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.overlap import PromptFolds
from trl_pafo.data.template import add_history_template
from trl_pafo.pipeline import fold_margins as module
from trl_pafo.pipeline.fold_margins import with_fold_margins

TEACHERS = {"minority": ["minority 0", "minority 1"], "majority": ["majority 0", "majority 1"]}


def said(folder: str, chosen: str, rejected: str) -> float:
    """What a teacher says of a pair, somewhat in favor of its own group's manner."""
    group, fold = folder.split()
    likes = {"majority": "sir", "minority": "lol"}[group]
    return (1 + int(fold)) * (likes in chosen) - (likes in rejected) + math.sin(len(chosen) * 7.0)


def text(value) -> str:
    return value if isinstance(value, str) else value[0]["content"]


@pytest.fixture
def rows(monkeypatch) -> Dataset:
    def score(folder, pairs, **how):
        assert all(not kwargs["history"] for kwargs in pairs["chat_template_kwargs"])
        margins = [said(folder, text(row["chosen"]), text(row["rejected"])) for row in pairs]
        return np.array(margins), np.zeros(len(pairs))

    monkeypatch.setattr(module, "score_rows", score)
    given = make_pairs(num_users=10, num_minority=4)
    rendered = render_history(given, HistoryCutter(add_history_template(make_tokenizer("decoder")), 2))
    return rendered.add_column("history", given["history"][:])


def test_folds_are_of_prompts_even_and_drawn_by_the_seed():
    rows = make_pairs(num_users=9)
    folds = PromptFolds(rows, 3, seed=1).of(rows).tolist()
    fold_of = dict(zip(rows["prompt"], folds, strict=True))
    assert [fold_of[prompt] for prompt in rows["prompt"]] == folds
    sizes = np.bincount(list(fold_of.values()))
    assert max(sizes) - min(sizes) <= 1
    assert (
        folds == PromptFolds(rows.shuffle(seed=2), 3, seed=1).of(rows).tolist() != PromptFolds(rows, 3, seed=2).of(rows).tolist()
    )
    again = Dataset.from_list([*rows, {**rows[0], "prompt": "nobody asked this"}])
    found = PromptFolds(rows, 3, seed=1).of(again)
    assert found[-1] == -1
    assert folds == found[:-1].tolist()


def test_a_pair_is_scored_by_the_teachers_that_have_not_seen_its_prompt(rows):
    found = with_fold_margins(rows, TEACHERS, seed=0)
    fold = PromptFolds(rows, 2, 0).of(rows)
    margins = {
        group: np.array(
            [said(f"{group} {fold[n]}", text(row["chosen"]), text(row["rejected"])) for n, row in enumerate(rows)], dtype=float
        )
        for group in ("majority", "minority")
    }
    group = np.array(rows["group"])
    for name, values in margins.items():
        temperature = fit_temperature(values[group == name])
        assert temperature != 1
        assert [row["teacher_margins"][name] for row in found] == pytest.approx((values / temperature).tolist())
    assert "history_log_likelihood" not in found.column_names


def test_past_pairs_are_scored_by_those_of_their_own_fold_and_by_all_where_no_teacher_saw_them(rows):
    found = with_fold_margins(rows, TEACHERS, seed=0, of_histories=True)
    groups = ["majority", "minority"]
    own = np.array([groups.index(name) for name in rows["group"]])
    asked = {text(row["prompt"]): n for n, row in enumerate(rows)}
    assert not any(past["prompt"] in asked for row in rows for past in row["history"])  # so all of them are new here
    margins = [[0.0, 0.0] for _ in rows]
    fold = PromptFolds(rows, 2, 0).of(rows)
    for n, row in enumerate(rows):
        margins[n] = [said(f"{g} {fold[n]}", text(row["chosen"]), text(row["rejected"])) for g in groups]
    temperature = [fit_temperature(np.array(margins)[own == place, place]) for place in (0, 1)]
    scores = []
    for row in rows:
        of_pairs = [
            [
                np.mean([said(f"{g} {f}", p["chosen"], p["rejected"]) for f in (0, 1)]) / t
                for g, t in zip(groups, temperature, strict=True)
            ]
            for p in row["history"]
        ]
        scores.append([-sum(math.log1p(math.exp(-m[place])) for m in of_pairs) for place in (0, 1)])
    expected = GroupLikelihood.fit(scores, own).log_likelihood(scores)
    given = [[row["history_log_likelihood"][g] for g in groups] for row in found]
    np.testing.assert_allclose(given, expected, rtol=1e-6, atol=1e-6)
