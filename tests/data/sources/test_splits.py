from collections import Counter

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data.groups import support_rate_by_agreement
from trl_pafo.data.sources.splits import (
    add_support_groups,
    add_type_support,
    agreement,
    are_new,
    drop_users_without_history,
    hold_out_prompts,
    split_users,
    without,
)
from trl_pafo.errors import ConfigError, DataError


def rows(*pairs, **more):
    """Rows of (user, prompt)."""
    users, prompts = zip(*pairs, strict=True)
    return Dataset.from_dict({"user": users, "prompt": prompts, **more})


def test_a_prompt_of_training_is_not_new_be_it_in_a_history(caplog):
    past = [{"prompt": "b", "chosen": "y", "rejected": "n"}]
    train = rows(("u", "a"), ("u", "d"), history=[past, None])
    test = rows(("v", "a"), ("v", "b"), ("v", "c"))
    new = are_new(train, test, ("prompt",))
    assert new.tolist() == [False, False, True]
    assert without(test, new, "whose prompts occur in training")["prompt"] == ["c"]
    assert "2 of 3 test pairs are left out, whose prompts occur in training" in caplog.text
    with pytest.raises(DataError, match="None of 2 test pairs is left without those whose prompts occur in training"):
        without(test.select([0, 1]), new[:2], "whose prompts occur in training")


class TestSplitUsers:
    @settings(max_examples=60)
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0.05, 0.95), st.integers(0, 99))
    def test_every_beginning_of_both_sides_has_the_shares_of_the_groups(self, sizes, share, seed):
        group_of = {f"{group}-{number}": group for group, size in enumerate(sizes) for number in range(size)}
        if max(sizes) == 1 or (len(sizes) == 1 and not 0 < round(share * sizes[0]) < sizes[0]):
            with pytest.raises(ConfigError, match="leave training or test without users"):
                split_users(group_of, share, seed)
            return
        sides = split_users(group_of, share, seed)
        assert sorted(sides[0] + sides[1]) == sorted(group_of)
        for group, size in enumerate(sizes):
            in_test = [group_of[user] for user in sides[1]].count(group)
            if size > 1:  # each group that can be has a user on both sides
                assert 1 <= in_test <= size - 1
            assert size - 1 >= in_test
            assert abs(in_test - share * size) <= 1 or in_test in (1, size - 1)
        for side in sides:
            whole = Counter(group_of[user] for user in side)
            for length in range(1, len(side) + 1):
                found = Counter(group_of[user] for user in side[:length])
                for group, number in whole.items():
                    # Any beginning is at most one user off at its end and at each other group's.
                    assert abs(found[group] - length * number / len(side)) <= 2 * len(sizes) + 1

    def test_users_are_drawn_not_taken_in_order(self):
        group_of = dict.fromkeys(map(str, range(50)))
        assert split_users(group_of, 0.5, 0) == split_users(group_of, 0.5, 0)
        assert split_users(group_of, 0.5, 0)[1] != split_users(group_of, 0.5, 1)[1]


class TestRows:
    def test_users_without_history_are_dropped(self):
        data = rows(("a", "1"), ("a", "2"), ("b", "1"), ("c", "1"), ("c", "1"), ("d", "1"), ("d", "2"), ("d", "2"))
        assert drop_users_without_history(data)["prompt"][:] == ["1", "2", "1", "2", "2"]
        assert set(drop_users_without_history(data, min_pairs=3)["user"]) == {"d"}


class TestSupport:
    def test_type_support_is_the_share_of_training_users_not_rows(self):
        train = rows(("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "1"), group=["x", "x", "x", "y", "y"])
        test = rows(("d", "4"), group=["x"])
        splits = add_type_support(DatasetDict(train=train, test=test))
        assert splits["train"]["support_rate"][:] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
        assert splits["test"]["support_rate"][:] == pytest.approx([1 / 3])

    @settings(max_examples=25)
    @given(st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("pq"), st.permutations("xyz")), max_size=20), st.booleans())
    def test_agreement_is_that_of_votes_on_pairs_told_apart_by_their_texts(self, votes, conversational):
        shown = (lambda text: [{"role": "user", "content": text}]) if conversational else str
        names = ("user", "prompt", "chosen", "rejected")
        columns = [[u for u, *_ in votes], *([shown(r[i]) if i else shown(p) for _, p, r in votes] for i in range(3))]
        data = Dataset.from_dict(dict(zip(names, columns, strict=True)))
        pairs = [f"{prompt}{min(r[1:3])}{max(r[1:3])}" for _, prompt, r in votes]
        expected = support_rate_by_agreement(columns[0], pairs, [1 if r[1] < r[2] else -1 for *_, r in votes])
        assert repr(agreement(data)) == repr(expected)  # NaN is NaN

    def test_the_fifth_with_the_lowest_support_is_the_minority_by_default(self):
        splits = DatasetDict(train=rows(("a", "1"), ("b", "1")), test=rows(("c", "2")))
        built = add_support_groups(splits, {"train": {"a": 0.1, "b": 0.9}, "test": {"c": 0.5}})
        assert built["train"]["group"][:] == ["minority", "majority"]
        assert built["test"]["group"][:] == ["minority"]


class TestHoldOutPrompts:
    @settings(max_examples=40)
    @given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("pqrstu")), min_size=1, max_size=30), st.floats(0, 0.9))
    def test_prompts_are_apart_and_no_row_is_lost(self, pairs, share):
        pairs = [("a", "p"), ("b", "q"), *pairs]
        data = rows(*pairs)
        kept, out = hold_out_prompts(data, share, seed=3)
        assert not set(kept["prompt"]) & set(out["prompt"])
        assert Counter(zip([*kept["user"], *out["user"]], [*kept["prompt"], *out["prompt"]], strict=True)) == Counter(pairs)
        assert len(kept)
        prompts = len(set(data["prompt"]))
        if share and max(1, round(share * prompts)) < prompts:
            assert len(set(out["prompt"])) == max(1, round(share * prompts))
        if not share:
            assert not len(out)

    def test_no_group_loses_all_its_pairs(self, caplog):
        data = rows(("a", "p"), ("b", "q"), group=["minority", "majority"])
        kept, out = hold_out_prompts(data, 0.5, seed=0)
        assert (len(kept), len(out)) == (2, 0)
        assert "No pairs are held out of training: that would leave" in caplog.text

    def test_a_seed_draws_the_same_prompts_as_texts_as_messages_and_in_any_order(self):
        texts = rows(*[("u", f"{word} it{quote}s?") for word in ("is", "was", "isn't") for quote in ("'", '"', "`", " ")])
        messages = texts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
        for seed in range(3):
            drawn = [
                hold_out_prompts(data, 0.3, seed)[1]["prompt"][:] for data in (texts, messages, texts.select(range(11, -1, -1)))
            ]
            assert drawn[0] == [prompt[0]["content"] for prompt in drawn[1]] == drawn[2][::-1]
        assert drawn[0] != hold_out_prompts(texts, 0.3, 9)[1]["prompt"][:]
