"""A run that could not end says so before any trainer is made; a group without test pairs is told, and its numbers are unknown."""

import json

import pytest
from helpers.parts import make_model
from helpers.small_runs import train_nothing
from trl import ModelConfig

from trl_pafo.errors import ConfigError, DataError, RunFolderError, TeacherError
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.pipeline import run as stages
from trl_pafo.pipeline.run import Run
from trl_pafo.report.results import verdict_lines
from trl_pafo.trainer.config import PAFOConfig


def row(user: int, group: str, number: int, split: str, **texts: str) -> dict[str, str]:
    said = ("yes kindly", "no haha") if group == "many" else ("no haha", "yes kindly")
    texts = {"prompt": f"what {split} {user} {number}", "chosen": said[0], "rejected": said[1], **texts}
    return {**texts, "user": f"{split}-{user}", "group": group}


def make_rows(split: str, **users: int) -> list[dict[str, str]]:
    """Three pairs of each of so many users of each group."""
    return [row(100 * g + u, group, n, split) for g, (group, k) in enumerate(users.items()) for u in range(k) for n in range(3)]


@pytest.fixture
def make_run(encoder, training, tmp_path):
    """A run on these rows, training and test."""

    def build(train=None, test=None, model=encoder, run=None, **options) -> Run:
        files = {"data_path": make_rows("train", many=6, few=3) if train is None else train}
        files |= {"test_data_path": make_rows("test", many=4, few=2) if test is None else test}
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        paths = {name: str(tmp_path / f"{name}.jsonl") for name in files}
        chosen = {"validation_share": 0.0, "num_resamples": 20, **paths, **(run or {})}
        args = {**training, "max_steps": 1, "num_history": 1, **options}
        return Run(RunArguments(**chosen), PAFOConfig(str(tmp_path / "run"), **args), ModelConfig(model, dtype=None))

    return build


@pytest.fixture
def no_trainer(monkeypatch):
    monkeypatch.setattr(stages.Run, "_train", lambda *args, **kwargs: pytest.fail("a training was begun"))


LONG = "what " * 300
GIVEN: dict[str, str] = {}
"""In place of teachers of both groups."""
BASELINES = {"methods": ["bradley_terry", "personalized_bt"]}


@pytest.mark.parametrize(
    ("run", "options", "error", "match"),
    [
        (BASELINES, {"teachers": {"many": "x"}}, ConfigError, "--teachers: no effect, as none of the methods has teachers"),
        (
            {},
            {"num_history": 0},
            ConfigError,
            "--num_history 0 shows no histories, without which nothing is known of a user. Raise it, or leave PAFO out",
        ),
        (
            {"methods": ["personalized_bt", "vpl", "mrm"]},
            {"num_history": 0},
            ConfigError,
            "--num_history 0 shows no histories, .* Raise it, or leave VPL and MRM out of --methods",
        ),
        (BASELINES, {"push_to_hub": True}, ConfigError, "--push_to_hub pushes the model of PAFO, and the methods have none"),
        (
            {},
            {"model_init_kwargs": '{"dtype": "bfloat16", "attn_implementation": "eager"}'},
            ConfigError,
            "--model_init_kwargs: dtype, attn_implementation would decide .* Give --dtype, --attn_implementation instead",
        ),
        ({}, {"eval_strategy": "epoch"}, ConfigError, "--eval_strategy: a run judges finished models, .* Leave it out"),
        ({}, {"eval_on_start": True}, ConfigError, "--eval_on_start: a run judges finished models"),
        ({}, {"per_device_eval_batch_size": 0}, ConfigError, "`per_device_eval_batch_size` must be at least 1"),
        ({"max_words": 3}, {}, ConfigError, "--max_words: no effect on the source 'files'"),
        ({}, {"dataloader_drop_last": True, "per_device_train_batch_size": 10}, ConfigError, "The 9 training pairs of .*few"),
        ({"methods": ["personalized_bt", "worst_group_bt"]}, {}, ConfigError, "chosen on held-out pairs, and none"),
    ],
)
def test_options_that_no_run_could_end_with(make_run, no_trainer, run, options, error, match):
    with pytest.raises(error, match=match):
        make_run(run=run, **options)()


@pytest.mark.parametrize(
    ("train", "test", "error", "match"),
    [
        (
            None,
            [*make_rows("test", many=4, few=2), *(row(999, "few", n, "test", chosen=LONG) for n in range(3))],
            DataError,
            "2 of 14 pairs of the test data are longer than the 256 positions of the model, the first is row 12",
        ),
        (
            [*make_rows("train", many=6), *(row(999, "few", n, "train", chosen=LONG) for n in range(3))],
            None,
            ConfigError,
            "No training pair of the group 'few' is within max_length=256 tokens",
        ),
    ],
)
def test_data_that_no_run_could_end_with(make_run, no_trainer, train, test, error, match):
    with pytest.raises(error, match=match):
        make_run(train, test)()


def test_one_group_is_told_before_histories_are_made(make_run, monkeypatch):
    monkeypatch.setattr("trl_pafo.pipeline.prepare.render_history", None)
    with pytest.raises(ConfigError, match=r"only one group \('many'\), .* --infer_groups, or leave the methods"):
        make_run(make_rows("train", many=6), make_rows("test", many=4))()
    with pytest.raises(TypeError):  # where no method needs several, the rows are made
        make_run(make_rows("train", many=6), make_rows("test", many=4), run={"methods": ["personalized_bt"]})()


def test_past_pairs_that_are_read_whole_and_have_too_many_tokens(make_run, no_trainer):
    """Other methods cut them to their budget."""
    rows = [*make_rows("train", many=6, few=3), row(0, "many", 9, "train", chosen=LONG)]
    options = {"history_max_tokens": 20, "run": {"methods": ["personalized_bt", "lore"]}}
    with pytest.raises(
        DataError, match="1 of 28 past pairs in the histories of the train data are longer than the 256 positions"
    ):
        make_run(rows, **options)()
    rows = [row(0, "many", 9, "test", chosen=LONG), *make_rows("test", many=4, few=2)]
    with pytest.raises(DataError, match=r"1 of \d+ past pairs in the histories of the test data are longer"):
        make_run(None, rows, history_max_tokens=20, run={"methods": ["personalized_bt", "maxmin"], "overwrite": True})()


def test_test_pairs_that_leave_no_place_for_tokens_of_users(make_run, no_trainer):
    long = {"chosen": "what " * 117}  # with a past pair, which is as long, 250 tokens
    nearly = [*make_rows("test", many=4, few=2), *(row(999, "few", n, "test", **long) for n in range(3))]
    match = "2 of 14 pairs of the test data with P-RLHF's tokens of users are longer than the 256 positions"
    with pytest.raises(DataError, match=match):
        make_run(None, nearly, run={"methods": ["personalized_bt", "p_rlhf"]}, history_max_tokens=200)()
    with pytest.raises(pytest.fail.Exception, match="a training was begun"):
        make_run(None, nearly, run={"methods": ["personalized_bt"]}, history_max_tokens=200)()


def test_groups_of_test_pairs_are_known_whatever_support_rates_say(make_run, no_trainer):
    rated = [
        [{**r, "support_rate": 0.5} for r in rows] for rows in (make_rows("train", many=6, few=2), make_rows("test", other=3))
    ]
    with pytest.raises(DataError, match="users of the groups 'other', of which training has none"):
        make_run(*rated)()


def test_teachers_of_other_groups_are_told_before_the_data_are_prepared(make_run, encoder, monkeypatch):
    monkeypatch.setattr("trl_pafo.pipeline.prepare._write_splits", lambda *given: pytest.fail("the data were prepared"))
    with pytest.raises(TeacherError, match="'few', 'many', and there are teachers for 'many'"):
        make_run(teachers={"many": encoder})()


def test_a_teacher_that_is_not_there_is_told_before_the_data_are_read(make_run, encoder, monkeypatch):
    monkeypatch.setattr("trl_pafo.pipeline.prepare.load_source", lambda *given, **how: pytest.fail("the data were read"))
    with pytest.raises(TeacherError, match="The teacher of group 'few' cannot be read at 'x': No model is found"):
        make_run(teachers={"many": encoder, "few": "x"})()


def test_a_model_with_half_a_file_is_told_before_the_data_are_read(make_run, tmp_path):
    model = make_model("encoder", tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"model\.safetensors: .*save it again"):
        make_run(model=model)


def test_test_pairs_that_a_given_teacher_has_no_positions_for(make_run, no_trainer, tmp_path, encoder):
    teachers = {"many": encoder, "few": make_model("encoder", tmp_path / "few", max_position_embeddings=16)}
    with pytest.raises(DataError, match=r"4 of 4 pairs of the test data are longer than the 16 positions of the teacher of few"):
        make_run(teachers=teachers)()


@pytest.mark.parametrize(
    ("run", "options", "unused"),
    [
        (BASELINES, {"alpha": 0.5, "tau": 0.3}, "--alpha, --tau"),
        ({"methods": ["personalized_bt", "distilled_ensemble"]}, {"alpha": 0.5, "tau": 0.3}, "--tau"),
        ({**BASELINES, "teacher_min_steps": 5}, {}, "--teacher_min_steps"),
        ({"methods": ["bradley_terry"], "reference": "bradley_terry", "reference_steps": [1]}, {}, "--reference_steps"),
        ({"teacher_start": "warm"}, {"teachers": GIVEN}, "--teacher_start"),
        ({"teacher_start": "warm", "teacher_min_steps": 5}, {"alpha": 0.5, "max_steps": -1}, None),
    ],
)
def test_options_without_effect_are_named(make_run, encoder, run, options, unused, caplog):
    if options.get("teachers") is GIVEN:
        options = {**options, "teachers": {"many": encoder, "few": encoder}}
    make_run(run=run, **options)
    said = [record.message for record in caplog.records if "no effect" in record.message]
    assert said == ([f"{unused}: no effect in this run, which trains no model that uses them."] if unused else [])


@pytest.mark.parametrize(("run", "named"), [({"teacher_epochs": 2.0}, "epochs"), ({"teacher_min_steps": 5}, "min_steps")])
def test_max_steps_is_for_teachers_too(make_run, run, named, caplog):
    make_run(run=run, max_steps=3)
    assert f"--teacher_{named}: no effect beside --max_steps, which is for teachers, too." in caplog.text


def test_a_report_of_somebody_else_in_the_folder(make_run, no_trainer, tmp_path):
    make_run()
    (tmp_path / "run/report.html").write_text("mine")
    with pytest.raises(RunFolderError, match=r"report.html is there and is no report of trl-pafo"):
        make_run()


def test_teachers_that_nobody_can_judge_are_told_at_the_beginning(make_run, capsys, monkeypatch):
    train_nothing(monkeypatch)
    make_run(run={"validation_share": 0.1, "teacher_folds": 1})()
    told = "Too few held-out users to judge what can be had for few (2), many (1), so nothing will be distilled"
    said = capsys.readouterr().out
    assert said.index(told) < said.index("[bradley_terry]")


def test_a_group_of_one_user_is_trained_on_and_not_evaluated(make_run, tmp_path, capsys, short_report):
    options = {"methods": ["personalized_bt", "group_routed"], "reference_steps": [1], "teacher_folds": 1}
    results = make_run(make_rows("train", many=6, few=3, lone=1), run=options)()
    summary = json.loads((tmp_path / "run/data/summary.json").read_text())
    assert summary["not_evaluated"] == results["not_evaluated"] == ["lone"]
    assert summary["train"]["users"] == {"many": 6, "few": 3, "lone": 1}
    assert "no test pairs, so not evaluated: lone" in capsys.readouterr().out
    assert (tmp_path / "run/teachers/lone/model.safetensors").exists()
    assert (results["majority"], results["minority"]) == ("many", "few")
    for method in results["methods"].values():
        assert method["accuracy/lone"] == {"value": None, "low": None, "high": None}
        assert method["num_users/lone"] == 0
        assert method["accuracy/few"]["value"] is not None
    assert "Not evaluated, without test pairs: lone." in verdict_lines(results)
    assert "| lone |" in (tmp_path / "run/results/results.md").read_text()
    assert "lone" in (tmp_path / "run/report.html").read_text()


def test_one_group_alone_with_test_pairs(make_run, tmp_path, short_report):
    results = make_run(test=make_rows("test", many=4), run={"methods": ["personalized_bt"], "reference_steps": [1]})()
    assert results["not_evaluated"] == ["few"]
    assert results["methods"]["personalized_bt"]["accuracy/few"]["value"] is None
    assert not (tmp_path / "run/results/majority_minority.png").exists()
    assert (tmp_path / "run/report.html").exists()
