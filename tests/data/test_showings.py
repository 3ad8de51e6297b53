"""The history of each showing: the shares that tau promises, donors that never give an answer away, and the same draw everywhere."""

import random
from collections import Counter

import numpy as np
import pytest
from datasets import Dataset

from trl_pafo.data.messages import as_messages
from trl_pafo.data.showings import EveryGroup, HistoryDraw, Showing


def judged(num_groups=2, seed=0, num_prompts=8, num_rows=30):
    """Rows of several groups of unequal size, whose prompts come back in the histories of others."""
    rng = random.Random(seed)
    rows = []
    for number in range(num_rows):
        group = f"g{max(0, number % (num_groups + 2) - 2)}"
        draw = lambda: f"p{rng.randrange(num_prompts)}"  # noqa: E731
        history = [{"prompt": draw(), "chosen": "yes", "rejected": "no"} for _ in range(rng.randrange(1, 4))]
        pair = {"prompt": draw(), "chosen": f"yes {number}", "rejected": f"no {number}"}
        rows.append({**pair, "group": group, "history": history, "chat_template_kwargs": {"history": history}})
    return Dataset.from_list(rows)


def draws(rows, epochs=150, **options):
    draw = HistoryDraw(rows, rows, seed=0, **options)
    return [draw(row, epoch) for epoch in range(epochs) for row in range(len(rows))]


@pytest.mark.parametrize(("num_groups", "tau"), [(2, 0.0), (3, 0.5), (2, 1.0)])
def test_groups_are_drawn_as_tau_says_and_donors_evenly(num_groups, tau):
    rows = judged(num_groups, num_prompts=10**9)
    group = np.asarray(rows["group"])
    names, counts = np.unique(group, return_counts=True)
    expected = (counts / len(rows)) ** (1 - tau)
    shown = draws(rows, tau=tau)
    drawn = Counter(group[each.donor] for each in shown)
    found = np.array([drawn[name] for name in names]) / len(shown)
    assert found == pytest.approx(expected / expected.sum(), abs=5 / np.sqrt(len(shown)))
    for name in names:  # a row of another group borrows from all of this one alike
        lent = Counter(each.donor for each in shown if group[each.donor] == name and group[each.row] != name)
        assert set(lent) == set(np.flatnonzero(group == name))
        mean = sum(lent.values()) / len(lent)
        assert max(abs(count - mean) for count in lent.values()) < 5 * np.sqrt(mean)


def test_in_its_own_group_a_pair_keeps_its_own_history_and_never_sees_its_prompt_elsewhere():
    data = judged(3)
    rows = data.to_list()
    for each in draws(data, tau=0.7, epochs=50):
        row, donor = rows[each.row], rows[each.donor]
        if donor["group"] == row["group"]:
            assert each.donor == each.row
        else:
            assert row["prompt"] not in [past["prompt"] for past in donor["history"]]
        assert each.num_history == len(donor["history"])


def test_where_all_pairs_have_one_prompt_their_responses_are_not_shown():
    rows = judged()
    pairs = [{"prompt": "topic", "chosen": f"s{n % 7}", "rejected": f"s{n % 7 + 1}"} for n in range(30)]
    rows = rows.map(lambda row, n: {**pairs[n], "history": [pairs[(5 * n + 3) % 30]]}, with_indices=True)
    borrowed = [each for each in draws(rows, tau=1.0, epochs=50) if each.donor != each.row]
    assert borrowed
    rows = rows.to_list()
    for each in borrowed:
        row, (past,) = rows[each.row], rows[each.donor]["history"]
        assert {row["chosen"], row["rejected"]}.isdisjoint({past["chosen"], past["rejected"]})


def test_a_draw_hangs_on_seed_epoch_and_row_alone():
    rows = judged()
    one, other = (HistoryDraw(rows, rows, seed=3, tau=1.0, min_history=1) for _ in range(2))
    asked = [(row, epoch) for epoch in range(4) for row in range(30)]
    expected = [one(*each) for each in asked]
    random.Random(0).shuffle(asked)
    assert {each: other(*each) for each in asked} == {(each.row, i // 30): each for i, each in enumerate(expected)}
    assert [HistoryDraw(rows, rows, seed=4, tau=1.0)(*each) for each in asked] != [one(*each) for each in asked]


def test_numbers_of_past_pairs_are_drawn_evenly_from_the_least_on():
    rows = judged()
    shown, lengths = draws(rows, min_history=2), [len(past) for past in rows["history"]]
    for length in (1, 2, 3):
        found = Counter(each.num_history for each in shown if lengths[each.row] == length)
        assert set(found) == set(range(min(2, length), length + 1))
        mean = sum(found.values()) / len(found)
        assert max(abs(count - mean) for count in found.values()) < 5 * np.sqrt(mean)


def test_a_prompt_is_known_again_as_a_message():
    plain = judged()
    rows = plain.map(lambda row: {"prompt": as_messages(row["prompt"], "user")})
    assert draws(rows, tau=1.0, epochs=5) == draws(plain, tau=1.0, epochs=5)


def test_a_pair_that_nobody_can_lend_a_history_keeps_its_own_and_is_counted():
    rows = judged()
    group = np.asarray(rows["group"])
    fits = lambda row, donor: row != 2 and donor % 2 == 0  # noqa: E731
    draw = HistoryDraw(rows, rows, seed=0, tau=1.0, fits=fits)
    shown = [draw(row, epoch) for epoch in range(50) for row in range(30)]
    assert {each.donor for each in shown if each.row == 2} == {2}
    assert all(each.donor % 2 == 0 or each.donor == each.row for each in shown)

    plain = rows.to_list()

    def lends(row, donor):
        return fits(row, donor) and plain[row]["prompt"] not in [past["prompt"] for past in plain[donor]["history"]]

    stuck = [row for row in range(30) if not any(lends(row, donor) for donor in np.flatnonzero(group != group[row]))]
    assert draw.without_donor == Counter(group[stuck])


def test_rows_without_histories_have_none_to_draw():
    rows = Dataset.from_dict({"prompt": ["a", "b"]})
    assert HistoryDraw(rows, rows, seed=0, min_history=1)(1, 0) == Showing(1, 1, 0)


def test_each_pair_is_shown_under_every_group_once_an_epoch_and_first_under_its_own():
    num_groups = 3
    rows = judged(num_groups)
    group = rows["group"][:]
    draw = EveryGroup(group)
    assert draw.times == num_groups
    for row in range(len(rows)):
        for epoch in (0, 3):
            shown = [draw(row, epoch * num_groups + time) for time in range(num_groups)]
            assert shown[0] == Showing(row, row, 0)
            assert {group[each.donor] for each in shown} == set(group)
            assert {each.num_history for each in shown} == {0}
        for each in shown:
            assert draw.shown(rows, each)["prompt"] == f"Preference group: {group[each.donor]}\n{rows[row]['prompt']}"
