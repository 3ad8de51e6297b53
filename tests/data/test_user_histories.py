"""Past pairs of users: those that training would show, and a store whose last line may be half written."""

import json
import random
import warnings

import pytest
from datasets import Dataset
from helpers.parts import make_pairs

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.user_histories import UserHistories
from trl_pafo.errors import DataError


def past(user="ada", **texts):
    return {"user": user, "prompt": "what is red", "chosen": "the house", "rejected": "lol", **texts}


def append(path, *rows, end="\n"):
    with open(path, "a", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row) for row in rows) + end)


@pytest.fixture
def path(tmp_path):
    append(tmp_path / "history.jsonl", past(), past("bob", prompt="who am i"), past(prompt="can i run"))
    return tmp_path / "history.jsonl"


ROW = {"user": "ada", "prompt": "how do i sing", "response": "ha"}


def prompts(users, row=ROW, num_history=None):
    return [entry["prompt"] for entry in users.attach(row, num_history, "line 1")["history"]]


@pytest.mark.parametrize(("prompt", "num_history"), [(None, 1), (None, 50), ("the topic", 3)])
def test_they_are_those_that_training_attaches(tmp_path, prompt, num_history):
    """(attach_history reads all rows at once; here, a row at a time.)"""
    rng = random.Random(num_history)
    pairs = [row | {"user": rng.randint(1, 4)} for row in make_pairs(8, 6, history=0).remove_columns("group").to_list()]
    shared = [{**row, "user": rng.randint(1, 5)} for row in pairs[:6]]  # also judged by others
    rows = shared + [{**row, "user": 2.0} for row in pairs[6:12]]
    if prompt:
        pairs, rows = [[{**row, "prompt": prompt} for row in part] for part in (pairs, rows)]
    append(tmp_path / "history.jsonl", *pairs)
    users = UserHistories(tmp_path / "history.jsonl")
    expected = attach_history(
        Dataset.from_list([{**row, "user": str(int(row["user"]))} for row in rows]),
        num_history,
        missing="keep",
        pool=Dataset.from_list(pairs),
    )
    assert [users.attach(row, num_history, "here")["history"] for row in rows] == expected["history"][:]
    assert prompts(users, {**ROW, "user": "eve"}) == []


def test_where_all_have_one_prompt_responses_tell(tmp_path):
    path = tmp_path / "history.jsonl"
    append(path, past(), past(chosen="a tree", rejected="a dog"))
    users = UserHistories(path)
    assert prompts(users, {**ROW, "prompt": "what is red", "response": "lol"}) == ["what is red"]
    assert prompts(users, {**ROW, "prompt": "what is red", "chosen": "lol", "rejected": "a tree"}) == []
    append(path, past(prompt="another"))
    users.read_on()
    assert prompts(users, {**ROW, "prompt": "what is red"}) == ["another"]
    assert prompts(users, {**ROW, "prompt": [{"role": "user", "content": "another"}]}, 1) == ["what is red"]


def test_what_is_appended_is_read(path):
    users = UserHistories(path)
    append(path, past(prompt="new"))
    assert prompts(users, num_history=1) == ["can i run"]
    users.read_on()
    assert prompts(users, num_history=1) == ["new"]


@pytest.mark.parametrize(
    "half", ['{"user": "ada", "prompt": "when', '{"user": "ada", "prompt": "w\u00e4'.encode()[:-1], "\x00\x00", "12"]
)
def test_a_half_written_last_line_is_named_once_and_read_when_it_is_complete(path, half):
    with open(path, "ab") as file:
        file.write(half if isinstance(half, bytes) else half.encode())
    with pytest.warns(UserWarning, match=r"history.jsonl, line 4, the last, is not complete and left out until it is"):
        users = UserHistories(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        users.read_on()
    assert prompts(users) == ["can i run", "what is red"]
    content = path.read_bytes()
    append(path, past(prompt="after the crash"))  # on the same line
    for _ in range(2):
        with pytest.raises(DataError, match=r"history.jsonl, line 4: (not JSON|this is not UTF-8)"):
            users.read_on()
    if isinstance(half, str) and half.startswith("{"):
        path.write_bytes(content + b' is it", "chosen": "now", "rejected": "no"}\n')
        users.read_on()
        assert prompts(users, num_history=1) == ["when is it"]


def test_a_last_line_without_an_end_is_complete_if_its_object_is(tmp_path):
    append(tmp_path / "history.jsonl", past(), past(prompt="can i run"), end="")
    users = UserHistories(tmp_path / "history.jsonl")
    append(tmp_path / "history.jsonl", end="\n")
    append(tmp_path / "history.jsonl", past(prompt="new"))
    users.read_on()
    assert prompts(users) == ["new", "can i run", "what is red"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 4: not JSON"),
        (json.dumps({**past(), "user": " "}), "line 4 has no `user`"),
        (json.dumps({**past(), "user": ["a"]}), "line 4: A group or user must be one text or number"),
        (
            json.dumps({"user": "ada", "prompt": "a", "chosen": "b"}),
            "line 4 lacks the column rejected; it has user, prompt, chosen",
        ),
        (json.dumps(past(chosen="")), "line 4: `chosen` must be a text that is not empty"),
        (json.dumps(past(chosen=[{"role": "assistant", "content": "ha"}])), "line 4: .*`chosen` messages"),
    ],
)
def test_a_line_that_is_no_past_pair_is_named(path, line, message):
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        UserHistories(path)


def test_a_store_that_was_changed_shows_nobody_the_past_of_another(path):
    users = UserHistories(path)
    path.write_text(path.read_text(encoding="utf-8").replace('"bob"', '"eve"'), encoding="utf-8")
    users.read_on()  # as long as it was
    with pytest.raises(DataError, match=r"was changed since it was read\. Only append to it; start again"):
        users.attach({**ROW, "user": "bob"}, None, "line 1")


def test_a_store_that_is_not_there_or_becomes_shorter(path):
    with pytest.raises(DataError, match=r"cannot be read: .*Correct --users"):
        UserHistories(path.with_name("no.jsonl"))
    users = UserHistories(path)
    path.write_text("")
    with pytest.raises(DataError, match=r"has become shorter since it was read\. Only append to it"):
        users.read_on()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user": None}, "line 1 has no `user`. Name the user"),
        ({"history": []}, "line 1 has a history of its own, and --users gives it one"),
        ({"prompt": ...}, "line 1 has no `prompt`, which --users needs"),
    ],
)
def test_a_row_that_cannot_be_looked_up(path, change, message):
    row = {name: value for name, value in {**ROW, **change}.items() if value is not ...}
    with pytest.raises(DataError, match=message):
        UserHistories(path).attach(row, 1, "line 1")
