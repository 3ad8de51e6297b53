import gzip
import json
import os

import pytest

from trl_pafo.data.checks import check_pairs
from trl_pafo.data.sources.dsp import cut_at_sentence, dsp_population, load_dsp
from trl_pafo.data.sources.typed_users import make_splits
from trl_pafo.errors import ConfigError, DataError

DOMAINS = ("academy", "business", "entertainment", "literature", "normal")


def entry(number, **changes):
    responses = {domain: f"Answer {number} in the manner of {domain}. More of it follows." for domain in DOMAINS}
    return {"query": f"Question {number}?", "responses": {**responses, **changes}}


def write_lines(path, entries):
    path.write_text("\n".join(json.dumps(e) for e in entries) + "\n")
    return path


class TestLoad:
    def test_the_three_forms_of_a_file_hold_the_same(self, tmp_path):
        entries = [entry(number) for number in range(4)]
        plain = load_dsp(write_lines(tmp_path / "dsp.jsonl", entries))
        zipped = tmp_path / "dsp.jsonl.gz"
        zipped.write_bytes(gzip.compress((tmp_path / "dsp.jsonl").read_bytes()))
        listed = tmp_path / "dsp.json"
        listed.write_text(json.dumps(entries, indent=1))
        assert [p.prompt for p in plain] == [e["query"] for e in entries]
        assert plain[2].responses == entries[2]["responses"]
        assert plain == load_dsp(zipped) == load_dsp(listed)

    def test_the_first_of_repeated_queries_is_kept_and_the_rest_counted(self, tmp_path, caplog):
        entries = [entry(0), entry(1), {**entry(2), "query": "Question 0?"}]
        prompts = load_dsp(write_lines(tmp_path / "dsp.jsonl", entries))
        assert [p.prompt for p in prompts] == ["Question 0?", "Question 1?"]
        assert prompts[0].responses == entries[0]["responses"]
        assert "1 entries repeat an earlier query" in caplog.text

    def test_answers_that_tell_no_domains_apart_are_left_out(self, tmp_path, caplog):
        entries = [entry(0), entry(1, normal="  "), entry(2, normal="Same.", academy="Same. ")]
        assert [p.prompt for p in load_dsp(write_lines(tmp_path / "dsp.jsonl", entries))] == ["Question 0?"]
        assert "2 have an empty answer or two that are the same" in caplog.text

    def test_answers_that_a_cut_makes_the_same_are_left_out_too(self, tmp_path):
        entries = [
            entry(0),
            entry(1, normal="Yes. Indeed it is so, as all can see.", academy="Yes. It can be shown in a few lines."),
        ]
        path = write_lines(tmp_path / "dsp.jsonl", entries)
        assert len(load_dsp(path)) == 2
        assert [p.prompt for p in load_dsp(path, max_words=8)] == ["Question 0?"]

    def test_max_words_cuts_every_answer(self, tmp_path):
        (prompt,) = load_dsp(write_lines(tmp_path / "dsp.jsonl", [entry(0)]), max_words=8)
        assert prompt.responses["normal"] == "Answer 0 in the manner of normal."

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            ('{"query": "Q"', "line 2: not JSON"),
            (" [1]", "line 2: expected a JSON object, got list"),
            ('{"responses": {}}', "line 2: the field `query` is missing; the entry has responses"),
            ('{"query": " "}', "line 2: the field `query` must be a text"),
            ('{"query": "Q"}', "line 2: the field `responses` must map"),
            ('{"query": "Q", "responses": {"academy": "A", "normal": "B"}}', "line 2: the answers are of the domains"),
            (json.dumps(entry(1, normal=None)), "line 2: the answer of the domain 'normal' must be a text"),
        ],
    )
    def test_a_bad_row_is_named_by_file_and_line(self, tmp_path, bad, message):
        path = tmp_path / "dsp.jsonl"
        path.write_text(json.dumps(entry(0)) + "\n" + bad + "\n")
        with pytest.raises(DataError, match=message) as caught:
            load_dsp(path)
        assert str(path) in str(caught.value)

    def test_an_empty_file_and_a_missing_file(self, tmp_path):
        (tmp_path / "empty.jsonl").write_text("")
        with pytest.raises(DataError, match="holds no prompt"):
            load_dsp(tmp_path / "empty.jsonl")
        with pytest.raises(DataError, match="There is no file"):
            load_dsp(tmp_path / "none.jsonl")

    def test_max_words_must_be_positive(self, tmp_path):
        with pytest.raises(ConfigError, match="`max_words` must be at least 1"):
            load_dsp(tmp_path / "dsp.jsonl", max_words=0)


class TestCut:
    @pytest.mark.parametrize(
        ("text", "max_words", "expected"),
        [
            ("One two. Three four. Five six.", 5, "One two. Three four."),
            ("One two. Three four.", 4, "One two. Three four."),
            ("One two. Three four.", None, "One two. Three four."),
            ('He said "stop!" and went on and on.', 5, 'He said "stop!"'),
            ("Is 3.5 more than two of them?", 3, "Is 3.5 more"),
            ("First line of a poem\nsecond line of it", 7, "First line of a poem"),
            ("Do this:\n1. Boil the water for tea. 2. Pour it.", 9, "Do this:\n1. Boil the water for tea."),
            ("no end anywhere in here", 3, "no end anywhere"),
        ],
    )
    def test_cut(self, text, max_words, expected):
        assert cut_at_sentence(text, max_words) == expected

    @pytest.mark.parametrize("max_words", range(1, 14))
    def test_never_longer_and_always_a_beginning(self, max_words):
        text = "A short one. Then\na longer sentence, with 2.5 parts! And (an aside.) End"
        cut = cut_at_sentence(text, max_words)
        assert cut
        assert text.startswith(cut)
        assert len(cut.split()) <= max_words


class TestPopulation:
    def test_defaults_and_options(self):
        assert dsp_population().majority == ("academy",)
        assert dsp_population().minority == ("entertainment",)
        changed = dsp_population(minority=("literature",), train_users=7)
        assert (changed.majority, changed.minority, changed.train_users) == (("academy",), ("literature",), 7)

    def test_no_test_user_or_prompt_in_training(self, tmp_path):
        path = write_lines(tmp_path / "dsp.jsonl", [entry(number) for number in range(40)])
        splits = make_splits(load_dsp(path), dsp_population(train_users=20, test_users=20))
        train, test = splits["train"], splits["test"]
        assert not set(train["user"]) & set(test["user"])
        assert not set(train["prompt"]) & set(test["prompt"])
        assert all("entertainment" in row["chosen"] for row in train if row["group"] == "minority")
        assert all("academy" in row["chosen"] for row in train if row["group"] == "majority")


@pytest.mark.skipif("TRL_PAFO_DSP" not in os.environ, reason="TRL_PAFO_DSP does not name a file of the DSP dataset")
class TestRealFile:
    def test_splits_of_the_real_file(self):
        prompts = load_dsp(os.environ["TRL_PAFO_DSP"], max_words=30)
        assert all(set(p.responses) == set(DOMAINS) for p in prompts)
        assert all(len(answer.split()) <= 30 for p in prompts for answer in p.responses.values())
        splits = make_splits(prompts, dsp_population(train_users=40, test_users=40))
        for name, split in splits.items():
            check_pairs(split, name)
        assert not set(splits["train"]["user"]) & set(splits["test"]["user"])
        assert not set(splits["train"]["prompt"]) & set(splits["test"]["prompt"])
