"""`trl-pafo evaluate`: what it refuses before a model is loaded, what it says of users and groups, and how models read rows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from helpers.parts import make_model, make_pairs, remember_inputs
from helpers.rounding import rounding

from trl_pafo.cli import main
from trl_pafo.errors import DataError
from trl_pafo.evaluation import evaluate as evaluation

ROWS = [{"prompt": "why", "chosen": "so", "rejected": "no", "user": f"u{n}", "group": "ab"[n % 2]} for n in range(4)]


@pytest.fixture
def refused(encoder, tmp_path, monkeypatch, capsys):
    """What `evaluate` says of a file, without loading the model."""
    monkeypatch.setattr(evaluation, "RewardScorer", None)

    def evaluate(name, *flags):
        argv = ["evaluate", "--model_name_or_path", encoder, "--dataset_name", str(tmp_path / name), *flags]
        assert main(argv) == 1
        return capsys.readouterr().err

    return evaluate


def rows_of(*columns: str) -> Dataset:
    return make_pairs(history=0).select_columns(["prompt", "chosen", "rejected", *columns])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": " "}, "rows without a prompt or a response"),
        ({"chosen": None}, "rows without a prompt or a response"),
        ({"chosen": "no"}, "pairs of two equal responses"),
        ({"user": None}, "pairs without a user"),
        ({"group": " "}, "pairs of users without a group"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_bad_rows_are_left_out_and_counted(tmp_path, changes, reason, kind):
    rows = [{**row, **(changes if n == 2 else {})} for n, row in enumerate(ROWS)]
    write = Dataset.from_list(rows).to_parquet if kind == "parquet" else Dataset.from_list(rows).to_json
    write(str(tmp_path / f"rows.{kind}"))
    results = evaluation.evaluate_models(
        lambda prompts, completions, **_: [0] * len(prompts), tmp_path / f"rows.{kind}", num_resamples=10
    )
    assert results["methods"]["<lambda>"]["num_pairs"] == 3
    assert f"left out: 1 {reason} (the first: row 2)" in results["read"][2]


def test_texts_that_begin_with_their_prompt(tmp_path):
    shown = []

    def see(prompts, completions, **_):
        shown.extend(zip(prompts, completions, strict=True))
        return [0] * len(prompts)

    evaluation.evaluate_models(see, Dataset.from_list([{"chosen": "why so", "rejected": "why no"}]), num_resamples=10)
    assert shown == [("", "why so"), ("", "why no")]
    with pytest.raises(DataError, match="`prompt` is missing, and is not the start"):
        evaluation.evaluate_models(see, Dataset.from_list([{"chosen": "so", "rejected": "no"}]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset_split", "train"], "has no splits, so --dataset_split train has no effect"),
        (["--num_resamples", "0"], "`num_resamples` must be at least 1, got 0"),
        (["--batch_size", "0"], "`batch_size` must be at least 1, got 0"),
        (["--num_history", "2"], "rows.jsonl, whose rows have no `history`. Give a folder of `trl-pafo prepare`"),
    ],
)
def test_an_option_without_effect_or_sense_is_named(refused, tmp_path, flags, message):
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert message in refused("rows.jsonl", *flags)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("group", ["even", "odd"] * 15, "The user 'user-0' has several values of `group` ('even' and 'odd')"),
        ("support_rate", [0.1, 0.2] * 15, "The user 'user-0' has several values of `support_rate` (0.1 and 0.2)"),
        ("support_rate", ["rare"] * 30, "row 0: `support_rate` must be a number in [0, 1], got 'rare'"),
    ],
)
def test_what_cannot_be_summarized_is_not_scored(refused, tmp_path, column, values, message):
    rows_of("user").add_column(column, values).to_json(tmp_path / "rows.jsonl")
    assert message in refused("rows.jsonl")


# --- what is said of users and groups

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


def test_data_without_groups_have_an_overall_accuracy_alone(evaluate, encoder, tmp_path):
    results, printed = evaluate(rows_of("user"), make_model("encoder", tmp_path / "other", seed=7))
    assert (results["majority"], results["minority"]) == (None, None)
    assert printed.startswith(f"Data: {tmp_path / 'test.jsonl'}\n")
    assert printed.splitlines()[2].split()[:3] == ["method", "overall", "worst"]
    assert "gap" not in printed
    assert "no column `group`, so nothing is said of groups" in printed
    summary = results["methods"]["encoder"]
    assert not [name for name in summary if "/" in name or name in ("group_min", "difference", "ratio", "worst_group")]
    assert results["reference"] == "other"
    assert list(results["verdicts"]["encoder"]["differences"]) == ["overall"]


def test_data_without_users_say_nothing_of_users(evaluate):
    results, printed = evaluate(rows_of("group"))
    assert not [name for name in results["methods"]["encoder"] if name.startswith(("user_", "num_users"))]
    assert "Gini" not in printed
    assert "each pair counts as another person's" in printed


@pytest.mark.parametrize("columns", [("user", "group"), ()])
def test_a_model_beside_a_copy_of_itself_is_the_same_model(evaluate, encoder, tmp_path, columns):
    results, printed = evaluate(rows_of(*columns), shutil.copytree(encoder, tmp_path / "copy").as_posix())
    verdict = results["verdicts"]["encoder"]
    assert verdict["verdict"] == "same"
    assert verdict["sentence"] == "The same model."
    assert "The same model." in printed
    assert "Cannot tell" not in printed
    assert all(set(difference.values()) == {0.0} for difference in verdict["differences"].values())


# --- what a model was trained with


@pytest.fixture
def model(tmp_path):
    """A model as a training leaves it."""

    def save(name, inputs="messages", **history):
        return remember_inputs(make_model("decoder", tmp_path / name, seed=len(name)), inputs, **history)

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
        lines = (out / f"{Path(folder).name}.jsonl" if command == "evaluate" else out).read_text().splitlines()
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
        place = "row 0" if command == "evaluate" else "line 1"
        assert f"{place} has a history, and the model was trained without" in rewards(command, folder, PERSONAL)
        found = rewards(command, folder, PERSONAL, "--num_history", 0)
        np.testing.assert_allclose(
            found, rewards(command, folder, [{**r, "history": []} for r in PERSONAL]), atol=rounding(found)
        )


def test_the_model_that_cannot_read_the_rows_is_named(model, rewards):
    error = rewards("evaluate", model("plain", num_history=0), PLAIN, "--reference", model("fair"))
    assert error.startswith("trl-pafo evaluate: fair: ")


def test_a_reference_that_was_trained_without_histories_is_shown_none(model, rewards, tmp_path):
    fair, plain = model("fair"), model("plain", num_history=0)
    rewards("evaluate", fair, PERSONAL, "--reference", plain)
    (shown,) = (json.loads(p.read_text()) and p.parent for p in tmp_path.glob("out*/results.json"))
    found = [json.loads(line)["reward_chosen"] for line in (shown / "plain.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(found, rewards("evaluate", plain, PERSONAL, "--num_history", 0), atol=rounding(found))


def test_a_model_that_remembers_nothing_is_shown_no_past_pairs_unless_told(model, rewards, tmp_path):
    fair, foreign = model("fair"), make_model("decoder", tmp_path / "foreign", seed=7)
    with pytest.warns(UserWarning, match="foreign does not say how it was trained, so it is shown no past pairs"):
        rewards("evaluate", fair, PERSONAL, "--reference", foreign)
    (shown,) = (p.parent for p in tmp_path.glob("out*/results.json"))
    beside = {
        name: [json.loads(line)["reward_chosen"] for line in (shown / f"{name}.jsonl").open()] for name in ("fair", "foreign")
    }
    np.testing.assert_allclose(beside["fair"], rewards("evaluate", fair, PERSONAL), atol=rounding(beside["fair"]))
    found = rewards("evaluate", foreign, [{name: value for name, value in row.items() if name != "history"} for row in PERSONAL])
    np.testing.assert_allclose(beside["foreign"], found, atol=rounding(found))
    assert np.abs(rewards("evaluate", foreign, PERSONAL, "--num_history", 1) - found).max() > 1e-3


def test_a_reference_alone_is_shown_as_many_past_pairs_as_are_named(model, rewards, tmp_path, capsys):
    fair, foreign = model("fair"), make_model("decoder", tmp_path / "foreign", seed=7)
    rewards("evaluate", fair, PERSONAL, "--reference", foreign, "--reference_num_history", 1)
    (shown,) = (p.parent for p in tmp_path.glob("out*/results.json"))
    beside = {
        name: [json.loads(line)["reward_chosen"] for line in (shown / f"{name}.jsonl").open()] for name in ("fair", "foreign")
    }
    np.testing.assert_allclose(beside["fair"], rewards("evaluate", fair, PERSONAL), atol=rounding(beside["fair"]))
    found = rewards("evaluate", foreign, PERSONAL, "--num_history", 1)
    np.testing.assert_allclose(beside["foreign"], found, atol=rounding(found))
    assert "--reference_num_history is for a --reference" in rewards("evaluate", fair, PERSONAL, "--reference_num_history", 1)


@pytest.mark.parametrize("what", ["folder that is not there", "file", "folder without a model"])
def test_a_model_that_cannot_be_used_is_told_before_the_data_are_read(encoder, tmp_path, monkeypatch, capsys, what):
    monkeypatch.setattr(evaluation, "load_pairs", None)
    path = tmp_path / "model"
    if what == "file":
        path.write_text("weights")
    elif what == "folder without a model":
        path.mkdir()
    for models in ([str(path)], [encoder, "--reference", str(path)]):
        assert main(["evaluate", "--model_name_or_path", *models, "--dataset_name", "millions.jsonl"]) == 1
        assert str(path) in capsys.readouterr().err
