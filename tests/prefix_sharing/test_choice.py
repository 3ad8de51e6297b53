"""The work is what a loop over tokens and queries counts; the choice says why."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.shared_pairs import make_family
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaConfig

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing import choose_sharing
from trl_pafo.prefix_sharing.choice import MIN_GAIN, attention_weight, count_work, estimate_gain, how_rows_attend
from trl_pafo.prefix_sharing.rows import collate_pairs, dense_mask, row_layout

LENGTHS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=7)


def dataset(prefix: int, rest: int, num_pairs: int = 8) -> Dataset:
    shared = list(range(10, 10 + prefix))
    sides = {"chosen_ids": [*shared, 1] + [3] * (rest - 1), "rejected_ids": [*shared, 2] + [3] * (rest - 1)}
    return Dataset.from_dict({name: [ids] * num_pairs for name, ids in sides.items()})


class TestWork:
    @given(
        LENGTHS, st.integers(1, 4), st.sampled_from([None, 4]), st.sampled_from(["sdpa", "eager", "flex_attention", "by_rows"])
    )
    def test_equals_a_count_over_batches(self, lengths, batch_size, multiple, attention):
        work = np.zeros((2, 2))  # two rows, shared; tokens, queries on keys
        for start in range(0, len(lengths), batch_size):
            kept = lengths[start : start + batch_size]
            pairs = [
                {"chosen_ids": [*range(3, 3 + p), 1, *[9] * (c - 1)], "rejected_ids": [*range(3, 3 + p), 2, *[9] * (r - 1)]}
                for p, c, r in kept
            ]
            sequences = [ids for pair in pairs for ids in pair.values()]
            longest = -(-max(map(len, sequences)) // (multiple or 1)) * (multiple or 1)
            width = collate_pairs(pairs, 0, multiple)["input_ids"].shape[1]
            masked = attention == "eager" or any(len(s) < longest for s in sequences)
            two, shared = len(sequences) * longest**2 * (1 if masked else 0.5), len(pairs) * width**2
            if attention == "flex_attention":
                two = sum(len(s) ** 2 / 2 for s in sequences)
            if attention in ("flex_attention", "by_rows"):  # a causal sequence, and what follows it against all that it may see
                shared = sum((p + c) ** 2 / 2 + r * (p + r) for p, c, r in kept)
            work += [[len(sequences) * longest, two], [len(pairs) * width, shared]]
        np.testing.assert_allclose(count_work(np.array(lengths), batch_size, attention, multiple), work)

    def test_row_by_row_is_little_more_than_what_the_mask_allows(self):
        lengths = torch.tensor([[256, 64, 64], [40, 300, 10]])
        allowed = int(dense_mask(row_layout(lengths, 384)).sum())
        assert allowed < 1.25 * count_work(lengths.numpy(), 2, "by_rows")[1, 1]
        assert count_work(lengths.numpy(), 2, "by_rows")[1, 1] < 1.25 * allowed

    def test_long_rows_with_little_shared_lose_with_a_mask(self):
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
        config = LlamaConfig(**sizes, attn_implementation="eager")
        lengths = np.array([[800, 3296, 3296]] * 4)
        gain = estimate_gain(lengths, 4, config)
        assert gain.tokens > 1.1 > gain.speed
        config._attn_implementation = "flex_attention"
        assert estimate_gain(lengths, 4, config).speed > gain.speed

    def test_a_window_that_bites_needs_the_mask(self, monkeypatch):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: torch.device("cuda"))  # a build for GPUs
        lengths = np.array([[30, 10, 10]] * 8)
        for window, attention in ((24, "sdpa"), (4096, "sdpa" if torch.accelerator.is_available() else "by_rows")):
            assert how_rows_attend(make_family("mistral", sliding_window=window).config, lengths) == attention

    def test_weight_counts_the_arithmetic_of_a_layer(self):
        """Against the weights of a layer themselves: a multiplication and an addition each, a token."""
        for family in ("llama", "qwen2", "qwen3", "gemma"):
            model = make_family(family)
            layer = model.model.layers[0]
            matrices = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
            queries = layer.self_attn.q_proj.out_features
            assert attention_weight(model.config) == pytest.approx(4 * queries / (2 * matrices))


class TestChoice:
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        return make_family("llama")

    def test_auto_follows_the_lengths_and_the_others_do_not(self, model):
        assert choose_sharing("off", model, dataset(50, 5), 4) == (False, "prefix_sharing='off'")
        assert choose_sharing("on", model, dataset(1, 50), 4).share
        share, reason = choose_sharing("auto", model, dataset(50, 5, 3000).with_format("torch"), 4)
        assert share
        assert "times as fast as two, which have 1.83 times the tokens" in reason
        share, reason = choose_sharing("auto", model, dataset(2, 50), 4)
        assert not share
        assert reason.endswith(f"times the tokens: below {MIN_GAIN}")

    @pytest.mark.parametrize("rows", [None, dataset(5, 5).to_iterable_dataset(), dataset(5, 5).select([])])
    def test_auto_without_lengths(self, model, rows):
        share, reason = choose_sharing("auto", model, rows, 4)
        assert not share
        assert "lengths of the pairs are not known; prefix_sharing='on'" in reason

    @pytest.mark.parametrize(
        ("family", "options", "given", "reason"),
        [
            ("llama", {}, "it rains", "it rains"),
            ("gemma3_text", {"use_bidirectional_attention": True}, None, "gives other rewards"),
            (None, {}, None, "no reward head"),
        ],
    )
    def test_a_reason_against_it(self, encoder, family, options, given, reason):
        model = make_family(family, **options) if family else AutoModelForSequenceClassification.from_pretrained(encoder)
        found = choose_sharing("auto", model, dataset(50, 5), 4, reason=given)
        assert not found.share
        assert reason in found.reason
        with pytest.raises(ConfigError, match=f"'on' cannot give the rewards of two rows: .*{reason}.*Set prefix_sharing='auto'"):
            choose_sharing("on", model, dataset(50, 5), 4, reason=given)

    def test_a_family_that_is_not_tested_is_shared_if_asked(self):
        model = make_family("olmo")
        share, reason = choose_sharing("auto", model, dataset(50, 5), 4)
        assert not share
        assert "'olmo' are not among those whose gradients are compared" in reason
        assert choose_sharing("on", model, dataset(50, 5), 4).share
