import gzip
import json
import os

import pytest
from helpers.sources import check_splits, load, write_lines

from trl_pafo.data.sources.dsp import cut_at_sentence, load_dsp
from trl_pafo.errors import DataError

DOMAINS = ("academy", "business", "entertainment", "literature", "normal")


def entry(number, **changes):
    responses = {domain: f"Answer {number} in the manner of {domain}. More of it follows." for domain in DOMAINS}
    return {"query": f"Question {number}?", "responses": {**responses, **changes}}


def test_users_of_a_domain_prefer_its_answers(tmp_path):
    path = write_lines(tmp_path / "dsp.jsonl", [entry(number) for number in range(40)])
    for options, liked in (({}, ("academy", "entertainment")), ({"majority": ["normal"]}, ("normal", "entertainment"))):
        splits = load("dsp", path, train_users=20, test_users=20, **options)
        check_splits(splits)
        for row in splits["train"]:
            assert liked[row["group"] == "minority"] in row["chosen"]


def test_zipped_and_listed_files_hold_the_same(tmp_path):
    entries = [entry(number) for number in range(4)]
    plain = load_dsp(write_lines(tmp_path / "dsp.jsonl", entries))
    assert [(p.prompt, p.responses) for p in plain] == [(e["query"], e["responses"]) for e in entries]
    (tmp_path / "dsp.json").write_bytes(gzip.compress(json.dumps(entries).encode()))
    assert load_dsp(tmp_path / "dsp.json") == plain


def test_entries_that_cannot_be_used_are_left_out_and_counted(tmp_path, caplog):
    repeated = {**entry(1), "query": "Question 0?"}
    path = write_lines(
        tmp_path / "dsp.jsonl", [entry(0), repeated, entry(2, normal=" "), entry(3, normal="Same.", academy="Same. ")]
    )
    (prompt,) = load_dsp(path)
    assert prompt.responses == entry(0)["responses"]
    assert "3 of 4 entries were dropped: they repeat a query, or have an empty answer or two identical ones" in caplog.text


def test_max_words_cuts_every_answer(tmp_path):
    same = entry(1, normal="Yes. Indeed it is so, as all can see.", academy="Yes. It can be shown in a few lines.")
    path = write_lines(tmp_path / "dsp.jsonl", [entry(0), same])
    assert len(load_dsp(path)) == 2
    (prompt,) = load_dsp(path, max_words=8)  # the cut makes two answers of the other the same
    assert prompt.responses["normal"] == "Answer 0 in the manner of normal."


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"query": "Q"', "line 2: not JSON"),
        ('{"responses": {}}', "line 2: the field `query` must be a text that is not empty, got None"),
        ('{"query": "Q", "responses": {"academy": "A", "normal": "B"}}', "line 2: the answers are of the domains"),
        (json.dumps(entry(1, normal=None)), "line 2: the field `responses` must map two or more domains to texts"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, bad, message):
    path = tmp_path / "dsp.jsonl"
    path.write_text(json.dumps(entry(0)) + "\n" + bad + "\n")
    with pytest.raises(DataError, match=message) as caught:
        load_dsp(path)
    assert str(path) in str(caught.value)


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no prompt"):
        load_dsp(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("text", "max_words", "expected"),
    [
        ("One two. Three four. Five six.", 5, "One two. Three four."),
        ("One two. Three four.", 4, "One two. Three four."),
        ('He said "stop!" and went on and on.', 5, 'He said "stop!"'),
        ("Is 3.5 more than two of them?", 3, "Is 3.5 more"),
        ("First line of a poem\nsecond line of it", 7, "First line of a poem"),
        ("Do this:\n1. Boil the water for tea. 2. Pour it.", 9, "Do this:\n1. Boil the water for tea."),
        ("no end anywhere in here", 3, "no end anywhere"),
    ],
)
def test_answers_are_cut_at_the_end_of_a_sentence(text, max_words, expected):
    assert cut_at_sentence(text, max_words) == expected


@pytest.mark.skipif("TRL_PAFO_DSP" not in os.environ, reason="TRL_PAFO_DSP does not name a file of the DSP dataset")
def test_the_real_file():
    prompts = load_dsp(os.environ["TRL_PAFO_DSP"], max_words=30)
    assert all(set(p.responses) == set(DOMAINS) for p in prompts)
    assert all(len(answer.split()) <= 30 for p in prompts for answer in p.responses.values())
    check_splits(load("dsp", os.environ["TRL_PAFO_DSP"], max_words=30, train_users=40, test_users=40))
