"""PAFORewardTrainer against RewardTrainer, and what it adds."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_model, make_pairs
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo import DataCollatorForGroupPreference, PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError, DataError, TeacherError
from trl_pafo.losses import pafo_loss


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def lora() -> LoraConfig:
    return LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value", "q_proj", "v_proj"])


@pytest.fixture
def teachers(encoder, tmp_path) -> dict[str, str]:
    """Two teachers with different random weights and margins of some size, on the student's tokenizer."""
    folders = {g: make_model("encoder", tmp_path / "teachers" / g, seed=s) for s, g in enumerate(["majority", "minority"], 1)}
    for folder in folders.values():
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        with torch.no_grad():
            model.classifier.weight.mul_(100)
        model.save_pretrained(folder)
    return folders


@pytest.fixture
def trainer(encoder, pairs, teachers, training, tmp_path) -> PAFORewardTrainer:
    # mse: near margin 0 the value of bce hardly depends on the teacher, and a wrong teacher would pass.
    args = PAFOConfig(str(tmp_path / "out"), distillation_loss="mse", **training)
    return PAFORewardTrainer(encoder, args, train_dataset=pairs, teachers=teachers)


# --- it is RewardTrainer where PAFO has nothing to do


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("plain", ["no columns", "alpha=1"])
def test_equals_reward_trainer_bit_for_bit(base_model, training, teachers, tmp_path, peft, plain):
    rows = make_pairs(history=0)
    # Rows of a templated decoder are conversational, those of an encoder without a template are texts that need an eos.
    if base_model.endswith("decoder"):
        rows = rows.map(
            lambda r: {
                k: [{"role": "user" if k == "prompt" else "assistant", "content": r[k]}] for k in ("prompt", "chosen", "rejected")
            }
        )
    else:
        training["eos_token"] = "[SEP]"
    config = lora() if peft else None
    reference = RewardTrainer(
        base_model,
        RewardConfig(str(tmp_path / "a"), **training),
        train_dataset=rows.remove_columns(["group", "user"]),
        peft_config=config,
    )
    reference.train()
    more = {} if plain == "no columns" else {"alpha": 1.0}
    ours = PAFORewardTrainer(
        base_model,
        PAFOConfig(str(tmp_path / "b"), **training, **more),
        train_dataset=rows.remove_columns(["group", "user"]) if plain == "no columns" else rows,
        teachers=None if plain == "no columns" else teachers,
        peft_config=lora() if peft else None,
    )
    ours.train()
    assert losses(ours) == losses(reference)
    assert len(losses(ours)) == 4
    theirs = dict(reference.model.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.model.named_parameters())


def test_alpha_one_with_histories_shows_no_counterfactual_rows(encoder, pairs, teachers, training, tmp_path):
    plain = PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path / "a"), **training), train_dataset=pairs)
    one = PAFORewardTrainer(
        encoder, PAFOConfig(str(tmp_path / "b"), alpha=1.0, **training), train_dataset=pairs, teachers=teachers
    )
    assert len(one.train_dataset) == len(pairs)
    assert not (tmp_path / "b/teacher_margins").exists()
    plain.train()
    one.train()
    assert losses(one) == losses(plain)


def test_takes_a_reward_config_and_no_config(encoder, training, tmp_path, monkeypatch):
    rows = make_pairs(history=0).remove_columns(["group", "user"])
    monkeypatch.chdir(tmp_path)
    given = RewardConfig(str(tmp_path / "a"), eos_token="[SEP]", **training)
    trainer = PAFORewardTrainer(encoder, given, train_dataset=rows)
    assert isinstance(trainer.args, PAFOConfig)
    assert trainer.args.max_steps == 4
    assert type(given) is RewardConfig

    monkeypatch.setattr("trl_pafo.trainer.PAFOConfig", lambda name: PAFOConfig(name, eos_token="[SEP]", **training))
    monkeypatch.setattr("trl_pafo.trainer.PAFOConfig.from_reward_config", lambda args: args, raising=False)
    assert PAFORewardTrainer(encoder, train_dataset=rows).args.output_dir == "encoder-PAFO"


def test_takes_the_positional_arguments_of_reward_trainer(encoder, training, tmp_path):
    rows = make_pairs(history=0).remove_columns(["group", "user"])
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    args = PAFOConfig(str(tmp_path), eos_token="[SEP]", **training)
    collator = DataCollatorForPreference(pad_token_id=0)
    trainer = PAFORewardTrainer(encoder, args, collator, rows, rows, tokenizer, None, [])
    assert trainer.data_collator is collator
    assert trainer.processing_class is tokenizer


# --- distillation


def test_first_loss_equals_the_formula_on_plain_forwards(trainer, teachers):
    """The logged loss against margins of student and teachers computed one row at a time, without any trainer."""
    rows = trainer.train_dataset
    student = AutoModelForSequenceClassification.from_pretrained(trainer.model.config._name_or_path).eval()
    models = {g: AutoModelForSequenceClassification.from_pretrained(p).eval() for g, p in teachers.items()}

    def margin(model, row):
        with torch.no_grad():
            chosen, rejected = (model(torch.tensor([row[k]])).logits.item() for k in ("chosen_ids", "rejected_ids"))
        return chosen - rejected

    batch = next(iter(trainer.get_train_dataloader()))
    seen = {tuple(r["chosen_ids"]) + tuple(r["rejected_ids"]): r for r in rows}
    half = len(batch["input_ids"]) // 2
    picked = []
    for chosen, rejected, a, b in zip(
        batch["input_ids"][:half],
        batch["input_ids"][half:],
        batch["attention_mask"][:half],
        batch["attention_mask"][half:],
        strict=True,
    ):
        picked.append(seen[tuple(chosen[a.bool()].tolist()) + tuple(rejected[b.bool()].tolist())])
    expected = pafo_loss(
        torch.tensor([margin(student, r) for r in picked]),
        torch.tensor([margin(models[r["group"]], r) for r in picked]),
        torch.tensor([r["has_label"] for r in picked]),
        alpha=trainer.args.alpha,
        distillation_loss="mse",
        counterfactual_weight=trainer.args.counterfactual_weight,
    )
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)


def test_every_pair_is_shown_under_the_other_group_with_its_teacher(trainer, pairs, teachers):
    rows = trainer.train_dataset
    assert len(rows) == 2 * len(pairs)
    assert sum(rows["has_label"]) == len(pairs)
    model = AutoModelForSequenceClassification.from_pretrained(teachers["minority"]).eval()
    row = next(r for r in rows if not r["has_label"] and r["group"] == "minority")
    with torch.no_grad():
        chosen, rejected = (model(torch.tensor([row[k]])).logits.item() for k in ("chosen_ids", "rejected_ids"))
    assert row["teacher_margin"] == pytest.approx(chosen - rejected, rel=1e-4)


def test_share_zero_distils_each_pair_under_its_own_group(encoder, pairs, teachers, training, tmp_path):
    args = PAFOConfig(str(tmp_path), counterfactual_share=0.0, **training)
    trainer = PAFORewardTrainer(encoder, args, train_dataset=pairs, teachers=teachers)
    assert len(trainer.train_dataset) == len(pairs)
    trainer.train()
    assert "distillation_loss" in trainer.state.log_history[0]


def test_three_groups(encoder, teachers, training, tmp_path):
    rows = make_pairs(num_users=9, num_minority=3)
    group = ["rare" if user == "user-8" else g for user, g in zip(rows["user"], rows["group"], strict=True)]
    rows = rows.remove_columns("group").add_column("group", group)
    teachers["rare"] = make_model("encoder", tmp_path / "rare", seed=5)
    trainer = PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path / "o"), **training), train_dataset=rows, teachers=teachers)
    assert len(trainer.train_dataset) == 3 * len(rows)
    trainer.train()


def test_student_learns_what_the_teachers_say(encoder, training, tmp_path):
    """With good margins as a column the student serves both groups; no teacher is needed."""
    rows = make_pairs(num_users=10, num_minority=1, pairs_per_user=6)
    rows = rows.add_column("teacher_margin", [3.0] * len(rows))
    training["max_steps"] = 60
    args = PAFOConfig(str(tmp_path), **training)
    trainer = PAFORewardTrainer(encoder, args, train_dataset=rows)
    trainer.train()
    assert losses(trainer)[-1] < 0.3 * losses(trainer)[0]


@pytest.mark.parametrize("scale", ["none", "rms"])
def test_margin_column_is_scaled_and_clipped(encoder, pairs, training, tmp_path, scale):
    group = np.asarray(pairs["group"])
    margins = np.where(group == "majority", 10.0, 0.5)
    rows = pairs.add_column("teacher_margin", margins.tolist())
    args = PAFOConfig(str(tmp_path), teacher_scale=scale, teacher_margin_clip=6.0, **training)
    got = np.asarray(PAFORewardTrainer(encoder, args, train_dataset=rows).train_dataset["teacher_margin"][:])
    if scale == "none":
        assert set(got[group == "majority"]) == {6.0}
        assert set(got[group == "minority"]) == {0.5}
    else:  # both groups have the same root mean square after scaling, so the same (clipped) size here
        assert np.allclose(got, 6.0)


def test_streaming_with_margin_column_trains(encoder, training, tmp_path):
    rows = make_pairs(history=0)
    rows = rows.add_column("teacher_margin", [1.0] * len(rows))
    args = PAFOConfig(str(tmp_path), eos_token="[SEP]", **training)
    trainer = PAFORewardTrainer(encoder, args, train_dataset=rows.to_iterable_dataset())
    trainer.train()
    assert "distillation_loss" in trainer.state.log_history[0]


def test_logged_accuracy_is_of_labelled_rows_alone(trainer):
    """Nobody labelled the counterfactual rows; they must not enter the accuracy."""
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    half = len(batch["input_ids"]) // 2
    batch["has_label"] = torch.tensor([True] + [False] * (half - 1))
    with torch.no_grad():
        rewards = trainer.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)
    trainer.compute_loss(trainer.model, dict(batch))
    margin = (rewards[0] - rewards[half]).item()
    assert trainer._metrics["train"]["accuracy"][-1] == float(margin > 0)
    assert trainer._metrics["train"]["margin"][-1] == pytest.approx(margin, abs=1e-6)


# --- what it saves


@pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
def test_saved_model_is_plain_and_gives_the_same_rewards(base_model, training, tmp_path, peft):
    kind = Path(base_model).name
    teachers = {g: make_model(kind, tmp_path / g, seed=s) for s, g in enumerate(["majority", "minority"], 1)}
    out = tmp_path / "out"
    trainer = PAFORewardTrainer(
        base_model,
        PAFOConfig(str(out), **training),
        train_dataset=make_pairs(),
        teachers=teachers,
        peft_config=lora() if peft else None,
    )
    trainer.train()
    trainer.save_model()
    model = AutoModelForSequenceClassification.from_pretrained(out, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    row = trainer.train_dataset[0]
    # The base class has put the prompt in front of `chosen`.
    ids = tokenizer.apply_chat_template(row["chosen"], tokenize=True, return_dict=True, **row["chat_template_kwargs"])[
        "input_ids"
    ]
    assert ids == row["chosen_ids"]
    with torch.no_grad():
        inner = trainer.model.eval()
        assert model(torch.tensor([ids])).logits.item() == pytest.approx(inner(torch.tensor([ids])).logits.item(), abs=1e-5)


def test_saved_model_is_a_reward_function_of_grpo(decoder, trainer, training, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from trl import GRPOConfig, GRPOTrainer

    teachers = {g: make_model("decoder", tmp_path / g, seed=s) for s, g in enumerate(["majority", "minority"], 1)}
    student = PAFORewardTrainer(
        decoder, PAFOConfig(str(tmp_path / "rm"), **training), train_dataset=make_pairs(), teachers=teachers
    )
    student.train()
    student.save_model()
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    policy = tmp_path / "policy"
    LlamaForCausalLM(config).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": "the cat can sing"}]}] * 4)
    grpo = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy),
        reward_funcs=str(tmp_path / "rm"),
        args=GRPOConfig(
            str(tmp_path / "grpo"),
            max_steps=1,
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=4,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            logging_steps=1,
            gradient_checkpointing=False,
        ),
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    grpo.train()
    assert np.isfinite(grpo.state.log_history[0]["reward"])


def test_card_names_method_and_paper(trainer):
    trainer.create_model_card("fair-rm")
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "2606.07988" in card
    for tag in ("trl", "reward-trainer", "pafo"):
        assert f"- {tag}\n" in card


# --- resources


def test_no_teacher_stays_in_memory(trainer):
    assert trainer._teachers == {}
    assert sum(isinstance(m, torch.nn.Module) for m in vars(trainer).values()) <= 2  # model and its wrapped self


def test_evaluation_is_bradley_terry(encoder, pairs, teachers, training, tmp_path):
    ours = PAFORewardTrainer(
        encoder, PAFOConfig(str(tmp_path / "a"), **training), train_dataset=pairs, eval_dataset=pairs, teachers=teachers
    )
    metrics = ours.evaluate()
    rows = ours.eval_dataset
    with torch.no_grad():
        ours.model.eval()
        margins = [
            (ours.model(torch.tensor([r["chosen_ids"]])).logits - ours.model(torch.tensor([r["rejected_ids"]])).logits).item()
            for r in rows
        ]
    assert len(rows) == len(pairs)  # no counterfactual rows in evaluation
    expected = -torch.nn.functional.logsigmoid(torch.tensor(margins)).mean().item()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-3)


# --- bad input, before a model is loaded


@pytest.fixture
def refuse(training, tmp_path):
    """Build a trainer on a model that does not exist: an error of ours proves that no model was looked for."""

    def build(rows, match, error=DataError, teachers=None, model="does/not-exist", **options):
        with pytest.raises(error, match=match):
            PAFORewardTrainer(
                model, PAFOConfig(str(tmp_path / "out"), **training, **options), train_dataset=rows, teachers=teachers
            )

    return build


T2 = {"majority": "a", "minority": "b"}


def test_refuses_groups_and_teachers_that_do_not_match(pairs, refuse):
    refuse(pairs, "No teacher for the group 'minority'", TeacherError, {"majority": "a"})
    refuse(pairs, "no pairs of the group 'rare'", TeacherError, {**T2, "rare": "c"})
    refuse(pairs.remove_columns("group"), "lacks the column group", DataError, T2)
    refuse(pairs, "must be a path or a model", TeacherError, {"majority": 3})
    refuse(pairs, "must map each group", TeacherError, ["a"])


def test_refuses_bad_pairs(pairs, refuse):
    first = pairs[0]
    refuse(Dataset.from_list([{**first, "rejected": first["chosen"]}, *pairs]), "identical", DataError, T2)
    refuse(Dataset.from_list([{**first, "chosen": " "}, *pairs]), "row 0: the chosen response is empty", DataError, T2)
    refuse(Dataset.from_list([{**first, "history": []}, *pairs]), "row 0 of user 'user-0': the history is empty", DataError, T2)
    refuse(pairs.remove_columns("rejected"), "lacks the column rejected", DataError, T2)


def test_refuses_bad_margins(pairs, refuse):
    rows = pairs.add_column("teacher_margin", [float("nan")] + [1.0] * (len(pairs) - 1))
    refuse(rows, r"1 of 30 values of `teacher_margin` are NaN")


def test_refuses_streaming_with_teachers(pairs, refuse):
    refuse(pairs.to_iterable_dataset(), "without streaming, or add a `teacher_margin` column", DataError, T2)


def test_refuses_alpha_outside_its_range(training, tmp_path):
    with pytest.raises(ConfigError, match=r"`alpha` must be in \[0, 1\], got 1.5"):
        PAFOConfig(str(tmp_path), alpha=1.5, **training)


def test_refuses_teachers_that_do_not_fit(encoder, decoder, pairs, refuse, tmp_path):
    two_labels = make_model("encoder", tmp_path / "two", num_labels=2)
    good = make_model("encoder", tmp_path / "good", seed=3)
    refuse(pairs, "num_labels=2; a reward model has one", TeacherError, {"majority": good, "minority": two_labels}, model=encoder)
    refuse(
        pairs,
        "cannot be read at 'nowhere/x'|No model is found at 'nowhere/x'",
        TeacherError,
        {"majority": good, "minority": "nowhere/x"},
        model=encoder,
    )
    other = AutoTokenizer.from_pretrained(encoder)
    other.add_tokens(["entirely-new"])
    folder = tmp_path / "other"
    make_model("encoder", folder, seed=4)
    other.save_pretrained(folder)
    refuse(pairs, "another tokenizer than the student", TeacherError, {"majority": good, "minority": str(folder)}, model=encoder)


def test_refuses_a_collator_that_drops_the_margins(encoder, pairs, teachers, training, tmp_path):
    trainer = PAFORewardTrainer(
        encoder,
        PAFOConfig(str(tmp_path / "o"), **training),
        DataCollatorForPreference(pad_token_id=0),
        train_dataset=pairs,
        teachers=teachers,
    )
    with pytest.raises(ConfigError, match="Use DataCollatorForGroupPreference"):
        trainer.train()


def test_reports_pairs_dropped_for_length_by_group(encoder, teachers, training, tmp_path, caplog):
    rows = make_pairs()
    long = [
        " ".join(["tree"] * 150) if g == "minority" and i % 2 else c
        for i, (g, c) in enumerate(zip(rows["group"], rows["chosen"], strict=True))
    ]
    rows = rows.remove_columns("chosen").add_column("chosen", long)
    training["max_length"] = 150
    args = PAFOConfig(str(tmp_path / "o"), counterfactual_share=0.0, **training)
    trainer = PAFORewardTrainer(encoder, args, train_dataset=rows, teachers=teachers)
    expected = sum(g == "minority" and i % 2 for i, g in enumerate(rows["group"]))
    assert trainer.dropped_pairs["train"]["minority"] == expected
    assert trainer.dropped_pairs["train"]["majority"] == 0
    assert f"minority: {expected} of 10 (50.0%)" in caplog.text


def test_raises_when_no_pair_is_short_enough(encoder, pairs, teachers, training, tmp_path):
    training["max_length"] = 3
    with pytest.raises(ConfigError, match="No pair of the train dataset is within max_length=3"):
        PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path / "o"), **training), train_dataset=pairs, teachers=teachers)


def test_streaming_history_is_refused(pairs, refuse, encoder):
    rows = pairs.add_column("teacher_margin", [1.0] * len(pairs)).to_iterable_dataset()
    assert isinstance(rows, IterableDataset)
    refuse(rows, "write it into `chat_template_kwargs` first", model=encoder)


def test_collator_is_exported_and_default(trainer):
    assert isinstance(trainer.data_collator, DataCollatorForGroupPreference)
    assert json.dumps(trainer.args.to_dict(), default=str)


def test_warns_of_an_adapter_that_would_lose_its_head(encoder, pairs, training, tmp_path, caplog):
    rows = pairs.add_column("teacher_margin", [1.0] * len(pairs))
    config = LoraConfig(r=2, target_modules=["query"])
    PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path / "a"), **training), train_dataset=rows, peft_config=config)
    assert "the reward head is neither trained nor saved" in caplog.text
    caplog.clear()
    PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path / "b"), **training), train_dataset=rows, peft_config=lora())
    assert "reward head" not in caplog.text
