"""The models of a real run, tiny: their cards, and one of them on a Hub on this machine."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.fake_hub import URL, FakeHub
from huggingface_hub import ModelCard
from trl import ModelConfig

from trl_pafo.cli import main
from trl_pafo.errors import ConfigError, RunFolderError, TrlPafoError
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.models.card_template import escaped
from trl_pafo.pipeline.publish import push_run, write_cards
from trl_pafo.pipeline.run import Run
from trl_pafo.report.page import SECTIONS
from trl_pafo.report.plain_words import plain_sentences
from trl_pafo.report.record import Record
from trl_pafo.trainer.config import PAFOConfig

METHODS = ["bradley_terry", "personalized_bt", "pafo", "group_routed"]


def make_run(folder: Path, encoder: str, **more) -> Run:
    users = {"train_users": 16, "test_users": 12, "pairs_per_user": 2, "context_pairs": 1, "minority_ratio": 0.25}
    options = {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True, "bf16": False, "report_to": "none"}
    options |= {"gradient_checkpointing": False, "save_strategy": "no", "disable_tqdm": True, "num_history": 1, "max_length": 256}
    return Run(
        RunArguments(methods=METHODS, num_resamples=50, reference_steps=[1], distill_anyway=True, teacher_folds=1, **users),
        PAFOConfig(str(folder), **options, **more),
        ModelConfig(model_name_or_path=encoder, dtype=None),
    )


@pytest.fixture(scope="module")
def finished(encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_pafo.report.page.SECTIONS", SECTIONS[:1])
        make_run(folder, encoder)()
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_cards_stand_beside_each_model_with_the_numbers_of_the_run(run):
    written = write_cards(run)
    assert [str(path.relative_to(run)) for path in written] == [f"models/{m}/README.md" for m in METHODS[:-1]]
    results = json.loads((run / "results/results.json").read_text())
    counts = json.loads((run / "data/summary.json").read_text())["train"]
    for path in written:
        method, card = path.parent.name, ModelCard.load(path)
        summary = results["methods"][method]
        rows = {r.metric_name: r for r in card.data.eval_results}
        assert set(rows) == {"accuracy"}  # the minority has three users
        row, entry = rows["accuracy"], summary["overall"]
        assert row.metric_value == pytest.approx(entry["value"], abs=5e-4)
        assert row.metric_args["interval"] == pytest.approx([entry["low"], entry["high"]], abs=5e-4)
        assert counts["users"]["minority"] < 5
        assert "| minority |" not in card.content
        assert "Its users are simulated" in card.content
        assert "The share of the minority" not in card.content  # with the size of the majority it tells that of the minority
    pafo, shared, plain = (ModelCard.load(run / "models" / m / "README.md") for m in ("pafo", "personalized_bt", "bradley_terry"))
    assert "Their margins were distilled into this one model" in pafo.content
    assert "| alpha | 0.1 |" in pafo.content
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    of_teachers = sum(stage["seconds"] for name, stage in stages.items() if name.startswith("teacher"))
    took = f"The training took {stages['pafo']['seconds']:.0f} s, that of its teachers {of_teachers:.0f} s, on "
    assert took + escaped(stages["pafo"]["hardware"]) + ". Its emissions were not measured." in pafo.content
    assert re.search(r"The training took \d+ s, on .*, \d+ threads?\. Its emissions", shared.content)
    assert "arXiv:2606.07988" in pafo.content
    word = results["verdicts"]["pafo"]["verdict"]
    assert f"Against personalized BT: {word}; without numbers, since a group has fewer than 5 users." in pafo.content
    assert results["verdicts"]["pafo"]["sentence"] not in pafo.content
    assert "pafo" not in shared.data.tags
    assert "PAFO" not in shared.content
    assert "alpha" not in shared.content
    assert not list(run.glob("models/*/accuracy.png"))
    assert "history=history" in shared.content
    assert "history=history" not in plain.content  # it is never shown one
    assert "It takes no history" in plain.content


def test_the_students_card_says_in_plain_words_what_changed_and_what_groups_like(run, monkeypatch):
    monkeypatch.setattr("trl_pafo.models.card.FEWEST_USERS", 1)
    sign = {
        "sign": "with the word “snow”",
        "is_word": True,
        "pairs": 9,
        "users": 7,
        "chosen": 8,
        "other_pairs": 6,
        "other_chosen": 1,
    }
    found = {"found_in": 9, "checked_on": 8, "tried": 7, "groups": {"minority": {"signs": [sign], "examples": [0]}}}
    monkeypatch.setattr(Record, "likes", found)
    results = json.loads((run / "results/results.json").read_text())
    for source in ("styles", "files", "polis"):
        results["data"]["source"] = source
        (run / "results/results.json").write_text(json.dumps(results))
        write_cards(run)
        pafo, shared = ((run / "models" / method / "README.md").read_text() for method in ("pafo", "personalized_bt"))
        assert escaped(" ".join(plain_sentences(results))) in pafo
        assert escaped(plain_sentences(results)[0]) not in shared
        assert ("snow" in pafo) == ("snow" in shared) == (source == "styles")  # no words of data that may be private


def test_the_students_card_shows_the_picture_of_the_run_while_groups_may_be_told(run, monkeypatch, hub: FakeHub):
    with monkeypatch.context() as patch:
        patch.setattr("trl_pafo.models.card.FEWEST_USERS", 1)
        write_cards(run)
    picture = (run / "results/majority_minority.png").read_bytes()
    assert {path.parent.name: path.read_bytes() for path in run.glob("models/*/accuracy.png")} == {"pafo": picture}
    shown = r"!\[Accuracy on test pairs, majority against minority, .+]\(accuracy\.png\)"
    assert re.search(shown, (run / "models/pafo/README.md").read_text())
    assert main(["push", str(run), "--hub_model_id", "lab/fair"]) == 0
    assert hub.repos["lab/fair"].files["accuracy.png"] == picture
    write_cards(run)  # the minority has three users
    assert not list(run.glob("models/*/accuracy.png"))
    assert "accuracy.png" not in (run / "models/pafo/README.md").read_text()


def test_emissions_of_a_student_are_told_with_those_of_its_teachers(run):
    stages = json.loads((run / "manifest.json").read_text())["stages"]
    for number, folder in enumerate(path for stage in stages.values() if (path := run / stage["output"]).is_dir()):
        (folder / "emissions.csv").write_text(f"run_id,emissions,energy_consumed\n{number},0.001,0.01\n")
    write_cards(run)
    pafo, shared = (ModelCard.load(run / "models" / name / "README.md") for name in ("pafo", "personalized_bt"))
    assert "Together they emitted 3 g of CO2 equivalents, from 0.03 kWh, as codecarbon estimates." in pafo.content
    assert "It emitted 1 g" in shared.content
    assert shared.data.co2_eq_emissions["emissions"] == 1.0


def test_teachers_that_were_given_may_have_seen_the_test_pairs(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"] = {name: stage for name, stage in manifest["stages"].items() if not name.startswith("teacher")}
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_cards(run)
    texts = {method: (run / f"models/{method}/README.md").read_text() for method in ("pafo", "personalized_bt")}
    assert "teachers were given: what they have seen is not known" in texts["pafo"]
    assert "teachers were given" not in texts["personalized_bt"]


def test_run_pushes_its_student_at_the_end(run, encoder, hub: FakeHub, short_report):
    """`trl-pafo run --push_to_hub true`: all stages are done already, and what is pushed is the student alone."""
    make_run(run, encoder, push_to_hub=True, hub_model_id="lab/of-a-run", hub_private_repo=True)()
    repo = hub.repos["lab/of-a-run"]
    assert repo.private
    assert repo.files["model.safetensors"] == (run / "models/pafo/model.safetensors").read_bytes()
    assert 'model_id = "lab/of-a-run"' in repo.files["README.md"].decode()
    assert list(hub.repos) == ["lab/of-a-run"]


def test_run_asks_the_hub_before_it_trains(encoder, hub: FakeHub, tmp_path):
    hub.errors["create_repo"] = PermissionError("401")
    with pytest.raises(TrlPafoError, match="token"):
        make_run(tmp_path / "new", encoder, push_to_hub=True, hub_model_id="lab/never")
    assert not (tmp_path / "new").exists()
    assert not hub.repos


def test_a_student_that_was_not_distilled_says_so(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["pafo"] |= {"inputs": manifest["stages"]["pafo"]["inputs"] | {"instead": "abc"}, "seconds": 0.0}
    chosen = json.loads((run / "results/results.json").read_text())["path"]["chosen"]
    manifest["stages"][f"personalized_bt@{chosen:g}"]["seconds"] = 41.0
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_cards(run)
    text = (run / "models/pafo/README.md").read_text()
    assert "nothing was distilled: this is the model of all groups" in text
    assert "| alpha |" not in text
    assert "The training took 41 s, on " in text


def test_push_takes_one_model_of_a_run_and_keeps_what_was_written_into_its_card(run, hub: FakeHub, capsys):
    write_cards(run)
    card = run / "models/pafo/README.md"
    card.write_text(card.read_text() + "\nA word of mine.\n")
    assert main(["push", str(run), "--hub_model_id", "lab/fair"]) == 0
    assert capsys.readouterr().out == f"Pushed: {URL}/lab/fair\n"
    repo = hub.repos["lab/fair"]
    model = {"README.md", "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(repo.files) == {".gitattributes", *model}
    assert (run / "models/pafo/training_args.bin").exists()  # and stays here
    assert repo.files["model.safetensors"] == (run / "models/pafo/model.safetensors").read_bytes()
    text = repo.files["README.md"].decode()
    assert 'model_id = "lab/fair"' in text
    assert "A word of mine." in text
    found = b"\n".join(repo.files.values())
    users = {json.loads(line)["user"] for line in (run / "results/pafo.jsonl").read_text().splitlines()}
    assert users
    for secret in (*users, str(run), "teachers/"):
        assert secret.encode() not in found, secret


def test_another_method_can_be_pushed_and_gets_a_card_where_there_is_none(run, hub: FakeHub):
    (run / "models/bradley_terry/README.md").unlink()
    push_run(run, "lab/plain", method="bradley_terry", private=True)
    assert hub.repos["lab/plain"].private
    assert "# Bradley-Terry reward model" in hub.repos["lab/plain"].files["README.md"].decode()


def test_teachers_and_what_is_not_there_are_refused(run, hub: FakeHub):
    (run / "models/maxmin/model_0").mkdir(parents=True)
    for several in ("group_routed", "maxmin"):
        with pytest.raises(ConfigError, match="several models, which are not pushed as one"):
            push_run(run, "lab/x", method=several)
    with pytest.raises(ConfigError, match=r"is a teacher.*Push the student"):
        push_run(run / "teachers/minority", "lab/x")
    with pytest.raises(ConfigError, match="has no model 'worst_group_bt'; it has bradley_terry, maxmin, pafo, personalized_bt"):
        push_run(run, "lab/x", method="worst_group_bt")
    shutil.rmtree(run / "results")  # as of a run that was interrupted: it has no cards yet
    (run / "models/pafo/README.md").unlink()
    with pytest.raises(RunFolderError, match=r"results.json is missing.*finish one that was interrupted"):
        push_run(run, "lab/x")
    assert not hub.repos


@pytest.mark.parametrize(
    ("data", "cut", "says"),
    [
        ({"source": "prism", "group_by": "age", "minority": ["65+"]}, "data", "the field age of the survey make the groups"),
        ({"source": "files", "minority_threshold": 0.3}, "support", "The minority are those whose support rate is below 0.3"),
        ({"source": "files", "minority_quantile": 0.1}, "support", "they were inferred. The minority are the 10% of training"),
        ({"source": "polis"}, "data", "they are clusters of people who vote alike; nobody said which group"),
        ({"source": "files"}, "agreement", "They may be annotators who err, not people of another taste."),
        ({"source": "files", "infer_groups": "minilm"}, "all pairs", "found in the pairs; nobody said who belongs to which."),
        # The option had no effect.
        ({"source": "files", "minority_quantile": 0.1}, "data", "The groups are those that the data name."),
        ({"source": "dsp", "majority": ["a"], "minority": ["b", "c"], "minority_ratio": 0.1}, "data", "minority b, c."),
        ({"source": "styles", "infer_groups": "minilm"}, "training pairs", "Those of test users are named by the data."),
        ({"source": "prism", "infer_groups": "minilm"}, "pairs", "Those of test users follow from their past pairs."),
    ],
)
def test_how_the_groups_were_made_is_said(data, cut, says):
    results = {"data": data, "methods": {"pafo": {"accuracy/a": {}, "accuracy/b": {}}}}
    record = Record(Path(), "run", results, stages={}, data={"groups": cut}, config="", rewards={}, pairs=[])
    assert says in record.group_definition()
    assert not re.search(r"\d", record.group_definition(numbers=False).replace("65+", ""))
