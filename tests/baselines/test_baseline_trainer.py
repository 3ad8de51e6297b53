"""What all baselines share: what they refuse, that they evaluate as Bradley-Terry, and that they take what RewardTrainer takes."""

import pytest
import torch
from helpers.parts import make_pairs, with_margins
from peft import LoraConfig

from trl_pafo import DataCollatorForGroupPreference, PAFOConfig
from trl_pafo.baselines import GroupDRORewardTrainer
from trl_pafo.baselines.table import TRAINERS
from trl_pafo.baselines.trainer import BaselineTrainer
from trl_pafo.errors import ConfigError, DataError

ALL = [kind for kind in (entry.load() for entry in TRAINERS.values()) if issubclass(kind, BaselineTrainer)]
OF_GROUPS = [kind for kind in ALL if "group" in kind.columns]
NO_MODEL = "does/not-exist"


@pytest.fixture
def args(training, tmp_path):
    return PAFOConfig(str(tmp_path), **training)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("column", ["group", "user"])
def test_rows_that_do_not_tell_what_is_needed_are_refused_before_a_model_is_loaded(kind, column, args):
    rows = make_pairs(history=0)
    labels = rows[column][:]
    gap = rows.remove_columns(column).add_column(column, [None, *labels[1:]])
    if column not in kind.columns:
        return
    with pytest.raises(DataError, match=f"must have the column `{column}` and be no stream: {kind.__name__} reads it"):
        kind(NO_MODEL, args, train_dataset=rows.remove_columns(column))
    with pytest.raises(DataError, match="must have the column"):
        kind(NO_MODEL, args, train_dataset=rows.to_iterable_dataset())
    with pytest.raises(DataError, match=f"row 0: has no `{column}`"):
        kind(NO_MODEL, args, train_dataset=gap)


@pytest.mark.parametrize("kind", ALL)
def test_teachers_are_refused(kind, args, training, tmp_path):
    teachers = {"majority": "a", "minority": "b"}
    given = PAFOConfig(str(tmp_path / "out"), teachers=teachers, **training)
    for how in ({"args": args, "teachers": teachers}, {"args": given}):
        with pytest.raises(ConfigError, match=f"{kind.__name__} has no teachers"):
            kind(NO_MODEL, train_dataset=make_pairs(), **how)


@pytest.mark.parametrize("kind", OF_GROUPS)
def test_a_collator_that_does_not_tell_groups_is_refused(kind, args):
    for collator in (DataCollatorForGroupPreference(0), DataCollatorForGroupPreference(0, groups=["majority"]), list):
        with pytest.raises(ConfigError, match=r"groups=\['majority', 'minority'\], or leave it out"):
            kind(NO_MODEL, args, collator, make_pairs())


@pytest.mark.parametrize("kind", ALL)
def test_they_learn_are_evaluated_by_bradley_terry_and_save_an_adapter_with_a_card(kind, decoder, training, tmp_path, batch_of):
    """Margins of teachers in the rows are not read."""
    rows = make_pairs(num_users=8, num_minority=4)
    trainer = kind(
        decoder,
        PAFOConfig(str(tmp_path), **{**training, "max_steps": 6, "gradient_checkpointing": True, "learning_rate": 2e-2}),
        train_dataset=with_margins(rows).add_column("has_label", [False] * len(rows)),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]),
    )
    assert not {"teacher_margin", "has_label"} & {*trainer.train_dataset.column_names}
    before = trainer.evaluate(rows)
    assert 0 <= before["eval_accuracy/minority"] <= 1
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss"] < before["eval_loss"]
    trainer.model.eval()
    difference = torch.tensor([0.5, -1.0])
    loss, parts = trainer.pair_loss(difference, batch_of(trainer, ["majority", "minority"]))
    assert float(loss) == pytest.approx(float(-torch.nn.functional.logsigmoid(difference).mean()))
    assert parts == {}
    trainer.save_model()
    assert kind.how_trained.split(" (")[0] in (tmp_path / "README.md").read_text()
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_a_model_is_evaluated_without_training_pairs(decoder, args):
    trainer = GroupDRORewardTrainer(decoder, args, eval_dataset=make_pairs(history=0))
    assert trainer.evaluate()["eval_count/minority"] == 10
