"""What `trl-pafo evaluate` takes: rows are checked as `prepare` checks them, before a model is looked for."""

import json
import math

import pytest
from conftest import make_pairs
from datasets import Dataset

from trl_pafo import evaluation
from trl_pafo.cli import main

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
