"""`trl-pafo evaluate`: what it refuses before a model is loaded, what it says of users and groups, and how models read rows."""

import json
import shutil

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


def test_columns_of_a_table_may_be_named_as_our_own():
    rows = [{**row, "rewards": n / 2, "row": -n, "unit": "the same"} for n, row in enumerate(make_pairs(history=0))]
    plain = [{name: row[name] for name in ("prompt", "chosen", "rejected", "user", "group")} for row in rows]
    seen = []

    def number(prompts, completions, rewards=None, row=None, **_):
        seen.extend(zip(rewards, row, strict=True) if rewards else ())
        return list(map(len, completions))

    found, expected = (evaluation.evaluate_models(number, Dataset.from_list(r), num_resamples=50) for r in (rows, plain))
    assert sorted(set(seen)) == sorted((row["rewards"], row["row"]) for row in rows)
    assert found["methods"] == expected["methods"]
    assert expected["methods"]["number"]["overall"]["low"] < expected["methods"]["number"]["overall"]["high"]


def test_bad_rows_are_left_out_and_counted(tmp_path):
    rows = [{**row, **({"user": None} if n == 2 else {})} for n, row in enumerate(ROWS)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    results = evaluation.evaluate_models(
        lambda prompts, completions, **_: [0] * len(prompts), tmp_path / "rows.parquet", num_resamples=10
    )
    assert results["methods"]["<lambda>"]["num_pairs"] == 3
    assert "left out: 1 pairs without a user (the first: row 2)" in results["read"][2]


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
    assert (
        "no column `group`, so nothing is said of groups. Name it (--columns group=COLUMN), or make groups of the users'"
        in printed
    )
    summary = results["methods"]["encoder"]
    assert not [name for name in summary if "/" in name or name in ("group_min", "difference", "ratio", "worst_group")]
    assert results["reference"] == "other"
    assert list(results["verdicts"]["encoder"]["differences"]) == ["overall"]


def test_data_without_users_say_nothing_of_users(evaluate):
    results, printed = evaluate(rows_of("group"))
    assert not [name for name in results["methods"]["encoder"] if name.startswith(("user_", "num_users"))]
    assert "Gini" not in printed
    assert "each pair counts as another person's" in printed
    assert "Name it (--columns user=COLUMN)." in printed


def test_groups_of_agreement_are_not_proposed_without_users(evaluate):
    printed = evaluate(rows_of())[1]
    assert "nothing is said of groups. Name it (--columns group=COLUMN).\n" in printed
    assert "--minority_quantile" not in printed


def test_a_model_beside_a_copy_of_itself_is_the_same_model(evaluate, encoder, tmp_path):
    results, printed = evaluate(rows_of("user", "group"), shutil.copytree(encoder, tmp_path / "copy").as_posix())
    verdict = results["verdicts"]["encoder"]
    assert verdict["verdict"] == "same"
    assert verdict["sentence"] == "The same model."
    assert "The same model." in printed
    assert all(set(difference.values()) == {0.0} for difference in verdict["differences"].values())


# --- what a model was trained with


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models as trainings leave them, and one that remembers nothing."""
    folder = tmp_path_factory.mktemp("models")
    seeds = {"fair": 0, "plain": 1, "text": 1, "foreign": 2}
    made = {name: make_model("decoder", folder / name, seed=seed) for name, seed in seeds.items()}
    remember_inputs(made["fair"])
    remember_inputs(made["plain"], num_history=0)
    remember_inputs(made["text"], "text", num_history=0)
    return made


@pytest.fixture
def rewards(models, tmp_path, capsys):
    """What a command says of rows: the rewards of the chosen responses under the first model and the reference, or the error."""

    def run(command, name, rows, *flags, reference=None):
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        where = ("--dataset_name", "--output_dir") if command == "evaluate" else ("--input", "--output")
        argv = [command, "--model_name_or_path", models[name], where[0], tmp_path / "rows.jsonl", where[1], out, *flags]
        argv += ["--reference", models[reference]] if reference else []
        if main(list(map(str, argv))):
            return capsys.readouterr().err
        files = [out / f"{model}.jsonl" for model in (name, reference) if model] if command == "evaluate" else [out]
        found = [np.array([json.loads(line)["reward_chosen"] for line in file.read_text().splitlines()]) for file in files]
        return found if reference else found[0]

    return run


PLAIN, PERSONAL = make_pairs(4, 2, history=0).to_list(), make_pairs(4, 2).to_list()


def test_evaluate_and_score_read_texts_as_the_model_was_trained(rewards):
    both = [rewards(command, "text", PLAIN) for command in ("evaluate", "score")]
    np.testing.assert_allclose(*both, atol=rounding(*both))
    assert np.abs(rewards("score", "plain", PLAIN) - both[0]).max() > 1e-3


def test_a_history_is_shown_if_the_model_was_trained_with_one(rewards):
    assert "no row has a history, and the model was trained with histories" in rewards("evaluate", "fair", PLAIN)
    with pytest.warns(UserWarning, match="7 of 8 rows have no history"):
        some = rewards("evaluate", "fair", [PERSONAL[0], *({**row, "history": None} for row in PERSONAL[1:])])
    none = rewards("evaluate", "fair", PERSONAL, "--num_history", 0)
    np.testing.assert_allclose(some[1:], none[1:], atol=rounding(some))
    assert abs(some[0] - none[0]) > 1e-3
    assert "row 0 has a history, and the model was trained without" in rewards("evaluate", "plain", PERSONAL)


def test_the_model_that_cannot_read_the_rows_is_named(rewards):
    assert rewards("evaluate", "plain", PLAIN, reference="fair").startswith("trl-pafo evaluate: fair: ")


def test_each_model_is_shown_what_it_was_trained_with_or_what_is_named(rewards):
    fair = rewards("evaluate", "fair", PERSONAL)
    found, plain = rewards("evaluate", "fair", PERSONAL, reference="plain")
    np.testing.assert_allclose(found, fair, atol=rounding(fair))
    np.testing.assert_allclose(plain, rewards("evaluate", "plain", PERSONAL, "--num_history", 0), atol=rounding(plain))
    with pytest.warns(UserWarning, match="foreign does not say how it was trained, so it is shown no past pairs"):
        found, bare = rewards("evaluate", "fair", PERSONAL, reference="foreign")
    np.testing.assert_allclose(found, fair, atol=rounding(fair))
    without = [{name: value for name, value in row.items() if name != "history"} for row in PERSONAL]
    np.testing.assert_allclose(bare, rewards("evaluate", "foreign", without), atol=rounding(bare))
    found, one = rewards("evaluate", "fair", PERSONAL, "--reference_num_history", 1, reference="foreign")
    np.testing.assert_allclose(found, fair, atol=rounding(fair))
    np.testing.assert_allclose(one, rewards("evaluate", "foreign", PERSONAL, "--num_history", 1), atol=rounding(one))
    assert np.abs(one - bare).max() > 1e-3
    assert "--reference_num_history is for a --reference" in rewards("evaluate", "fair", PERSONAL, "--reference_num_history", 1)


@pytest.mark.parametrize("what", ["file", "folder without a model"])
def test_a_model_that_cannot_be_used_is_told_before_the_data_are_read(encoder, tmp_path, monkeypatch, capsys, what):
    monkeypatch.setattr(evaluation, "load_pairs", None)
    path = tmp_path / "model"
    path.write_text("weights") if what == "file" else path.mkdir()
    for models in ([str(path)], [encoder, "--reference", str(path)]):
        assert main(["evaluate", "--model_name_or_path", *models, "--dataset_name", "millions.jsonl"]) == 1
        assert str(path) in capsys.readouterr().err
