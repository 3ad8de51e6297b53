"""A run: what it writes, what it skips, what it refuses, and what each of its trainings starts from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from helpers.parts import make_model, make_pairs, make_teachers, remember_inputs
from helpers.small_runs import train_nothing

from trl_pafo.data.history import remembered
from trl_pafo.errors import ConfigError, DataError, RunFolderError, TeacherError
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.models.base_models import load_tokenizer
from trl_pafo.pipeline import run as stages
from trl_pafo.pipeline import trainings
from trl_pafo.pipeline.prepare import load_prepared
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.trainer import PAFORewardTrainer

ALL = ["Bradley-Terry", "personalized BT, x1", "Teacher of majority", "Teacher of minority", "PAFO"]
PERSONALIZED = {"methods": ["personalized_bt"]}
PLAIN = {"methods": ["bradley_terry"], "reference": "bradley_terry"}


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Titles of the trainings, for which stand-ins write a file each."""
    return train_nothing(monkeypatch)


def weights(folder: Path, *methods: str) -> list[bytes]:
    return [(folder / f"run/models/{method}/model.safetensors").read_bytes() for method in methods]


class TestRealTrainings:
    def test_every_stage_is_written_and_skipped_the_second_time(self, run, tmp_path, capsys):
        results = run()()
        folder = tmp_path / "run"
        for path in ("data/train.parquet", "data/chat_template.jinja", "teachers/minority/config.json"):
            assert (folder / path).exists(), path
        for path in ("results.json", "results.md", "majority_minority.png", "pafo.jsonl"):
            assert (folder / "results" / path).stat().st_size > 0
        for path, num_history in (("bradley_terry", 0), ("personalized_bt", 1), ("../teachers/minority", 0), ("pafo", 1)):
            record = remembered(load_tokenizer(str(folder / "models" / path)))
            assert (record["inputs"], record["num_history"]) == ("messages", num_history)
        assert list(results["methods"]) == ["bradley_terry", "personalized_bt", "pafo", "group_routed"]
        assert set(results["verdicts"]) == {"bradley_terry", "pafo", "group_routed"}
        assert not list(folder.rglob("*.partial"))
        rows = [json.loads(line) for line in (folder / "results/personalized_bt.jsonl").read_text().splitlines()]
        assert len(rows) == 10 * (2 + 2 - 1)  # the first pair of each user is history alone (k = 1)
        for group in ("majority", "minority"):
            margins = [r["reward_chosen"] - r["reward_rejected"] for r in rows if r["group"] == group]
            accuracy = sum((m > 0) + 0.5 * (m == 0) for m in margins) / len(margins)
            assert results["methods"]["personalized_bt"][f"accuracy/{group}"]["value"] == pytest.approx(accuracy)
        capsys.readouterr()
        assert run()()["methods"] == results["methods"]
        said = capsys.readouterr().out
        for stage in ("prepare", "personalized_bt", "bradley_terry", "teacher:majority", "teacher:minority", "pafo", "evaluate"):
            assert f"[{stage}] done before, kept" in said

    def test_an_interrupted_training_goes_on_from_its_checkpoint(self, run, monkeypatch, tmp_path, capsys):
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "methods": ["pafo"], "reference": "pafo"}
        options["teachers"] = make_teachers("encoder", tmp_path)
        original = PAFORewardTrainer.training_step
        steps = []

        def interrupted_in_the_fourth(self, *args, **kwargs):
            steps.append(self.state.global_step)
            if len(steps) == 4:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        monkeypatch.setattr(PAFORewardTrainer, "training_step", interrupted_in_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            run(**options).do_only(["prepare", "pafo"])
        run(**options).do_only(["prepare", "pafo"])
        assert steps == [0, 1, 2, 3, 2, 3]
        said = capsys.readouterr().out
        assert "[prepare] done before, kept" in said
        assert "resuming after step 2" in said
        files = {p.name for p in (tmp_path / "run/models/pafo").iterdir()}
        assert "model.safetensors" in files
        assert not [name for name in files if "checkpoint" in name or "optimizer" in name or name.startswith(".")]

    def test_where_too_few_can_be_judged_the_reference_is_kept(self, run, monkeypatch, tmp_path, capsys):
        scored = []
        monkeypatch.setattr(
            "trl_pafo.pipeline.evaluate.score_rows",
            lambda source, rows, **how: (scored.append(Path(source).name), score_rows(source, rows, **how))[1],
        )
        results = run(validation_share=0.3, validation_users=8, methods=["pafo", "personalized_bt"])()
        assert scored == ["personalized_bt_x1"]  # the student has the rewards of the reference
        assert list(results["methods"]) == ["pafo", "personalized_bt"]
        assert len({(tmp_path / f"run/results/{method}.jsonl").read_bytes() for method in results["methods"]}) == 1
        assert len(set(weights(tmp_path, "pafo", "personalized_bt"))) == 1
        verdict = results["verdicts"]["pafo"]
        assert verdict["differences"] == {key: {"value": 0.0, "low": 0.0, "high": 0.0} for key in ("majority", "minority")}
        assert (verdict["verdict"], verdict["sentence"]) == ("same", "The same model: nothing was distilled.")
        for path in ("report.html", "models/pafo/README.md"):
            assert "The same model: nothing was distilled." in (tmp_path / "run" / path).read_text()
        told = "Too few held-out users to judge what can be had for"
        for text in (
            capsys.readouterr().out,
            *((tmp_path / "run" / path).read_text() for path in ("results/results.md", "front/front.md")),
        ):
            assert told in text


class TestSkipping:
    @pytest.mark.parametrize(
        ("first", "second", "match", "again"),
        [
            ({}, {"alpha": 0.5}, r"'pafo' of another run \(alpha: 0.1 -> 0.5\)", ["PAFO"]),
            (PLAIN, {"data": {"minority_ratio": 0.2}}, r"minority_ratio: 0\.3 -> 0\.2", ALL),
            (PERSONALIZED, {**PERSONALIZED, "kind": {"model_revision": "v2"}}, "'prepare'.*revision", ALL[1:2]),
            (
                {"kind": {"use_peft": True}},
                {"kind": {"use_peft": True}, "teacher_kind": "full"},
                "use_peft: true -> not set",
                ALL[2:],
            ),
        ],
    )
    def test_other_options_are_refused_before_any_training_and_redone_if_asked(self, run, trained, first, second, match, again):
        run(**first)()
        trained.clear()
        with pytest.raises(RunFolderError, match=match):
            run(**second)()
        assert trained == []
        run(**second, overwrite=True)()
        assert trained == again

    @pytest.mark.parametrize("worth", [True, False])
    def test_a_student_in_the_way_is_refused_before_another_method_is_trained(self, run, monkeypatch, worth):
        trained = train_nothing(monkeypatch, worth)
        run(validation_share=0.3, methods=["personalized_bt", "pafo"])()
        trained.clear()
        with pytest.raises(RunFolderError, match=r"'pafo' of another run \(alpha: 0.1 -> 0.5"):
            run(validation_share=0.3, methods=["bradley_terry", "personalized_bt", "pafo"], alpha=0.5)()
        assert trained == []

    def test_a_data_file_that_changed_under_its_name_is_noticed(self, run, trained, tmp_path):
        path, rows = tmp_path / "pairs.jsonl", make_pairs(8, pairs_per_user=8, num_minority=4, history=0)
        defaults = {"train_users": None, "test_users": None, "minority_ratio": 0.1, "pairs_per_user": 4, "context_pairs": None}
        options = {**PLAIN, "data": {"source": "files", "data_path": str(path), **defaults}}
        for _ in range(2):  # another time, the same rows
            rows.to_json(path)
            run(**options)()
        assert trained == ["Bradley-Terry"]
        rows.select(range(1, len(rows))).to_json(path)
        with pytest.raises(RunFolderError, match=r"stage 'prepare' of another run \(data_files\.data_path: "):
            run(**options)()

    def test_a_base_that_changed_under_its_name_is_noticed(self, run, encoder, trained, tmp_path):
        base = tmp_path / "base"
        shutil.copytree(encoder, base)
        for _ in range(2):
            run(str(base), num_hidden_layers=1, **PLAIN)()
        assert trained == ["Bradley-Terry"]
        shutil.copy(Path(make_model("encoder", tmp_path / "other", seed=5)) / "model.safetensors", base)
        with pytest.raises(RunFolderError, match=r"of another run .*identity: "):
            run(str(base), num_hidden_layers=1, **PLAIN)()

    def test_results_are_made_again_where_their_options_change_and_pairs_are_read_once(self, run, trained, monkeypatch, capsys):
        run(**PLAIN)()
        monkeypatch.setattr("trl_pafo.pipeline.prepare.longest_sequences", lambda *args: pytest.fail("tokenized again"))
        for other in ({"num_resamples": 60}, {"per_device_eval_batch_size": 2}):
            capsys.readouterr()
            run(**PLAIN, **other)()
            said = capsys.readouterr().out
            assert "[bradley_terry] done before, kept" in said
            assert "[evaluate]\n" in said


class TestTeachers:
    def test_a_student_that_was_not_distilled_is_refused_where_it_is_to_be(self, run, monkeypatch, tmp_path, capsys):
        trained = train_nothing(monkeypatch, worth=False)
        assert run(validation_share=0.3)()["front"]["worth"] is False
        assert trained == ALL[:-1]
        said = capsys.readouterr().out
        assert said.index("This is what can be had.") < said.index("Nothing is distilled, the reference is the result.")
        assert len(set(weights(tmp_path, "pafo", "personalized_bt"))) == 1
        with pytest.raises(RunFolderError, match=r"'pafo' of another run \(instead: \"the reference \w+\" -> not set\)"):
            run(validation_share=0.3, distill_anyway=True)()
        run(validation_share=0.3, distill_anyway=True, overwrite=True)()
        assert trained == ALL

    def test_given_teachers_that_do_not_fit_are_refused_before_training(self, run, trained, tmp_path):
        folder = remember_inputs(make_model("encoder", tmp_path / "t"), num_history=2)
        with pytest.raises(TeacherError, match="was trained on rows with histories"):
            run(teachers={"majority": folder, "minority": folder})()
        folder = remember_inputs(make_model("encoder", tmp_path / "texts"), "text", num_history=0)
        with pytest.raises(DataError, match="trained on text"):
            run(teachers={"majority": folder, "minority": folder}, overwrite=True)()
        assert trained == []

    def test_given_teachers_score_as_the_trainer_lets_them_whatever_the_folds(self, run, monkeypatch, tmp_path):
        found = []
        monkeypatch.setattr(trainings, "train_and_save", lambda trainer, out, title: found.append(trainer.train_dataset))
        teachers, kept = make_teachers("encoder", tmp_path), tmp_path / "margins"
        for folds in (2, 1):
            options = {
                "methods": ["personalized_bt", "pafo"],
                "conditioning": "own",
                "validation_share": 0,
                "teacher_folds": folds,
            }
            made = run(teachers=teachers, teacher_margin_cache_dir=str(kept), **options)
            made.do_only(["prepare", "pafo"])
        [trained] = found  # the folds, which are of teachers of the run, change nothing
        assert len(list(kept.glob("*.npy"))) == 2
        scored = {
            group: np.subtract(*score_rows(teacher, load_prepared(tmp_path / "run/data")["train"]))
            for group, teacher in teachers.items()
        }
        expected = [scored[group][number] for number, group in enumerate(load_prepared(tmp_path / "run/data")["train"]["group"])]
        np.testing.assert_allclose(trained["teacher_margin"], expected, atol=1e-4)
        assert np.std(expected) > 0.01

    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({"teacher_min_steps": 5}, {"majority": 7, "minority": 5}),  # 28 and 12 pairs in batches of 4: 7 and 3 steps
            ({"teacher_min_steps": 5, "gradient_accumulation_steps": 2}, {"majority": 5, "minority": 5}),
            ({"teacher_min_steps": 5, "max_steps": 2}, {"majority": 2, "minority": 2}),
            ({"teacher_epochs": 3, "teacher_min_steps": 5}, {"majority": 21, "minority": 9}),
            ({"teacher_epochs": 3, "max_steps": 2}, {"majority": 2, "minority": 2}),
        ],
    )
    def test_teachers_have_epochs_of_their_own_and_a_least_number_of_steps(self, run, monkeypatch, options, steps):
        found = {}
        monkeypatch.setattr(
            trainings, "train_and_save", lambda trainer, out, title: found.update({title: trainer.args.max_steps})
        )
        made = run(methods=["personalized_bt", "group_routed"], **{"max_steps": -1, "num_train_epochs": 1, **options})
        made.do_only(["prepare", "teacher:majority", "teacher:minority"])
        assert {title.removeprefix("Teacher of "): n for title, n in found.items() if title.startswith("Teacher")} == steps


class TestOptions:
    def test_lengths_fit_the_model(self, run):
        args: PAFOConfig = run(max_length=100_000, num_history=None).args
        assert (args.max_length, args.history_max_tokens, args.num_history) == (256, 128, 3)

    def test_tokenizer_and_configuration_are_of_the_revision_of_the_model(self, run, monkeypatch):
        asked: dict[str, set[str]] = {"AutoTokenizer": set(), "AutoConfig": set()}

        def watch(name: str) -> None:
            original = getattr(transformers, name).from_pretrained

            def spy(*args, **kwargs):
                asked[name].add(kwargs.get("revision"))
                return original(*args, **kwargs)

            monkeypatch.setattr(getattr(transformers, name), "from_pretrained", spy)

        for name in asked:
            watch(name)
        run(kind={"model_revision": "v2"}, num_hidden_layers=1)
        assert asked == {"AutoTokenizer": {"v2"}, "AutoConfig": {"v2"}}


class TestFolds:
    def test_students_learn_from_teachers_that_have_not_seen_the_prompt(self, run, monkeypatch, tmp_path, capsys):
        seen, original = {}, stages.Run._train

        def spy(self, out, title, rows, **how):
            seen[title] = rows
            return original(self, out, title, rows, **how)

        monkeypatch.setattr(stages.Run, "_train", spy)
        options = {"teacher_folds": 2, "methods": ["pafo"], "reference": "pafo"}
        teachers = [f"teacher_without_fold_{fold}:{group}" for fold in (0, 1) for group in ("majority", "minority")]
        run(**options).do_only(["prepare", *teachers, "pafo"])
        assert "The teacher of minority prefers the chosen response" in capsys.readouterr().out
        folds = stages.PromptFolds(load_prepared(tmp_path / "run/data")["train"], 2, seed=42)
        for fold in (0, 1):
            assert set(folds.of(seen[f"Teacher of minority, without fold {fold}"])) == {1 - fold}
        assert not (tmp_path / "run/teacher_margins").exists()  # those of one teacher, whatever it has seen
        before = weights(tmp_path, "pafo")
        run(**options, conditioning="posterior", overwrite=True).do_only(["pafo"])
        assert "The teacher of minority prefers the chosen response" in capsys.readouterr().out
        assert weights(tmp_path, "pafo") != before

    def test_a_group_in_one_fold_is_refused_before_any_training(self, run, monkeypatch):
        train_nothing(monkeypatch)
        monkeypatch.setattr(stages.PromptFolds, "of", lambda self, rows: np.zeros(len(rows), dtype=int))
        with pytest.raises(ConfigError, match="All training pairs of the group 'majority' are in one of 2 folds"):
            run(teacher_folds=2)()
