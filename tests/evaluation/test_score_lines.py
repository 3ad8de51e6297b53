"""A line in, a line out at once; an error is the answer to its line alone."""

import io
import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from helpers.parts import break_rewards_of, make_model, remember_inputs

from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.score_lines import lines_as_they_come, score_lines
from trl_pafo.models import FairRewardModel, scoring

PAST = [
    {"prompt": "what is red", "chosen": "the house", "rejected": "lol"},
    {"prompt": "can i run", "chosen": "ok", "rejected": "no"},
]
ASK = {"prompt": "how do i sing", "response": "kindly sir"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return remember_inputs(make_model("encoder", tmp_path_factory.mktemp("trained")), num_history=1)


@pytest.fixture
def answer(folder, monkeypatch):
    """What is answered to what comes in one after the other: bytes, or what to do meanwhile."""

    def run(*coming, **flags):
        out, waiting = io.StringIO(), iter(coming)
        answered = []

        class Stdin:
            def read1(self, size):
                answered.append(out.getvalue().count("\n"))
                item = next(waiting, b"")
                if callable(item):
                    item()
                    item = next(waiting, b"")
                return item

        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Stdin()))
        monkeypatch.setattr("sys.stdout", out)
        options = {"batch_size": 2, "bf16": False, "num_history": None, "history_max_tokens": None, "history_fields": None}
        options |= {"model_name_or_path": folder, "input": "-", "output": None, "users": None, **flags}
        score_lines(Namespace(**options))
        return [json.loads(line) for line in out.getvalue().splitlines()], answered

    return run


def line(**row):
    return (json.dumps({**ASK, **row}, ensure_ascii=False) + "\n").encode()


def test_each_line_is_answered_before_the_next_is_waited_for(answer, folder):
    rows = [{"history": PAST[:1]}, {"history": PAST[1:], "id": "ä"}, {"chosen": "ha", "rejected": "lol", "history": []}]
    first, second, third = (line(**row) for row in rows)
    found, answered = answer(first, second[:9], second[9:] + third[:4], third[4:-1])
    assert answered == [0, 1, 1, 2, 2]
    model = FairRewardModel.from_pretrained(folder)
    for row, given in zip(found, rows, strict=True):
        assert {**row, **ASK, **given} == row
        for name, response in {"reward": "response", "reward_chosen": "chosen", "reward_rejected": "rejected"}.items():
            if name in row:
                (expected,) = model.score(row["prompt"], [row[response]], history=row["history"])
                assert row[name] == (expected if name == "reward" and "chosen" not in row else pytest.approx(expected, abs=1e-5))
    assert [set(row) & {"reward", "reward_chosen", "reward_rejected"} for row in found[:2]] == [{"reward"}] * 2


def test_an_error_is_the_answer_to_its_line_alone(answer, capfd):
    wrong = {
        b"{\n": "standard input, line 2: not JSON",
        b'{"response": "\xff"}\n': "standard input, line 3: this is not UTF-8",
        line(history=3): "line 4: a history must be a list of past pairs",
        line(): "line 5: `history` is missing, and the model was trained with histories",
        line(
            history=[], response="red " * 300
        ): "1 of 1 rows are longer than the 256 positions of the model, the first is line 6",
        line(history=[], response="", id=3): "line 7: `response` must be a text that is not empty",
        line(history=[], reward=2.5): "line 8 has `reward` already, which would be replaced",
    }
    good = line(history=PAST)
    found, _ = answer(good + b"".join(wrong) + good)
    assert [row.get("line") for row in found] == [None, *range(2, 9), None]
    for row, message in zip(found[1:-1], wrong.values(), strict=True):
        assert row["error"].startswith(message)
        assert row.get("reward", 2.5) == 2.5
    assert found[6]["id"] == 3
    assert found[0] == found[-1]
    assert isinstance(found[0]["reward"], float)
    assert "9 lines answered: 7 with an error, 0 for a user without a history.\n" in capfd.readouterr().err


def test_past_pairs_of_the_user_up_to_now(answer, folder, tmp_path, capfd):
    store = tmp_path / "history.jsonl"

    def add(past, end="\n"):
        with open(store, "a") as file:
            file.write((json.dumps({"user": 7, **past}) if isinstance(past, dict) else past) + end)

    add(PAST[0])
    broken = '{"user": 7'
    ask = line(user="7")
    found, _ = answer(
        *(ask, lambda: add(PAST[1]), ask + line(user="eve") + line(user="7", prompt="can i run")),
        *(lambda: add(broken), ask),
        users=str(store),
    )
    model = FairRewardModel.from_pretrained(folder)
    history = [PAST[:1], PAST[1:], [], PAST[:1]]
    expected = [model.score(row["prompt"], [row["response"]], history=h)[0] for row, h in zip(found, history, strict=False)]
    assert [row["reward"] for row in found[:4]] == pytest.approx(expected, abs=1e-5)
    assert len({round(reward, 3) for reward in expected}) == 4
    assert "history" not in found[0]
    assert found[4]["error"].startswith(f"{store}, line 3: not JSON")
    assert "5 lines answered: 1 with an error, 1 for a user without a history.\n" in capfd.readouterr().err
    with pytest.raises(DataError, match="line 3: not JSON"):  # now before the first line
        answer(ask, users=str(store))


def test_a_reward_that_is_not_finite_is_no_error_of_others(answer, folder, monkeypatch):
    break_rewards_of("whee", folder, monkeypatch)
    good = line(history=PAST)
    found, _ = answer(good + line(history=[], response="whee") + good, batch_size=3)
    assert found[1]["error"].startswith("1 of 1 rewards are NaN or infinite")
    assert found[0] == found[2]
    assert isinstance(found[0]["reward"], float)


def test_nothing_else_is_said_on_standard_output(answer, monkeypatch, capfd):
    real = scoring.load_reward_model

    def talkative(*args):
        print("Loading")
        return real(*args)

    monkeypatch.setattr(scoring, "load_reward_model", talkative)
    found, _ = answer(line(history=PAST))
    assert len(found) == 1
    assert "Loading" in capfd.readouterr().err


def test_flags_that_make_no_sense_and_the_processes_of_a_launcher_are_refused(answer):
    for flags, message in (({"model_name_or_path": None}, "give --model"), ({"output": "a"}, "leave out --output")):
        with pytest.raises(ConfigError, match=message):
            answer(**flags)
    with pytest.raises(ConfigError, match=r"reads standard input, which the processes .* Start it without a launcher"):
        score_lines(Namespace(), PartialState())


def test_lines_that_have_come_meanwhile_are_one_batch():
    class Stream(io.BytesIO):
        def read1(self, size=-1):
            return super().read(6)

    found = list(lines_as_they_come(Stream(b"a\nb\nc\nd\nlong line\nx"), 2))
    assert found == [[b"a", b"b"], [b"c"], [b"d"], [b"long line"], [b"x"]]
