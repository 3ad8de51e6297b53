"""Features of pairs and histories: those of a plain loop, each text read once, whatever the histories."""

import numpy as np
import pytest
import torch
from helpers.parts import make_model, make_pairs, remember_inputs
from helpers.rounding import rounding
from transformers import AutoTokenizer

from trl_pafo.baselines import FeaturePairs, pair_features
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.base_models import with_new_head
from trl_pafo.models.loading import load_reward_model
from trl_pafo.models.scoring import FeatureReader, RewardScorer


@pytest.fixture
def folder(tmp_path):
    return make_model("decoder", tmp_path / "model")


@pytest.fixture
def scorer(folder):
    return RewardScorer(folder, device="cpu")


def prepared(rows, folder, num_history):
    """Rows as `trl-pafo prepare` writes them: what is shown, and the complete history."""
    tokenizer = add_history_template(AutoTokenizer.from_pretrained(folder))
    rendered = render_history(rows, HistoryCutter(tokenizer, num_history))
    return rendered.add_column("history", rows["history"][:])


def test_they_are_those_of_each_text_alone(folder, scorer):
    rows = make_pairs(num_users=3, pairs_per_user=2)
    found = pair_features(scorer, rows)
    model, tokenizer = load_reward_model(folder), AutoTokenizer.from_pretrained(folder)

    def alone(pair, side):
        ids = tokenizer(pair["prompt"] + pair[side] + (tokenizer.eos_token or ""))["input_ids"]
        with torch.no_grad():
            outputs = model.base_model(input_ids=torch.tensor([ids]))
        return outputs.last_hidden_state[0, -1]

    for number, row in enumerate(rows):
        for place, side in enumerate(("chosen", "rejected")):
            expected = alone(row, side)
            np.testing.assert_allclose(found.pairs[number, place], expected, atol=rounding(expected), rtol=0)
        assert len(found.past[number]) == 2
        for entry, past in zip(row["history"], found.past[number], strict=True):
            for place, side in enumerate(("chosen", "rejected")):
                expected = alone(entry, side)
                np.testing.assert_allclose(found.past_pairs[past, place], expected, atol=rounding(expected), rtol=0)
    assert found.user.tolist() == [0, 0, 1, 1, 2, 2]
    assert found.num_users == 3


def test_a_base_needs_no_head(tmp_path):
    folder = make_model("decoder", tmp_path / "model")
    rows = make_pairs(num_users=3, pairs_per_user=2)
    expected = pair_features(RewardScorer(folder, device="cpu"), rows)
    base = load_reward_model(folder).base_model
    (tmp_path / "model/model.safetensors").unlink()
    base.save_pretrained(folder)
    with pytest.raises(ConfigError, match="so there is no reward head"):
        RewardScorer(folder)
    for seed in (0, 1):
        reader = FeatureReader(*with_new_head(folder, seed=seed), device="cpu")
        assert torch.equal(pair_features(reader, rows).pairs, expected.pairs)
    assert not hasattr(reader, "score")


def test_of_prepared_rows_those_past_pairs_count_that_are_shown(folder):
    scorer = RewardScorer(remember_inputs(folder), device="cpu")  # trained with histories, and shown none here
    rows = make_pairs(num_users=3, pairs_per_user=2)
    one, all_of_them = (pair_features(scorer, prepared(rows, folder, number)) for number in (1, 5))
    assert [len(own) for own in one.past] == [1] * 6
    assert [len(own) for own in all_of_them.past] == [2] * 6
    assert [own[0] for own in one.past] == [own[0] for own in all_of_them.past]  # the newest
    torch.testing.assert_close(one.pairs, all_of_them.pairs)  # which no history is in
    same = rows.map(lambda row: {"history": rows[0]["history"] + [{k: row[k] for k in ("prompt", "chosen", "rejected")}]})
    found = pair_features(scorer, same)  # equal past pairs have one number
    assert found.past == [[0, 1, 2 + number] for number in range(6)]
    torch.testing.assert_close(found.past_pairs[2:], found.pairs)


def test_a_file_has_them_all(scorer, tmp_path):
    found = pair_features(scorer, make_pairs(num_users=2, pairs_per_user=2))
    found = FeaturePairs(found.pairs, found.past_pairs, [[0, 1], [], [2], [1]], found.user)
    found.save(tmp_path / "features.safetensors")
    loaded = FeaturePairs.load(tmp_path / "features.safetensors")
    assert loaded.past == found.past
    for name in ("pairs", "past_pairs", "user"):
        assert torch.equal(getattr(loaded, name), getattr(found, name))
    context, is_there = loaded.context(torch.tensor([2, 0, 1]))
    assert is_there.tolist() == [[True, False], [True, True], [False, False]]
    assert torch.equal(context[0, 0], found.past_pairs[2])
    assert torch.equal(context[1], found.past_pairs[:2])
    assert (context[0, 1] == 0).all()
    assert (context[2] == 0).all()


def test_what_is_missing(scorer):
    with pytest.raises(DataError, match=r"The rows lack user, history\. attach_history of trl_pafo.data.attaching makes"):
        pair_features(scorer, make_pairs(history=0).remove_columns("user"))
    long = make_pairs(num_users=1, pairs_per_user=1)
    long = long.map(lambda row: {"history": [{**row["history"][0], "chosen": "red " * 300}]})
    with pytest.raises(DataError, match="longer than the 256 positions of the model, the first is past pair 0"):
        pair_features(scorer, long)
