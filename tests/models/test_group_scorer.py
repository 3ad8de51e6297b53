"""A model that reads the name of a group: its reward is that of all groups, weighed by the user's past pairs, against one pair at a time."""

import math

import numpy as np
import pytest
from helpers.parts import make_model, make_tokenizer
from transformers import AutoTokenizer

from trl_pafo import FairRewardModel
from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.group_posterior import GroupLikelihood
from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.named_groups import name_group, remember_groups, remembered_groups
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.group_scorer import GroupScorer
from trl_pafo.models.scoring import RewardScorer

GROUPS = ["a", "b", "c"]
FITTED = GroupMixture(
    GROUPS, np.array([0.5, 1.0, 2.0]), GroupLikelihood(1.5, np.array([0.3, -0.1, -0.2])), np.array([0.6, 0.3, 0.1])
)
PAST = [{"prompt": f"past {i}", "chosen": f"liked {i} much", "rejected": f"disliked {i}"} for i in range(4)]


@pytest.fixture(params=["messages", "text"])
def inputs(request):
    return request.param


@pytest.fixture
def folder(tmp_path, inputs):
    make_model("decoder", tmp_path / "model")
    tokenizer = add_history_template(make_tokenizer("decoder"))
    HistoryCutter(tokenizer, 2).remember(inputs)
    remember_groups(tokenizer, FITTED.as_json(), tau=0.25)
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def plain(folder):
    """The same weights, without groups and histories."""
    return RewardScorer(folder, num_history=0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_hand(plain, row, history, tau, side="response"):
    reward = {g: plain.score([name_group(row, g)])[0][side] for g in GROUPS}
    weights = {}
    for g, t, bias, share in zip(GROUPS, FITTED.temperature, FITTED.likelihood.bias, FITTED.share, strict=True):
        score = 0.0
        for pair in history:
            rewards = plain.score([name_group(pair, g)])[0]
            score += math.log(sigmoid((rewards["chosen"] - rewards["rejected"]) / t))
        weights[g] = math.exp((1.5 * score + bias) if history else 0.0) * share ** (1 - tau)
    total = sum(weights.values())
    return sum(weights[g] / total * reward[g] / t for g, t in zip(GROUPS, FITTED.temperature, strict=True))


@pytest.mark.parametrize("history", [PAST[:1], PAST, []])
def test_the_reward_is_that_of_all_groups_weighed_by_the_newest_past_pairs(folder, plain, history):
    scorer = RewardScorer.from_pretrained(folder)
    assert isinstance(scorer, GroupScorer)
    rows = [
        {"prompt": "one question", "response": "one answer", "history": history},
        {"prompt": "another", "chosen": "yes it is", "rejected": "no", "history": PAST[2:]},
    ]
    first, second = scorer.score(rows, allow_no_history=True)
    alone = [{key: value for key, value in row.items() if key != "history"} for row in rows]
    assert first["response"] == pytest.approx(by_hand(plain, alone[0], history[:2], 0.25), abs=1e-5)
    for side in ("chosen", "rejected"):
        assert second[side] == pytest.approx(by_hand(plain, alone[1], PAST[2:], 0.25, side), abs=1e-5)
    assert second["chosen"] != second["rejected"]


def test_past_pairs_that_several_rows_have_are_tokenized_once(folder, monkeypatch):
    scorer, alone = GroupScorer(folder), GroupScorer(folder)
    rows = [{"prompt": f"question {i}", "response": "one answer", "history": PAST[i:]} for i in range(3)]
    expected = [alone.tokenize([row])[0] for row in rows]
    read, sizes = RewardScorer.sequences, []
    monkeypatch.setattr(
        RewardScorer, "sequences", lambda self, shown, *rest, **how: sizes.append(len(shown)) or read(self, shown, *rest, **how)
    )
    assert scorer.tokenize(rows) == expected
    assert sizes == [(3 + 4) * len(GROUPS)]  # of three rows two past pairs each, four of them different


def test_tau_and_the_number_of_past_pairs_can_be_set(folder, plain):
    row = {"prompt": "one question", "response": "one answer"}
    for tau, number in ((0.0, 1), (1.0, 3)):
        scorer = RewardScorer.from_pretrained(folder, tau=tau, num_history=number)
        (found,) = scorer.score([row | {"history": PAST}])
        assert found["response"] == pytest.approx(by_hand(plain, row, PAST[:number], tau), abs=1e-5)


def test_a_served_user_must_tell_its_history(folder):
    model = FairRewardModel.from_pretrained(folder)
    responses = ["short", "a much longer answer"]
    rewards = model.score("one question", responses, history=PAST)
    (alone,) = model.score("one question", responses[1:], history=PAST)
    assert rewards[1] == pytest.approx(alone, abs=1e-5)
    other = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAST]
    assert not np.allclose(rewards, model.score("one question", responses, history=other), atol=1e-5)
    with pytest.raises(DataError, match="`history` is missing"):
        model.score("one question", ["one answer"])
    with pytest.raises(DataError, match="lacks rejected"):
        model.score("one question", ["one answer"], history=[{"prompt": "a", "chosen": "b"}])


def test_options_without_effect_are_refused(folder):
    for name, value in {"history_max_tokens": 9, "history_fields": ["chosen"], "tau": 2}.items():
        with pytest.raises(ConfigError, match=f"`{name}`"):
            RewardScorer.from_pretrained(folder, **{name: value})


def test_the_tokenizer_keeps_what_it_remembers(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert remembered_groups(tokenizer) == {**FITTED.as_json(), "tau": 0.25}
    tokenizer.init_kwargs["trl_pafo_groups"] = {"groups": GROUPS}
    with pytest.raises(ConfigError, match=f"of the tokenizer '{folder}' is not as trl-pafo writes it.*Train the model again"):
        remembered_groups(tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        {"groups": ["a", "c", "b"]},
        {"groups": ["a", "a", "b"]},
        {"groups": 3},
        {"slope": -1.5},
        {"slope": None},
        {"bias": [0.3]},
        {"bias": [0.3, -0.3, math.inf]},
        {"temperature": [0.5, 0.0, 2.0]},
        {"share": [0.9, 0.1, 0.0]},
        {"share": [0.9, 0.1]},
        {"share": ["a", "b", "c"]},
        {"tau": 1.5},
    ],
)
def test_a_record_that_cannot_be_used_is_refused(change):
    record = {**FITTED.as_json(), "tau": 0.25}
    assert GroupMixture.from_json(record, "here").as_json() == FITTED.as_json()
    with pytest.raises(ConfigError, match=r"^here is not as trl-pafo writes it"):
        GroupMixture.from_json({**record, **change}, "here")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": "p", "chosen": "c"}, {"prompt": "Preference group: b\np", "chosen": "c"}),
        (
            {"prompt": "", "chosen": "c", "rejected": "r"},
            {"prompt": "", "chosen": "Preference group: b\nc", "rejected": "Preference group: b\nr"},
        ),
        (
            {"prompt": [{"content": "p"}, {"content": "q"}], "response": "r"},
            {"prompt": [{"content": "Preference group: b\np"}, {"content": "q"}], "response": "r"},
        ),
        (
            {"response": [{"content": [{"type": "text", "text": "p"}]}]},
            {"response": [{"content": [{"type": "text", "text": "Preference group: b\n"}, {"type": "text", "text": "p"}]}]},
        ),
    ],
)
def test_a_group_is_named_where_the_model_begins_to_read(row, named):
    assert name_group(row, "b") == named
