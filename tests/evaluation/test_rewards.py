"""Rows of a dataset under saved models: the rewards of a plain loop."""

import shutil

import numpy as np
import pytest
import torch
from helpers.parts import make_model, remember_inputs
from helpers.rounding import rounding
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_pafo.data.history import HistoryCutter, render_history, without_history
from trl_pafo.errors import DataError
from trl_pafo.evaluation.rewards import score_routed, score_rows


@pytest.fixture
def folder(base_model, tmp_path):
    """A model whose tokenizer renders histories, and rows with one past pair each."""
    shutil.copytree(base_model, tmp_path / "model")
    return remember_inputs(str(tmp_path / "model"), num_history=1)


@pytest.fixture
def rows(folder, pairs):
    return render_history(pairs, HistoryCutter.of(AutoTokenizer.from_pretrained(folder)))


def test_rewards_are_those_of_one_response_at_a_time(folder, rows):
    scored = score_rows(folder, rows, batch_size=3)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for number in (0, 1, len(rows) - 1):
        row = rows[number]
        for side, rewards in (("chosen", scored.chosen), ("rejected", scored.rejected)):
            messages = row["prompt"] + row[side]
            ids = tokenizer.apply_chat_template(messages, return_dict=True, **row["chat_template_kwargs"])["input_ids"]
            with torch.no_grad():
                expected = model(input_ids=torch.tensor([ids])).logits.item()
            assert rewards[number] == pytest.approx(expected, abs=1e-4)


def test_a_model_that_was_trained_elsewhere_is_shown_no_history(base_model, rows):
    scored = score_rows(base_model, rows)
    np.testing.assert_array_equal(scored.chosen, score_rows(base_model, without_history(rows)).chosen)
    assert scored.chosen.std() > 0


def test_the_oracle_scores_each_row_by_the_model_of_its_group(folder, rows, tmp_path):
    kind = "encoder" if "bert" in AutoModelForSequenceClassification.from_pretrained(folder).config.model_type else "decoder"
    other = make_model(kind, tmp_path / "other", seed=5)
    mine, theirs = score_rows(folder, rows), score_rows(other, rows)
    routed = score_routed({"minority": other, "majority": folder}, rows)
    is_minority = np.asarray(rows["group"]) == "minority"
    assert 0 < is_minority.sum() < len(rows)
    np.testing.assert_allclose(routed.chosen, np.where(is_minority, theirs.chosen, mine.chosen), atol=rounding(routed.chosen))
    expected = np.where(is_minority, theirs.rejected, mine.rejected)
    np.testing.assert_allclose(routed.rejected, expected, atol=rounding(expected))
    with pytest.raises(DataError, match="groups without a teacher: minority"):
        score_routed({"majority": folder}, rows)


def test_pairs_beyond_the_model_positions_are_refused(encoder, pairs):
    long = pairs.remove_columns("chosen").add_column("chosen", ["cat " * (300 if number == 2 else 1) for number in range(30)])
    with pytest.raises(DataError, match=r"1 of 30 pairs are longer than the 256 positions of the model, the first is row 2"):
        score_rows(encoder, long)
