"""What the card of a training says of groups and evaluations, and what it gives away of a group of few users."""

from pathlib import Path

import pytest
from datasets import Dataset
from helpers.parts import make_pairs

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data.history import HistoryCutter
from trl_pafo.trainer.model_card import count_groups, last_accuracies

MANY = (12, 48, 37)  # users, pairs and right answers of the large group


@pytest.fixture(scope="module")
def trainer(encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("card") / "fair"
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "num_history": 1, "history_max_tokens": 40}
    args = PAFOConfig(str(out), max_steps=1, history_fields=["prompt", "chosen"], max_length=256, **options)
    rows = make_pairs(num_users=9, num_minority=3, pairs_per_user=2)
    held_out = make_pairs(num_users=12, num_minority=6, pairs_per_user=2, seed=1)
    return PAFORewardTrainer(model=encoder, args=args, train_dataset=rows, eval_dataset=held_out)


@pytest.fixture(autouse=True)
def fresh(trainer, monkeypatch):
    monkeypatch.setattr(trainer.state, "log_history", [])
    for name in ("train_dataset", "eval_dataset", "dropped_pairs"):
        monkeypatch.setattr(trainer, name, getattr(trainer, name))


def test_the_history_that_the_model_reads_is_on_the_card(trainer):
    assert HistoryCutter.of(trainer.processing_class).num_history == 1
    trainer.create_model_card()
    text = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "# fair" in text
    assert "at most 1 past pair in at most 40 tokens, and of each the fields prompt, chosen." in text
    assert '"rejected"' not in text.split("```python")[1].split("```")[0]
    assert "| majority | 6 | 12 |" in text
    assert "| minority | &lt;5 | not shown |" in text
    assert "Not evaluated" in text


def test_the_last_evaluation_of_the_evaluation_dataset_is_shown(trainer):
    metrics = trainer.evaluate()
    trainer.evaluate(trainer.train_dataset)  # of these pairs it is not known whose they are
    accuracies = last_accuracies(trainer)
    assert [(a.name, a.users, a.pairs) for a in accuracies] == [("", 12, 24), ("majority", 6, 12), ("minority", 6, 12)]
    names = ["eval_accuracy", "eval_accuracy/majority", "eval_accuracy/minority"]
    assert [a.value for a in accuracies] == [metrics[name] for name in names]


def test_of_several_evaluation_datasets_the_last_is_shown(trainer):
    rows = trainer.eval_dataset
    trainer.eval_dataset = {"first": rows, "few": rows.filter(lambda row: row["group"] == "minority")}
    trainer.evaluate()
    accuracies = last_accuracies(trainer)
    assert [(a.name, a.users, a.pairs) for a in accuracies] == [("", 6, 12), ("minority", 6, 12)]


def test_counts_of_groups_leave_out_rows_without_a_group():
    rows = Dataset.from_dict({"group": ["a", "a", "a", None], "user": ["1", "1", "2", "4"]})
    assert [(c.name, c.users, c.pairs) for c in count_groups(rows)] == [("a", 2, 3)]
    assert count_groups(rows.remove_columns("user"))[0].users is None
    assert count_groups(rows.to_iterable_dataset()) == count_groups(None) == []


def test_no_count_of_a_small_group_can_be_had_from_the_card(trainer):
    """Whoever knows this code and tries every count that the group could have finds that all of them give the same card."""

    def card_of(users, pairs, right):
        group = ["many"] * MANY[1] + ["few"] * pairs
        user = [f"m{i % MANY[0]}" for i in range(MANY[1])] + [f"f{i % users}" for i in range(pairs)]
        rows = Dataset.from_dict({"group": group, "user": user, "chosen": user, "rejected": group})
        steps = MANY[1] + pairs  # one epoch, a batch a pair
        log = {"step": steps, "eval_accuracy": (MANY[2] + right) / (MANY[1] + pairs)}
        log |= {"eval_accuracy/many": MANY[2] / MANY[1], "eval_count/many": MANY[1]}
        log |= {"eval_accuracy/few": right / pairs, "eval_count/few": pairs}
        trainer.state.log_history, trainer.state.global_step = [log], steps
        trainer.train_dataset = trainer.eval_dataset = rows
        trainer.dropped_pairs = {"train": {"few": pairs}}
        return trainer.model_card().render()

    cards = {card_of(users, pairs, right) for users in (1, 2, 4) for pairs in (4, 7, 13) for right in (0, pairs // 2, pairs)}
    assert len(cards) == 1
    assert "| many | 0.771 |" in cards.pop()
