"""Pairs under histories of users of other groups: the draws of a loop over the texts, and never the pair that is judged."""

import random
from collections import Counter

import pytest
from datasets import Dataset, concatenate_datasets

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.counterfactual import counterfactual_rows
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.messages import as_messages


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
