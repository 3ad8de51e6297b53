"""Shared rows against loops over single tokens and against rows of their own."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.prefix_sharing.attention import attention_mask
from trl_pafo.prefix_sharing.rows import (
    PAIR_LENGTHS,
    collate_pairs,
    dense_mask,
    pair_lengths,
    reward_places,
    row_layout,
    two_rows,
)

# Few different tokens, so that sequences share prefixes, and 0 to 3 of them.
SEQUENCES = st.lists(st.integers(1, 3), min_size=1, max_size=9)
PAIRS = st.lists(st.fixed_dictionaries({"chosen_ids": SEQUENCES, "rejected_ids": SEQUENCES}), min_size=1, max_size=4)
MULTIPLES = st.sampled_from([None, 1, 4, 7])


def loop_prefix(a, b):
    """Tokens that both begin with, where each keeps one of its own."""
    count = 0
    while count < len(a) - 1 and count < len(b) - 1 and a[count] == b[count]:
        count += 1
    return count


def own_tokens(pair):
    """Of each token of a shared row: the sequences it belongs to, and its place there."""
    prefix = loop_prefix(pair["chosen_ids"], pair["rejected_ids"])
    tokens = [({"chosen", "rejected"}, place) for place in range(prefix)]
    for side in ("chosen", "rejected"):
        tokens += [({side}, place) for place in range(prefix, len(pair[f"{side}_ids"]))]
    return tokens


class TestPrefix:
    @given(SEQUENCES, SEQUENCES)
    def test_equals_a_loop(self, a, b):
        prefix, chosen, rejected = pair_lengths(a, b)
        assert prefix == loop_prefix(a, b)
        assert (prefix + chosen, prefix + rejected) == (len(a), len(b))
        assert min(chosen, rejected) >= 1


class TestBatch:
    @given(PAIRS, MULTIPLES)
    def test_holds_both_sequences_of_each_pair(self, pairs, multiple):
        batch = collate_pairs(pairs, 0, multiple)
        ids, lengths = batch["input_ids"], batch[PAIR_LENGTHS]
        assert ids.shape == batch["attention_mask"].shape
        assert torch.equal(batch["attention_mask"], (ids != 0).long())
        longest = max(len(own_tokens(pair)) for pair in pairs)
        assert ids.shape[1] >= longest
        assert ids.shape[1] - longest < (multiple or 1)
        assert ids.shape[1] % (multiple or 1) == 0
        sequences = two_rows(ids, lengths, pad_token_id=-1)
        assert sequences.shape[2] == max(len(s) for pair in pairs for s in pair.values())
        for pair, both in zip(pairs, sequences.tolist(), strict=True):
            assert [[token for token in side if token != -1] for side in both] == [pair["chosen_ids"], pair["rejected_ids"]]


class TestWhoSeesWhom:
    @given(PAIRS, MULTIPLES, st.sampled_from([None, 1, 2, 5]))
    def test_equals_a_loop_over_tokens(self, pairs, multiple, window):
        batch = collate_pairs(pairs, 0, multiple)
        num_tokens = batch["input_ids"].shape[1]
        layout = row_layout(batch[PAIR_LENGTHS], num_tokens)
        mask = dense_mask(layout, window)
        assert mask.shape == (len(pairs), 1, num_tokens, num_tokens)
        for row, pair in enumerate(pairs):
            tokens = own_tokens(pair)
            assert layout.position[row, : len(tokens)].tolist() == [place for _, place in tokens]
            assert not layout.position[row, len(tokens) :].any()
            for query, (of_query, at) in enumerate(tokens):
                for key in range(num_tokens):
                    expected = False
                    if key < len(tokens):
                        of_key, place = tokens[key]
                        # A token of the prefix looks ahead at nothing, one of a rest only at its own sequence.
                        expected = of_query <= of_key and place <= at and (window is None or at - place < window)
                    assert mask[row, 0, query, key] == expected, (query, key)
            # Softmax over nothing is NaN, which spreads.
            assert mask[row, 0].any(-1).all()
            assert not mask[row, 0, len(tokens) :, : len(tokens)].any()

    @settings(max_examples=10)
    @given(PAIRS, st.sampled_from([None, 3]))
    def test_every_implementation_is_told_the_same(self, pairs, window):
        batch = collate_pairs(pairs, 0)
        num_tokens = batch["input_ids"].shape[1]
        layout = row_layout(batch[PAIR_LENGTHS], num_tokens)
        expected = dense_mask(layout, window)
        torch.testing.assert_close(attention_mask(layout, window, "sdpa", torch.float32), expected)
        for dtype in (torch.float32, torch.bfloat16):
            added = attention_mask(layout, window, "eager", dtype)
            assert added.dtype == dtype
            torch.testing.assert_close(added == 0, expected)
            assert (added[~expected] == torch.finfo(dtype).min).all()
        block_mask = attention_mask(layout, window, "flex_attention", torch.float32)
        assert block_mask.shape == (len(pairs), 1, num_tokens, num_tokens)
        index = torch.arange(num_tokens)
        grid = torch.meshgrid(torch.arange(len(pairs)), index, index, indexing="ij")
        torch.testing.assert_close(block_mask.mask_mod(grid[0], None, grid[1], grid[2])[:, None], expected)


class TestWhereRewardsAreRead:
    @given(PAIRS, st.sampled_from([0, 1, 2, None]))
    def test_is_where_a_model_reads_those_of_two_rows(self, pairs, pad):
        """Also with pad tokens inside, as where the end token pads: pooling then steps back over them."""
        batch = collate_pairs(pairs, 0 if pad is None else pad)
        ids, lengths = batch["input_ids"], batch[PAIR_LENGTHS]
        places = reward_places(ids, lengths, pad)
        for row, pair in enumerate(pairs):
            tokens = own_tokens(pair)
            for side, place in zip(("chosen", "rejected"), places[row].tolist(), strict=True):
                sequence = pair[f"{side}_ids"]
                pooled = max([i for i, token in enumerate(sequence) if pad is None or token != pad], default=0)
                belongs, at = tokens[place]
                assert side in belongs
                assert at == pooled
