"""`trl-pafo evaluate` on two processes: the results of one, written and said once."""

import contextlib
import io
import json
from pathlib import Path

from helpers.parts import make_pairs, make_teacher
from helpers.ranks import launch

from trl_pafo.cli import main


def evaluate(out: Path, name: str) -> dict:
    models = [str(out / "teachers" / model) for model in ("a", "b")]
    flags = [
        "--model_name_or_path",
        *models,
        "--dataset_name",
        str(out / "pairs.jsonl"),
        "--num_resamples",
        "50",
        "--batch_size",
        "4",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = main(["evaluate", *flags, "--output_dir", str(out / name)])
    return {"status": status, "said": said.getvalue()}


def evaluate_on_rank(out: Path) -> dict:
    return evaluate(out, "two")


def test_two_processes_evaluate_as_one(tmp_path):
    for seed, name in enumerate(("a", "b")):
        make_teacher("decoder", tmp_path / "teachers" / name, seed)
    make_pairs(num_users=6, pairs_per_user=3).to_json(tmp_path / "pairs.jsonl")
    one = evaluate(tmp_path, "one")
    first, second = launch(evaluate_on_rank, 2, tmp_path)
    assert one["status"] == first["status"] == second["status"] == 0
    assert first["said"] == one["said"].replace("/one/", "/two/")
    assert second["said"] == ""
    assert {path.name for path in (tmp_path / "two").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_text() == path.read_text()
    assert json.loads((tmp_path / "one/results.json").read_text())["verdicts"]
