"""Users who hold a type: who they are, what they judge, and that test and training are apart."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data.checks import check_pairs
from trl_pafo.data.sources.typed_users import AnsweredPrompt, Population, make_splits
from trl_pafo.errors import ConfigError, DataError

TYPES = ("warm", "terse", "formal", "playful")


def corpus(number=40):
    return [AnsweredPrompt(f"question {i}", {t: f"{t} answer {i}" for t in TYPES}) for i in range(number)]


def population(**changes):
    return Population(**{"majority": ["warm"], "minority": ["terse"], "train_users": 40, "test_users": 20, **changes})


def type_of(text):
    return text.split()[0]


def rows_of_users(dataset):
    rows = defaultdict(list)
    for row in dataset:
        rows[row["user"]].append(row)
    return rows


class TestSplits:
    @settings(max_examples=40, deadline=None)
    @given(
        st.integers(4, 30),
        st.floats(0.05, 0.95),
        st.floats(0.05, 0.95),
        st.integers(2, 15),
        st.integers(2, 15),
        st.integers(1, 4),
        st.integers(0, 3),
        st.integers(0, 9),
    )
    def test_whatever_is_asked_for_is_refused_or_kept_apart(
        self, prompts, minority_ratio, test_share, train_users, test_users, pairs, context, seed
    ):
        asked = Population(
            majority=["warm", "formal"],
            minority=["terse"],
            minority_ratio=minority_ratio,
            train_users=train_users,
            test_users=test_users,
            pairs_per_user=pairs,
            context_pairs=context,
            test_prompt_share=test_share,
            seed=seed,
        )
        try:
            splits = make_splits(corpus(prompts), asked)
        except ConfigError:
            return
        train, test = splits["train"], splits["test"]
        assert not set(train["user"]) & set(test["user"])
        assert not set(train["prompt"]) & set(test["prompt"])
        for split, users in ((train, train_users), (test, test_users)):
            check_pairs(split, "Split")
            rows = rows_of_users(split)
            assert len(rows) == users
            groups = Counter(user_rows[0]["group"] for user_rows in rows.values())
            assert groups["minority"] == round(minority_ratio * users)
            for user_rows in rows.values():
                assert len({row["prompt"] for row in user_rows}) == len(user_rows) == pairs + context
                assert len({row["group"] for row in user_rows}) == 1

    def test_each_split_has_its_share_of_the_prompts(self):
        splits = make_splits(corpus(), population(train_users=200, test_users=200))
        assert len(set(splits["test"]["prompt"])) == 10
        assert len(set(splits["train"]["prompt"])) == 30

    def test_the_rows_of_a_user_follow_each_other(self):
        for split in make_splits(corpus(), population()).values():
            users = split["user"][:]
            assert users == sorted(users)

    def test_the_seed_decides_everything(self):
        first, again, other = (make_splits(corpus(), population(seed=seed, taste_mix=0.3, label_noise=0.1)) for seed in (0, 0, 1))
        assert first["train"][:] == again["train"][:]
        assert first["test"][:] == again["test"][:]
        assert set(first["test"]["prompt"]) != set(other["test"]["prompt"])


class TestTastes:
    def test_every_user_prefers_the_type_it_holds(self):
        for split in make_splits(corpus(), population()).values():
            for row in split:
                assert type_of(row["chosen"]) == {"majority": "warm", "minority": "terse"}[row["group"]]
                assert type_of(row["rejected"]) != type_of(row["chosen"])
                number = row["prompt"].split()[-1]
                assert row["chosen"].split()[-1] == row["rejected"].split()[-1] == number

    def test_the_other_answer_is_of_any_other_type_equally_often(self):
        rows = make_splits(corpus(), population(train_users=400))["train"].filter(lambda row: row["group"] == "majority")
        seen = Counter(type_of(text) for text in rows["rejected"])
        assert set(seen) == {"terse", "formal", "playful"}
        assert all(count / len(rows) == pytest.approx(1 / 3, abs=0.04) for count in seen.values())

    def test_the_types_of_a_group_are_held_by_equal_shares(self):
        splits = make_splits(corpus(), population(majority=["warm", "formal", "playful"], train_users=100))
        held = Counter(type_of(rows[0]["chosen"]) for rows in rows_of_users(splits["train"]).values())
        assert held == {"terse": 10, "warm": 30, "formal": 30, "playful": 30}

    @pytest.mark.parametrize("train_users", [40, 33, 15])
    def test_support_is_the_share_of_training_users_who_hold_the_type(self, train_users):
        splits = make_splits(corpus(), population(majority=["warm", "formal"], train_users=train_users, minority_ratio=0.13))
        held = Counter(type_of(rows[0]["chosen"]) for rows in rows_of_users(splits["train"]).values())
        assert sum(held.values()) == train_users
        for split in splits.values():
            for row in split:
                assert row["support_rate"] == pytest.approx(held[type_of(row["chosen"])] / train_users)

    @pytest.mark.parametrize("mix", [0.25, 1.0])
    def test_taste_mix_gives_each_user_a_second_type_of_its_own(self, mix):
        rows = make_splits(corpus(), population(train_users=300, taste_mix=mix, pairs_per_user=8))["train"]
        users = rows_of_users(rows)
        second = Counter()
        for user_rows in users.values():
            first = {"majority": "warm", "minority": "terse"}[user_rows[0]["group"]]
            liked = Counter(type_of(row["chosen"]) for row in user_rows)
            assert len(set(liked) - {first}) <= 1
            second.update(set(liked) - {first})
        assert set(second) == set(TYPES)
        others = sum(type_of(row["chosen"]) != {"majority": "warm", "minority": "terse"}[row["group"]] for row in rows)
        assert others / len(rows) == pytest.approx(mix, abs=0.03)

    def test_label_noise_turns_round_its_share_of_the_pairs(self):
        rows = make_splits(corpus(), population(train_users=300, label_noise=0.2, pairs_per_user=8))["train"]
        turned = [type_of(row["rejected"]) == {"majority": "warm", "minority": "terse"}[row["group"]] for row in rows]
        assert sum(turned) / len(rows) == pytest.approx(0.2, abs=0.03)
        kept = [type_of(row["chosen"]) == {"majority": "warm", "minority": "terse"}[row["group"]] for row in rows]
        assert all(a != b for a, b in zip(turned, kept, strict=True))


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            (
                {"majority": ["loud"]},
                r"`majority` must name types of the corpus \(warm, terse, formal, playful\), got \['loud'\]",
            ),
            ({"minority": []}, r"`minority` must name types of the corpus .*, got \[\]"),
            ({"minority": ["warm", "terse"]}, r"held by one group only; \['warm'\] are in `majority` and in `minority`"),
            ({"minority_ratio": 0.0}, "`minority_ratio` must be above 0 and below 1, got 0.0"),
            ({"minority_ratio": 1.0}, "`minority_ratio` must be above 0 and below 1, got 1.0"),
            ({"test_prompt_share": 1.0}, "`test_prompt_share` must be above 0 and below 1, got 1.0"),
            ({"taste_mix": 1.1}, r"`taste_mix` must be in \[0, 1\].*got 1.1 and 0.0"),
            ({"label_noise": 0.5}, r"`label_noise` in \[0, 0.5\), got 0.0 and 0.5"),
            ({"pairs_per_user": 0}, "`pairs_per_user` must be at least 1 and `context_pairs` at least 0, got 0 and 1"),
            ({"context_pairs": -1}, "`pairs_per_user` must be at least 1 and `context_pairs` at least 0, got 4 and -1"),
            ({"pairs_per_user": 10}, "judges 11 different prompts, but one split has only 10 of the 40: lower `pairs_per_user`"),
            ({"test_prompt_share": 0.95}, "judges 5 different prompts, but one split has only 2 of the 40"),
            ({"train_users": 4}, "`train_users`=4 with `minority_ratio`=0.1 leaves one group without users"),
            ({"test_users": 1, "minority_ratio": 0.9}, "`test_users`=1 with `minority_ratio`=0.9 leaves one group without users"),
        ],
    )
    def test_populations_that_cannot_be_made(self, changes, match):
        with pytest.raises(ConfigError, match=match):
            make_splits(corpus(), population(**changes))

    @pytest.mark.parametrize("share", [0.25, 0.5, 0.7, 0.75])
    @pytest.mark.parametrize("prompts", range(5, 12))
    def test_the_smaller_split_is_counted_as_it_is_made(self, prompts, share):
        smallest = min(round(share * prompts), prompts - round(share * prompts))
        asked = population(context_pairs=0, test_prompt_share=share)
        make_splits(corpus(prompts), Population(**{**vars(asked), "pairs_per_user": smallest}))
        with pytest.raises(ConfigError, match=f"one split has only {smallest} of the {prompts}"):
            make_splits(corpus(prompts), Population(**{**vars(asked), "pairs_per_user": smallest + 1}))

    def test_corpora_that_cannot_be_used(self):
        with pytest.raises(DataError, match="The corpus holds no prompt"):
            make_splits([], population())
        with pytest.raises(DataError, match="Two prompts of the corpus are the same"):
            make_splits([*corpus(), corpus()[3]], population())
        holed = [*corpus(), AnsweredPrompt("question 99", {t: "a" for t in TYPES[1:]})]
        with pytest.raises(DataError, match=r"The prompt 'question 99' lacks answers of the types \['warm'\]"):
            make_splits(holed, population())
