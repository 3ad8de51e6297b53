"""Every bad dataset is refused by one error that says where and what to do."""

import pytest
from datasets import Dataset, concatenate_datasets
from helpers.parts import make_pairs

from trl_pafo.data import checks
from trl_pafo.errors import DataError

WHAT = "The training dataset"


def rows(**values):
    return Dataset.from_dict(values)


def said(*contents):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), contents, strict=True)]


def test_missing_columns_are_named():
    checks.check_columns(["prompt", "chosen"], ["chosen"], WHAT)
    with pytest.raises(DataError, match="The training dataset lacks the columns chosen, rejected; it has prompt"):
        checks.check_columns(iter(["prompt"]), ("chosen", "rejected"), WHAT)


@pytest.mark.parametrize("streams", [False, True])
class TestFilled:
    """What a trainer refuses is tried in test_drop_in.py."""

    @pytest.fixture
    def check(self, streams):
        return lambda d: list(checks.filled_stream(d.to_iterable_dataset(), WHAT)) if streams else checks.check_filled(d, WHAT)

    @pytest.mark.parametrize("name", ["chosen", "rejected", "prompt"])
    def test_a_gap_is_named_with_its_row(self, check, name):
        texts = {column: ["a", "b", "c", "d", "e"] for column in ("prompt", "chosen", "rejected")}
        check(rows(**texts))
        with pytest.raises(DataError, match=rf"row 3: `{name}` is missing \(None\). Fill it, or leave such rows out"):
            check(rows(**{**texts, name: ["a", "", "c", None, "e"]}))

    def test_tokens_under_their_former_names(self, check):
        data = rows(chosen_input_ids=[[1], None], rejected_input_ids=[[2], [3]])
        check(data.select([0]))
        with pytest.raises(DataError, match="row 1: `chosen_input_ids` is missing"):
            check(data)

    @pytest.mark.parametrize("name", ["margin", "teacher_margin"])
    def test_margins_are_finite_numbers(self, check, name):
        pair = {"chosen": ["a", "b"], "rejected": ["c", "d"]}
        check(rows(**pair, **{name: [1, -2]}))
        for values, bad_row in (([0.5, float("nan")], 1), ([0.5, float("inf")], 1), ([0.5, None], 1), (["1", "2"], 0)):
            with pytest.raises(DataError, match=f"row {bad_row}: `{name}` is not a finite number. Fill it, or leave such rows"):
                check(rows(**pair, **{name: values}))


def test_a_stream_keeps_its_rows_and_types():
    data = rows(prompt=["a", ""], chosen=["b", "c"], rejected=["d", "e"], margin=[1, 2], other=[None, 3])
    stream = checks.filled_stream(data.to_iterable_dataset(), WHAT)
    assert list(stream) == data.to_list()
    assert stream.features == data.features


class TestPairs:
    @pytest.mark.parametrize(
        "columns",
        [
            {"chosen": ["a", "好"], "rejected": ["b", "\u200b"]},
            {"chosen": [said("q", "a")], "rejected": [said("q", "b")]},
            {"chosen": [said("q", "a")], "rejected": [said("p", "a")]},
            # Their ids count, whatever stands in the texts.
            {"chosen_ids": [[1, 2]], "rejected_ids": [[1]], "chosen": ["same"], "rejected": ["same"]},
        ],
    )
    def test_good_pairs_pass(self, columns):
        checks.check_pairs(rows(**columns), WHAT)

    def test_no_rows_and_no_column(self):
        with pytest.raises(DataError, match="The training dataset has no rows"):
            checks.check_pairs(rows(chosen=[], rejected=[]), WHAT)
        with pytest.raises(DataError, match="lacks the column rejected"):
            checks.check_pairs(rows(chosen=["a"]), WHAT)

    @pytest.mark.parametrize("names", [("chosen", "rejected"), ("rejected", "chosen")])
    @pytest.mark.parametrize(
        ("good", "empty"),
        [("a", ""), ("a", " \n\u3000"), ("a", None), (said("q", "a"), said("q", "  ")), (said("q", "a"), []), ([1], [])],
        ids=["text", "white space", "missing", "last message", "no message", "no tokens"],
    )
    def test_an_empty_response(self, names, good, empty):
        other = "b" if isinstance(good, str) else [2, 3] if good == [1] else said("q", "b")
        suffix = "_ids" if good == [1] else ""
        data = rows(**{names[0] + suffix: [good, empty], names[1] + suffix: [other, other]})
        with pytest.raises(DataError, match=f"row 1: the {names[0]} response is empty. Leave such rows out"):
            checks.check_pairs(data, WHAT)

    @pytest.mark.parametrize(
        ("name", "good", "same"),
        [("", "a", "b"), ("", said("q", "a"), said("q", "b")), ("_ids", [1], [2, 3])],
        ids=["standard", "conversational", "tokenized"],
    )
    def test_identical_responses(self, name, good, same):
        data = rows(**{"chosen" + name: [good, good, same], "rejected" + name: [same, same, same]})
        with pytest.raises(DataError, match="row 2: chosen and rejected are identical, so the pair says nothing"):
            checks.check_pairs(data, WHAT)


class TestHistory:
    def test_good_histories_are_counted(self, pairs):
        assert checks.check_history(pairs, WHAT) == len(pairs)
        data = [*pairs.to_list(), {**pairs[0], "history": []}]
        assert checks.check_history(Dataset.from_list(data), WHAT, may_lack=True) == len(pairs)

    @pytest.mark.parametrize(
        ("row", "history", "match"),
        [
            (3, [], "the history is empty. Give the user past pairs, leave the row out, or set num_history to 0"),
            (3, None, "the history is empty"),
            (6, [{"prompt": "", "chosen": "a", "rejected": None}], "an entry of the history lacks prompt, rejected"),
            (6, [{"prompt": " ", "chosen": "a", "rejected": "b"}], "`prompt` of an entry of the history is empty"),
        ],
    )
    def test_a_history_that_cannot_be_shown(self, row, history, match):
        data = make_pairs().to_list()
        data[row]["history"] = history
        with pytest.raises(DataError, match=f"^{WHAT}, row {row}: {match}"):
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

    def test_histories_of_training_are_included_and_those_of_the_test_may_hold_known_prompts(self, halves):
        train, test = halves
        known = Dataset.from_list([{**test[0], "history": train["history"][0]}], features=test.features)
        checks.check_apart(train, known)
        past = [{"prompt": "p3", "chosen": "a", "rejected": "b"}]
        more = Dataset.from_list([{**train[0], "history": past}], features=train.features)
        with pytest.raises(DataError, match=r"share 0 users and 1 prompts .histories included.*Give splits that share neither"):
            checks.check_apart(concatenate_datasets([train, more]), test)

    def test_a_prompt_is_the_same_as_text_and_as_message(self, halves):
        train, test = halves
        as_message = Dataset.from_list([{**train[0], "prompt": [{"role": "user", "content": "p2"}]}])
        with pytest.raises(DataError, match="share 0 users and 1 prompts"):
            checks.check_apart(as_message, test)
