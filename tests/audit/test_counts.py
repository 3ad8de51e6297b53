"""Counts against hand-made rows."""

from helpers.parts import make_pairs

from trl_pafo.audit.counts import count_all
from trl_pafo.data.people import people_of


def test_users_pairs_and_groups_are_counted():
    rows = make_pairs(num_users=6, pairs_per_user=5, num_minority=2)
    rows = rows.add_column("support_rate", [1 / 3 if g == "minority" else 0.98 for g in rows["group"]]).select(range(28))
    counts = count_all(rows, people_of({"train": rows}))  # the last user has three pairs
    assert (counts["pairs"], counts["users"]) == (28, 6)
    assert counts["pairs_a_user"] == {"min": 3, "median": 5, "max": 5}
    assert list(counts["groups"]) == ["majority", "minority"]  # the largest first
    minority = {"users": 2, "share_of_users": 2 / 6, "pairs": 10, "support_rates": [1 / 3, 1 / 3]}
    assert counts["groups"]["minority"] == minority
