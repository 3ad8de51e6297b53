"""A whole run on a tiny model: what it writes, what it skips, what it refuses."""

import json
import math
import shutil
from pathlib import Path

import pytest
from datasets import load_dataset
from helpers.parts import make_model
from helpers.small_runs import small_run
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from trl_pafo.data.history import HistoryCutter, remembered
from trl_pafo.errors import ConfigError, RunFolderError, TeacherError
from trl_pafo.evaluation.teacher_gain import TeacherGain
from trl_pafo.models import base_models as models
from trl_pafo.models.base_models import load_tokenizer
from trl_pafo.pipeline import prepare as preparation
from trl_pafo.pipeline import run as stages
from trl_pafo.pipeline.prepare import load_prepared
from trl_pafo.pipeline.run import Run


@pytest.fixture
def run(encoder, training, tmp_path, short_report):
    return lambda model=encoder, **options: small_run(tmp_path / "run", training, model, **options)


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Titles of the trainings that really ran."""
    titles: list[str] = []
    original = stages.train_and_save

    def spy(trainer, out, title):
        titles.append(title)
        original(trainer, out, title)

    monkeypatch.setattr(stages, "train_and_save", spy)
    return titles


ALL = ["Bradley-Terry", "personalized BT", "Teacher of majority", "Teacher of minority", "PAFO"]


def test_run_writes_every_stage_and_the_second_run_skips_them(run, trained, tmp_path, capsys):
    results = run()()
    assert trained == ALL
    folder = tmp_path / "run"
    for path in (
        "data/train.parquet",
        "data/chat_template.jinja",
        "models/pafo/model.safetensors",
        "teachers/minority/config.json",
    ):
        assert (folder / path).exists(), path
    for path in ("results.json", "results.md", "majority_minority.png", "pafo.jsonl"):
        assert (folder / "results" / path).stat().st_size > 0
    for path, num_history in (("bradley_terry", 0), ("personalized_bt", 1), ("../teachers/minority", 1), ("pafo", 1)):
        record = remembered(AutoTokenizer.from_pretrained(folder / "models" / path))
        assert (record["inputs"], record["num_history"]) == ("messages", num_history)
    assert list(results["methods"]) == ["bradley_terry", "personalized_bt", "pafo", "group_routed"]
    assert set(results["verdicts"]) == {"bradley_terry", "pafo", "group_routed"}
    assert results["majority"] == "majority"
    assert not list(folder.rglob("*.partial"))
    again = run()()
    assert trained == ALL
    assert again["methods"] == results["methods"]
    assert "[pafo] done before, kept" in capsys.readouterr().out


def test_tokenizer_and_configuration_are_of_the_models_revision(run, monkeypatch):
    asked: dict[str, set[str]] = {"AutoTokenizer": set(), "AutoConfig": set()}

    def watch(name: str) -> None:
        original = getattr(models, name).from_pretrained

        def spy(*args, **kwargs):
            asked[name].add(kwargs.get("revision"))
            return original(*args, **kwargs)

        monkeypatch.setattr(getattr(models, name), "from_pretrained", spy)

    for name in asked:
        watch(name)
    run(kind={"model_revision": "v2"}, num_hidden_layers=1)
    assert asked == {"AutoTokenizer": {"v2"}, "AutoConfig": {"v2"}}


def test_another_revision_is_another_run(run):
    run(methods=["personalized_bt"])()
    with pytest.raises(RunFolderError, match=r"prepare.*revision"):
        run(kind={"model_revision": "v2"}, methods=["personalized_bt"])()


def test_accuracy_in_results_is_that_of_the_written_rewards(run, tmp_path):
    results = run(methods=["personalized_bt"])()
    lines = (tmp_path / "run/results/personalized_bt.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 10 * (2 + 2 - 1)  # the first pair of each user is history alone (k = 1)
    for group in ("majority", "minority"):
        margins = [r["reward_chosen"] - r["reward_rejected"] for r in rows if r["group"] == group]
        accuracy = sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)
        assert results["methods"]["personalized_bt"][f"accuracy/{group}"]["value"] == pytest.approx(accuracy)


def test_a_killed_run_goes_on_where_it_was(run, trained, monkeypatch):
    original = stages.PAFORewardTrainer.train

    def killed_in_the_student(self, *args, **kwargs):
        if self._pairs.distills:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stages.PAFORewardTrainer, "train", killed_in_the_student)
        with pytest.raises(KeyboardInterrupt):
            run()()
    trained.clear()
    run()()
    assert trained == ["PAFO"]


def test_a_training_that_was_killed_goes_on_from_its_checkpoint(run, trained, monkeypatch, tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "methods": ["personalized_bt", "pafo"]}
    original = stages.PAFORewardTrainer.training_step
    steps = []

    def killed_in_the_fourth(self, *args, **kwargs):
        if self._pairs.distills:
            steps.append(self.state.global_step)
        if self._pairs.distills and len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(stages.PAFORewardTrainer, "training_step", killed_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run(**options)()
    assert (tmp_path / "run/models/pafo.partial/.kept/checkpoint-2/optimizer.pt").exists()
    seconds = run(**options)()["seconds"]["pafo"]
    assert steps == [0, 1, 2, 3, 2, 3]
    assert "going on after step 2" in capsys.readouterr().out
    assert seconds > 0
    files = {p.name for p in (tmp_path / "run/models/pafo").iterdir()}
    assert "model.safetensors" in files
    assert not [name for name in files if "checkpoint" in name or "optimizer" in name or name.startswith(".")]


def test_a_training_with_other_options_begins_anew(run, trained, monkeypatch, tmp_path, capsys):
    options = {"save_strategy": "steps", "save_steps": 1, "methods": ["bradley_terry"], "reference": "bradley_terry"}
    save = stages.PAFORewardTrainer.save_model

    def killed_at_the_end(self, output_dir=None, _internal_call=False):
        if not Path(output_dir).name.startswith("checkpoint-"):
            raise KeyboardInterrupt
        save(self, output_dir, _internal_call)

    with monkeypatch.context() as patch:
        patch.setattr(stages.PAFORewardTrainer, "save_model", killed_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            run(**options)()
    run(**options, gradient_checkpointing=True)()  # no input of the stage, yet of the losses' last digits
    assert "going on" not in capsys.readouterr().out


def test_a_damaged_model_is_not_used(run, trained, tmp_path):
    run(methods=["personalized_bt", "pafo"])()
    weights = tmp_path / "run/models/personalized_bt/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(
        RunFolderError, match=r"model.safetensors is missing, or has another size.*'personalized_bt' cannot be used"
    ):
        run(methods=["personalized_bt", "pafo"])()
    trained.clear()
    run(methods=["personalized_bt", "pafo"], overwrite=True)()
    assert trained == ["personalized BT"]  # the same inputs: what was made from it is as good as before
    assert weights.read_bytes() == whole


def test_other_alpha_is_refused_and_with_overwrite_only_the_student_is_trained_again(run, trained):
    run()()
    with pytest.raises(RunFolderError, match=r"'pafo' of another run \(alpha: 0.1 -> 0.5\)"):
        run(alpha=0.5)()
    trained.clear()
    run(alpha=0.5, overwrite=True)()
    assert trained == ["PAFO"]


@pytest.mark.parametrize("better", [True, False])
def test_other_alpha_is_refused_before_another_method_is_trained(run, trained, monkeypatch, better):
    monkeypatch.setattr(stages, "judge_teachers", judged({"majority": better, "minority": better}))
    run(validation_share=0.3, methods=["personalized_bt", "pafo"])()
    trained.clear()
    with pytest.raises(RunFolderError, match=r"'pafo' of another run \(alpha: 0.1 -> 0.5"):
        run(validation_share=0.3, methods=["bradley_terry", "personalized_bt", "pafo"], alpha=0.5)()
    assert trained == []


def test_other_data_is_refused_before_anything_is_trained(run, trained):
    run(methods=["bradley_terry"], reference="bradley_terry")()
    trained.clear()
    with pytest.raises(RunFolderError, match=r"minority_ratio: 0\.3 -> 0\.2"):
        run(data={"minority_ratio": 0.2})()
    assert trained == []


def test_a_foreign_folder_is_refused_and_left_alone(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.txt").write_text("do not lose me")
    with pytest.raises(RunFolderError, match="not empty and is no run"):
        run()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def judged(better: dict[str, bool]):
    """In place of the scoring of held-out pairs: a fixed answer a group."""

    def judge(teachers, shared, held_out, min_standard_errors, **scoring):
        assert min_standard_errors == 1.64
        assert Path(shared).name == "personalized_bt"
        assert len(held_out)
        return [TeacherGain(group, better[group], 0.1, 0.05, 8, 4) for group in teachers]

    return judge


def test_without_a_better_teacher_the_shared_model_is_kept(run, trained, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "judge_teachers", judged({"majority": False, "minority": False}))
    results = run(validation_share=0.3)()
    assert "PAFO" not in trained
    weights = [(tmp_path / f"run/models/{m}/model.safetensors").read_bytes() for m in ("pafo", "personalized_bt")]
    assert weights[0] == weights[1]
    verdict = results["verdicts"]["pafo"]
    assert verdict["differences"] == {key: {"value": 0.0, "low": 0.0, "high": 0.0} for key in ("majority", "minority")}
    assert (verdict["verdict"], verdict["sentence"]) == ("same", "The same model: nothing was distilled.")
    page = (tmp_path / "run/report.html").read_text()
    assert "PAFO against personalized BT: same" in page
    assert "The same model: nothing was distilled." in page
    assert "The same model: nothing was distilled." in (tmp_path / "run/models/pafo/README.md").read_text()
    assert "not shown to be better than the shared model" in (tmp_path / "run/results/results.md").read_text()


@pytest.mark.parametrize("num_pairs", ["few", "none"])
def test_a_teacher_that_nobody_could_judge_is_not_distilled_unless_asked_for(run, trained, capsys, monkeypatch, num_pairs):
    """Three users of the minority, then no held-out pairs at all."""
    if num_pairs == "none":
        hold_out = preparation.hold_out_prompts
        monkeypatch.setattr(preparation, "hold_out_prompts", lambda rows, share, seed: hold_out(rows, 0.0, seed))
    results = run(validation_share=0.3)()
    assert "PAFO" not in trained
    assert next(t["better"] for t in results["teachers"] if t["group"] == "minority") is None
    said = capsys.readouterr().out
    assert "Teacher of minority: cannot be judged on" in said
    assert "nothing is distilled, the shared model is kept. Hold out more of them" in said
    run(validation_share=0.3, teacher_min_gain=-math.inf, overwrite=True)()
    assert trained[-1] == "PAFO"


def test_one_better_teacher_is_enough_to_distil_all(run, trained, monkeypatch):
    taken = {}
    original = stages.PAFORewardTrainer.__init__

    def spy(self, *args, teachers=None, **kwargs):
        taken.update({group: Path(folder).name for group, folder in (teachers or {}).items()})
        original(self, *args, teachers=teachers, **kwargs)

    monkeypatch.setattr(stages, "judge_teachers", judged({"majority": False, "minority": True}))
    monkeypatch.setattr(stages.PAFORewardTrainer, "__init__", spy)
    results = run(validation_share=0.3)()
    assert taken == {"majority": "majority", "minority": "minority"}
    assert [teacher["better"] for teacher in results["teachers"]] == [False, True]


def test_a_student_that_was_not_distilled_is_refused_where_it_is_to_be(run, trained, monkeypatch):
    monkeypatch.setattr(stages, "judge_teachers", judged({"majority": False, "minority": False}))
    run(validation_share=0.3)()
    trained.clear()
    with pytest.raises(RunFolderError, match=r"'pafo' of another run \(instead: \"the shared model \w+\" -> not set\)"):
        run(validation_share=0.3, teacher_min_gain=-math.inf)()
    run(validation_share=0.3, teacher_min_gain=-math.inf, overwrite=True)()
    assert trained == ["PAFO"]


def test_held_out_pairs_are_in_no_training(run, tmp_path):
    run(methods=["bradley_terry"], reference="bradley_terry", validation_share=0.3)()
    data = load_prepared(tmp_path / "run/data")
    train, validation = ({row["prompt"][0]["content"] for row in data[name]} for name in ("train", "validation"))
    assert train
    assert validation
    assert not train & validation
    assert set(data["validation"]["user"]) <= {row["user"] for name in ("train", "validation") for row in data[name]}
    assert not set(data["validation"]["user"]) & set(data["test"]["user"])


def test_given_teachers_are_used_and_not_trained(run, trained, tmp_path):
    teachers = {g: make_model("encoder", tmp_path / g, seed=s) for s, g in enumerate(["majority", "minority"], 1)}
    results = run(teachers=teachers)()
    assert trained == ["Bradley-Terry", "personalized BT", "PAFO"]
    assert "group_routed" in results["methods"]


def test_given_teachers_must_read_what_the_student_reads(run, trained, tmp_path):
    folder = make_model("encoder", tmp_path / "t")
    tokenizer = load_tokenizer(folder)
    HistoryCutter(tokenizer, 0).remember("text")
    tokenizer.save_pretrained(folder)
    with pytest.raises(TeacherError, match=r"trained on text without histories, .* messages with up to 1 past pairs"):
        run(teachers={"majority": folder, "minority": folder})()
    assert trained == []


def test_given_teachers_must_match_the_groups_before_training(run, trained, tmp_path):
    with pytest.raises(TeacherError, match="No teacher for the group 'minority'"):
        run(teachers={"majority": make_model("encoder", tmp_path / "t")})()
    assert trained == []


def test_warm_teachers_start_from_the_model_of_all_groups(run, monkeypatch):
    started = []
    original = Run._reward_trainer

    def spy(self, out, rows, start=None, *args, **changes):
        started.append(start and Path(start).name)
        return original(self, out, rows, start, *args, **changes)

    monkeypatch.setattr(Run, "_reward_trainer", spy)
    run(teacher_start="warm")()
    assert started == [None, None, "personalized_bt", "personalized_bt"]


def test_a_small_group_gets_its_least_number_of_steps(run, tmp_path):
    run(methods=["personalized_bt", "group_routed"], max_steps=-1, num_train_epochs=1, teacher_min_steps=7)()
    state = json.loads((tmp_path / "run/teachers/minority/trainer_state.json").read_text())
    assert state["global_step"] == 7  # 3 users with 4 pairs, batches of 4: 3 steps an epoch
    state = json.loads((tmp_path / "run/teachers/majority/trainer_state.json").read_text())
    assert state["global_step"] == 7  # 7 users with 4 pairs


def test_with_a_budget_of_tokens_no_teacher_is_cut_short(run, tmp_path):
    """A step has as many pairs as fit, so an epoch more steps than the batch size says."""
    options = {"methods": ["personalized_bt", "group_routed"], "max_steps": -1, "num_train_epochs": 1, "teacher_min_steps": 2}
    run(**options, max_tokens_per_batch=900)()
    state = json.loads((tmp_path / "run/teachers/majority/trainer_state.json").read_text())
    assert state["epoch"] == pytest.approx(1.0)
    assert state["global_step"] > 7  # of 28 pairs in fours


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"optim_args": "foreach=False"}, r"optim_args: not set -> \"foreach=False\""),
        ({"model_init_kwargs": {"attention_probs_dropout_prob": 0.2}}, "model_init_kwargs"),
        ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha: not set -> 5"),
        ({"optim_target_modules": ["query"]}, "optim_target_modules"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_finished_model_of_other_options_is_refused(run, trained, other, match):
    run(methods=["personalized_bt"])()
    with pytest.raises(RunFolderError, match=rf"stage 'personalized_bt' of another run \(.*{match}"):
        run(methods=["personalized_bt"], **other)()


def test_a_data_file_that_changed_under_its_name_is_noticed(run, trained, tmp_path):
    path = tmp_path / "pairs.jsonl"

    def write(answer: str) -> None:
        rows = [
            {
                "prompt": f"p{i}",
                "chosen": answer if i == 0 else f"a{i}",
                "rejected": f"b{i}",
                "user": f"u{i % 8}",
                "group": "ab"[i % 2],
            }
            for i in range(64)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    data = {"source": "files", "data_path": str(path), "train_users": None, "test_users": None}
    data |= {"minority_ratio": 0.1, "pairs_per_user": 4, "context_pairs": None}
    options = {"methods": ["bradley_terry"], "reference": "bradley_terry", "data": data}
    write("an answer")
    run(**options)()
    shutil.copy(path, tmp_path / "copy")
    write("an answer")  # another time, the same rows
    run(**options)()
    assert trained == ["Bradley-Terry"]
    write("answer an")
    with pytest.raises(RunFolderError, match=r"stage 'prepare' of another run \(data_files\.data_path: "):
        run(**options)()


def test_a_base_that_changed_under_its_name_is_noticed(run, encoder, trained, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(encoder, base)
    options = {"methods": ["bradley_terry"], "reference": "bradley_terry", "num_hidden_layers": 1}
    run(str(base), **options)()
    run(str(base), **options)()
    assert trained == ["Bradley-Terry"]
    shutil.copy(Path(make_model("encoder", tmp_path / "other", seed=5)) / "model.safetensors", base)
    with pytest.raises(RunFolderError, match=r"of another run .*identity: "):
        run(str(base), **options)()


def test_results_are_made_again_where_their_options_change(run, capsys):
    options = {"methods": ["bradley_terry"], "reference": "bradley_terry"}
    run(**options)()
    for other in ({"num_resamples": 60}, {"per_device_eval_batch_size": 2}):
        capsys.readouterr()
        run(**options, **other)()
        said = capsys.readouterr().out
        assert "[bradley_terry] done before, kept" in said
        assert "[evaluate]\n" in said


def test_first_layers_and_reward_head_are_the_same_for_all(run, tmp_path):
    run(num_hidden_layers=1, methods=["personalized_bt"])()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/models/personalized_bt")
    assert model.config.num_hidden_layers == 1
    assert (tmp_path / "run/base_model/model.safetensors").exists()


def test_decoder_with_lora(run, decoder, tmp_path):
    results = run(model=decoder, kind={"use_peft": True, "lora_target_modules": ["q_proj", "v_proj"]})()
    assert (tmp_path / "run/models/pafo/adapter_model.safetensors").exists()
    assert set(results["verdicts"]) == {"bradley_terry", "pafo", "group_routed"}


def test_own_group_distillation_is_a_method(run, trained):
    results = run(methods=["personalized_bt", "pafo_own_group"])()
    assert "PAFO, own group only" in trained
    assert "pafo_own_group" in results["verdicts"]


def test_prepared_rows_train_plain_reward_trainer(encoder, training, run, tmp_path):
    """`trl reward --dataset_name FOLDER --chat_template_path ...`: the same columns, the same tokens."""
    run(methods=["bradley_terry"], reference="bradley_terry")()
    folder = tmp_path / "run/data"
    copied = tmp_path / "data"
    shutil.copytree(folder, copied)
    dataset = load_dataset(str(copied), cache_dir=str(tmp_path / "cache"))
    assert set(dataset) == {"train", "test"}
    trainer = RewardTrainer(
        encoder,
        RewardConfig(str(tmp_path / "out"), chat_template_path=str(copied / "chat_template.jinja"), **training),
        train_dataset=dataset["train"],
    )
    row = trainer.train_dataset[0]
    text = trainer.processing_class.decode(row["chosen_ids"])
    assert text.startswith("[CLS]")
    assert text.count("[SEP]") == 5  # past prompt, chosen, rejected; prompt; response
    trainer.train()
    trainer.save_model()
    assert "history" in load_tokenizer(str(tmp_path / "out")).chat_template


def test_test_users_and_prompts_are_apart_from_training(run, tmp_path):
    run(methods=["bradley_terry"], reference="bradley_terry")()
    dataset = load_prepared(tmp_path / "run/data")
    train, test = dataset["train"], dataset["test"]
    seen = {p[0]["content"] for p in train["prompt"]} | {e["prompt"] for h in train["history"] for e in h}
    assert not set(train["user"]) & set(test["user"])
    assert not seen & {p[0]["content"] for p in test["prompt"]}
    for row in test:
        assert row["prompt"][0]["content"] not in {entry["prompt"] for entry in row["history"]}
        texts = {t for entry in row["history"] for t in (entry["chosen"], entry["rejected"])}
        assert not texts & {row["chosen"][0]["content"], row["rejected"][0]["content"]}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"methods": ["magic"]}, "`methods` must be some of"),
        ({"methods": ["pafo"]}, "`reference` must be one of the methods"),
        ({"validation_share": 1.0}, "`validation_share` must be at least 0 and below 1"),
        ({"teacher_min_gain": float("nan")}, "`teacher_min_gain` is a number of standard errors"),
        ({"teacher_kind": "huge"}, "`teacher_kind` must be auto, adapter or full, got 'huge'"),
        ({"teacher_start": "hot"}, "`teacher_start` must be base or warm"),
        ({"minority_ratio": 0.0}, "`minority_ratio` must be above 0"),
        ({"source": "nowhere"}, "Unknown source 'nowhere'"),
        ({"source": "dsp"}, "give its path with --data_path"),
        ({"minority": ["rude"]}, "`minority` must name types of the corpus"),
    ],
)
def test_bad_options_are_refused_before_training(run, trained, options, match):
    with pytest.raises(ConfigError, match=match):
        run(**options)()
    assert trained == []


def test_lengths_fit_the_model(run, encoder):
    built = run(max_length=100_000, num_history=None)
    assert built.args.max_length == 256
    assert built.args.history_max_tokens == 128
    assert built.args.num_history == 3
