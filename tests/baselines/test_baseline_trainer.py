"""What all baselines share: what they refuse, that they evaluate as Bradley-Terry, and that they take what RewardTrainer takes."""

import pytest
import torch
from helpers.parts import losses, make_pairs, make_teachers, with_margins
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
    teachers = make_teachers("decoder", tmp_path)
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
def test_margins_of_teachers_in_the_rows_are_not_read(kind, build):
    plain = build(kind, make_pairs(), max_steps=2)
    rows = make_pairs()
    other = build(kind, with_margins(rows).add_column("has_label", [False] * len(rows)), "other", max_steps=2)
    for trainer in (plain, other):
        trainer.train()
    first, second = map(losses, (plain, other))
    assert len(first) == 2
    assert first == second


@pytest.mark.parametrize("kind", ALL)
def test_evaluation_is_bradley_terry(kind, build, batch_of):
    trainer = build(kind)
    trainer.model.eval()
    difference = torch.tensor([0.5, -1.0])
    loss, parts = trainer.pair_loss(difference, batch_of(trainer, ["majority", "minority"]))
    assert float(loss) == pytest.approx(float(-torch.nn.functional.logsigmoid(difference).mean()))
    assert parts == {}
    metrics = trainer.evaluate(make_pairs(history=0, seed=1))
    assert 0 <= metrics["eval_accuracy/minority"] <= 1


@pytest.mark.parametrize("kind", ALL)
def test_they_learn_and_save_an_adapter_with_a_card(kind, decoder, training, tmp_path):
    options = {**training, "max_steps": 12, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    trainer = kind(
        decoder,
        PAFOConfig(str(tmp_path), **options),
        train_dataset=make_pairs(num_users=8, num_minority=4),
        peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "v_proj"]),
    )
    before = trainer.evaluate(make_pairs(num_users=8, num_minority=4))["eval_loss"]
    trainer.train()
    assert trainer.evaluate(make_pairs(num_users=8, num_minority=4))["eval_loss"] < before
    trainer.save_model()
    assert kind.how_trained.split(" (")[0] in (tmp_path / "README.md").read_text()
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_a_model_is_evaluated_without_training_pairs(decoder, args):
    trainer = GroupDRORewardTrainer(decoder, args, eval_dataset=make_pairs(history=0))
    assert trainer.evaluate()["eval_count/minority"] == 10
