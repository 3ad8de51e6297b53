"""Which rows get which history: a user's own past, a donor's, and never the pair that is judged."""

import random
from collections import Counter
from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from helpers.parts import make_pairs, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.data import HISTORY_FIELDS, checks
from trl_pafo.data.attaching import attach_history
from trl_pafo.data.counterfactual import counterfactual_rows
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.messages import as_messages
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.errors import DataError


def user_rows(*prompts, user="u"):
    return [{"prompt": p, "chosen": f"yes {i}", "rejected": f"no {i}", "user": user} for i, p in enumerate(prompts)]


def past_prompts(dataset):
    return [[entry["prompt"] for entry in history] for history in dataset["history"]]


class TestAttach:
    def test_newest_first_and_at_most_k(self):
        rows = user_rows("p", "q", "r", "s") + user_rows("a", "b", user="v")
        dataset = Dataset.from_list([rows[0], rows[4], *rows[1:4], rows[5]])  # users may be mixed
        attached = attach_history(dataset, 2)
        assert attached["prompt"][:] == ["q", "r", "s", "b"]
        assert past_prompts(attached) == [["p"], ["q", "p"], ["r", "q"], ["a"]]
        assert attached["history"][2] == [{k: rows[i][k] for k in HISTORY_FIELDS} for i in (2, 1)]

    @pytest.mark.parametrize("missing", [None, float("nan"), ""])
    def test_nobody_has_no_history(self, missing):
        """Rows without a user are of people who are not known, not of one and the same."""
        rows = [row | {"user": "" if missing == "" else missing} for row in user_rows("p", "q")]
        with pytest.raises(DataError, match=r"The pairs, row 0: has no `user` \(so have 2 of 2 rows\)"):
            attach_history(Dataset.from_list(rows), 1)

    def test_leave_one_out_goes_on_with_the_latest_and_loses_no_row(self):
        attached = attach_history(Dataset.from_list(user_rows("p", "q", "r", "s")), 2, past_only=False)
        assert attached["prompt"][:] == ["p", "q", "r", "s"]
        assert past_prompts(attached) == [["s", "r"], ["p", "s"], ["q", "p"], ["r", "q"]]

    def test_rows_with_fewer_than_min_history_only_serve_as_history(self):
        dataset = Dataset.from_list(user_rows("p", "q", "r", "s") + user_rows("a", "b", user="v"))
        attached = attach_history(dataset, 3, min_history=2)
        assert attached["prompt"][:] == ["r", "s", "b"]  # v never has two, so its longest counts

    def test_k_zero_keeps_all_rows_with_empty_histories(self, tmp_path):
        dataset = Dataset.from_list(user_rows("p") + user_rows("a", "b", user="v"))
        attached = attach_history(dataset, 0)
        assert attached.remove_columns("history")[:] == dataset[:]
        rendered = render_history(attached, HistoryCutter(make_tokenizer("encoder"), 0))
        rendered.to_parquet(tmp_path / "rows.parquet")
        loaded = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path), split="train")
        assert loaded["chat_template_kwargs"][:] == [{"history": []}] * 3

    @pytest.mark.parametrize("past_only", [True, False])
    def test_a_user_without_history_is_named(self, past_only):
        dataset = Dataset.from_list(user_rows("a", "b", user="v") + user_rows("p") + user_rows("q", "q", user="w"))
        with pytest.raises(DataError, match=r"2 of 3 users have no history .the first: 'u'.: .* set num_history to 0"):
            attach_history(dataset, 2, past_only=past_only)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("pqrs")), min_size=2, max_size=24),
        st.integers(1, 5),
        st.booleans(),
        st.booleans(),
    )
    def test_no_history_holds_the_prompt_of_its_row(self, judged, k, past_only, conversational):
        rows = [{"prompt": p, "chosen": f"yes {i}", "rejected": f"no {i}", "user": u} for i, (u, p) in enumerate(judged)]
        if conversational:
            rows = [{**row, "prompt": as_messages(row["prompt"], "user")} for row in rows]
        dataset = Dataset.from_list(rows)
        if any(len({p for v, p in judged if v == u}) < 2 for u, _ in judged):
            with pytest.raises(DataError, match="have no history"):
                attach_history(dataset, k, past_only=past_only)
            return
        at = {row["chosen"]: i for i, row in enumerate(rows)}
        for row in attach_history(dataset, k, past_only=past_only):
            number = at[row["chosen"]]
            past = [at[entry["chosen"]] for entry in row["history"]]
            assert all(rows[i]["user"] == row["user"] for i in past)
            assert all(rows[i]["prompt"] != row["prompt"] for i in past)
            # Spelt out: walk back through the user's pairs, then (leave one out) on from the latest.
            walk = [i for i in range(number - 1, -1, -1)] + ([] if past_only else list(range(len(rows) - 1, number, -1)))
            expected = [i for i in walk if rows[i]["user"] == row["user"] and rows[i]["prompt"] != row["prompt"]]
            assert past == expected[:k]

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("pqrs")), min_size=2, max_size=24),
        st.integers(1, 5),
        st.integers(1, 3),
        st.booleans(),
        st.randoms(use_true_random=False),
    )
    def test_all_rows_at_once_as_one_after_the_other(self, judged, k, min_history, past_only, rng):
        rows = [{"n": i, "prompt": p, "chosen": f"yes {i}", "rejected": f"no {i}", "user": u} for i, (u, p) in enumerate(judged)]
        rng.shuffle(rows)
        order = rng.choices(range(len(rows)), k=len(rows))  # some rows twice, behind indices
        dataset = Dataset.from_list(rows).select(order)
        expected = naive_attach([rows[i] for i in order], k, past_only, min_history)
        if expected is None:
            with pytest.raises(DataError, match="have no history"):
                attach_history(dataset, k, past_only, min_history)
        else:
            assert attach_history(dataset, k, past_only, min_history).to_list() == expected

    def test_histories_of_rows_on_disk_are_on_disk_and_made_once(self, tmp_path):
        data = Dataset.from_list(user_rows("p", "q", "r") + user_rows("a", "b", user="v"))
        assert not attach_history(data, 2).cache_files
        data.save_to_disk(tmp_path)
        stored = load_from_disk(tmp_path)
        first, again = attach_history(stored, 2), attach_history(stored, 2)
        assert first[:] == attach_history(data, 2)[:]
        assert [Path(file["filename"]).parent for file in first.cache_files] == [tmp_path]
        assert first.cache_files == again.cache_files
        assert attach_history(stored, 1)[:] == attach_history(data, 1)[:]


def naive_attach(rows, k, past_only, min_history):
    """Row by row; `None` if a user has no history."""
    of_user = {}
    for row in rows:
        of_user.setdefault(row["user"], []).append(row)
    found, needed = [], {}
    for row in rows:
        mine = of_user[row["user"]]
        place = next(i for i, other in enumerate(mine) if other is row and i not in {p for u, p, _ in found if u == row["user"]})
        others = mine[:place][::-1] + ([] if past_only else mine[place + 1 :][::-1])
        past = [{k: other[k] for k in HISTORY_FIELDS} for other in others if other["prompt"] != row["prompt"]][:k]
        found.append((row["user"], place, {**row, "history": past}))
        needed[row["user"]] = max(needed.get(row["user"], 0), len(past))
    if not all(needed.values()):
        return None
    return [row for user, _, row in found if len(row["history"]) >= max(1, min(min_history, needed[user]))]


def naive_counterfactual(rows, groups, share, seed):
    """The draws one after the other, by the texts themselves."""
    rng = random.Random(seed)
    of_group = {group: [row for row in rows if row["group"] == group] for group in groups}
    new = []
    for group in groups:
        picked = rng.sample(of_group[group], round(share * len(of_group[group])))
        for other in [name for name in groups if name != group]:
            for row in picked:
                fits = lambda d: d["history"] and row["prompt"] not in [past["prompt"] for past in d["history"]]  # noqa: B023, E731
                drawn = (rng.choice(of_group[other]) for _ in range(50))
                donor = next((donor for donor in drawn if fits(donor)), None)
                if donor is None and (fitting := [d for d in of_group[other] if fits(d)]):
                    donor = rng.choice(fitting)
                if donor is not None:
                    new.append({**row, **{k: donor[k] for k in TAKEN if k in donor}, "has_label": False})
    return [{**row, "has_label": True} for row in rows] + new


TAKEN = ("history", "chat_template_kwargs", "user", "group", "support_rate")


def judged(num_groups=2, seed=0, shared=False):
    """Rows of several groups with histories; with `shared`, prompts come back in the histories of others."""
    rng = random.Random(seed)
    rows = []
    for number in range(30):
        group = f"g{number % num_groups}"
        draw = (lambda: f"p{rng.randrange(8)}") if shared else (lambda: f"p{rng.randrange(10**9)}")
        history = [{"prompt": draw(), "chosen": f"{group} yes", "rejected": f"{group} no"} for _ in range(2)]
        rows.append(
            {
                "prompt": draw(),
                "chosen": f"yes {number}",
                "rejected": f"no {number}",
                "user": f"{group} user {number}",
                "group": group,
                "support_rate": number / 30,
                "history": history,
                "chat_template_kwargs": {"history": history[:1], "tag": number},
            }
        )
    return Dataset.from_list(rows)


class TestCounterfactual:
    @pytest.mark.parametrize("num_groups", [2, 3])
    @pytest.mark.parametrize("shared", [False, True])
    def test_each_pair_is_shown_under_a_donor_of_each_other_group(self, num_groups, shared):
        dataset = judged(num_groups, shared=shared)
        groups = dataset.unique("group")
        both = counterfactual_rows(dataset, groups, 1.0, seed=0)
        original = both.select(range(len(dataset)))
        assert original.remove_columns("has_label")[:] == dataset[:]
        assert all(original["has_label"])
        by_pair = {row["chosen"]: row for row in dataset}
        by_user = {row["user"]: row for row in dataset}
        shown = Counter()
        for row in both.select(range(len(dataset), len(both))):
            source, donor = by_pair[row["chosen"]], by_user[row["user"]]
            assert not row["has_label"]
            assert {k: row[k] for k in HISTORY_FIELDS} == {k: source[k] for k in HISTORY_FIELDS}
            taken = ("history", "chat_template_kwargs", "user", "group", "support_rate")
            assert {k: row[k] for k in taken} == {k: donor[k] for k in taken}
            assert donor["group"] != source["group"]
            assert source["prompt"] not in [entry["prompt"] for entry in row["history"]]
            shown[source["chosen"], donor["group"]] += 1
        assert set(shown.values()) == {1}
        assert len(shown) == len(dataset) * (num_groups - 1)

    @pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
    def test_the_share_holds_in_each_group(self, share):
        dataset = concatenate_datasets([judged(2), judged(2, seed=1).filter(lambda row: row["group"] == "g0")])
        size = count_by_group(dataset)
        assert size == {"g0": 30, "g1": 15}
        both = counterfactual_rows(dataset, ["g0", "g1"], share, seed=0)
        new = both.filter(lambda row: not row["has_label"])
        assert Counter(new["group"]) == Counter({"g1": round(30 * share), "g0": round(15 * share)})  # under the other's history
        assert count_by_group(both) == size
        assert len(both) == 45 + len(new)

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("num_groups", [2, 3])
    def test_the_same_draws_as_one_after_the_other(self, seed, num_groups):
        dataset = judged(num_groups, seed, shared=True)
        dataset = dataset.select(random.Random(seed).sample(range(len(dataset)), len(dataset) - 3))
        rows, groups = dataset.to_list(), sorted(dataset.unique("group"))
        rows[0]["history"] = []
        dataset = Dataset.from_list(rows, features=dataset.features)
        for share in (0.5, 1.0):
            expected = naive_counterfactual(rows, groups, share, seed)
            assert counterfactual_rows(dataset, groups, share, seed).to_list() == expected

    @pytest.mark.parametrize("seed", range(4))
    def test_a_prompt_is_known_again_as_a_message(self, seed):
        """Prepared rows: their prompts are messages, the past pairs of their histories texts."""
        plain = judged(seed=seed, shared=True)
        rows = [{**row, **{name: as_messages(row[name], "user") for name in HISTORY_FIELDS}} for row in plain.to_list()]
        shown = counterfactual_rows(Dataset.from_list(rows), ["g0", "g1"], 1.0, seed)
        assert shown["user"][:] == counterfactual_rows(plain, ["g0", "g1"], 1.0, seed)["user"][:]
        for row in shown.filter(lambda row: not row["has_label"]):
            assert row["prompt"][0]["content"] not in [past["prompt"] for past in row["history"]]

    def test_the_seed_decides(self):
        users = [counterfactual_rows(judged(), ["g0", "g1"], 0.5, seed)["user"][:] for seed in (3, 3, 4)]
        assert users[0] == users[1] != users[2]

    def test_a_pair_that_every_donor_has_seen_gets_no_row(self):
        rows = judged().to_list()
        for row in rows:
            if row["group"] == "g1":
                row["history"][0]["prompt"] = rows[0]["prompt"]
        both = counterfactual_rows(Dataset.from_list(rows), ["g0", "g1"], 1.0, seed=0)
        new = both.filter(lambda row: not row["has_label"])
        assert rows[0]["chosen"] not in new["chosen"]
        assert len(new) == len(rows) - 1

    def test_the_one_fitting_donor_of_many_is_found(self):
        rows = judged().to_list()
        seen, fitting = rows[0]["prompt"], rows[1]
        rows += [{**row, "user": f"copy {i}"} for i, row in enumerate(rows[3::2] * 40)]
        for row in rows[3:]:
            if row["group"] == "g1":
                row["history"] = [{**row["history"][0], "prompt": seen}]
        both = counterfactual_rows(Dataset.from_list(rows), ["g0", "g1"], 1.0, seed=0)
        (found,) = both.filter(lambda row: not row["has_label"] and row["chosen"] == "yes 0")
        assert found["user"] == fitting["user"]

    def test_without_any_donor_only_the_rows_themselves_are_left(self):
        rows = [
            {
                "prompt": own,
                "chosen": "a",
                "rejected": "b",
                "user": g,
                "group": g,
                "history": [{"prompt": other, "chosen": "a", "rejected": "b"}],
            }
            for g, own, other in (("g0", "p", "q"), ("g1", "q", "p"))
        ]
        assert counterfactual_rows(Dataset.from_list(rows), ["g0", "g1"], 1.0, seed=0)["has_label"][:] == [True, True]


class TestNoLeakage:
    """End to end on the shipped corpus: users and prompts of the test are new, in the histories too."""

    @pytest.fixture(scope="class")
    @classmethod
    def splits(cls):
        made = load_source(DataArguments(source="styles", train_users=60, test_users=40, context_pairs=3))
        train = attach_history(made["train"], 3, past_only=False)
        return train, attach_history(made["test"], 3, min_history=3)

    def test_test_users_and_prompts_are_apart_from_training(self, splits):
        train, test = splits
        assert not set(train["user"]) & set(test["user"])
        trained_on = set(train["prompt"]) | {prompt for past in past_prompts(train) for prompt in past}
        assert not trained_on & set(test["prompt"])
        checks.check_apart(train, test)
        shown = counterfactual_rows(train, ["majority", "minority"], 1.0, seed=0)
        assert len(shown) == 2 * len(train)
        checks.check_apart(shown, test)

    def test_no_row_sees_its_own_prompt(self, splits):
        for rows in (*splits, counterfactual_rows(splits[0], ["majority", "minority"], 1.0, seed=0)):
            assert all(prompt not in past for prompt, past in zip(rows["prompt"], past_prompts(rows), strict=True))

    def test_every_kind_of_overlap_is_caught(self, splits):
        train, test = splits
        with pytest.raises(DataError, match="share 1 users and 0 prompts"):
            checks.check_apart(train, with_first_row(test, user=train["user"][0]))
        with pytest.raises(DataError, match="share 0 users and 1 prompts"):
            checks.check_apart(train, with_first_row(test, prompt=train["prompt"][0]))
        past = [{"prompt": test["prompt"][0], "chosen": "a", "rejected": "b"}]
        with pytest.raises(DataError, match=r"share 0 users and 1 prompts \(histories included\)"):
            checks.check_apart(with_first_row(train, history=past), test)


def with_first_row(dataset, **changes):
    first = Dataset.from_list([{**dataset[0], **changes}], features=dataset.features)
    return concatenate_datasets([first, dataset.select(range(1, len(dataset)))])


def test_rows_are_counted_by_group_where_there_are_groups():
    dataset = make_pairs(num_users=3, pairs_per_user=2, num_minority=1)
    assert count_by_group(dataset) == {"minority": 2, "majority": 4}
    assert count_by_group(dataset.remove_columns("group")) == {"all": 6}
    assert count_by_group(Dataset.from_dict({"group": ["a", None, "a"]})) == {"a": 2, "no group": 1}
