"""What a card gives away of a group of few users: an adversary who knows this code tries every count that there could be."""

import itertools
import re

import numpy as np
import pytest
from helpers.parts import make_tokenizer
from scipy.stats import binomtest

from trl_pafo.data.template import add_history_template
from trl_pafo.hub.card import FEWEST_USERS, Accuracy, Card, GroupCount
from trl_pafo.metrics import compare, fairness_summary
from trl_pafo.pipeline.publish import run_card
from trl_pafo.report.record import Record

# Users, pairs and right answers of the group that is hidden.
CANDIDATES = [
    (users, pairs, right)
    for users in range(1, FEWEST_USERS)
    for pairs in sorted({users, 2 * users, 3 * users + 1, 12})
    for right in sorted({0, pairs // 2, pairs})
]
MANY = (12, 48, 37)


def consistent(card_of, truth) -> set:
    """The counts with which the card would be what it is, character by character."""
    seen = card_of(*truth)
    return {candidate for candidate in CANDIDATES if card_of(*candidate) == seen}


def interval(right: int, pairs: int) -> tuple[float, float]:
    found = binomtest(right, pairs).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def test_the_adversary_finds_counts_where_they_can_be_found():
    """Against a card that gives a total, or the accuracy of a small group, the same search has few answers or one."""

    def with_total(users, pairs, right):
        return f"{(MANY[2] + right) / (MANY[1] + pairs):.6f}"

    def with_interval(users, pairs, right):
        return "{:.3f} to {:.3f}".format(*interval(right, pairs))

    truth = (2, 7, 3)
    for card_of in (with_total, with_interval):
        assert {pairs for _, pairs, _ in consistent(card_of, truth)} == {7}


def card_of_counts(users, pairs, right) -> str:
    """All that a card can hold, of these counts."""
    rows = [
        Accuracy("", MANY[0] + users, MANY[1] + pairs, (MANY[2] + right) / (MANY[1] + pairs), 0.4, 0.9),
        Accuracy("many", *MANY[:2], MANY[2] / MANY[1], *interval(MANY[2], MANY[1])),
        Accuracy("few", users, pairs, right / pairs, *interval(right, pairs)),
    ]
    groups = [GroupCount("many", *MANY[:2]), GroupCount("few", users, pairs)]
    return Card("fair", groups=groups, accuracies=rows, dropped={"many": 2, "few": pairs}).render()


@pytest.mark.parametrize("truth", [(1, 1, 1), (2, 4, 2), (4, 13, 13)])
def test_no_count_can_be_had_from_a_card(truth):
    assert consistent(card_of_counts, truth) == set(CANDIDATES)


def test_no_number_on_a_card_is_one_of_the_hidden_ones():
    users, pairs, right = 3, 10, 7
    text = card_of_counts(users, pairs, right)
    body = text.split("## Groups")[1].split("## Training")[0] + text.split("\n---\n")[0]
    found = {round(float(number), 6) for number in re.findall(r"\d+\.?\d*", body)}
    secret = [right / pairs, *interval(right, pairs), (MANY[2] + right) / (MANY[1] + pairs)]
    secret += [pairs, right, MANY[0] + users, MANY[1] + pairs, MANY[2] + right]
    for number, digits in itertools.product(secret, (3, 6)):
        assert round(number, digits) not in found, number


def correctness(users, pairs, right):
    """Right answers of `pairs` pairs of `users` users, and whose they are."""
    return (np.arange(pairs) < right).astype(float), np.arange(pairs) % users


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    add_history_template(make_tokenizer("decoder")).save_pretrained(folder / "models/pafo")
    return folder


@pytest.mark.parametrize(
    "data", [{"source": "files"}, {"source": "styles", "minority_ratio": 0.2}], ids=["inferred", "simulated"]
)
def test_no_count_can_be_had_from_the_card_of_a_run(run_folder, data):
    def card_of(users, pairs, right):
        parts = [correctness(*MANY), correctness(users, pairs, right)]
        correct = np.concatenate([part[0] for part in parts])
        user = [f"{group}{u}" for group, part in zip("mf", parts, strict=True) for u in part[1]]
        group = ["many"] * MANY[1] + ["few"] * pairs
        summary = fairness_summary(correct, user, group, num_resamples=50)
        # The reference is as good for the few, so that the verdict's word is the same whoever they are.
        reference = np.concatenate([parts[0][0][::-1], parts[1][0]])
        verdict = compare(correct, reference, user, group, num_resamples=100)
        counts = {"pairs": {"many": MANY[1], "few": pairs}, "users": {"many": MANY[0], "few": users}}
        quantile = users / (users + MANY[0])  # what was asked for to get just these groups
        results = {
            "majority": "many",
            "minority": "few",
            "reference": "personalized_bt",
            "methods": {"pafo": summary, "personalized_bt": summary},
            "verdicts": {"pafo": vars(verdict)},
            "data": {**data, "minority_quantile": quantile, "minority_ratio": quantile},
        }
        record = Record(run_folder, "run", results, data={"train": counts, "test": counts, "groups": "support"})
        return run_card(record, "pafo").render()

    text = card_of(2, 4, 2)
    assert "| few | not shown | not shown | &lt;5 | not shown |" in text
    assert "| many | 0.771 |" in text
    assert consistent(card_of, (2, 4, 2)) == set(CANDIDATES)
