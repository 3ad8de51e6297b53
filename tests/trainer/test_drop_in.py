"""What RewardTrainer takes is taken, with its losses, or refused for the reason that docs/trainer.md gives."""

import inspect
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict
from helpers.parts import CHATML, as_chat, losses, make_model, make_pairs
from helpers.rounding import rounding
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    LlamaModel,
    TrainerCallback,
    TrainingArguments,
)
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError, DataError

TEXTS = make_pairs(history=0).select_columns(["prompt", "chosen", "rejected"])
ROWS = TEXTS.to_list()


MESSAGES = as_chat(TEXTS)
TOKENS = Dataset.from_dict({"chosen_ids": [[7, 8, 9], [7, 10]] * 8, "rejected_ids": [[7, 9], [7, 11, 12]] * 8})


def filled(value, **others) -> Dataset:
    """Messages with one more column."""
    (name,) = others
    return MESSAGES.add_column(name, [value] * len(MESSAGES))


def with_none(rows: Dataset, name: str, value=None) -> Dataset:
    """The same, with a gap in row 3."""
    changed = rows.to_list()
    changed[3][name] = value
    return Dataset.from_list(changed)


@pytest.fixture
def train(decoder, training, tmp_path, monkeypatch):
    """Train a class with arguments, and return its losses; what is a function is called first, for each class anew."""
    monkeypatch.chdir(tmp_path)

    def run(kind, *positional, options=None, **arguments):
        torch.manual_seed(0)
        make = lambda value: value() if inspect.isfunction(value) else value  # noqa: E731
        arguments = {name: make(value) if name not in CALLED else value for name, value in arguments.items()}
        config = RewardConfig if kind is RewardTrainer else PAFOConfig
        own = {} if kind is RewardTrainer else {"prefix_sharing": "off", "padding_free": "off"}
        if "args" not in arguments and not positional:
            arguments["args"] = config(kind.__name__, **{**training, "max_steps": 2, **own, **(options or {})})
        if not positional:
            arguments = {"model": decoder, "train_dataset": TEXTS, **arguments}
        trainer = kind(*(make(value) for value in positional), **arguments)
        trainer.train()
        return losses(trainer)

    return run


CALLED = ("compute_metrics", "preprocess_logits_for_metrics")
SEQ_CLS = {"task_type": "SEQ_CLS"}


class Silent(TrainerCallback):
    pass


def loaded(folder="decoder"):
    return lambda: AutoModelForSequenceClassification.from_pretrained(folder)


def adapted(folder="decoder", **options):
    return lambda: get_peft_model(loaded(folder)(), LoraConfig(r=2, target_modules=["q_proj"], **options))


def tokenizer(pad_token="[PAD]", template=CHATML):
    def load():
        made = AutoTokenizer.from_pretrained("decoder")
        made.pad_token = pad_token
        made.chat_template = template
        return made

    return load


TAKEN = {
    "model: text": {},
    "model: PeftModel": {"model": adapted(**SEQ_CLS), "processing_class": tokenizer()},
    "model: PeftModel that keeps the head of its base": {"model": adapted(), "processing_class": tokenizer()},
    "train_dataset: messages": {"train_dataset": MESSAGES},
    "train_dataset: prompt in the responses": {"train_dataset": TEXTS.remove_columns("prompt")},
    "train_dataset: an empty prompt": {"train_dataset": with_none(TEXTS, "prompt", "")},
    "train_dataset: tokens": {"train_dataset": TOKENS},
    "train_dataset: margin": {"train_dataset": TEXTS.add_column("margin", [0.5] * len(TEXTS))},
    "train_dataset: tools": {"train_dataset": filled('[{"type": "function"}]', tools=0)},
    "train_dataset: stream": {"train_dataset": lambda: TEXTS.to_iterable_dataset()},
    "processing_class: without pad token": {"processing_class": tokenizer(None)},
    "data_collator": {"data_collator": lambda: DataCollatorForPreference(pad_token_id=0)},
    "compute_metrics, preprocess_logits_for_metrics": {
        "compute_metrics": lambda prediction: {"first": prediction.predictions[0][0]},
        "preprocess_logits_for_metrics": lambda logits, labels: logits,
        "eval_dataset": TEXTS,
        "options": {"eval_strategy": "steps", "eval_steps": 1},
    },
    "optimizer_cls_and_kwargs": {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})},
    "peft_config: LoRA": {"peft_config": lambda: LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["q_proj"])},
    "peft_config: IA3": {"peft_config": lambda: IA3Config(**SEQ_CLS, target_modules=["q_proj"], feedforward_modules=[])},
    "peft_config: AdaLoRA": {"peft_config": lambda: AdaLoraConfig(**SEQ_CLS, target_modules=["q_proj"], total_step=2)},
    "peft_config: prompt tuning": {"peft_config": lambda: PromptTuningConfig(**SEQ_CLS, num_virtual_tokens=2)},
    "args: of the tokens and the data": {
        "options": {"max_length": 12, "pad_to_multiple_of": 8, "eos_token": "[CLS]", "data_seed": 3, "dataloader_drop_last": True}
    },
    "args: of the model and the loss": {
        "options": {"model_init_kwargs": '{"attn_implementation": "eager"}', "center_rewards_coefficient": 0.1}
    },
    "args: a template": {"options": {"chat_template_path": "template.jinja"}, "train_dataset": MESSAGES},
}


# The losses are those of TEXTS alone. The keys are those of RewardTrainer's arguments, too.
TAKEN_UNCHANGED = {
    "model: in memory, callbacks, optimizers, quantization_config": {
        **{"model": loaded(), "callbacks": [Silent()], "optimizers": (None, None)},
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True),  # unused
    },
    "train_dataset: a format and other columns, eval_dataset: Dataset": {
        "train_dataset": TEXTS.add_column("id", [None] * len(TEXTS)).with_format("torch"),
        "eval_dataset": TEXTS,
    },
    "eval_dataset: stream": {"eval_dataset": lambda: TEXTS.to_iterable_dataset()},
    "eval_dataset: DatasetDict": {"eval_dataset": lambda: DatasetDict(a=TEXTS, b=TEXTS.select([4, 2]))},
    "eval_dataset: IterableDatasetDict": {"eval_dataset": lambda: IterableDatasetDict(a=TEXTS.to_iterable_dataset())},
    "eval_dataset: dict": {"eval_dataset": lambda: {"a": TEXTS, "b": TEXTS.to_iterable_dataset()}},
}


@pytest.fixture(autouse=True)
def models_beside(decoder, tmp_path):
    (tmp_path / "decoder").symlink_to(decoder)
    (tmp_path / "template.jinja").write_text(CHATML.replace("<|im_start|>", ""))


PLAIN = {}
"""Losses of RewardTrainer on TEXTS, which trains once."""


@pytest.mark.parametrize("case", [*TAKEN, *TAKEN_UNCHANGED])
def test_taken_with_the_losses_of_reward_trainer(case, train):
    if case in TAKEN:
        expected = train(RewardTrainer, **TAKEN[case])
    else:
        expected = PLAIN.get("losses") or PLAIN.setdefault("losses", train(RewardTrainer))
    assert len(expected) == 2
    np.testing.assert_array_equal(train(PAFORewardTrainer, **(TAKEN | TAKEN_UNCHANGED)[case]), expected)


def test_prefix_tuning_is_taken_where_peft_can(train):
    """transformers 5.24 gave the argument that peft 0.21 looks for another name; RewardTrainer then fails, and so does ours."""
    case = {"peft_config": lambda: PrefixTuningConfig(**SEQ_CLS, num_virtual_tokens=2)}
    if "past_key_values" in inspect.signature(LlamaModel.forward).parameters:
        np.testing.assert_array_equal(train(PAFORewardTrainer, **case), train(RewardTrainer, **case))
        return
    with pytest.raises(ValueError, match="does not support past key values"):
        train(PAFORewardTrainer, **case)


def test_arguments_by_their_place(train, decoder, training):
    found = []
    for kind in (RewardTrainer, PAFORewardTrainer):
        args = RewardConfig(kind.__name__, **{**training, "max_steps": 2})
        places = (decoder, args, None, TEXTS, None, tokenizer(), None, [Silent()], (None, None), None, None, None)
        peft_config = LoraConfig(r=2, target_modules=["q_proj"], **SEQ_CLS)
        found.append(train(kind, *places, peft_config))
    # With shared prefixes, so to rounding.
    np.testing.assert_allclose(found[1], found[0], atol=rounding(found[0], steps=len(found[0])))


def stream(rows):
    return lambda: rows.to_iterable_dataset()


GAP, NO_PROMPT, MOVED = with_none(TEXTS, "chosen"), with_none(TEXTS, "prompt"), TEXTS.with_transform(lambda rows: rows)
BESIDE = MESSAGES.remove_columns("prompt").add_column("prompt", TEXTS["prompt"][:])
NO_KWARGS = with_none(filled({"other": 1}, chat_template_kwargs=0), "chat_template_kwargs")
EVALUATED = {"options": {"eval_strategy": "steps", "eval_steps": 1}}
PEFT_MODEL = {"model": adapted(**SEQ_CLS), "processing_class": tokenizer()}
CAUSAL_LM = {"model": lambda: LlamaForCausalLM(AutoConfig.from_pretrained("decoder")), "processing_class": tokenizer()}
REFUSED = [
    (
        DataError,
        "^The training dataset, row 3: `rejected` is missing .* Fill it",
        {"train_dataset": with_none(MESSAGES, "rejected")},
    ),
    (
        DataError,
        "DatasetDict, .*; it must be one Dataset .*: one of several",
        {"train_dataset": lambda: DatasetDict(a=TEXTS, b=TEXTS)},
    ),
    (DataError, "`train_dataset` is of type list; .* Dataset.from_list", {"train_dataset": ROWS}),
    (DataError, "lacks the column rejected; it has prompt, chosen", {"train_dataset": TEXTS.remove_columns("rejected")}),
    (DataError, "`prompt` hold texts and `chosen`, `rejected` do not", {"train_dataset": BESIDE}),
    (DataError, "row 3: `chat_template_kwargs` is missing", {"train_dataset": NO_KWARGS}),
    (DataError, "`margin` is not a finite number", {"train_dataset": stream(TEXTS.add_column("margin", ["0.5"] * len(TEXTS)))}),
    (DataError, r"^The training dataset has no rows\.", {"train_dataset": TEXTS.select([])}),
    (DataError, r"^The evaluation dataset b has no rows\.", {"eval_dataset": lambda: {"a": TEXTS, "b": TEXTS.select([])}}),
    (DataError, "^The training dataset has a transform .* Apply it by `map`", {"train_dataset": MOVED}),
    (
        DataError,
        "^The train dataset, row 0.*template is not set",
        {"train_dataset": MESSAGES, "processing_class": tokenizer(template=None)},
    ),
    (DataError, "row 3: `chosen` is missing", {"train_dataset": stream(GAP)}),
    (DataError, "row 3: `rejected_ids` is missing", {"train_dataset": with_none(TOKENS, "rejected_ids")}),
    (DataError, "The evaluation dataset bad, row 3", {"eval_dataset": lambda: {"bad": stream(NO_PROMPT)()}, **EVALUATED}),
    (DataError, "row 0 holds messages, and the model was trained on texts", {"eval_dataset": MESSAGES}),
    (DataError, r"`eval_dataset\['a'\]` is of type DatasetDict", {"eval_dataset": lambda: {"a": DatasetDict(test=TEXTS)}}),
    (ConfigError, "^`model` has num_labels=3; a reward model has one", {"model": loaded("three")}),
    (ConfigError, "^`model` is a language model", CAUSAL_LM),
    (ConfigError, "^adapter is an adapter.*it would be frozen", {"model": "adapter"}),
    (ConfigError, "must be a PAFOConfig or a RewardConfig", {"args": lambda: TrainingArguments("out", use_cpu=True)}),
    (ConfigError, r"holds texts, .* the tokenizer has none\. Set `eos_token`", {"model": "encoder"}),
    (ConfigError, "task_type=CAUSAL_LM, .* Use task_type='SEQ_CLS'", {"peft_config": lambda: LoraConfig(task_type="CAUSAL_LM")}),
    (TypeError, "must be a `peft.PeftConfig` instance", {"peft_config": {"r": 2}}),
    (ValueError, "You passed a `PeftModel` instance", {**PEFT_MODEL, "peft_config": lambda: LoraConfig(**SEQ_CLS)}),
]


@pytest.fixture(scope="module")
def no_reward_models(decoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("no reward models")
    make_model("decoder", folder / "three", num_labels=3)
    adapted(decoder)().save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize(("error", "match", "arguments"), REFUSED)
def test_refused_with_a_reason(error, match, arguments, train, encoder, no_reward_models, tmp_path):
    (tmp_path / "encoder").symlink_to(encoder)
    for name in ("three", "adapter"):
        (tmp_path / name).symlink_to(no_reward_models / name)
    with pytest.raises(error, match=match):
        train(PAFORewardTrainer, **arguments)


def test_a_gap_in_rows_that_are_evaluated_later(decoder, training, tmp_path):
    trainer = PAFORewardTrainer(Path(decoder), PAFOConfig(str(tmp_path / "out"), **training), train_dataset=TEXTS)
    for evaluate in (trainer.evaluate, trainer.predict):
        with pytest.raises(DataError, match=r"^The evaluation dataset( test)?, row 3: `chosen` is missing"):
            evaluate(with_none(TEXTS, "chosen"))


def test_the_page_lists_every_argument():
    page = (Path(__file__).parents[2] / "docs/trainer.md").read_text(encoding="utf-8")
    table = page.split("## What RewardTrainer takes\n")[1].split("\n## ")[0]
    listed = {name for row in table.splitlines() if row.startswith("| `") for name in re.findall(r"`(\w+)`", row.split(" | ")[0])}
    arguments = set(inspect.signature(RewardTrainer.__init__).parameters) - {"self"}
    assert listed == arguments
    assert {name for *_, given in REFUSED for name in given} <= {*arguments, "options"}
    tried = {*re.findall(r"\w+", " ".join(case.split(":")[0] for case in TAKEN))}
    tried |= {name for given in TAKEN_UNCHANGED.values() for name in given}
    assert tried == arguments


def test_every_option_is_one_of_ours():
    assert {f.name for f in fields(RewardConfig)} <= {f.name for f in fields(PAFOConfig)}
