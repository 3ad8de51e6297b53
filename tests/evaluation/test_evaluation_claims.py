"""`trl-pafo evaluate`: what it says of groups and users that the data do not name, of groups too small, and of one model twice."""

import json
import shutil

import pytest
from datasets import Dataset
from helpers.parts import make_model, make_pairs

from trl_pafo.cli import main
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.metrics import fairness_summary
from trl_pafo.report.results import write_results

FLAGS = ["--num_history", "0", "--num_resamples", "50"]


@pytest.fixture
def evaluate(encoder, tmp_path, capsys):
    """The results of evaluating a model on rows, and what was printed."""

    def run(rows: Dataset, reference: str | None = None):
        rows.to_json(tmp_path / "test.jsonl")
        argv = ["evaluate", "--model_name_or_path", encoder, "--dataset_name", str(tmp_path / "test.jsonl"), *FLAGS]
        argv += ["--reference", reference] if reference else []
        assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out/results.json").read_text()
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")), capsys.readouterr().out

    return run


def rows_of(*columns: str) -> Dataset:
    return make_pairs(history=0).select_columns(["prompt", "chosen", "rejected", *columns])


def test_data_without_groups_have_an_overall_accuracy_alone(evaluate, encoder, tmp_path):
    results, printed = evaluate(rows_of("user"), make_model("encoder", tmp_path / "other", seed=7))
    assert (results["majority"], results["minority"]) == (None, None)
    assert printed.startswith(f"Data: {tmp_path / 'test.jsonl'}\n")
    assert printed.splitlines()[2].split()[:3] == ["method", "overall", "worst"]
    assert "gap" not in printed
    assert "no column `group`, so nothing is said of groups" in printed
    summary = results["methods"]["model"]
    assert not [name for name in summary if "/" in name or name in ("group_min", "difference", "ratio", "worst_group")]
    assert list(results["verdicts"]["model"]["differences"]) == ["overall"]
    assert main(["report", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "name no groups" in page
    assert "None" not in page


def test_data_without_users_say_nothing_of_users(evaluate):
    results, printed = evaluate(rows_of("group"))
    assert not [name for name in results["methods"]["model"] if name.startswith(("user_", "num_users"))]
    assert "Gini" not in printed
    assert "each pair counts as another person's" in printed


def test_the_interval_of_a_group_of_one_user_is_unknown(evaluate):
    rows = rows_of("user", "group")
    alone = rows["user"][0]
    rows = rows.remove_columns("group").add_column("group", ["one" if user == alone else "many" for user in rows["user"]])
    results, printed = evaluate(rows)
    entry = results["methods"]["model"]["accuracy/one"]
    assert entry["low"] is None
    assert entry["high"] is None
    assert 0 <= entry["value"] <= 1
    assert "[unknown]" in printed
    assert f"1, {list(rows['user']).count(alone)}" in printed


@pytest.mark.parametrize("columns", [("user", "group"), ()])
def test_a_model_beside_a_copy_of_itself_is_the_same_model(evaluate, encoder, tmp_path, columns):
    results, printed = evaluate(rows_of(*columns), shutil.copytree(encoder, tmp_path / "copy").as_posix())
    verdict = results["verdicts"]["model"]
    assert verdict["verdict"] == "same"
    assert verdict["sentence"] == "The same model."
    assert "The same model." in printed
    assert "Cannot tell" not in printed
    assert all(set(difference.values()) == {0.0} for difference in verdict["differences"].values())


def test_a_run_whose_test_lacks_a_group_has_a_table_and_no_picture(tmp_path):
    user = [i // 2 for i in range(20)]
    summary = fairness_summary([1.0, 0.0, 1.0, 1.0] * 5, user, ["a"] * 20, num_resamples=50)
    for majority, minority in (("a", "absent"), ("a", "a")):
        results = {"majority": majority, "minority": minority, "reference": "pafo", "methods": {"pafo": summary}, "verdicts": {}}
        results["data"] = DataArguments().data_inputs()
        write_results(tmp_path, results)
        assert "| method | overall | a | worst" in (tmp_path / "results.md").read_text()
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (["--num_resamples", "0"], "`num_resamples` must be at least 1, got 0"),
        (["--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--seed", "-1"], "`seed` must be at least 0, got -1"),
        ({"group": ["even", "odd"] * 15}, "User 'user-0' has pairs in two groups (even, odd)"),
        ({"support_rate": [0.1, 0.2] * 15}, "User 'user-0' has more than one value of `support`"),
        ({"support_rate": ["rare"] * 30}, "`support` must hold numbers"),
    ],
)
def test_what_cannot_be_summarized_is_not_scored(wrong, match, encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trl_pafo.evaluation.evaluate.score_rows", lambda *_, **__: pytest.fail("scored"))
    rows = rows_of("user")
    for name, values in wrong.items() if isinstance(wrong, dict) else ():
        rows = rows.add_column(name, values)
    rows.to_json(tmp_path / "test.jsonl")
    data = ["--dataset_name", str(tmp_path / "test.jsonl"), "--num_history", "0"]
    flags = wrong if isinstance(wrong, list) else []
    assert main(["evaluate", "--model_name_or_path", encoder, *data, *flags]) == 1
    assert match in capsys.readouterr().err
