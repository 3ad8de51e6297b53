"""Every bad dataset is refused by one error that says where and what to do."""

import pytest
from datasets import Dataset, concatenate_datasets
from helpers.parts import make_pairs

from trl_pafo.data import arrow as columns
from trl_pafo.data import checks
from trl_pafo.errors import DataError, TeacherError, TrlPafoError

WHAT = "The training dataset"


def rows(**values):
    return Dataset.from_dict(values)


def said(*contents):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]


class TestColumns:
    def test_all_there(self):
        checks.check_columns(["prompt", "chosen"], ["chosen"], WHAT)

    def test_the_missing_ones_are_named(self):
        with pytest.raises(DataError, match="The training dataset lacks the column rejected; it has prompt, chosen"):
            checks.check_columns(["prompt", "chosen"], ["chosen", "rejected"], WHAT)
        with pytest.raises(DataError, match="lacks the columns chosen, rejected"):
            checks.check_columns(iter(["prompt"]), ("chosen", "rejected"), WHAT)


class TestFilled:
    """What a trainer refuses is tried in test_drop_in.py."""

    @pytest.mark.parametrize("name", ["chosen", "rejected", "prompt"])
    def test_the_row_is_right_beyond_the_first_batch(self, name, monkeypatch):
        monkeypatch.setattr(columns, "_BATCH_ROWS", 2)
        texts = {column: ["a", "b", "c", "d", "e"] for column in ("prompt", "chosen", "rejected")}
        checks.check_filled(rows(**texts), WHAT)
        data = rows(**{**texts, name: ["a", "", "c", None, "e"]})
        with pytest.raises(DataError, match=rf"row 3: `{name}` is missing \(None\). Fill it, or leave such rows out"):
            checks.check_filled(data, WHAT)
        with pytest.raises(DataError, match=rf"row 3: `{name}` is missing"):
            list(checks.filled_stream(data.to_iterable_dataset(), WHAT))

    def test_a_stream_keeps_its_rows_and_types(self):
        data = rows(prompt=["a", ""], chosen=["b", "c"], rejected=["d", "e"], margin=[1, 2], other=[None, 3])
        stream = checks.filled_stream(data.to_iterable_dataset(), WHAT)
        assert list(stream) == data.to_list()
        assert stream.features == data.features

    def test_tokens_under_their_former_names(self):
        data = rows(chosen_input_ids=[[1], None], rejected_input_ids=[[2], [3]])
        checks.check_filled(data.select([0]), WHAT)
        with pytest.raises(DataError, match="row 1: `chosen_input_ids` is missing"):
            checks.check_filled(data, WHAT)
        with pytest.raises(DataError, match="row 1: `chosen_input_ids` is missing"):
            list(checks.filled_stream(data.to_iterable_dataset(), WHAT))


class TestPairs:
    @pytest.mark.parametrize(
        "columns",
        [
            {"chosen": ["a"], "rejected": ["b"]},
            {"chosen": [said("q", "a")], "rejected": [said("q", "b")]},
            {"chosen_ids": [[1, 2]], "rejected_ids": [[1]]},
            # Tokenized rows are judged by their ids, whatever stands in the texts.
            {"chosen_ids": [[1, 2]], "rejected_ids": [[1]], "chosen": ["same"], "rejected": ["same"]},
        ],
    )
    def test_good_pairs_pass(self, columns):
        checks.check_pairs(rows(**columns), WHAT)

    def test_no_rows(self):
        with pytest.raises(DataError, match="The training dataset has no rows"):
            checks.check_pairs(rows(chosen=[], rejected=[]), WHAT)

    def test_no_column(self):
        with pytest.raises(DataError, match="lacks the column rejected"):
            checks.check_pairs(rows(chosen=["a"]), WHAT)

    @pytest.mark.parametrize("names", [("chosen", "rejected"), ("rejected", "chosen")])
    @pytest.mark.parametrize(
        ("good", "empty"),
        [("a", ""), ("a", " \n"), ("a", None), (said("q", "a"), said("q", "  ")), (said("q", "a"), [])],
        ids=["text", "white space", "missing", "last message", "no message"],
    )
    def test_an_empty_response(self, names, good, empty):
        other = "b" if isinstance(good, str) else said("q", "b")
        data = rows(**{names[0]: [good, empty], names[1]: [other, other]})
        with pytest.raises(DataError, match=f"row 1: the {names[0]} response is empty. Leave such rows out"):
            checks.check_pairs(data, WHAT)

    @pytest.mark.parametrize("conversational", [False, True])
    def test_texts_of_any_script_are_read_as_python_does(self, conversational):
        shown = (lambda text: [{"role": "assistant", "content": text}]) if conversational else str
        white = "\t\x1c\x85\xa0\u2003\u3000"
        fine = ["。", "好", "é", "🙂", "\u200b", "7"]
        checks.check_pairs(rows(chosen=[shown(text) for text in fine], rejected=[shown(text + "!") for text in fine]), WHAT)
        for text in white:
            with pytest.raises(DataError, match="row 6: the rejected response is empty"):
                checks.check_pairs(rows(chosen=[shown("a")] * 7, rejected=[shown(t) for t in [*fine, text]]), WHAT)

    def test_the_first_bad_row_of_any_batch_is_named(self, monkeypatch):
        monkeypatch.setattr(columns, "_BATCH_ROWS", 2)
        with pytest.raises(DataError, match="row 3: the chosen response is empty"):
            checks.check_pairs(rows(chosen=["a", "b", "c", "", "e"], rejected=["b", "c", "d", "e", "e"]), WHAT)
        with pytest.raises(DataError, match="row 4: chosen and rejected are identical"):
            checks.check_pairs(rows(chosen=["a", "b", "c", "d", "e"], rejected=["b", "c", "d", "e", "e"]), WHAT)

    def test_responses_that_only_end_alike_are_no_copies(self):
        first, second = ([{"role": "assistant", "content": text} for text in (word, "end")] for word in ("a", "b"))
        checks.check_pairs(rows(chosen=[first], rejected=[second]), WHAT)
        checks.check_pairs(rows(chosen_ids=[[1, 3]], rejected_ids=[[2, 3]]), WHAT)

    def test_empty_token_ids(self):
        with pytest.raises(DataError, match="row 1: the rejected response is empty"):
            checks.check_pairs(rows(chosen_ids=[[1], [2]], rejected_ids=[[2], []]), WHAT)

    @pytest.mark.parametrize(
        ("name", "good", "same"),
        [("", "a", "b"), ("", said("q", "a"), said("q", "b")), ("_ids", [1], [2, 3])],
        ids=["standard", "conversational", "tokenized"],
    )
    def test_identical_responses(self, name, good, same):
        data = rows(**{"chosen" + name: [good, good, same], "rejected" + name: [same, same, same]})
        with pytest.raises(DataError, match="row 2: chosen and rejected are identical, so the pair says nothing"):
            checks.check_pairs(data, WHAT)

    def test_the_row_is_right_beyond_the_first_batch(self):
        data = rows(chosen=["a"] * 10_001 + [""], rejected=["b"] * 10_002)
        with pytest.raises(DataError, match="row 10001"):
            checks.check_pairs(data, WHAT)


class TestGroups:
    def test_one_teacher_a_group(self, pairs):
        checks.check_groups(pairs, ["minority", "majority"], WHAT)

    def test_a_group_without_a_teacher(self, pairs):
        with pytest.raises(
            TeacherError, match=r"No teacher for the group 'minority' of the training dataset.* given for 'majority'"
        ):
            checks.check_groups(pairs, ["majority"], WHAT)
        with pytest.raises(TeacherError, match="No teacher for the groups 'majority', 'minority'"):
            checks.check_groups(pairs, ["other"], WHAT)

    def test_a_teacher_without_a_group(self, pairs):
        match = "has no pairs of the group 'elders', for which a teacher was given; it has the groups 'majority', 'minority'"
        with pytest.raises(TeacherError, match=match):
            checks.check_groups(pairs, ["majority", "minority", "elders"], WHAT)

    def test_no_group_column(self, pairs):
        with pytest.raises(DataError, match="lacks the column group"):
            checks.check_groups(pairs.remove_columns("group"), ["majority"], WHAT)


@pytest.mark.parametrize("name", ["margin", "teacher_margin"])
class TestNumbers:
    @pytest.mark.parametrize("values", [[0.0, -3.5], [1, 2]])
    def test_numbers_pass(self, name, values):
        checks.check_filled(rows(chosen=["a", "b"], rejected=["c", "d"], **{name: values}), WHAT)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), None])
    def test_not_finite(self, name, bad):
        with pytest.raises(DataError, match=f"row 1: `{name}` is no finite number. Fill it, or leave such rows out"):
            checks.check_filled(rows(chosen=["a", "b"], rejected=["c", "d"], **{name: [0.5, bad]}), WHAT)

    @pytest.mark.parametrize("values", [["much", "little"], ["1", "2"], [[1.0, 2.0], [3.0]]])
    def test_no_numbers(self, name, values):
        with pytest.raises(DataError, match=f"row 0: `{name}` is no finite number"):
            checks.check_filled(rows(chosen=["a", "b"], rejected=["c", "d"], **{name: values}), WHAT)


class TestHistory:
    def test_good_histories_pass(self, pairs):
        checks.check_history(pairs, WHAT)
        checks.check_history(pairs.remove_columns("user"), WHAT)

    @pytest.mark.parametrize("nothing", [[], None])
    def test_a_user_with_an_empty_history(self, nothing):
        data = make_pairs().to_list()
        data[3]["history"] = nothing
        match = (
            "row 3 of user 'user-0': the history is empty. Give the user past pairs, leave the row out, or set num_history to 0"
        )
        with pytest.raises(DataError, match=match):
            checks.check_history(Dataset.from_list(data), WHAT)
        with pytest.raises(DataError, match="row 3: the history is empty"):
            checks.check_history(Dataset.from_list(data).remove_columns("user"), WHAT)

    def test_rows_of_a_later_batch(self, monkeypatch):
        monkeypatch.setattr(columns, "_BATCH_ROWS", 2)
        data = make_pairs().to_list()
        data[5]["history"][0]["chosen"] = ""
        with pytest.raises(DataError, match="row 5 of user 'user-1': an entry of the history lacks chosen"):
            checks.check_history(Dataset.from_list(data), WHAT)

    @pytest.mark.parametrize("nothing", ["", None])
    def test_an_entry_that_lacks_fields(self, nothing):
        data = make_pairs().to_list()
        data[6]["history"][1] |= {"prompt": nothing, "rejected": nothing}
        with pytest.raises(DataError, match="row 6 of user 'user-1': an entry of the history lacks prompt, rejected"):
            checks.check_history(Dataset.from_list(data), WHAT)

    def test_entries_that_are_no_pairs(self):
        with pytest.raises(DataError, match=r"row 0: an entry of the history must be a past pair with .*, got 'liked tea'"):
            checks.check_history(rows(history=[["liked tea"]]), WHAT)


class TestApart:
    @pytest.fixture
    def halves(self):
        data = Dataset.from_list(
            [
                {"prompt": f"p{i}", "user": f"u{i}", "history": [{"prompt": f"h{i}", "chosen": "a", "rejected": "b"}]}
                for i in range(4)
            ]
        )
        return data.select(range(2)), data.select(range(2, 4))

    def test_apart(self, halves):
        checks.check_apart(*halves)

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"user": "u3"}, "share 1 users and 0 prompts"),
            ({"prompt": "p2"}, "share 0 users and 1 prompts"),
            ({"history": [{"prompt": "p3", "chosen": "a", "rejected": "b"}]}, "share 0 users and 1 prompts .histories included"),
        ],
    )
    def test_overlap(self, halves, changes, match):
        train, test = halves
        more = Dataset.from_list([{**train[0], **changes}], features=train.features)
        with pytest.raises(DataError, match=match + ".*Give splits that are apart"):
            checks.check_apart(concatenate_datasets([train, more]), test)

    def test_a_prompt_is_the_same_as_text_and_as_message(self, halves):
        train, test = halves
        as_message = Dataset.from_list([{**train[0], "prompt": [{"role": "user", "content": "p2"}]}])
        with pytest.raises(DataError, match="share 0 users and 1 prompts"):
            checks.check_apart(as_message, test)

    def test_a_test_history_may_hold_known_prompts(self, halves):
        train, test = halves
        knows = Dataset.from_list([{**test[0], "history": train["history"][0]}], features=test.features)
        checks.check_apart(train, knows)


def test_all_errors_are_ours():
    assert issubclass(DataError, TrlPafoError)
    assert issubclass(TeacherError, TrlPafoError)
    assert issubclass(TrlPafoError, ValueError)
