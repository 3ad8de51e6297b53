"""What the card of a training says of groups and evaluations."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset
from helpers.parts import make_pairs
from huggingface_hub import ModelCard
from transformers.integrations import CodeCarbonCallback

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data.history import HistoryCutter
from trl_pafo.trainer.model_card import Emissions, count_groups, emissions_in, last_accuracies


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
    assert "so no number is given by group" in text  # of the minority there are three
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


def test_what_codecarbon_has_measured_is_told(trainer, monkeypatch):
    """In its kg, and grams on the card. Of a training that goes on it has no final word."""
    measured = SimpleNamespace(values={"emissions": 0.0123456, "energy_consumed": 0.05})
    callback = CodeCarbonCallback.__new__(CodeCarbonCallback)  # codecarbon need not be installed
    callback.tracker = SimpleNamespace()
    monkeypatch.setattr(trainer.callback_handler, "callbacks", [callback])
    trainer.state.log_history.append({"train_runtime": 60.0})
    assert "Its emissions were not measured." in trainer.model_card().cost
    callback.tracker.final_emissions_data = measured
    trainer.create_model_card()
    card = ModelCard.load(Path(trainer.args.output_dir) / "README.md")
    assert "It emitted 12.35 g of CO2 equivalents, from 0.05 kWh, as codecarbon estimates." in card.content
    assert card.data.co2_eq_emissions == {"emissions": 12.35, "source": "codecarbon", "training_type": "fine-tuning"}


def test_emissions_of_several_trainings_are_added(tmp_path):
    for name, rows in {"student": ["a,0.001,0.01", "a,0.002,0.02"], "teacher": ["b,0.004,0.04"]}.items():
        (tmp_path / name).mkdir()  # a tracker writes what it has measured until then
        (tmp_path / name / "emissions.csv").write_text("\n".join(["run_id,emissions,energy_consumed", *rows]))
    assert emissions_in(tmp_path.iterdir()) == Emissions(grams=6.0, kwh=0.06)
    (tmp_path / "not measured").mkdir()
    assert emissions_in(tmp_path.iterdir()) is None
