"""Small real parts: a tiny encoder and a tiny decoder with random weights, pairs that can be learnt, a disk that is full."""

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, LlamaConfig, PreTrainedTokenizerFast

from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.template import add_history_template
from trl_pafo.models import scoring

GROUPS = ("majority", "minority")

TRAINING = {
    **{"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2, "max_length": 256},
    **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none"},
    "disable_tqdm": True,
}
"""Options of a training that takes a second."""

WORDS = (
    "asked liked disliked : what how when do i you is the a an to of and in it can my cat dog tree house red blue green run "
    "walk sing please kindly sir ha haha lol whee yes no ok soup bread tea rain sun wind"
).split()
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' }}{% endfor %}"


def make_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A word tokenizer: of BERT's kind without a template, or of a decoder's kind with ChatML."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: i for i, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    roles = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if kind == "encoder" else {"eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", **roles)
    if kind == "decoder":
        tokenizer.chat_template = CHATML
    return tokenizer


def make_model(kind: str, folder: Path, seed: int = 0, num_labels: int = 1, **sizes: int) -> str:
    """A tiny sequence classification model with its tokenizer, saved."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(kind)
    common = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "num_labels": num_labels}
    common |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    common |= {"max_position_embeddings": 256, **sizes}
    if kind == "encoder":
        model = transformers.BertForSequenceClassification(BertConfig(**common))
    else:
        config = LlamaConfig(**common, num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id)
        model = transformers.LlamaForSequenceClassification(config)
    with torch.no_grad():  # fresh weights give all inputs nearly the same reward, which any mix-up would pass
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(10)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_teacher(kind: str, folder: Path, seed: int, size: float = 10) -> str:
    """A tiny model whose random head is `size` times as large, so that its margins are of some size and no other's."""
    make_model(kind, folder, seed=seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        getattr(model, "classifier" if kind == "encoder" else "score").weight.mul_(size)
    model.save_pretrained(folder)
    return str(folder)


def make_teachers(kind: str, folder: Path, size: float = 10) -> dict[str, str]:
    """A teacher a group, by [`make_teacher`]."""
    return {group: make_teacher(kind, folder / group, seed, size) for seed, group in enumerate(GROUPS, 1)}


def make_adapter(base: str, folder: Path, seed: int = 0, **options: object) -> str:
    """A LoRA adapter on a tiny decoder, with a reward head and random weights of its own, saved with the tokenizer."""
    torch.manual_seed(seed)
    options = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["q_proj"], "init_lora_weights": False, **options}
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), LoraConfig(**options))
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return str(folder)


def remember_inputs(folder: str, inputs: str = "messages", **history: object) -> str:
    """Write into the tokenizer of a saved model what a training on such rows leaves there; return the folder."""
    tokenizer = add_history_template(AutoTokenizer.from_pretrained(folder))
    HistoryCutter(tokenizer, **history).remember(inputs)
    tokenizer.save_pretrained(folder)
    return folder


def break_rewards_of(word: str, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards of texts with this word are NaN, under every model that is loaded."""
    load, token = scoring.load_reward_model, AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(word)

    def broken(*args):
        model = load(*args)
        with torch.no_grad():
            model.get_input_embeddings().weight[token] = float("nan")
        return model

    monkeypatch.setattr(scoring, "load_reward_model", broken)


MANNERS = {"majority": "please kindly sir", "minority": "haha lol whee"}


def make_pairs(num_users: int = 6, pairs_per_user: int = 5, num_minority: int = 2, seed: int = 0, history: int = 2) -> Dataset:
    """Users who like polite or silly answers; each row with `history` past pairs of its user (0 for no column)."""
    rng = random.Random(seed)

    def pair(group: str, number: int) -> dict[str, str]:
        other = "minority" if group == "majority" else "majority"
        say = lambda: " ".join(rng.choice(WORDS[7:30]) for _ in range(rng.randint(2, 6)))  # noqa: E731
        return {
            "prompt": f"{say()} {WORDS[number % len(WORDS)]}",
            "chosen": f"{say()} {MANNERS[group]}",
            "rejected": f"{say()} {MANNERS[other]}",
        }

    rows = []
    for user in range(num_users):
        group = "minority" if user < num_minority else "majority"
        for number in range(pairs_per_user):
            row = {**pair(group, number), "user": f"user-{user}", "group": group}
            if history:
                row["history"] = [pair(group, 20 + n) for n in range(history)]
            rows.append(row)
    return Dataset.from_list(rows)


def as_chat(rows: Dataset) -> Dataset:
    """The same pairs, each text a message."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return rows.map(lambda row: {name: [{"role": role, "content": row[name]}] for name, role in roles.items()})


def numbered_pairs(**options: int) -> Dataset:
    """Pairs of very unequal length whose `margin` is their number, with margins of a teacher."""
    rows = make_pairs(**options)
    words = [row["chosen"] + " soup tea rain" * (3 * (i % 7)) for i, row in enumerate(rows)]
    rows = rows.remove_columns("chosen").add_column("chosen", words)
    return with_margins(rows.add_column("margin", [i / 1000 for i in range(len(rows))]))


def with_margins(rows: Dataset) -> Dataset:
    """The rows, with margins of a teacher."""
    return rows.add_column("teacher_margin", [0.5 * (i % 5 - 1) for i in range(len(rows))])


def losses(trainer: transformers.Trainer) -> list[float]:
    """What a training has logged."""
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


class StoppedAfter(transformers.TrainerCallback):
    """Ends a training within the step after the given one, when the checkpoint of that is written."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def files_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, by their path in it."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """The disk is full after so many bytes a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
