"""Rows are tokenized as TRL's RewardTrainer tokenizes them, and scored."""

import pytest
import torch
from helpers.parts import make_model
from helpers.rounding import rounding
from transformers import AutoTokenizer

from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import DataError
from trl_pafo.models.loading import load_reward_model
from trl_pafo.models.scoring import RewardScorer


class TestRewardScorer:
    """(What rows may hold: tests/data/test_rendering.py and tests/evaluation/test_score_file.py)"""

    ROWS = (
        {"prompt": "how do i sing", "response": "kindly sir"},
        {"prompt": "can i run", "chosen": "yes please sir", "rejected": "no"},
    )

    @pytest.mark.parametrize("kind", ["encoder", "decoder"])
    def test_rewards_are_those_of_the_model(self, kind, tmp_path):
        folder = make_model(kind, tmp_path / "model")
        model, tokenizer = load_reward_model(folder), AutoTokenizer.from_pretrained(folder)
        found = RewardScorer.from_pretrained(folder, device="cpu").score(self.ROWS, batch_size=2)
        assert [list(row) for row in found] == [["response"], ["chosen", "rejected"]]
        for row, rewards in zip(self.ROWS, found, strict=True):
            for side, reward in rewards.items():
                with torch.no_grad():
                    expected = model(input_ids=torch.tensor([tokenize_row(tokenizer, row, side)])).logits.item()
                assert reward == pytest.approx(expected, abs=rounding(expected))

    def test_rows_are_checked_before_weights_are_loaded(self, encoder, monkeypatch):
        monkeypatch.setattr("trl_pafo.models.scoring.load_reward_model", None)
        scorer = RewardScorer(encoder, device="cpu")
        assert scorer.positions == 256
        with pytest.raises(DataError, match="1 of 3 rows are longer than the 256 positions of the model, the first is row 2"):
            scorer.score([*self.ROWS, {"prompt": "what", "response": "red " * 300}])
