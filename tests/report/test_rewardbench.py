import json
import math
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.evaluation.rewardbench import file_name, write_rewardbench

CHOSEN = [1.5, -0.25, 0.5, 3.0]
REJECTED = [0.5, 0.75, 0.5, 2.75]


@pytest.fixture
def rows():
    """Four pairs: right, wrong, a tie, right."""
    return [
        {
            "prompt": f"Soup {number}?",
            "text_chosen": f"<s>Liked: tea\nSoup {number}?<a>Ja, bitte ß</s>",
            "text_rejected": f"<s>Liked: tea\nSoup {number}?<a>No</s>",
            "group": group,
            "user": user,
        }
        for number, (group, user) in enumerate([("many", 1), ("many", 1), ("few", 2), ("few", 3)])
    ]


def read(paths):
    scores, outputs = paths
    return json.loads(scores.read_text()), [json.loads(line) for line in outputs.read_text().splitlines()]


def test_files_of_rewardbench_with_group_and_user(tmp_path, rows):
    paths = write_rewardbench(tmp_path / "new" / "folder", "fair", rows, CHOSEN, REJECTED)
    assert paths == (tmp_path / "new" / "folder" / "fair.json", tmp_path / "new" / "folder" / "fair_outputs.jsonl")
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)  # nothing written aside is left
    scores, outputs = read(paths)
    assert scores == {
        "accuracy": 0.625,
        "num_prompts": 4,
        "model": "fair",
        "ref_model": None,
        "tokenizer": "fair",
        "chat_template": None,
        "extra_results": {"few": 0.75, "many": 0.5},
        "extra_counts": {"few": 2, "many": 2},
    }
    assert outputs == [
        {
            "prompt": row["prompt"],
            "results": result,
            "scores_chosen": a,
            "scores_rejected": b,
            "text_chosen": row["text_chosen"],
            "text_rejected": row["text_rejected"],
            "group": row["group"],
            "user": str(row["user"]),
        }
        for row, result, a, b in zip(rows, [1, 0, 0.5, 1], CHOSEN, REJECTED, strict=True)
    ]
    assert [type(line["results"]) for line in outputs] == [int, int, float, int]


def test_rewards_are_raw_to_the_last_digit(tmp_path, rows):
    rng = np.random.default_rng(0)
    chosen, rejected = 40 * rng.standard_normal((2, 4)).astype(np.float32)
    _, outputs = read(write_rewardbench(tmp_path, "fair", rows, chosen, rejected))
    for name, rewards in (("scores_chosen", chosen), ("scores_rejected", rejected)):
        assert np.array_equal(np.float32([line[name] for line in outputs]), rewards)


def test_reads_as_a_dataset(tmp_path, rows):
    dataset = Dataset.from_list([{**row, "chosen": "Yes", "support_rate": math.nan if i else 0.5} for i, row in enumerate(rows)])
    _, outputs = write_rewardbench(tmp_path / "out", "fair", dataset, CHOSEN, REJECTED)
    read_again = load_dataset("json", data_files=str(outputs), split="train", cache_dir=str(tmp_path / "cache"))
    names = ["prompt", "results", "scores_chosen", "scores_rejected", "text_chosen", "text_rejected", "group", "user"]
    assert read_again.column_names == [*names, "chosen", "support_rate"]
    assert read_again["text_chosen"][:] == dataset["text_chosen"][:]
    assert read_again["support_rate"][:] == [0.5, None, None, None]


def test_a_row_cannot_replace_a_score(tmp_path, rows):
    rows[0] |= {"results": 0, "scores_chosen": 99.0, "id": 7}
    _, outputs = read(write_rewardbench(tmp_path, "fair", rows, CHOSEN, REJECTED))
    assert (outputs[0]["results"], outputs[0]["scores_chosen"], outputs[0]["id"]) == (1, 1.5, 7)


def test_prompt_and_user_may_be_unknown(tmp_path, rows):
    plain = [{name: row[name] for name in ("text_chosen", "text_rejected", "group")} for row in rows]
    _, outputs = read(write_rewardbench(tmp_path, "fair", plain, CHOSEN, REJECTED))
    assert all(line["prompt"] is None and line["user"] is None for line in outputs)


def test_names_stand_in_the_files_as_they_are(tmp_path, rows):
    paths = write_rewardbench(tmp_path, "org/fair", rows, CHOSEN, REJECTED, tokenizer="org/words", chat_template="tulu")
    assert paths[0].name == "org--fair.json"
    scores, _ = read(paths)
    assert (scores["model"], scores["tokenizer"], scores["chat_template"]) == ("org/fair", "org/words", "tulu")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pafo", "pafo"),
        ("org/model-1.5_b", "org--model-1.5_b"),
        ("../../etc/passwd", "etc--passwd"),
        ("..\\..\\x", "x"),
        ("/runs/fair/models/pafo/", "runs--fair--models--pafo"),
        ("a/../b", "a--..--b"),
        (".hidden", "hidden"),
        ("PAFO | ours\n\0", "PAFO___ours__"),
        ("C:\\models\\fair", "C_--models--fair"),
        ("Modell für alle", "Modell_für_alle"),
    ],
)
def test_file_names_stay_in_their_folder(tmp_path, rows, name, expected):
    assert file_name(name) == expected
    for path in write_rewardbench(tmp_path / "out", name, rows, CHOSEN, REJECTED):
        assert path.resolve().parent == (tmp_path / "out").resolve()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["", "..", "../", "/", ".-.", "x" * 201, "ß" * 101])
def test_names_that_make_no_file_name_are_refused(tmp_path, rows, name):
    with pytest.raises(ConfigError, match="makes no file name; give one of 1 to 200 letters"):
        write_rewardbench(tmp_path, name, rows, CHOSEN, REJECTED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fair.json", "fair_outputs.jsonl"])
def test_nothing_is_overwritten(tmp_path, rows, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunFolderError, match=f"{name} exists already. Choose another folder or `model_name`"):
        write_rewardbench(tmp_path, "fair", rows, CHOSEN, REJECTED)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"text_chosen": None}, "Row 3: `text_chosen` must be the text that the model read, got None"),
        ({"text_rejected": [{"role": "user", "content": "a"}]}, "Row 3: `text_rejected` must be the text"),
        ({"prompt": [{"role": "user", "content": "a"}]}, "Row 3: `prompt` must be a text, .*Join the contents of its messages"),
        ({"group": None}, "Row 3: `group` is missing, but other rows have one"),
        ({"group": float("nan")}, "Row 3: `group` is missing, but other rows have one"),
    ],
)
def test_a_bad_row_is_named(tmp_path, rows, change, match):
    rows[2] |= change
    with pytest.raises(DataError, match=match):
        write_rewardbench(tmp_path, "fair", rows, CHOSEN, REJECTED)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("chosen", "rejected", "match"),
    [
        (CHOSEN[:3], REJECTED, "There are 4 rows, 3 rewards of chosen and 4 of rejected responses"),
        (CHOSEN, [*REJECTED, 1.0], "4 rewards of chosen and 5 of rejected"),
        ([CHOSEN], REJECTED, r"`chosen_rewards` must be finite and of shape \(num_pairs,\), got shape \(1, 4\)"),
        (CHOSEN, [0.0, math.nan, math.inf, 0.0], r"`rejected_rewards` .* with 2 NaN or infinite values. Score these pairs again"),
    ],
)
def test_bad_rewards_are_refused(tmp_path, rows, chosen, rejected, match):
    with pytest.raises(DataError, match=match):
        write_rewardbench(tmp_path, "fair", rows, chosen, rejected)


def test_no_rows(tmp_path):
    with pytest.raises(DataError, match="at least one pair"):
        write_rewardbench(tmp_path, "fair", [], [], [])


def test_scores_come_last(tmp_path, rows, monkeypatch):
    """Whoever finds `<model>.json` finds all outputs beside it."""
    import trl_pafo.evaluation.rewardbench as module

    written, write = [], module.write_text

    def record(path: Path, text: str) -> None:
        written.append(path.name)
        write(path, text)

    monkeypatch.setattr(module, "write_text", record)
    write_rewardbench(tmp_path, "fair", rows, CHOSEN, REJECTED)
    assert written == ["fair_outputs.jsonl", "fair.json"]
