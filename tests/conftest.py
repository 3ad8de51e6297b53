"""Small real parts for the tests: a tiny encoder and a tiny decoder with random weights, and pairs that can be learnt."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command line does before it imports
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import random
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, LlamaConfig, PreTrainedTokenizerFast

from trl_pafo.report.page import SECTIONS

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

WORDS = [
    "asked",
    "liked",
    "disliked",
    ":",
    "what",
    "how",
    "when",
    "do",
    "i",
    "you",
    "is",
    "the",
    "a",
    "an",
    "to",
    "of",
    "and",
    "in",
    "it",
    "can",
    "my",
    "cat",
    "dog",
    "tree",
    "house",
    "red",
    "blue",
    "green",
    "run",
    "walk",
    "sing",
    "please",
    "kindly",
    "sir",
    "ha",
    "haha",
    "lol",
    "whee",
    "yes",
    "no",
    "ok",
    "soup",
    "bread",
    "tea",
    "rain",
    "sun",
    "wind",
]
DEPRECATIONS = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)
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
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 256,
        "num_labels": num_labels,
        "pad_token_id": tokenizer.pad_token_id,
        **sizes,
    }
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


def pytest_collection_finish() -> None:
    """Each training collects garbage: not among all that was imported, which took it most of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_deprecated_is_called() -> Iterator[None]:
    """A deprecation that trl_pafo causes is an error, also where it calls a model, which a filter by module does not see."""
    warn = warnings.warn

    def watch(message, category=None, stacklevel=1, **more):
        frame = sys._getframe(stacklevel) if stacklevel > 0 else None
        while frame and frame.f_globals.get("__name__") == "torch.nn.modules.module":
            frame = frame.f_back
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        if frame and frame.f_globals.get("__name__", "").startswith("trl_pafo") and issubclass(kind, DEPRECATIONS):
            raise kind(message)
        return warn(message, category, stacklevel + 1, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "warn", watch)
        yield


def make_teacher(kind: str, folder: Path, seed: int, size: float = 10) -> str:
    """A tiny model whose random head is `size` times as large, so that its margins are of some size and no other's."""
    make_model(kind, folder, seed=seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        getattr(model, "classifier" if kind == "encoder" else "score").weight.mul_(size)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model("encoder", tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model("decoder", tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(params=["encoder", "decoder"])
def base_model(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


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


@pytest.fixture
def pairs() -> Dataset:
    return make_pairs()


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """The disk is full after so many bytes a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of runs have their first section alone: drawing all pictures takes longer than a tiny run (all: tests/report)."""
    monkeypatch.setattr("trl_pafo.report.page.SECTIONS", SECTIONS[:1])


@pytest.fixture
def training() -> dict[str, object]:
    """Options of a training that takes a second."""
    return {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        "max_length": 256,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
