"""Users who hold a type: who they are, what they judge, and that test and training are apart."""

from collections import Counter, defaultdict

import pytest
from helpers.sources import check_splits
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.typed_users import AnsweredPrompt, make_splits
from trl_pafo.errors import ConfigError

TYPES = ("warm", "terse", "formal", "playful")
FIRST = {"majority": "warm", "minority": "terse"}


def make(num_prompts=40, **options):
    corpus = [AnsweredPrompt(f"question {i}", {t: f"{t} answer {i}" for t in TYPES}) for i in range(num_prompts)]
    data = DataArguments(source="styles", **{"train_users": 40, "test_users": 20, **options})
    return make_splits(corpus, data, **FIRST)


def type_of(text):
    return text.split()[0]


def rows_of_users(dataset):
    rows = defaultdict(list)
    for row in dataset:
        rows[row["user"]].append(row)
    return rows


class TestSplits:
    @settings(max_examples=30)
    @given(
        st.integers(4, 30),
        st.floats(0.05, 0.95),
        st.floats(0.05, 0.95),
        st.integers(2, 15),
        st.integers(2, 15),
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(0, 9),
    )
    def test_whatever_is_asked_for_is_refused_or_kept_apart(
        self, prompts, minority_ratio, test_share, train_users, test_users, pairs, context, seed
    ):
        options = {"train_users": train_users, "test_users": test_users, "minority_ratio": minority_ratio}
        options |= {"pairs_per_user": pairs, "context_pairs": context, "test_prompt_share": test_share, "population_seed": seed}
        try:
            splits = make(prompts, majority=["warm", "formal"], minority=["terse"], **options)
        except ConfigError:
            return
        check_splits(splits)
        for row in (row for split in splits.values() for row in split):
            assert type_of(row["chosen"]) in {"majority": ("warm", "formal"), "minority": ("terse",)}[row["group"]]
            assert type_of(row["rejected"]) != type_of(row["chosen"])
            assert row["chosen"].split()[-1] == row["rejected"].split()[-1] == row["prompt"].split()[-1]
        judged = [set(split["prompt"]) | set(split["user"]) for split in splits.values()]
        assert len(set.union(*judged)) == sum(map(len, judged))
        for name, users in (("train", train_users), ("test", test_users), ("validation", 100)):
            rows = rows_of_users(splits[name])
            assert len(rows) == users
            groups = Counter(user_rows[0]["group"] for user_rows in rows.values())
            assert groups["minority"] == (50 if name == "validation" else round(minority_ratio * users))
            for user_rows in rows.values():
                number = len(user_rows)
                assert len({row["prompt"] for row in user_rows}) == number
                assert context < number <= pairs + context if name == "validation" else number == pairs + context
                assert len({row["group"] for row in user_rows}) == 1

    def test_each_split_has_its_share_of_the_prompts(self):
        splits = make(train_users=200, test_users=200)
        prompts = {name: set(rows["prompt"]) for name, rows in splits.items()}
        assert {name: len(own) for name, own in prompts.items()} == {"test": 10, "train": 26, "validation": 4}
        assert len(set.union(*prompts.values())) == 40
        assert len({user for rows in splits.values() for user in rows["user"]}) == 200 + 200 + 100
        assert set(make(validation_share=0)) == {"train", "test"}

    def test_the_seed_decides_everything(self):
        first, again, other = (make(population_seed=seed, taste_mix=0.3, label_noise=0.1) for seed in (0, 0, 1))
        assert {name: rows[:] for name, rows in first.items()} == {name: rows[:] for name, rows in again.items()}
        assert set(first["test"]["prompt"]) != set(other["test"]["prompt"])


class TestTastes:
    def test_the_other_answer_is_of_any_other_type_equally_often(self):
        rows = make(train_users=400)["train"].filter(lambda row: row["group"] == "majority")
        seen = Counter(type_of(text) for text in rows["rejected"])
        assert set(seen) == {"terse", "formal", "playful"}
        assert all(count / len(rows) == pytest.approx(1 / 3, abs=0.04) for count in seen.values())

    @pytest.mark.parametrize("train_users", [100, 33])
    def test_types_are_held_by_equal_shares_and_support_is_the_share_of_training_users(self, train_users):
        majority = ["warm", "formal", "playful"]
        splits = make(majority=majority, train_users=train_users, minority_ratio=0.1)
        held = Counter(type_of(rows[0]["chosen"]) for rows in rows_of_users(splits["train"]).values())
        assert held["terse"] == round(0.1 * train_users)
        assert max(held[name] for name in majority) - min(held[name] for name in majority) <= 1
        for split in splits.values():
            for row in split:
                assert row["support_rate"] == pytest.approx(held[type_of(row["chosen"])] / train_users)

    def test_taste_mix_gives_each_user_a_second_type_of_its_own(self):
        mix = 0.25
        rows = make(train_users=300, taste_mix=mix, pairs_per_user=8)["train"]
        second = Counter()
        for user_rows in rows_of_users(rows).values():
            others = {type_of(row["chosen"]) for row in user_rows} - {FIRST[user_rows[0]["group"]]}
            assert len(others) <= 1
            second.update(others)
        assert set(second) == set(TYPES)
        share = sum(type_of(row["chosen"]) != FIRST[row["group"]] for row in rows) / len(rows)
        assert share == pytest.approx(mix, abs=0.03)

    def test_label_noise_flips_its_share_of_the_pairs(self):
        rows = make(train_users=300, label_noise=0.2, pairs_per_user=8)["train"]
        flipped = [type_of(row["rejected"]) == FIRST[row["group"]] for row in rows]
        assert sum(flipped) / len(rows) == pytest.approx(0.2, abs=0.03)
        assert all((type_of(row["chosen"]) == FIRST[row["group"]]) != flip for row, flip in zip(rows, flipped, strict=True))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"majority": ["loud"]}, r"`majority` must name types of the corpus \(warm, terse, formal, playful\), got \['loud'\]"),
        ({"minority": ["warm", "terse"]}, r"belong to only one group; \['warm'\] are in `majority` and in `minority`"),
        ({"minority_ratio": 0.0}, "`minority_ratio` must be above 0 and below 1, got 0.0"),
        ({"test_prompt_share": 1.0}, "`test_prompt_share` must be above 0 and below 1, got 1.0"),
        ({"validation_share": 1.0}, "`validation_share` must be at least 0 and below 1, got 1.0"),
        ({"taste_mix": 1.1}, r"`taste_mix` must be in \[0, 1\], got 1.1"),
        ({"label_noise": 0.5}, r"`label_noise` must be in \[0, 0.5\), got 0.5"),
        ({"pairs_per_user": 0}, "`pairs_per_user` must be at least 1, got 0"),
        ({"context_pairs": -1}, "`context_pairs` must be at least 0, got -1"),
        ({"train_users": 0}, "`train_users` must be at least 1, got 0"),
        ({"pairs_per_user": 10}, "judges 11 different prompts, but one split has only 10 of the 40: lower `pairs_per_user`"),
        ({"context_pairs": 4}, "4 are for validation users, of whose pairs 4 only serve as history. Raise `validation_share`"),
        ({"validation_users": 1}, "`validation_users` must be at least 2, got 1"),
        ({"train_users": 4}, "`train_users`=4 with `minority_ratio`=0.1 leaves one group without users"),
    ],
)
def test_users_that_cannot_be_made(changes, match):
    with pytest.raises(ConfigError, match=match):
        make(**changes)
