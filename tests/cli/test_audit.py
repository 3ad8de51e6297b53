"""`trl-pafo audit` as a user types it."""

import functools
import json
import sys

import pandas as pd
import pytest
from helpers.parts import make_model, make_pairs, remember_inputs

from trl_pafo.audit.probes import probe_front
from trl_pafo.cli import main
from trl_pafo.data.people import read_people
from trl_pafo.models import RewardScorer

STYLES = ["--train_users", "12", "--test_users", "12", "--minority_ratio", "0.25", "--pairs_per_user", "3"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Fewer folds and repeats."""
    monkeypatch.setattr("trl_pafo.audit.audit.probe_front", functools.partial(probe_front, folds=2, repeats=1))
    for name, value in (("DIRECTIONS", (8,)), ("PENALTIES", (0.1,)), ("FOLDS", 2)):
        monkeypatch.setattr(f"trl_pafo.evaluation.tastes.{name}", value)


def test_audit_of_the_shipped_corpus(encoder, tmp_path, capsys):
    out = tmp_path / "audit"
    flags = ["audit", *STYLES, "--num_history", "1", "--embedding_model", encoder, "--output_dir", str(out)]
    assert main(flags) == 0
    printed = capsys.readouterr().out
    result = json.loads((out / "audit.json").read_text())
    assert result["verdict"] in printed
    assert (result["counts"]["users"], result["counts"]["pairs"]) == (24, 96)
    assert result["counts"]["groups"]["minority"]["users"] == 6
    assert result["noise"]["known"] == 1
    for name, group in result["accuracy"]["groups"].items():
        assert group["accuracy"]["value"] == pytest.approx(result["front"]["points"]["shared probe"][f"accuracy/{name}"]["value"])
    assert sum(result["tastes"]["users"].values()) == 24
    assert set(result["tastes"]["given"]) == {"majority", "minority"}
    assert "Tastes: " in printed
    assert {path.name for path in out.glob("*.png")} == {"front.png"}
    assert "No probability of a group is known: the groups come with the data." in printed
    assert len(read_people(out)) == 24
    (out / "mine.txt").write_text("keep")
    assert main(flags) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


def test_nobody_of_a_study_of_real_people_is_held_out(tmp_path, capsys):
    votes = [
        {"ID": p, "SURVEY": p % 2, "CHOICE": 1 + n % 3, "TRAIN_TT": 100 + n, "SM_CO": 52 + p} for p in range(40) for n in range(3)
    ]
    rest = {
        "PURPOSE": 3,
        "FIRST": 1,
        "LUGGAGE": 1,
        "WHO": 2,
        "GA": 0,
        "ORIGIN": 2,
        "DEST": 1,
        "TRAIN_AV": 1,
        "SM_AV": 1,
        "CAR_AV": 1,
        "SM_SEATS": 0,
    }
    rest |= {"TRAIN_HE": 30, "SM_HE": 10, "SM_TT": 60, "CAR_TT": 120, "TRAIN_CO": 48, "CAR_CO": 65}
    pd.DataFrame([vote | rest for vote in votes]).to_csv(tmp_path / "survey.csv", index=False)
    flags = ["audit", "--source", "swissmetro", "--data_path", str(tmp_path / "survey.csv"), "--probes", "false"]
    assert main(flags) == 0
    assert "40 users, 120 pairs" in capsys.readouterr().out


def test_audit_of_files_without_probes(tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    make_pairs(num_users=12, pairs_per_user=4, num_minority=5, history=0).to_json(file)
    flags = ["audit", "--data_path", str(file), "--probes", "false"]
    assert main([*flags, "--output_dir", str(tmp_path / "audit")]) == 0
    result = json.loads((tmp_path / "audit/audit.json").read_text())
    assert result["front"] is None
    assert result["accuracy"] is None
    assert "cannot be estimated" in result["noise"]["reason"]
    out = capsys.readouterr().out
    assert "not known" in out
    assert out.startswith(f"# Audit of files ({file})\n\n12 users, 48 pairs")
    assert (tmp_path / "audit/audit.md").read_text() in out


def test_audit_of_data_without_groups(encoder, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    rows = make_pairs(num_users=24, pairs_per_user=4, num_minority=6, history=0)
    rows = rows.add_column("land", ["DE" if group == "minority" else "FR" for group in rows["group"]]).remove_columns("group")
    rows.to_json(file)
    flags = ["audit", "--data_path", str(file), "--num_history", "1"]
    assert main(flags) == 1
    assert "find groups in the pairs with --infer_groups" in capsys.readouterr().err
    capsys.readouterr()
    assert main([*flags, "--infer_groups", encoder, "--describe", "land", "--output_dir", str(tmp_path / "audit")]) == 0
    printed = capsys.readouterr().out
    assert "The groups were found in the pairs; nobody said who belongs to which." in printed
    assert "land of 18 majority users: FR (18); of 6 minority users: DE (6)." in printed
    people = read_people(tmp_path / "audit")
    assert (people["posterior"] >= 0.5).all()
    assert set(zip(people["group"], people["land"], strict=True)) == {("majority", "FR"), ("minority", "DE")}
    assert (tmp_path / "audit/groups.png").is_file()
    result = json.loads((tmp_path / "audit/audit.json").read_text())
    assert (result["front"], result["accuracy"]) == (None, None)
    assert list(result["counts"]["groups"]) == ["all"]
    assert result["tastes"]["users"] == {"majority": 18, "minority": 6}
    assert result["verdict"].startswith("Open: no groups are given, but the pairs show 2")


def test_models_beside_the_noise_ceiling_on_a_folder_of_prepare(encoder, tmp_path, monkeypatch, capsys):
    rows = make_pairs(num_users=12, pairs_per_user=4, num_minority=5, history=0)
    rows = rows.add_column("support_rate", [0.4 if group == "minority" else 0.6 for group in rows["group"]])
    (tmp_path / "data").mkdir()
    for split, users in (("train", range(3, 12)), ("test", range(3))):
        names = {f"user-{user}" for user in users} | ({"user-11"} if split == "test" else set())
        kept = [n for n, user in enumerate(rows["user"]) if user in names and (split == "test" or user != "user-11")]
        rows.select(kept).to_parquet(tmp_path / f"data/{split}.parquet")
    (tmp_path / "manners.py").write_text(
        "def polite(prompts, completions, group, **others):\n    return ['sir' in completion for completion in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    flags = ["--model_name_or_path", encoder, *"--dataset_name data --probes false --reward_function manners:polite".split()]
    assert main(["audit", *flags, "--output_dir", "audit"]) == 0
    result = json.loads((tmp_path / "audit/audit.json").read_text())
    found = {name: group["accuracy"]["value"] for name, group in result["models"]["manners:polite"]["groups"].items()}
    assert found == {"majority": 1, "minority": 0}
    scored = RewardScorer.from_pretrained(encoder).score(rows.to_list())
    right = [pair["chosen"] > pair["rejected"] for pair in scored]
    assert result["models"]["encoder"]["overall"]["value"] == pytest.approx(sum(right) / len(right))
    printed = capsys.readouterr().out
    assert "## Accuracy of manners:polite\n" in printed
    assert "- Bias of manners:polite: " in printed


@pytest.mark.parametrize("num_history", [0, 1, None])
def test_a_model_is_shown_the_histories_that_it_was_trained_with(num_history, tmp_path):
    """None, where it was trained without; all, where it was trained with all past pairs, however many (`None`)."""
    folder = remember_inputs(make_model("encoder", tmp_path / "model"), num_history=num_history)
    rows = make_pairs(
        num_users=12, pairs_per_user=4, num_minority=5, history=0 if num_history == 0 else 2
    )  # else the audit makes them
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        kept = [n for n, user in enumerate(rows["user"]) if (user in ("user-0", "user-1", "user-11")) == (split == "test")]
        rows.select(kept).add_column("support_rate", [0.5] * len(kept)).to_parquet(tmp_path / f"data/{split}.parquet")
    flags = ["--dataset_name", str(tmp_path / "data"), "--probes", "false", "--model_name_or_path", folder]
    assert main(["audit", *flags, "--output_dir", str(tmp_path / "audit")]) == 0
    alone, shown = (
        [pair["chosen"] > pair["rejected"] for pair in RewardScorer.from_pretrained(folder, **how).score(rows.to_list())]
        for how in ({"num_history": 0}, {})
    )
    assert (shown == alone) == (num_history == 0)
    [found] = json.loads((tmp_path / "audit/audit.json").read_text())["models"].values()
    assert found["overall"]["value"] == pytest.approx(sum(shown) / len(shown))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--probe_pairs", "1"], "`probe_pairs` must be at least 50"),
        (["--probes", "false", "--probe_pairs", "100"], "--probe_pairs: no effect without probes"),
        (["--probes", "false", "--num_history", "1"], "--embedding_model, --num_history: no effect without probes"),
        (["--infer_groups", "x", "--probes", "false"], "which --probes false does without"),
        (["--infer_groups", "x"], "--embedding_model: no effect beside --infer_groups"),
        (["--validation_share", "0.3"], "--validation_share: no effect on an audit"),
        (["--score_columns", "a", "b"], "--score_columns: no effect on the source 'styles'"),
        (["--source", "dsp"], "give its path with --data_path"),
        (["--embedding_model", "nowhere/x"], "nowhere/x"),
        (["--model_name_or_path", "nowhere/x"], "nowhere/x"),
    ],
)
def test_bad_input_is_refused_before_any_work(flags, match, encoder, capsys, monkeypatch):
    monkeypatch.setattr("trl_pafo.audit.audit.load_source", None)
    assert main(["audit", *STYLES, "--embedding_model", encoder, *flags]) == 1
    error = capsys.readouterr().err
    assert error.startswith("trl-pafo audit: ")
    assert match in error


def test_a_group_of_one_user_is_told_before_anything_is_embedded(tmp_path, capsys, monkeypatch):
    rows = make_pairs(history=0)
    rows = rows.remove_columns("group").add_column("group", [user if user == "user-5" else "many" for user in rows["user"]])
    rows.to_json(tmp_path / "pairs.jsonl")
    monkeypatch.setattr("trl_pafo.audit.audit.pair_features", lambda *_, **__: pytest.fail("embedded"))
    assert main(["audit", "--data_path", str(tmp_path / "pairs.jsonl"), "--num_history", "1"]) == 1
    assert "'user-5' has only one user" in capsys.readouterr().err
