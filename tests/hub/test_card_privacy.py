"""What a card gives away of a group of few users: an adversary who knows this code tries every count that there could be."""

import itertools
import re

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from helpers.parts import make_pairs, make_tokenizer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data.overlap import pairs_in_common
from trl_pafo.data.template import add_history_template
from trl_pafo.hub.card import FEWEST_USERS, Accuracy, Card, GroupCount, wilson_interval
from trl_pafo.metrics import compare, fairness_summary
from trl_pafo.pipeline.publish import run_card
from trl_pafo.report.records import Record

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


def test_the_adversary_finds_counts_where_they_can_be_found():
    """Against a card that gives a total, or the accuracy of a small group, the same search has few answers or one."""

    def with_total(users, pairs, right):
        return f"{(MANY[2] + right) / (MANY[1] + pairs):.6f}"

    def with_interval(users, pairs, right):
        return "{:.3f} to {:.3f}".format(*wilson_interval(right / pairs, pairs))

    truth = (2, 7, 3)
    for card_of in (with_total, with_interval):
        assert {pairs for _, pairs, _ in consistent(card_of, truth)} == {7}


def card_of_counts(users, pairs, right) -> str:
    """All that a card can hold, of these counts."""
    rows = [
        Accuracy("", MANY[0] + users, MANY[1] + pairs, (MANY[2] + right) / (MANY[1] + pairs), 0.4, 0.9),
        Accuracy("many", *MANY[:2], MANY[2] / MANY[1], *wilson_interval(MANY[2] / MANY[1], MANY[1])),
        Accuracy("few", users, pairs, right / pairs, *wilson_interval(right / pairs, pairs)),
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
    secret = [right / pairs, *wilson_interval(right / pairs, pairs), (MANY[2] + right) / (MANY[1] + pairs)]
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


@pytest.fixture
def trainer(encoder, training, tmp_path):
    rows = make_pairs(num_users=9, num_minority=3, pairs_per_user=2)
    held_out = make_pairs(num_users=9, num_minority=3, pairs_per_user=2, seed=1)
    args = PAFOConfig(str(tmp_path / "out"), **{**training, "max_steps": 2})
    return PAFORewardTrainer(model=encoder, args=args, train_dataset=rows, eval_dataset=held_out)


def test_no_count_can_be_had_from_the_card_of_a_trainer(trainer):
    def rows_of(users, pairs):
        group = ["many"] * MANY[1] + ["few"] * pairs
        user = [f"m{i % MANY[0]}" for i in range(MANY[1])] + [f"f{i % users}" for i in range(pairs)]
        return Dataset.from_dict({"group": group, "user": user, "chosen": user, "rejected": group})

    def card_of(users, pairs, right):
        rows = rows_of(users, pairs)
        steps = MANY[1] + pairs  # one epoch, a batch a pair
        log = {"step": steps, "eval_accuracy": (MANY[2] + right) / (MANY[1] + pairs)}
        log |= {"eval_accuracy/many": MANY[2] / MANY[1], "eval_count/many": MANY[1]}
        log |= {"eval_accuracy/few": right / pairs, "eval_count/few": pairs}
        trainer.state.log_history, trainer.state.max_steps, trainer.state.global_step = [log], steps, steps
        trainer._given_rows = trainer.train_dataset = trainer.eval_dataset = rows
        trainer._group_counts, trainer._evaluated = None, {}
        trainer.dropped_pairs = {"train": {"few": pairs}}
        return trainer._card(None, []).render()

    text = card_of(2, 4, 2)
    assert "| many | 0.771 |" in text
    assert "all in the training data, too" in text
    assert consistent(card_of, (2, 4, 2)) == set(CANDIDATES)


def said(trainer) -> str:
    return re.search(r"Measured by the trainer.*", trainer._card(None, []).render())[0]


def test_pairs_that_were_trained_on_are_never_called_others(trainer):
    held_out, trained = trainer.eval_dataset, trainer.train_dataset
    trainer.train()
    trainer.evaluate()
    assert "on pairs that are not in the training data." in said(trainer)
    trainer.evaluate(trained)
    assert "on pairs that are all in the training data, too" in said(trainer)
    copy = Dataset.from_list(trained.remove_columns(["chosen_ids", "rejected_ids"]).to_list())  # by content, not by identity
    trainer.evaluate(copy)
    assert "on pairs that are all in the training data, too" in said(trainer)
    trainer.evaluate(concatenate_datasets([held_out.select(range(6)), held_out.select(range(6)), trained.select([0, 3])]))
    assert "some of which are in the training data, too" in said(trainer)


@pytest.mark.parametrize("alike", ["itself", "copy", "part"])
def test_an_evaluation_set_that_is_the_training_set_is_told(encoder, training, tmp_path, alike):
    rows = make_pairs(num_users=12, num_minority=6, pairs_per_user=2)
    others = make_pairs(num_users=12, num_minority=6, pairs_per_user=2, seed=1)
    evaluated = {
        "itself": rows,
        "copy": Dataset.from_list(rows.to_list()),
        "part": concatenate_datasets([others, rows.select([1, 5])]),
    }
    trainer = PAFORewardTrainer(
        model=encoder,
        args=PAFOConfig(str(tmp_path / "out"), **{**training, "max_steps": 1}),
        train_dataset=rows,
        eval_dataset=evaluated[alike],
    )
    trainer.train()
    trainer.evaluate()
    told = "of which 2 of 26 are in" if alike == "part" else "that are all in"
    assert f"Measured by the trainer at step 1 of 1, on pairs {told} the training data, too" in said(trainer)


def test_a_trainer_claims_no_interval_for_five_users(trainer):
    rows = Dataset.from_dict(
        {"group": ["a"] * 20 + ["b"] * 24, "user": [f"a{i % 5}" for i in range(20)] + [f"b{i % 6}" for i in range(24)]}
    )
    trainer.eval_dataset, trainer._given_rows = rows, None
    log = {
        "step": 1,
        "eval_accuracy": 0.75,
        "eval_accuracy/a": 0.75,
        "eval_count/a": 20,
        "eval_accuracy/b": 0.75,
        "eval_count/b": 24,
    }
    trainer.state.log_history = [log]
    text = trainer._card(None, []).render()
    assert "| a | 0.750 | unknown | 5 | 20 |" in text
    assert re.search(r"\| b \| 0.750 \| 0.551 to 0.880 \| 6 \| 24 \|", text)


def test_what_cannot_be_known_is_not_claimed(encoder, training, tmp_path):
    rows = make_pairs(num_users=12, num_minority=6, pairs_per_user=2, history=0)
    args = PAFOConfig(str(tmp_path / "out"), **{**training, "max_steps": 1, "eos_token": "[SEP]"})
    trainer = PAFORewardTrainer(model=encoder, args=args, train_dataset=rows.to_iterable_dataset(), eval_dataset=rows)
    trainer.train()
    trainer.evaluate()
    assert "not known whether they are in the training data" in said(trainer)


def test_a_pair_whose_labels_were_swapped_is_the_same_pair():
    train = Dataset.from_dict({"prompt": ["p", "q"], "chosen": ["a", "a"], "rejected": ["b", "b"]})
    rows = Dataset.from_dict({"prompt": ["p", "p", "r"], "chosen": ["b", "a", "a"], "rejected": ["a", "c", "b"]})
    assert pairs_in_common(rows, train) == 1
    assert pairs_in_common(rows.remove_columns("prompt"), train) is None
    tokens = Dataset.from_dict({"chosen_ids": [[1, 2], [3]], "rejected_ids": [[4], [5]]})
    assert pairs_in_common(tokens, tokens.select([0])) == 1
    assert pairs_in_common(rows, None) is None
    assert pairs_in_common(rows, rows) == 3
