"""PAFORewardTrainer against RewardTrainer, and what it adds."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from helpers.naive import naive_metrics, naive_pairs
from helpers.parts import GROUPS, as_chat, losses, make_model, make_pairs, make_teachers
from helpers.rounding import rounding
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data.group_posterior import GroupLikelihood
from trl_pafo.data.tokenization import sequence_lengths
from trl_pafo.errors import ConfigError, TeacherError
from trl_pafo.trainer import ExactRewardTrainer
from trl_pafo.trainer.losses import pafo_loss


@pytest.fixture
def teachers(encoder, tmp_path) -> dict[str, str]:
    """Two teachers with different random weights and margins of some size, on the student's tokenizer."""
    return make_teachers("encoder", tmp_path / "teachers", size=100)


@pytest.fixture
def trainer(encoder, pairs, teachers, training, tmp_path) -> PAFORewardTrainer:
    # mse: near margin 0 the value of bce hardly depends on the teacher, and a wrong teacher would pass.
    args = PAFOConfig(str(tmp_path / "out"), distillation_loss="mse", **training)
    return PAFORewardTrainer(encoder, args, train_dataset=pairs, teachers=teachers)


# --- it is RewardTrainer where PAFO has nothing to do


@pytest.mark.parametrize(("kind", "peft", "alpha"), [("encoder", False, 0.1), ("encoder", True, 1.0), ("decoder", False, 1.0)])
def test_equals_reward_trainer_bit_for_bit(kind, peft, alpha, request, training, teachers, tmp_path):
    """Without teachers, or with alpha=1; test_drop_in.py has the arguments one by one."""
    rows = make_pairs(history=0)
    # Rows of a templated decoder are conversational, those of an encoder without a template are texts that need an eos.
    if kind == "decoder":
        rows = as_chat(rows)
    else:
        training["eos_token"] = "[SEP]"
    plain = rows.remove_columns(["group", "user"])
    trainers = []
    for trainer, config, more, given in (
        (RewardTrainer, RewardConfig, {}, {"train_dataset": plain}),
        (
            PAFORewardTrainer,
            PAFOConfig,
            {"prefix_sharing": "off", "padding_free": "off", "alpha": alpha},
            {"train_dataset": rows, "teachers": teachers} if alpha == 1 else {"train_dataset": plain},
        ),
    ):
        lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"]) if peft else None
        args = config(str(tmp_path / trainer.__name__), **training, **more)
        trainers.append(trainer(request.getfixturevalue(kind), args, peft_config=lora, **given))
        trainers[-1].train()
    reference, ours = trainers
    assert losses(ours) == losses(reference)
    assert len(losses(ours)) == 4
    theirs = dict(reference.model.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.model.named_parameters())


def test_takes_a_reward_config_and_no_config(encoder, training, tmp_path, monkeypatch):
    rows = make_pairs(history=0).remove_columns(["group", "user"])
    monkeypatch.chdir(tmp_path)
    given = RewardConfig(str(tmp_path / "a"), eos_token="[SEP]", **training)
    trainer = PAFORewardTrainer(encoder, given, train_dataset=rows)
    assert isinstance(trainer.args, PAFOConfig)
    assert trainer.args.max_steps == 4
    assert type(given) is RewardConfig

    monkeypatch.setattr("trl_pafo.trainer.trainer.PAFOConfig", lambda name: PAFOConfig(name, eos_token="[SEP]", **training))
    monkeypatch.setattr("trl_pafo.trainer.trainer.PAFOConfig.from_reward_config", lambda args: args, raising=False)
    assert PAFORewardTrainer(encoder, train_dataset=rows).args.output_dir == "encoder-PAFO"


def test_pairs_that_an_encoder_has_no_positions_for(training, tmp_path):
    """Else the training would end in an IndexError at the first of them."""
    short = make_model("encoder", tmp_path / "short", max_position_embeddings=30)
    rows = make_pairs(history=2)
    build = lambda **more: PAFOConfig(str(tmp_path / "out"), **{**training, "max_length": None, **more})  # noqa: E731
    given = {"train_dataset": rows, "eval_dataset": {"new": rows}}
    with pytest.raises(ConfigError, match=r"of 30 pairs are longer than the 30 positions of the model\. Set max_length=30"):
        PAFORewardTrainer(short, build(), **given)
    with pytest.raises(ConfigError, match="longer than the 30 positions"):
        PAFORewardTrainer(short, build(), eval_dataset={"new": rows})
    PAFORewardTrainer(short, build(num_history=0), **given).train()


def test_positions_for_pairs_under_the_name_of_another_group(encoder, training, tmp_path):
    rows = as_chat(make_pairs(history=0))
    rows = rows.map(lambda row: {"group": row["group"].replace("minority", "few users"), "chosen": row["chosen"][:1]})
    of_few = [place for place, row in enumerate(rows) if row["group"] == "few users"]
    shortest = sorted(of_few, key=lambda place: len(str(rows[place])))[:2]
    rows = rows.select([*(place for place in range(len(rows)) if place not in of_few), *shortest])
    teachers = {group: encoder for group in rows.unique("group")}

    def build(model):
        args = PAFOConfig(str(tmp_path / "out"), **training, conditioning="named")
        return PAFORewardTrainer(model, args, train_dataset=rows, teachers=teachers)

    trainer = build(encoder)
    shown = trainer._shown.__getitems__(list(range(len(trainer._shown))))
    longest = max(len(pair[f"{side}_ids"]) for pair in shown for side in ("chosen", "rejected"))
    assert longest > sequence_lengths(trainer.train_dataset).max()
    build(make_model("encoder", tmp_path / "enough", max_position_embeddings=longest))
    with pytest.raises(ConfigError, match="pairs are longer than"):
        build(make_model("encoder", tmp_path / "short", max_position_embeddings=longest - 1))


# --- distillation


@cache
def loaded(folder: str) -> tuple[Any, Any]:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def margin(folder: str, chosen: list[int], rejected: list[int]) -> float:
    model, _ = loaded(folder)
    with torch.no_grad():
        rewards = [model(torch.tensor([ids])).logits.item() for ids in (chosen, rejected)]
    return rewards[0] - rewards[1]


def alone(folder: str, row: dict) -> tuple[list[int], list[int]]:
    """A pair as a teacher that was trained elsewhere reads it: texts, no history."""
    _, tokenizer = loaded(folder)
    return tuple(
        tokenizer(row["prompt"] + row[side] + (tokenizer.eos_token or ""))["input_ids"] for side in ("chosen", "rejected")
    )


def posterior_of(
    history: list[dict], likelihood: GroupLikelihood, shares: list[float], tau: float, teachers: dict
) -> list[float]:
    scores = [
        [sum(-math.log1p(math.exp(-margin(folder, *alone(folder, past)))) for past in history) for folder in teachers.values()]
    ]
    logits = likelihood.log_likelihood(scores)[0] + (1 - tau) * np.log(shares)
    return (np.exp(logits) / np.exp(logits).sum()).tolist()


@pytest.mark.parametrize("conditioning", ["own", "counterfactual", "posterior"])
def test_the_loss_equals_the_formula_on_plain_forwards(encoder, teachers, training, tmp_path, conditioning, monkeypatch):
    """Student and teachers score one pair at a time; each showing is of a pair, and of the user whose history it has."""
    fitted = []
    fit = GroupLikelihood.fit
    monkeypatch.setattr(GroupLikelihood, "fit", lambda *given: fitted.append(fit(*given)) or fitted[0])
    rows = make_pairs(num_users=5, pairs_per_user=2, num_minority=2)
    args = PAFOConfig(str(tmp_path / "out"), distillation_loss="mse", conditioning=conditioning, tau=0.5, **training)
    trainer = PAFORewardTrainer(encoder, args, train_dataset=rows, teachers=teachers)
    if conditioning == "own":
        shown, picked = [(row, row) for row in range(10)], [trainer.train_dataset[row] for row in range(10)]
    else:
        dataset = trainer.get_train_dataloader().dataset
        shown, picked = [dataset.draw(row, 1)[:2] for row in range(10)], [dataset[10 + row] for row in range(10)]
        assert 2 < sum(row != donor for row, donor in shown) < 8
    targets = []
    for row, donor in shown:
        said = [margin(folder, *alone(folder, rows[row])) for folder in teachers.values()]
        if conditioning == "posterior":
            q = posterior_of(rows[donor]["history"], fitted[0], [0.6, 0.4], 0.5, teachers)
            p = sum(weight / (1 + math.exp(-d)) for weight, d in zip(q, said, strict=True))
            targets.append(math.log(p / (1 - p)))
        else:
            targets.append(said[GROUPS.index(rows["group"][donor])])
    # These are differences of rewards of up to a hundred.
    assert [row["teacher_margin"] for row in picked] == pytest.approx(targets, abs=rounding(100), rel=1e-3)
    expected = pafo_loss(
        torch.tensor([margin(encoder, row["chosen_ids"], row["rejected_ids"]) for row in picked]),
        torch.tensor(targets),
        torch.tensor([row == donor for row, donor in shown]),
        alpha=trainer.args.alpha,
        distillation_loss="mse",
    )
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(picked))
    assert loss.item() == pytest.approx(expected.loss.item(), abs=rounding(100), rel=1e-3)


def test_margins_in_a_column_are_those_of_the_teachers(encoder, pairs, teachers, training, tmp_path):
    margins = [{group: 1.0 + i if group == "majority" else -1.0 - i for group in GROUPS} for i in range(len(pairs))]
    likelihood = [{"majority": 0.0, "minority": math.log(3.0)}] * len(pairs)
    rows = pairs.add_column("teacher_margins", margins).add_column("history_log_likelihood", likelihood)
    for conditioning in ("own", "counterfactual", "posterior"):
        args = PAFOConfig(str(tmp_path / conditioning), conditioning=conditioning, tau=1.0, **training)
        trainer = PAFORewardTrainer(encoder, args, train_dataset=rows)
        dataset = trainer.get_train_dataloader().dataset
        for row in range(len(pairs)):
            donor = row if conditioning == "own" else dataset.draw(row, 0).donor
            found = trainer.train_dataset[row] if conditioning == "own" else dataset[row]
            expected = margins[row][pairs["group"][donor]]
            if conditioning == "posterior":
                p = sum(q / (1 + math.exp(-d)) for q, d in zip((0.25, 0.75), margins[row].values(), strict=True))
                expected = math.log(p / (1 - p))
            assert found["teacher_margin"] == pytest.approx(expected, rel=1e-5)
    assert [found.share for found in trainer.teacher_agreement] == [1.0, 0.0]


@pytest.mark.parametrize("dropped", ["teacher_margin", "has_label"])
def test_a_collator_that_drops_what_is_distilled_is_named(encoder, pairs, training, tmp_path, dropped):
    rows = pairs.add_column("teacher_margins", [dict.fromkeys(GROUPS, 0.5)] * len(pairs))
    trainer = PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path), **training), train_dataset=rows)
    collate = trainer.data_collator
    trainer.data_collator = lambda given: {key: value for key, value in collate(given).items() if key != dropped}
    with pytest.raises(ConfigError, match=f"The data collator drops `{dropped}`, without which"):
        trainer.train()


# --- training logs


def test_exact_reward_trainer_logs_every_key_of_reward_trainer_with_its_values(encoder, training, tmp_path):
    """With a log every step, sums over the pairs of a step are what the base class logs; no key of its is missing. It knows no method."""
    rows = make_pairs(history=0)
    rows = rows.add_column("margin", [0.1 * (i % 4) for i in range(len(rows))])
    training |= {"eos_token": "[SEP]", "center_rewards_coefficient": 0.05, "logging_steps": 1}
    evaluation = rows.select(range(8)).remove_columns(["group", "user"])
    logs = []
    for kind in (RewardTrainer, ExactRewardTrainer):
        args = RewardConfig(str(tmp_path / kind.__name__), **training)
        trainer = kind(encoder, args, train_dataset=rows, eval_dataset=evaluation)
        trainer.train()
        trainer.evaluate()
        logs.append(trainer.state.log_history)
    steps = training["max_steps"]
    for theirs, ours in zip(*(log[:steps] for log in logs), strict=True):
        for key, value in theirs.items():
            if key in ("loss", "grad_norm", "learning_rate"):
                assert ours[key] == value, key
            else:
                assert ours[key] == pytest.approx(value, abs=rounding(theirs["max_reward"], theirs["min_reward"])), key
        assert set(ours) - set(theirs) == {"accuracy/majority", "accuracy/minority"}
    timing = ("_runtime", "_per_second")
    final, evaluated = ({k: v for k, v in log.items() if not k.endswith(timing)} for log in logs[0][steps:])
    assert set(final) <= set(logs[1][steps])
    # One full batch, so even the base class is right here.
    assert {key: logs[1][-1][key] for key in evaluated} == pytest.approx(evaluated, abs=rounding())
    exact = ExactRewardTrainer(encoder, RewardConfig(str(tmp_path), **training, metric_for_best_model="accuracy_difference"))
    assert exact.train_dataset is None
    assert exact.args.greater_is_better is False


def test_a_log_of_a_callback_gathers_nothing(trainer, monkeypatch):
    """It may come from one process alone, and would wait for the others forever."""
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch))
    with monkeypatch.context() as patch:
        patch.setattr(trainer.accelerator, "gather", lambda tensor: pytest.fail("gathered"))
        logs = {"my_number": 1.0}
        trainer.log(logs)
        assert "accuracy" not in logs
    logs = {"loss": 0.0}
    trainer.log(logs)
    assert logs["accuracy"] is not None
    assert logs["num_tokens"] == batch["attention_mask"].sum()


def test_steps_after_the_last_log_are_in_the_summary(encoder, pairs, training, tmp_path):
    training |= {"max_steps": 3, "logging_steps": 2, "eval_strategy": "no"}
    trainer = PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path), **training), train_dataset=pairs)
    trainer.train()
    summary = trainer.state.log_history[-1]
    assert "train_loss" in summary
    assert "accuracy" in summary
    assert not len(trainer._steps)


# --- evaluation (on several processes, streams, sets by name: tests/distributed)


@pytest.fixture
def scorer(encoder, training, tmp_path):
    """A trainer without a training set, on pairs with margins, groups and users."""

    def build(model=encoder, collator=None, **more):
        rows = make_pairs(num_users=5, pairs_per_user=4, history=0).select(range(17))
        rows = rows.add_column("margin", [0.25 * (i % 3) for i in range(17)])
        given = {key: more.pop(key) for key in ("compute_metrics", "preprocess_logits_for_metrics", "teachers") if key in more}
        options = {**training, "per_device_eval_batch_size": 4, "eos_token": "[SEP]", **more}
        return PAFORewardTrainer(model, PAFOConfig(str(tmp_path / "scorer"), **options), collator, eval_dataset=rows, **given)

    return build


def numbers(metrics: dict) -> dict:
    """The metrics that are numbers over the pairs."""
    other = ("_runtime", "_per_second", "_preparation_time", "_num_tokens")
    return {k.removeprefix("eval_"): v for k, v in metrics.items() if not k.endswith(other) and k != "epoch"}


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_evaluation_equals_a_plain_loop_for_any_batch_size(scorer, batch_size):
    trainer = scorer(per_device_eval_batch_size=batch_size, center_rewards_coefficient=0.02)
    pairs = naive_pairs(trainer.model, trainer.eval_dataset)
    expected = naive_metrics(pairs, ["majority", "minority"], center=0.02)
    assert numbers(trainer.evaluate()) == pytest.approx(expected, abs=rounding())


def test_works_without_a_training_set(scorer):
    trainer = scorer()
    assert trainer.train_dataset is None
    assert trainer.groups == ["majority", "minority"]
    assert trainer.dropped_pairs == {"eval": {}}
    assert trainer.teacher_agreement == []
    given = trainer.evaluate(make_pairs(history=0).select(range(3)))  # not tokenized
    assert given["eval_count/minority"] == 3
    assert math.isnan(given["eval_accuracy/majority"])
    with pytest.raises(ValueError, match="training requires a train_dataset"):
        trainer.train()


def test_groups_of_training_set_and_teachers_are_known_in_evaluation(encoder, pairs, teachers, training, tmp_path):
    rows = pairs.filter(lambda row: row["group"] == "minority")
    args = PAFOConfig(str(tmp_path), **training)
    trained = PAFORewardTrainer(encoder, args, train_dataset=pairs, eval_dataset=rows)
    served = PAFORewardTrainer(encoder, args, eval_dataset=rows, teachers=teachers)
    for trainer in (trained, served):
        metrics = trainer.evaluate()
        assert metrics["eval_count/majority"] == 0
        assert math.isnan(metrics["eval_accuracy/majority"])
        assert metrics["eval_accuracy_group_min"] == metrics["eval_accuracy/minority"]


def test_a_data_loader_of_ones_own_is_exact_on_one_process_and_refused_on_several(scorer, monkeypatch):
    trainer = scorer()
    expected = numbers(trainer.evaluate())
    loader = torch.utils.data.DataLoader(trainer.eval_dataset, batch_size=4, collate_fn=trainer.data_collator)
    monkeypatch.setattr(trainer, "get_eval_dataloader", lambda dataset=None: loader)
    metrics = numbers(trainer.evaluate())  # without the columns of group and user, which its collator drops
    assert metrics == pytest.approx({key: expected[key] for key in metrics}, abs=rounding())
    assert len(metrics) == 6
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    with pytest.raises(ConfigError, match="have no number, so copies of a pair on several processes would count twice"):
        trainer.evaluate()


@pytest.mark.parametrize("unused", [True, False])
def test_any_collator_will_do(scorer, unused):
    expected = numbers(scorer(padding_free="off").evaluate())
    trainer = scorer(collator=DataCollatorForPreference(pad_token_id=0), remove_unused_columns=unused)
    assert numbers(trainer.evaluate()) == expected
    assert isinstance(trainer.data_collator, DataCollatorForPreference)


def test_compute_metrics_sees_what_was_preprocessed(scorer):
    seen = []
    trainer = scorer(
        compute_metrics=lambda prediction: seen.append(prediction) or {"accuracy": -1.0},
        preprocess_logits_for_metrics=lambda rewards, labels: rewards[:, 0] - rewards[:, 1],
    )
    metrics = trainer.evaluate()
    assert seen[0].predictions.shape == (17,)
    assert seen[0].predictions.mean() == pytest.approx(metrics["eval_margin"], abs=rounding(seen[0].predictions))
    assert seen[0].inputs is None
    assert metrics["eval_accuracy"] == -1.0  # the user's own number wins
    assert metrics["eval_accuracy/majority"] >= 0


def test_prediction_loss_only_gives_metrics_and_no_predictions(scorer):
    trainer = scorer(prediction_loss_only=True, compute_metrics=lambda prediction: pytest.fail("asked"))
    output = trainer.predict(trainer.eval_dataset)
    assert output.predictions is None
    assert output.label_ids is None
    assert output.metrics["test_count/minority"] == 8


def test_predict_takes_any_dataset_of_tokenized_rows(scorer):
    trainer = scorer()
    expected = trainer.predict(trainer.eval_dataset)
    rows = [{key: row[key] for key in ("chosen_ids", "rejected_ids", "margin", "group")} for row in trainer.eval_dataset]
    output = trainer.predict(rows)
    # The rows of a list are not sorted by length, so their batches are others.
    np.testing.assert_allclose(output.predictions, expected.predictions, atol=rounding(expected.predictions))
    assert output.metrics["test_accuracy_group_min"] == expected.metrics["test_accuracy_group_min"]


def test_metrics_of_bfloat16_are_exact_for_its_rewards(scorer):
    trainer = scorer(bf16=True)
    output = trainer.predict(trainer.eval_dataset)
    pairs = [
        {"chosen": float(c), "rejected": float(r), **{key: row[key] for key in ("margin", "group", "user")}}
        for (c, r), row in zip(output.predictions, trainer.eval_dataset, strict=True)
    ]
    metrics = {k.removeprefix("test_"): v for k, v in output.metrics.items()}
    assert {k: metrics[k] for k in naive_metrics(pairs)} == pytest.approx(naive_metrics(pairs), abs=1e-9)
    assert all(math.isfinite(v) for v in output.predictions.flat)


def test_a_dataset_sharded_by_dispatch_is_not(encoder, pairs, training, tmp_path):
    args = PAFOConfig(str(tmp_path), accelerator_config={"dispatch_batches": True}, **training)
    assert PAFORewardTrainer(encoder, args, train_dataset=pairs).accelerator.dispatch_batches is False


# --- teachers


def test_teachers_are_checked_before_the_model_is_loaded(pairs, training, tmp_path, encoder):
    args = PAFOConfig(str(tmp_path / "out"), **training)
    with pytest.raises(TeacherError, match="The teacher of group 'majority' cannot be read at '/nowhere'"):
        PAFORewardTrainer(
            "does/not-exist",
            args,
            train_dataset=pairs,
            processing_class=AutoTokenizer.from_pretrained(encoder),
            teachers=dict.fromkeys(GROUPS, "/nowhere"),
        )
