"""The mixture of teachers: against one pair at a time, and histories of pairs that no teacher has seen."""

import json
import math

import numpy as np
import pytest
from helpers.parts import make_model, make_pairs
from transformers import AutoTokenizer

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.group_posterior import GroupLikelihood, fit_temperature, history_scores
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.messages import as_messages
from trl_pafo.data.template import add_history_template
from trl_pafo.evaluation.mixture import draw_histories, score_mixture
from trl_pafo.models import RewardScorer


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("groups", ["ab", "abcd"])
def test_it_is_fitted_group_by_group_and_survives_json(groups):
    rng = np.random.default_rng(0)
    group = rng.choice(list(groups), 80)
    margins = rng.normal(size=(80, len(groups))) + 0.8 * (group[:, None] == list(groups))
    past = draw_histories(np.arange(80), group, np.arange(80)[:, None], [2] * 80, 3, 0)
    shares = {name: (i + 1) / sum(range(1, len(groups) + 1)) for i, name in reversed(list(enumerate(groups)))}
    found = GroupMixture.fit(shares, margins, group, margins, past)
    temperature = [fit_temperature([margins[i, g] for i in range(80) if group[i] == name]) for g, name in enumerate(groups)]
    assert found.temperature.tolist() == temperature
    own = np.array([groups.index(name) for name in group])
    likelihood = GroupLikelihood.fit(history_scores(margins / temperature, past), np.concatenate([own] * 3))
    assert (found.likelihood.slope, *found.likelihood.bias) == (likelihood.slope, *likelihood.bias)
    assert likelihood.slope > 0.2
    again = GroupMixture.from_json(json.loads(json.dumps(found.as_json())), "")
    for tau in (0.0, 0.5):
        mixed = again.margins(margins, margins, past[:80], tau)
        np.testing.assert_array_equal(mixed, found.margins(margins, margins, past[:80], tau))
        for i in (0, 17):
            scores = [sum(math.log(sigmoid(margins[j, g] / temperature[g])) for j in past[i]) for g in range(len(groups))]
            weights = [
                math.exp(likelihood.slope * score + bias) * shares[name] ** (1 - tau)
                for score, bias, name in zip(scores, likelihood.bias, groups, strict=True)
            ]
            right = sum(w * sigmoid(margins[i, g] / temperature[g]) for g, w in enumerate(weights)) / sum(weights)
            assert mixed[i] == pytest.approx(math.log(right / (1 - right)))


def test_histories_are_the_users_own_pairs_first_then_those_of_the_group():
    user = ["u", "u", "u", "v", "v", "w", "w"]
    group = ["a"] * 5 + ["b"] * 2
    prompt = [0, 1, 2, 0, 1, 0, 0]
    texts = [[number] for number in prompt]
    past = draw_histories(user, group, texts, [3, 1, 9, 2, 1, 4, 0], 50, 0)
    assert len(past) == 350
    for number, history in enumerate(past):
        pair = number % 7
        assert len(set(history)) == len(history)
        assert all(group[other] == group[pair] and prompt[other] != prompt[pair] for other in history)
        own = [other for other in history if user[other] == user[pair]]
        assert history[: len(own)] == own
    assert {tuple(sorted(history)) for history in past[0::7]} == {(1, 2, 4)}
    assert {tuple(history) for history in past[1::7]} == {(0,), (2,)}
    assert {tuple(sorted(history)) for history in past[2::7]} == {(0, 1, 3, 4)}
    assert {tuple(history) for history in past[3::7]} == {(4, 1), (4, 2)}
    assert {tuple(history) for history in past[5::7] + past[6::7]} == {()}  # all pairs of the group are on one prompt
    assert past == draw_histories(user, group, texts, [3, 1, 9, 2, 1, 4, 0], 50, 0)


def test_no_text_of_a_pair_is_in_its_history():
    past = draw_histories(list("uuuu"), list("aaaa"), [[0, 1], [1, 2], [3, 0], [2, 3]], [3] * 4, 1, 0)
    assert past == [[3], [2], [1], [0]]


@pytest.fixture(scope="module")
def prepared(encoder, tmp_path_factory):
    """Rows of which the newest past pair is shown, the complete histories beside it, and two teachers."""
    folder = tmp_path_factory.mktemp("teachers")
    teachers = {name: make_model("encoder", folder / name, seed=seed) for seed, name in enumerate(("minority", "majority"), 3)}
    pairs = make_pairs(num_users=4, pairs_per_user=2)
    rows = render_history(pairs, HistoryCutter(add_history_template(AutoTokenizer.from_pretrained(encoder)), 1))
    history = pairs["history"][:]
    history[2] = []
    return teachers, rows.map(lambda row, i: {"history": history[i]}, with_indices=True, features=None)


def test_each_pair_is_scored_alone_and_weighed_by_the_past_pairs_that_are_shown(prepared):
    teachers, rows = prepared
    names, slope, temperature = ["majority", "minority"], 3.0, [0.5, 2.0]
    mixture = GroupMixture(names, np.array(temperature), GroupLikelihood(slope, np.array([0.2, -0.2])), np.array([0.9, 0.1]))
    found = score_mixture({"fitted": mixture.as_json(), "tau": 0.25}, teachers, rows, batch_size=3)
    scorers = {name: RewardScorer(folder) for name, folder in teachers.items()}

    def margin(group, pair):
        (rewards,) = scorers[group].score([{name: pair[name] for name in ("prompt", "chosen", "rejected")}])
        return rewards["chosen"] - rewards["rejected"]

    for i in range(4):
        row = rows[i]
        alone = [margin(name, row) / t for name, t in zip(names, temperature, strict=True)]
        q = [math.log(0.9) * 0.75, math.log(0.1) * 0.75]
        assert len(row["history"]) != 1
        for entry in row["history"][:1]:
            for g, name in enumerate(names):
                entry = {key: as_messages(text, "user" if key == "prompt" else "assistant") for key, text in entry.items()}
                q[g] += slope * math.log(sigmoid(margin(name, entry) / temperature[g])) + (0.2, -0.2)[g]
        weights = [math.exp(x) / sum(map(math.exp, q)) for x in q]
        right = sum(w * sigmoid(m) for w, m in zip(weights, alone, strict=True))
        assert found.chosen[i] - found.rejected[i] == pytest.approx(math.log(right / (1 - right)), abs=1e-3)
