"""The gain is what a loop over tokens and queries counts; the choice says why."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.shared_pairs import make_family
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, LlamaConfig

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.choice import (
    MIN_GAIN,
    attention_weight,
    choose_sharing,
    estimate_gain,
    lengths_of,
    sampled_gain,
)
from trl_pafo.prefix_sharing.rows import collate_pairs, dense_mask, row_layout

LENGTHS = st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=7)


def dataset(prefix: int, rest: int, num_pairs: int = 8) -> Dataset:
    shared = list(range(10, 10 + prefix))
    sides = {"chosen_ids": [*shared, 1] + [3] * (rest - 1), "rejected_ids": [*shared, 2] + [3] * (rest - 1)}
    return Dataset.from_dict({name: [ids] * num_pairs for name, ids in sides.items()})


class TestGain:
    @given(
        LENGTHS, st.integers(1, 4), st.sampled_from([None, 4]), st.sampled_from(["sdpa", "eager", "flex_attention", "by_rows"])
    )
    def test_equals_a_count_over_batches(self, lengths, batch_size, multiple, attention):
        weight = 0.01
        cost = np.zeros((2, 2))  # two rows, shared; tokens, queries on keys
        for start in range(0, len(lengths), batch_size):
            pairs = [
                {"chosen_ids": [*range(3, 3 + p), 1, *[9] * (c - 1)], "rejected_ids": [*range(3, 3 + p), 2, *[9] * (r - 1)]}
                for p, c, r in lengths[start : start + batch_size]
            ]
            sequences = [ids for pair in pairs for ids in pair.values()]
            longest = -(-max(map(len, sequences)) // (multiple or 1)) * (multiple or 1)
            batch = collate_pairs(pairs, 0, multiple)
            width = batch["input_ids"].shape[1]
            seen = dense_mask(row_layout(batch["pair_lengths"], width)) & batch["attention_mask"].bool()[:, None, :, None]
            if attention == "flex_attention":
                # Diagonals apart, which are a count of tokens.
                seen_two = sum(len(s) * (len(s) + 1) / 2 for s in sequences) - sum(len(s) for s in sequences) / 2
                seen_shared = float(seen.sum()) - float(batch["attention_mask"].sum()) / 2
            else:
                masked = attention == "eager" or any(len(s) < longest for s in sequences)
                seen_two = len(sequences) * longest**2 * (1 if masked else 0.5)
                seen_shared = len(pairs) * width**2
                if attention == "by_rows":  # a causal sequence, and what follows it against all that it may see
                    kept = lengths[start : start + batch_size]
                    seen_shared = sum((p + c) ** 2 / 2 + r * (p + r) for p, c, r in kept)
            cost += [[len(sequences) * longest, seen_two], [len(pairs) * width, seen_shared]]
        gain = estimate_gain(np.array(lengths), batch_size, weight, attention, multiple)
        assert gain.tokens == pytest.approx(cost[0, 0] / cost[1, 0])
        total = cost @ [1, weight]
        # Half a diagonal of the prefix is counted once in shared rows.
        assert gain.speed == pytest.approx(total[0] / total[1], rel=0.02 if attention == "flex_attention" else 1e-9)

    def test_of_pairs_without_padding(self):
        lengths = np.array([[256, 64, 64]] * 8)
        assert estimate_gain(lengths, 4, 0.0) == pytest.approx((640 / 384, 640 / 384))
        assert estimate_gain(np.array([[0, 100, 100]]), 1, 0.0) == pytest.approx((1.0, 1.0))

    def test_long_rows_with_little_shared_lose(self):
        lengths = np.array([[800, 3296, 3296]] * 4)
        weight = attention_weight(
            LlamaConfig(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
        )
        gain = estimate_gain(lengths, 4, weight)
        assert gain.tokens > 1.1
        assert gain.speed < 0.8
        assert estimate_gain(lengths, 4, weight, "flex_attention").speed > 1.05

    def test_a_window_that_bites_needs_the_mask(self):
        rows = dataset(30, 10, 8)
        lengths = lengths_of(rows["chosen_ids"][:], rows["rejected_ids"][:])
        for window, attention in ((24, "sdpa"), (4096, "sdpa" if torch.accelerator.is_available() else "by_rows")):
            config = make_family("mistral", sliding_window=window).config
            expected = estimate_gain(lengths, 4, attention_weight(config), attention)
            assert tuple(sampled_gain(rows, 4, config)) == pytest.approx(tuple(expected))

    def test_weight_counts_the_arithmetic_of_a_layer(self):
        """Against the weights of a layer themselves: a multiplication and an addition each, a token."""
        for family in ("llama", "qwen2", "qwen3", "gemma"):
            model = make_family(family)
            layer = model.model.layers[0]
            matrices = sum(p.numel() for p in layer.parameters() if p.dim() > 1)
            queries = layer.self_attn.q_proj.out_features
            assert attention_weight(model.config) == pytest.approx(4 * queries / (2 * matrices))

    def test_a_sample_of_many_pairs(self):
        rows = dataset(30, 10, 3000)
        config = make_family("llama").config
        lengths = lengths_of(rows["chosen_ids"][:], rows["rejected_ids"][:])
        weight = attention_weight(config)
        attention = "by_rows" if torch.accelerator.current_accelerator() is None else "sdpa"
        assert tuple(sampled_gain(rows, 4, config)) == pytest.approx(tuple(estimate_gain(lengths, 4, weight, attention)))
        assert sampled_gain(rows.with_format("torch"), 4, config) == sampled_gain(rows, 4, config)


class TestChoice:
    @pytest.fixture(scope="class")
    @classmethod
    def model(cls):
        return make_family("llama")

    def test_off(self, model):
        assert choose_sharing("off", model, dataset(50, 5), 4) == (False, "prefix_sharing='off'")

    def test_auto_follows_the_lengths(self, model):
        share, reason = choose_sharing("auto", model, dataset(50, 5), 4)
        assert share
        assert "times as fast as two, which have 1.83 times the tokens" in reason
        share, reason = choose_sharing("auto", model, dataset(2, 50), 4)
        assert not share
        assert reason.endswith(f"times the tokens: below {MIN_GAIN}")

    def test_on_follows_nothing(self, model):
        assert choose_sharing("on", model, dataset(1, 50), 4).share
        assert choose_sharing("on", model, None, 4).share

    @pytest.mark.parametrize("rows", [None, dataset(5, 5).to_iterable_dataset(), dataset(5, 5).select([])])
    def test_auto_without_lengths(self, model, rows):
        share, reason = choose_sharing("auto", model, rows, 4)
        assert not share
        assert "lengths of the pairs are not known; prefix_sharing='on'" in reason

    def test_a_hindrance(self, model):
        assert choose_sharing("auto", model, dataset(50, 5), 4, hindrance="it rains") == (False, "it rains")
        with pytest.raises(ConfigError, match=r"'on' cannot give the rewards of two rows: it rains. Set prefix_sharing='auto'"):
            choose_sharing("on", model, dataset(50, 5), 4, hindrance="it rains")

    def test_an_encoder(self, encoder):
        model = AutoModelForSequenceClassification.from_pretrained(encoder)
        share, reason = choose_sharing("auto", model, dataset(50, 5), 4)
        assert not share
        assert "no reward head" in reason
        with pytest.raises(ConfigError, match="no reward head"):
            choose_sharing("on", model, dataset(50, 5), 4)

    def test_a_family_that_is_not_tested_is_shared_if_asked(self):
        model = make_family("olmo")
        share, reason = choose_sharing("auto", model, dataset(50, 5), 4)
        assert not share
        assert "'olmo' are not among those whose gradients are compared" in reason
        assert choose_sharing("on", model, dataset(50, 5), 4).share

    def test_a_model_that_gives_other_rewards(self):
        model = make_family("gemma3_text", use_bidirectional_attention=True)
        share, reason = choose_sharing("auto", model, dataset(50, 5), 4)
        assert not share
        assert "gives other rewards" in reason
        with pytest.raises(ConfigError, match="gives other rewards"):
            choose_sharing("on", model, dataset(50, 5), 4)

    def test_longer_batches_pad_more(self):
        """One long pair among short ones: what is shared drowns in padding, which matrices are multiplied with."""
        model = make_family("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=1)
        rows = Dataset.from_list([*dataset(40, 2, 7), *dataset(0, 200, 1)])
        alone = choose_sharing("auto", model, rows.select(range(7)), 1)
        assert alone.share
        assert not choose_sharing("auto", model, rows, 8).share


def test_weights_do_not_matter():
    """A sharded or unloaded model is asked like any other."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(LlamaConfig(num_labels=1, pad_token_id=0))
    assert choose_sharing("auto", model, dataset(50, 5), 4).share
