"""What `trl-pafo evaluate` takes: rows are checked as `prepare` checks them, before a model is looked for."""

import json
import math

import numpy as np
import pytest
from datasets import Dataset
from helpers.parts import make_model, make_pairs
from helpers.rounding import rounding
from transformers import AutoTokenizer

from trl_pafo.cli import main
from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.template import add_history_template
from trl_pafo.evaluation import evaluate as evaluation

ROWS = [{"prompt": "why", "chosen": "so", "rejected": "no", "user": f"u{n}", "group": "ab"[n % 2]} for n in range(4)]
SAID = [{"role": "assistant", "content": "so"}]


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """What `evaluate` says of a file, without a look at the model."""
    monkeypatch.setattr(evaluation, "local_folder", lambda *args: pytest.fail("the model was looked for"))

    def evaluate(name, *flags):
        argv = ["evaluate", "--model_name_or_path", "no/model", "--dataset_name", str(tmp_path / name), *flags]
        assert main(argv) == 1
        return capsys.readouterr().err

    return evaluate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "row 2: `prompt` must be a text that is not empty"),
        ({"prompt": " "}, "row 2: `prompt` must be a text that is not empty"),
        ({"chosen": None}, "row 2: `chosen` must be a text"),
        ({"rejected": ""}, "row 2: `rejected` must be a text"),
        ({"chosen": "no"}, "row 2: chosen and rejected are identical"),
    ],
)
def test_a_bad_row_is_named(refused, tmp_path, changes, message):
    rows = [{**row, **(changes if n == 2 else {})} for n, row in enumerate(ROWS)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert message in refused("rows.jsonl")
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert message in refused("rows.parquet")


@pytest.mark.parametrize("missing", [None, math.nan, "", " "])
@pytest.mark.parametrize("name", ["user", "group"])
def test_a_row_without_a_user_or_group(refused, tmp_path, name, missing):
    rows = [{**row, name: n if isinstance(missing, float) else str(n)} for n, row in enumerate(ROWS)]
    rows[2][name] = missing
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert f"row 2: has no `{name}`. Fill the column" in refused("rows.parquet")


def test_users_and_groups_of_any_kind(encoder, tmp_path):
    """Numbers give what the same names as texts give."""
    found = []
    for group, user in (("01", "34567"), ([0, 1], [3, 4, 5, 6, 7]), ([0.0, 1.0], [3.0, 4.0, 5.0, 6.0, 7.0])):
        rows = make_pairs(history=0).to_list()
        rows = [{**row, "group": group[n % 2], "user": user[n % 2 + 2 * (n % 4 // 2)]} for n, row in enumerate(rows)]
        name = str(tmp_path / f"{len(found)}.parquet")
        Dataset.from_list(rows).to_parquet(name)
        out = tmp_path / f"out{len(found)}"
        flags = ["--dataset_name", name, "--num_resamples", "20", "--output_dir", str(out)]
        assert main(["evaluate", "--model_name_or_path", encoder, *flags]) == 0
        results = json.loads((out / "results.json").read_text())
        found.append((results["methods"], (out / "model.jsonl").read_text()))
    assert {"accuracy/0", "accuracy/1"} <= set(found[0][0]["model"])
    assert found[0] == found[1] == found[2]


def test_prompts_and_responses_of_different_kinds(refused, tmp_path):
    rows = [{**row, "chosen": SAID, "rejected": [{**SAID[0], "content": "no"}]} for row in ROWS]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert "row 0: `prompt` text, `chosen` messages, `rejected` messages" in refused("rows.parquet")


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_a_prompt_under_another_name(refused, tmp_path, kind):
    rows = [{"question": row["prompt"], "chosen": "so", "rejected": "no"} for row in ROWS]
    if kind == "messages":
        rows = [{**row, "chosen": SAID, "rejected": [{**SAID[0], "content": "no"}]} for row in rows]
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    assert "row 0: `prompt` is missing, and does not stand in `chosen` and `rejected` either" in refused("rows.parquet")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--reference", "no/model"], "--reference is the model itself (no/model)"),
        (["--dataset_split", "train"], "has no splits, so --dataset_split train has no effect"),
    ],
)
def test_what_is_named_twice_or_has_no_effect(refused, tmp_path, flags, message):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert message in refused("rows.jsonl", *flags)


def test_a_row_with_a_comma_too_many(refused, tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,user\nwhy,so,no,u1,\n")
    assert "rows.csv, line 2: 5 fields, but the header names 4" in refused("rows.csv")


# --- what a model was trained with


@pytest.fixture
def model(tmp_path):
    """A model as a training leaves it."""

    def save(name, inputs="messages", **history):
        folder = make_model("decoder", tmp_path / name, seed=len(name))
        tokenizer = add_history_template(AutoTokenizer.from_pretrained(folder))
        HistoryCutter(tokenizer, **history).remember(inputs)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def rewards(tmp_path, capsys):
    """What a command says of rows: the rewards of the chosen responses, or the error."""

    def run(command, folder, rows, *flags):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        where = ("--dataset_name", "--output_dir") if command == "evaluate" else ("--input", "--output")
        argv = [command, "--model_name_or_path", folder, where[0], tmp_path / "rows.jsonl", where[1], out, *flags]
        if main(list(map(str, argv))):
            return capsys.readouterr().err
        lines = (out / "model.jsonl" if command == "evaluate" else out).read_text().splitlines()
        return np.array([json.loads(line)["reward_chosen"] for line in lines])

    return run


PLAIN, PERSONAL = make_pairs(4, 2, history=0).to_list(), make_pairs(4, 2).to_list()


@pytest.mark.parametrize("inputs", ["text", "messages"])
def test_evaluate_and_score_read_texts_as_the_model_was_trained(model, rewards, inputs):
    folder = model("plain", inputs, num_history=0)
    both = [rewards(command, folder, PLAIN) for command in ("evaluate", "score")]
    np.testing.assert_allclose(*both, atol=rounding(*both))
    other = rewards("score", model("other", "text" if inputs == "messages" else "messages", num_history=0), PLAIN)
    assert np.abs(both[0] - other).max() > 1e-3


@pytest.mark.parametrize("command", ["evaluate", "score"])
class TestHistories:
    def test_missing_ones_are_told(self, command, model, rewards):
        folder = model("fair")
        assert "no row has a history, and the model was trained with histories" in rewards(command, folder, PLAIN)
        with pytest.warns(UserWarning, match="7 of 8 rows have no history"):
            some = rewards(command, folder, [PERSONAL[0], *({**row, "history": None} for row in PLAIN[1:])])
        none = rewards(command, folder, PERSONAL, "--num_history", 0)
        np.testing.assert_allclose(some[1:], rewards(command, folder, PLAIN, "--num_history", 0)[1:], atol=rounding(some))
        assert abs(some[0] - none[0]) > 1e-3

    def test_those_that_the_model_was_not_trained_with_are_refused(self, command, model, rewards):
        folder = model("plain", num_history=0)
        assert "row 0 has a history, and the model was trained without" in rewards(command, folder, PERSONAL).replace(
            "row 1 ", "row 0 "
        )
        found = rewards(command, folder, PERSONAL, "--num_history", 0)
        np.testing.assert_allclose(
            found, rewards(command, folder, [{**r, "history": []} for r in PERSONAL]), atol=rounding(found)
        )


def test_a_reference_that_was_trained_without_histories_is_shown_none(model, rewards, tmp_path):
    fair, plain = model("fair"), model("plain", num_history=0)
    rewards("evaluate", fair, PERSONAL, "--reference", plain)
    (shown,) = (json.loads(p.read_text()) and p.parent for p in tmp_path.glob("out*/results.json"))
    found = [json.loads(line)["reward_chosen"] for line in (shown / "reference.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(found, rewards("evaluate", plain, PERSONAL, "--num_history", 0), atol=rounding(found))
