"""What a model was trained with is what it reads afterwards, to the token: through the trainer, a file, a dataset, a function."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from helpers.parts import as_chat, make_pairs, make_tokenizer
from transformers import AutoTokenizer

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.data import checks
from trl_pafo.data.history import HistoryCutter, remembered, render_history
from trl_pafo.data.messages import content_text
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_pairs, tokenize_row
from trl_pafo.errors import ConfigError, DataError

PAST = [{"prompt": "what is red", "chosen": "the house", "rejected": "lol"}]
TEXTS = {"prompt": "how do i sing", "chosen": "kindly sir", "rejected": "haha"}
MESSAGES = as_chat(Dataset.from_list([TEXTS]))[0]

FORMS = {
    "texts": make_pairs(history=0),
    "texts without a prompt": make_pairs(history=0).map(lambda r: {s: r["prompt"] + " " + r[s] for s in ("chosen", "rejected")}),
    "messages": as_chat(make_pairs(history=0)),
    "histories": make_pairs(),
    "no histories": make_pairs().map(lambda r: {"history": r["history"]}),
    "rendered": render_history(make_pairs(), HistoryCutter(make_tokenizer("encoder"), 1)),
    "texts with a rendered history": make_pairs(history=0).add_column(
        "chat_template_kwargs", [{"history": past} for past in make_pairs()["history"][:]]
    ),
}
FORMS["texts without a prompt"] = FORMS["texts without a prompt"].remove_columns("prompt")
OPTIONS = {
    "histories": {"num_history": 1, "history_max_tokens": 12, "history_fields": ["prompt", "chosen"]},
    "no histories": {"num_history": 0},
}


@pytest.mark.parametrize(
    ("kind", "form"), [*(("decoder", form) for form in FORMS), ("encoder", "texts"), ("encoder", "histories")]
)
def test_rows_of_a_file_and_of_a_dataset_are_read_as_in_training(kind, form, request, tmp_path):
    options = {"use_cpu": True, "bf16": False, "report_to": "none", "max_length": 256, **OPTIONS.get(form, {})}
    if kind == "encoder":
        options["eos_token"] = "[SEP]"
    rows = FORMS[form]
    trainer = PAFORewardTrainer(request.getfixturevalue(kind), PAFOConfig(str(tmp_path), **options), train_dataset=rows)
    trainer.save_model(str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = remembered(tokenizer)
    assert found["inputs"] == ("text" if form in ("texts", "texts without a prompt") else "messages")
    shown = {"histories": (1, 12, ["prompt", "chosen"]), "rendered": (1, None), "texts with a rendered history": (2, None)}
    expected = shown.get(form, (0,))
    assert (found["num_history"], found["max_tokens"], found["fields"])[: len(expected)] == expected
    renderer = InputRenderer(tokenizer, OPTIONS.get(form, {}).get("num_history"))
    of_file, ready = renderer.sequences(rows.to_list()), renderer.render(rows, "The rows")
    for side in ("chosen", "rejected"):
        ids = trainer.train_dataset[f"{side}_ids"][:]
        assert [row[side] for row in of_file] == ids
        assert [tokenize_row(renderer.tokenizer, row, side) for row in ready] == ids


def tokenizer_of(inputs="messages", kind="decoder", **limits):
    tokenizer = add_history_template(make_tokenizer(kind))
    HistoryCutter(tokenizer, **limits).remember(inputs)
    return tokenizer


PLAIN = {"num_history": 0}
EMPTY = [{**PAST[0], "chosen": " "}]
LACKS = {**TEXTS, "history": None}
REFUSED = {
    "no history at all": ({}, None, [TEXTS], "The rows: no row has a history.* set num_history to 0"),
    "empty histories": ({}, None, [{**TEXTS, "history": []}], "The rows: no row has a history"),
    "a history for a model without": (PLAIN, None, [LACKS, {**TEXTS, "history": PAST}], "row 1 has a history"),
    "a past pair for a history": ({}, None, [{**TEXTS, "history": PAST[0]}], "row 0: a history must be a list of past pairs"),
    "an empty field": ({}, None, [{**TEXTS, "history": EMPTY}], "row 0: `chosen` of an entry of the history is empty"),
    "messages for a model of texts": ({"inputs": "text"} | PLAIN, None, [MESSAGES], "row 0 holds messages, .* trained on texts"),
    "a text without a prompt": (PLAIN, None, [{"chosen": "how a", "rejected": "how b"}], "row 0 is a text without a prompt"),
    "texts beside messages": (PLAIN, None, [{**MESSAGES, "prompt": "how"}], "row 0: some are texts and some are messages"),
    "no response": (PLAIN, None, [{"prompt": "how", "response": None}], r"row 0: `response` is missing \(None\)"),
    "NaN for a response": (PLAIN, None, [{"prompt": "how", "response": float("nan")}], "row 0: `response` is missing"),
}


@pytest.mark.parametrize(("trained", "num_history", "rows", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_model_was_not_trained_to_read_is_refused(trained, num_history, rows, message):
    with pytest.raises(DataError, match=f"^{message}"):
        InputRenderer(tokenizer_of(**trained), num_history).sequences(rows)
    if "response" not in rows[0]:
        with pytest.raises(DataError, match=f"^The data(, {message}|{message.removeprefix('The rows')})"):
            InputRenderer(tokenizer_of(**trained), num_history).render(Dataset.from_list(rows), "The data")


class TestMissingHistories:
    @pytest.mark.parametrize("lacking", [{}, {"history": []}, {"history": None}, {"chat_template_kwargs": {"history": []}}])
    def test_no_history_is_one_thing_however_it_is_said(self, lacking, recwarn):
        renderer = InputRenderer(tokenizer_of())
        for _ in range(2):
            found = renderer.sequences([{**TEXTS, "history": PAST}, {**TEXTS, **lacking}])
        plain = renderer.tokenizer.apply_chat_template([*MESSAGES["prompt"], *MESSAGES["chosen"]], return_dict=True)["input_ids"]
        assert found[1]["chosen"] == plain
        assert found[0]["chosen"] != plain
        [warning] = [str(w.message) for w in recwarn if "have no history" in str(w.message)]  # once, for all batches
        assert "1 of 2 rows have no history (the first: row 1)" in warning

    def test_rows_of_pandas(self):
        """A column of a table has arrays for lists, and NaN where a value is missing."""
        table = Dataset.from_list([{**MESSAGES, "history": PAST}, {**MESSAGES, "history": None}]).to_pandas()
        assert isinstance(table.history[0], np.ndarray)
        for missing in (None, float("nan"), np.array([])):
            rows = table.to_dict("records")
            rows[1]["history"] = missing
            with pytest.warns(UserWarning, match="1 of 2 rows have no history"):
                found = InputRenderer(tokenizer_of()).sequences(rows)
            with pytest.warns(UserWarning, match="1 of 2 rows have no history"):
                assert found == InputRenderer(tokenizer_of()).sequences([{**MESSAGES, "history": PAST}, MESSAGES])

    @pytest.mark.parametrize("trained", [{}, PLAIN, {"inputs": "text"} | PLAIN])
    def test_none_is_shown_where_that_is_asked_for(self, trained):
        renderer = InputRenderer(tokenizer_of(**trained), 0)
        rows = [TEXTS, {**TEXTS, "history": PAST}, {**TEXTS, "chat_template_kwargs": {"history": PAST}}]
        assert renderer.sequences(rows) == renderer.sequences([TEXTS] * 3)
        shown = renderer.render(Dataset.from_list(rows[2:]), "The data")
        assert tokenize_row(renderer.tokenizer, shown[0], "chosen") == renderer.sequences([TEXTS])[0]["chosen"]

    def test_fields_that_are_not_shown_may_be_empty(self):
        rows = Dataset.from_list([{**TEXTS, "history": PAST}, {**TEXTS, "history": EMPTY}])
        InputRenderer(tokenizer_of(fields=["prompt"])).render(rows, "The data")


def test_texts_for_a_model_of_messages_are_one_message_each():
    renderer = InputRenderer(tokenizer_of(num_history=0))
    assert renderer.sequences([TEXTS]) == renderer.sequences([MESSAGES])
    assert renderer.render(Dataset.from_list([TEXTS]), "The data")[0] == MESSAGES


def test_an_empty_text_is_a_text():
    renderer = InputRenderer(tokenizer_of("text", num_history=0))
    end = renderer.tokenizer.eos_token_id
    assert renderer.sequences([{"prompt": "", "response": ""}, {"response": ""}]) == [{"response": [end]}] * 2


def test_a_model_from_elsewhere_reads_rows_as_they_are():
    tokenizer = make_tokenizer("decoder")
    renderer = InputRenderer(tokenizer)
    assert renderer.sequences([TEXTS])[0]["chosen"] == tokenizer("how do i singkindly sir<|im_end|>")["input_ids"]
    assert renderer.sequences([{**TEXTS, "history": []}]) == renderer.sequences([TEXTS])
    whole = tokenizer.apply_chat_template([*MESSAGES["prompt"], *MESSAGES["chosen"]], return_dict=True)["input_ids"]
    assert renderer.sequences([MESSAGES])[0]["chosen"] == whole
    with_history = renderer.sequences([{**TEXTS, "history": PAST}, TEXTS])  # then all are messages
    assert with_history[1]["chosen"] == whole
    assert len(with_history[0]["chosen"]) > len(whole)
    encoder = make_tokenizer("encoder")
    with pytest.warns(UserWarning, match=r"no chat template: each message is written as its text and '\[SEP\]'"):
        found = InputRenderer(encoder).sequences([MESSAGES])
    assert found[0]["chosen"] == encoder("[CLS] how do i sing [SEP] kindly sir [SEP]")["input_ids"]


def test_a_record_of_something_else_is_refused():
    tokenizer = make_tokenizer("decoder")
    tokenizer.init_kwargs["trl_pafo_inputs"] = {"num_history": 2}
    with pytest.raises(ConfigError, match=r"`trl_pafo_inputs` of the tokenizer .* is not as trl-pafo writes it"):
        InputRenderer(tokenizer)


# --- messages as they come

# In sorted order, in which pyarrow 21 puts the keys of a column.
CALL = {"function": {"arguments": {"city": "Rome"}, "name": "weather"}, "type": "function"}
OTHER_CALL = {"function": {"arguments": {"unit": "C"}, "name": "weather"}, "type": "function"}
ASKED = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "is it red", "name": "ann"}]
CHAT_ROWS = [
    {
        "prompt": ASKED,
        "chosen": [{"role": "assistant", "content": None, "tool_calls": [CALL]}],
        "rejected": [{"role": "assistant", "content": None, "tool_calls": [OTHER_CALL]}],
    },
    {**MESSAGES, "prompt": [*ASKED[:1], {"role": "user", "content": "how"}]},
    {**MESSAGES, "chosen": [{"role": "assistant", "content": "ok", "tool_calls": [OTHER_CALL]}]},
]
# It tells whether a key is there, but of the content: transformers 5.18 shows a template that it is None, 5.23 does not.
PICKY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% for key in m if key not in ['role', 'content'] %} {{ key }}="
    "{{ m[key] | tojson }}{% endfor %} {{ m.content | default('nothing', true) }}<|im_end|>{% endfor %}"
)


def picky_tokenizer():
    tokenizer = make_tokenizer("decoder")
    tokenizer.chat_template = PICKY
    return tokenizer


def written(tokenizer, row, side, **kwargs):
    return tokenizer.apply_chat_template([*row["prompt"], *row[side]], tokenize=False, **kwargs)


def as_file(rows, folder):
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("build", [lambda rows, folder: Dataset.from_list(rows), as_file], ids=["columns", "file"])
class TestMessages:
    @pytest.fixture
    def texts(self, monkeypatch):
        """What the template wrote, in place of ids of words that the small tokenizer does not know."""
        import trl_pafo.data.tokenization

        seen = []
        inner = trl_pafo.data.tokenization._from_template

        def spy(tokenizer, row, side, place, **how):
            seen.append(inner(tokenizer, row, side, place, tokenize=False))
            return inner(tokenizer, row, side, place, **how)

        monkeypatch.setattr(trl_pafo.data.tokenization, "_from_template", spy)
        return seen

    def test_the_prompt_is_written_as_given_and_no_key_is_invented(self, build, texts, tmp_path):
        tokenizer = picky_tokenizer()
        expected = [written(tokenizer, row, side) for side in ("chosen", "rejected") for row in CHAT_ROWS]
        assert 'name="ann"' in expected[0]
        assert '"arguments": {"city": "Rome"}' in expected[0]
        assert "tool_calls" not in expected[1]
        assert '"arguments": {"unit": "C"}' in expected[2]
        rows = build(CHAT_ROWS, tmp_path)
        tokenize_pairs(rows, tokenizer)
        assert texts[-6:] == expected
        texts.clear()
        InputRenderer(tokenizer).sequences(CHAT_ROWS)
        assert sorted(texts) == sorted(expected)
        texts.clear()
        ready = InputRenderer(tokenizer).render(rows, "The data")
        for side in ("chosen", "rejected"):
            for row in ready:
                tokenize_row(tokenizer, row, side)
        assert texts == expected

    def test_with_a_history_the_first_message_keeps_its_other_keys(self, build, texts, tmp_path):
        tokenizer = add_history_template(picky_tokenizer())
        first = {"role": "user", "content": "is it red", "name": "ann"}
        row = {**MESSAGES, "prompt": [first], "history": PAST}
        ready = InputRenderer(tokenizer).render(build([row, {**MESSAGES, "history": PAST}], tmp_path), "The data")
        tokenize_row(tokenizer, ready[0], "chosen")
        past = "Asked: what is red\nLiked: the house\nDisliked: lol\nAsked: is it red"
        assert texts[-1] == written(picky_tokenizer(), {**row, "prompt": [{**first, "content": past}]}, "chosen")

    def test_parts_and_tool_calls_in_histories(self, build, tmp_path):
        parts = [{"role": "user", "content": [{"type": "text", "text": "is it "}, {"type": "text", "text": "red"}]}]
        past = {"prompt": parts, "chosen": CHAT_ROWS[0]["chosen"], "rejected": CHAT_ROWS[0]["rejected"]}
        swapped = {**past, "chosen": past["rejected"], "rejected": past["chosen"]}
        rows = build([{**MESSAGES, "history": [past]}, {**MESSAGES, "history": [swapped, past]}], tmp_path)
        checks.check_history(rows, "The data")
        shown = {
            "prompt": "is it red",
            "chosen": '{"arguments": {"city": "Rome"}, "name": "weather"}',
            "rejected": '{"arguments": {"unit": "C"}, "name": "weather"}',
        }
        for limit in (None, 1000):
            rendered = render_history(rows, HistoryCutter(make_tokenizer("decoder"), max_tokens=limit))
            other = {**shown, "chosen": shown["rejected"], "rejected": shown["chosen"]}
            assert [row["chat_template_kwargs"]["history"] for row in rendered] == [[shown], [other, shown]]


def test_content_in_parts_is_in_the_prompt_and_in_front_of_it_stands_the_history():
    tokenizer = add_history_template(picky_tokenizer())
    first = {"role": "user", "content": [{"type": "text", "text": "is it red"}]}
    text = tokenizer.apply_chat_template([first], tokenize=False, history=[{"chosen": "tea"}])
    parts = [{"type": "text", "text": "Liked: tea\nAsked: "}, *first["content"]]
    assert text == picky_tokenizer().apply_chat_template([{**first, "content": parts}], tokenize=False)
    plain = add_history_template(make_tokenizer("encoder"))
    assert plain.apply_chat_template([first], tokenize=False, history=[{"chosen": "tea"}]) == "[CLS]tea[SEP]is it red[SEP]"
    called = [first, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert plain.apply_chat_template(called, tokenize=False) == f"[CLS]is it red[SEP]{json.dumps(CALL['function'])}[SEP]"


def test_what_a_template_cannot_write_is_named():
    rows = [CHAT_ROWS[1], CHAT_ROWS[0]]
    with pytest.raises(DataError, match=r"dataset, row 1, `chosen` .with its prompt.: the chat template cannot render it"):
        tokenize_pairs(Dataset.from_list(rows), make_tokenizer("decoder"))
    with pytest.raises(DataError, match="the file, row 1, `chosen`"):
        InputRenderer(make_tokenizer("decoder")).sequences(rows, "the file, row {}".format)


IMAGE = [{"role": "user", "content": [{"type": "image", "url": "x"}]}]


def test_what_is_no_text_is_named_in_a_history():
    rows = Dataset.from_list([{**MESSAGES, "history": [{"prompt": IMAGE, "chosen": IMAGE, "rejected": IMAGE}]}])
    with pytest.raises(DataError, match="The data, row 0: `prompt` of an entry of the history: a part of a message is not text"):
        checks.check_history(rows, "The data")
    nothing = [{"role": "assistant", "content": None}]
    rows = Dataset.from_list([{**MESSAGES, "history": [{"prompt": "how", "chosen": nothing, "rejected": "no"}]}])
    with pytest.raises(DataError, match="row 0: `chosen` of an entry of the history is empty"):
        checks.check_history(rows, "The data")


@pytest.mark.parametrize(
    "message",
    [
        {"content": "red"},
        {"content": "", "tool_calls": [CALL, OTHER_CALL]},
        {"content": None, "tool_calls": [{"name": "x", "arguments": '{"a": 1}'}]},
        {"content": [{"type": "text", "text": "é<"}, {"type": "text", "text": "b"}], "tool_calls": [CALL]},
    ],
)
def test_the_template_and_python_write_messages_alike(message):
    value = [{"role": "user", "content": "a"}, {"role": "assistant", **message}]
    tokenizer = add_history_template(make_tokenizer("decoder"))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, history=[{"chosen": value}])
    assert f"Liked: {content_text(value)}\nAsked: x" in text


MALFORMED = {
    "a text": "liked tea",
    "one past pair": PAST[0],
    "texts": ["tea"],
    "one unknown key": [{**PAST[0], "score": 1}],
    "an empty pair": [{}],
    "nothing in it": [{"prompt": None, "chosen": "", "rejected": None}],
    "an empty message": [{"chosen": [{"role": "assistant", "content": ""}]}],
    "one message": [{"chosen": {"role": "assistant", "content": "a"}}],
    "an image": [{"prompt": IMAGE}],
}


@pytest.mark.parametrize("history", MALFORMED.values(), ids=MALFORMED)
def test_the_template_alone_raises_for_what_is_no_history(history):
    from jinja2.exceptions import TemplateError

    tokenizer = add_history_template(make_tokenizer("decoder"))
    with pytest.raises(TemplateError, match=r"(history|text|content)"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], history=history)
    row = {**MESSAGES, "chat_template_kwargs": {"history": history}}
    with pytest.raises(DataError, match=r"`chosen` .*: the chat template cannot render it: .*(history|text|content)"):
        tokenize_row(tokenizer, row, "chosen")


def test_tools_are_read_in_evaluation_as_in_training():
    tokenizer = make_tokenizer("decoder")
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.name }} {% endfor %}" + tokenizer.chat_template
    row = {**MESSAGES, "tools": json.dumps([{"name": "rain sun"}])}
    assert tokenizer.convert_tokens_to_ids("rain") in InputRenderer(tokenizer).sequences([row])[0]["chosen"]


@pytest.mark.parametrize("given", [{"tools": [{"name": "rain"}]}, {"chat_template_kwargs": {"thinking": False}}])
def test_what_a_template_reads_is_not_left_out_of_texts_in_silence(given):
    reader = InputRenderer(make_tokenizer("decoder"))
    row = {"prompt": "what is red", "response": "wind"}
    with pytest.raises(
        DataError, match=r"row 1 has `tools` or `chat_template_kwargs`, which the chat template reads.* Give messages"
    ):
        reader.sequences([row, {**row, **given}])
    empty = {"tools": None, "chat_template_kwargs": {"history": [], "thinking": None}}
    assert reader.sequences([{**row, **empty}]) == reader.sequences([row])
    assert reader.sequences([{**row, **given, "history": []}, {**row, "history": PAST}])  # which makes messages of texts
