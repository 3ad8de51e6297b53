"""VPL, GPO, LoRe and MRM as methods of a run: features of its Bradley-Terry model or of its base, whichever is better on held-out pairs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.parts import make_model
from helpers.small_runs import small_run, train_nothing
from transformers import AutoModelForSequenceClassification

from trl_pafo.baselines import FeaturePairs, UserModel, pair_features
from trl_pafo.baselines.table import USER_MODELS
from trl_pafo.errors import DataError
from trl_pafo.metrics import pair_correctness
from trl_pafo.models import FeatureReader, RewardScorer, with_new_head
from trl_pafo.pipeline import user_models
from trl_pafo.pipeline.prepare import load_prepared
from trl_pafo.pipeline.run import Run
from trl_pafo.pipeline.user_models import choose, read_choice

METHODS = {"methods": ["bradley_terry", *USER_MODELS], "reference": "bradley_terry"}
HELD_OUT = {"validation_share": 0.3, "validation_users": 8}


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(UserModel, "num_steps", 2)


def rewards_of(folder, method):
    lines = (folder / f"results/{method}.jsonl").read_text().splitlines()
    return np.array([[json.loads(line)[f"reward_{side}"] for side in ("chosen", "rejected")] for line in lines])


def naive_accuracies(rewards, group):
    of_groups = {}
    for (chosen, rejected), name in zip(rewards.tolist(), group, strict=True):
        of_groups.setdefault(name, []).append(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0)
    return {name: sum(right) / len(right) for name, right in of_groups.items()}


def test_held_out_pairs_choose_the_features_and_all_are_judged_alike(run, encoder, tmp_path, capsys):
    results = run(**METHODS, **HELD_OUT)()
    folder = tmp_path / "run"
    assert list(results["methods"]) == METHODS["methods"]
    assert set(results["verdicts"]) == set(results["features"]) == set(USER_MODELS)
    data = load_prepared(folder / "data")
    scorers = {"bradley_terry": RewardScorer(folder / "models/bradley_terry"), "base": FeatureReader(*with_new_head(encoder))}
    features = {name: {split: pair_features(s, rows) for split, rows in data.items()} for name, s in scorers.items()}
    assert any(features["base"]["train"].past)
    said = capsys.readouterr()
    for method, entry in USER_MODELS.items():
        fitted = {name: entry.load().fit(own["train"], seed=42) for name, own in features.items()}
        balanced, choice = {}, results["features"][method]
        for name, model in fitted.items():
            of_groups = naive_accuracies(model.score(features[name]["validation"]), data["validation"]["group"][:])
            balanced[name] = sum(of_groups.values()) / len(of_groups)
            for group, value in of_groups.items():
                assert choice["validation"][name][f"accuracy/{group}"]["value"] == pytest.approx(value)
        chosen = "base" if balanced["base"] > balanced["bradley_terry"] else "bradley_terry"
        assert choice["chosen"] == chosen
        for text in (said.out, (folder / "results/results.md").read_text(), (folder / "report.html").read_text()):
            assert choice["sentence"] in text
        expected = fitted[chosen].score(features[chosen]["test"])
        np.testing.assert_allclose(rewards_of(folder, method), expected, atol=1e-4)
        assert results["methods"][method]["num_users"] == results["methods"]["bradley_terry"]["num_users"]
        right = pair_correctness(expected[:, 0] - expected[:, 1]).mean()
        assert results["methods"][method]["overall"]["value"] == pytest.approx(right)
        assert results["verdicts"][method]["sentence"]
        assert not (folder / "models" / method).exists()  # it is no reward model to load or push
    assert {choice["chosen"] for choice in results["features"].values()} == {"bradley_terry", "base"}  # else nothing was chosen
    assert "Features of the test pairs, the base model" in said.err
    made = run(**METHODS, **HELD_OUT)
    made()
    assert "Features of" not in capsys.readouterr().err

    # Test pairs choose nothing, and a stage that is done again is the same.
    folder = tmp_path / "run/user_models"
    for path in folder.glob("features/*/test.safetensors"):
        path.unlink()
    [stage] = [stage for stage in made.plan().stages if stage.name == "vpl"]
    stage.work(tmp_path / "again")
    files = {path.name: path.read_bytes() for path in (folder / "vpl").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == files


def test_the_rule_of_the_reference_chooses():
    def accuracies(overall, *of_groups):
        return {"overall": {"value": overall}} | {f"accuracy/{n}": {"value": value} for n, value in enumerate(of_groups)}

    found = {"bradley_terry": accuracies(0.84, 0.9, 0.3), "base": accuracies(0.7, 0.7, 0.7)}
    choice = choose("vpl", found, "group_balanced")
    assert choice["chosen"] == "base"
    assert choice["sentence"] == (
        "VPL reads features of the base model, chosen by group balanced accuracy on held-out pairs: Bradley-Terry .600, the base model .700."
    )
    assert choose("vpl", found, "overall")["chosen"] == "bradley_terry"
    assert choose("vpl", dict.fromkeys(found, found["base"]), "worst_group")["chosen"] == "bradley_terry"


def test_a_base_without_a_head_under_adapters_is_read_in_float32(training, tmp_path, short_report):
    complete = AutoModelForSequenceClassification.from_pretrained(make_model("decoder", tmp_path / "base"))
    (tmp_path / "base/model.safetensors").unlink()
    complete.base_model.save_pretrained(tmp_path / "base")
    kind = {"lora_r": 2, "lora_target_modules": ["q_proj", "v_proj"], "use_peft": True}
    options = {**HELD_OUT, "methods": ["lore"], "reference": "lore", "kind": kind, "bf16": True}
    made = small_run(tmp_path / "run", training, str(tmp_path / "base"), **options)
    made.do_only(["prepare", "bradley_terry", "user_features"])
    data = load_prepared(tmp_path / "run/data")
    readers = {
        "base": FeatureReader(*with_new_head(str(tmp_path / "base"), seed=7)),
        "bradley_terry": RewardScorer(tmp_path / "run/models/bradley_terry"),
    }
    found = {}
    for name, reader in readers.items():
        found[name] = FeaturePairs.load(tmp_path / f"run/user_models/features/{name}/validation.safetensors").pairs
        np.testing.assert_allclose(found[name], pair_features(reader, data["validation"]).pairs, atol=1e-4)
    assert (found["base"] - found["bradley_terry"]).abs().max() > 1e-2


class Fitted:
    """A user model that is nothing; `done` notes what was fitted to."""

    num_steps = 3
    done: list = []

    def save(self, folder):
        folder.mkdir()
        (folder / "fitted").write_text("")

    def score(self, pairs):
        return np.zeros((1, 2))

    @classmethod
    def fit(cls, pairs, seed, desc):
        cls.done.append((desc, seed))
        return cls()


@pytest.fixture
def done(monkeypatch):
    """What is read and fitted in a run without models."""
    train_nothing(monkeypatch)
    monkeypatch.setattr(Fitted, "done", [])
    features = SimpleNamespace(save=lambda path: path.write_text(""))
    same = {"overall": {"value": 0.5}, "accuracy/majority": {"value": 0.5}}
    for name, value in {
        **dict.fromkeys(("RewardScorer", "FeatureReader"), lambda *args, **kwargs: None),
        "pair_features": lambda *args, desc, **kwargs: Fitted.done.append(desc) or features,
        "FeaturePairs": SimpleNamespace(load=lambda path: None),
        "_accuracies": lambda rewards, group: same,
        "USER_MODELS": dict.fromkeys(("vpl", "lore"), SimpleNamespace(load=lambda: Fitted)),
    }.items():
        monkeypatch.setattr(user_models, name, value)
    return Fitted.done


def test_only_what_an_option_decides_is_redone(run, done, monkeypatch):
    splits, sources = ("train", "validation", "test"), ("Bradley-Terry", "the base model")
    read = [f"Features of the {split} pairs, {source}" for source in sources for split in splits]
    fitted = [(f"{method}, {source}", 42) for method in ("VPL", "LoRe") for source in sources]
    two = {"methods": ["personalized_bt", "vpl", "lore"], **HELD_OUT}
    run(**two)()
    assert done == [*read, *fitted]
    done.clear()
    run(**two, num_resamples=60)()
    assert done == []
    run(**two, best_checkpoint="overall", save_strategy="steps")()
    assert done == fitted
    done.clear()
    monkeypatch.setattr(Fitted, "num_steps", 4)
    run(**two, best_checkpoint="overall", save_strategy="steps")()
    assert done == fitted


def test_without_held_out_pairs_they_read_bradley_terry(run, done, tmp_path):
    run(methods=["personalized_bt", "lore"])()
    assert done == [
        *(f"Features of the {split} pairs, Bradley-Terry" for split in ("train", "test")),
        ("LoRe, Bradley-Terry", 42),
    ]
    choice = read_choice(tmp_path / "run/user_models/lore")
    assert (choice["chosen"], choice["validation"]) == ("bradley_terry", {})
    assert choice["sentence"] == (
        "LoRe reads features of Bradley-Terry: no pairs are held out to choose between these and those of the base model "
        "(--validation_share)."
    )


def test_no_histories_are_told_before_a_training(run, monkeypatch):
    monkeypatch.setattr(Run, "_train", lambda *args, **kwargs: pytest.fail("a training was begun"))
    monkeypatch.setattr("trl_pafo.pipeline.run_checks.num_shown", lambda rows: [0] * len(rows))
    with pytest.raises(
        DataError, match="No training pair has a past pair, and VPL and GPO and LoRe and MRM learn from nothing else"
    ):
        run(**METHODS)()


def test_held_out_pairs_that_are_read_have_to_fit(run, monkeypatch):
    checked = []
    monkeypatch.setattr(Run, "_train", lambda *args, **kwargs: pytest.fail("a training was begun"))
    monkeypatch.setattr("trl_pafo.pipeline.run_checks.check_positions", lambda _, longest, what, *names: checked.append(what))
    with pytest.raises(pytest.fail.Exception, match="a training was begun"):
        run(methods=["bradley_terry", "lore"], reference="bradley_terry", **HELD_OUT)()
    splits = ("train", "validation", "test")
    past, pairs = ([f"{what} of the {split} data" for split in splits] for what in ("past pairs in the histories", "pairs"))
    assert sorted(checked) == sorted([*past, *pairs[1:]])
