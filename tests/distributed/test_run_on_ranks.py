"""A whole run on two processes: what one process makes, no stage done twice, and an error of one is told by all."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.ranks import assert_wrapped, launch, needs_deepspeed, wrapper_of
from helpers.small_runs import small_run
from safetensors.torch import load_file, save_file

from trl_pafo import PAFORewardTrainer
from trl_pafo.data.named_groups import remembered_groups
from trl_pafo.errors import TrlPafoError
from trl_pafo.models import load_tokenizer, ranks
from trl_pafo.report import page

# No training comes to the end of its pairs, whose last batch accelerate fills up with copies.
OPTIONS = {"train_users": 16, "minority_ratio": 0.4, "teacher_folds": 2}
# Held-out pairs fit the answers for each group.
NAMED = {"conditioning": "named", "validation_share": 0.3, "validation_users": 20, "distill_anyway": True}
DONE_BEFORE = ["prepare", "bradley_terry"]


def make_run(folder: Path, training: dict, model: str, **options):
    batch = 4 // int(os.environ.get("WORLD_SIZE", "1"))
    return small_run(folder, training | {"per_device_train_batch_size": batch}, model, **OPTIONS | options)


def error_of(work) -> str:
    try:
        work()
    except (TrlPafoError, ZeroDivisionError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def fail() -> None:
    raise ZeroDivisionError("on the first")


def run_on_rank(out: Path, model: str, training: str) -> dict:
    training = json.loads(training)
    rank = os.environ["RANK"]
    page.SECTIONS = page.SECTIONS[:1]
    found = {"results": make_run(out / "two", training, model, **NAMED)()}
    make_run(out / "three", training, model, only=["prepare"], **NAMED).do_only(["prepare"])
    found["alone"] = ranks.on_first(lambda: f"rank {rank}")
    found["in_turn"] = ranks.after_first(lambda: f"rank {rank}")
    found["failed"] = error_of(lambda: ranks.on_first(fail))
    found["no_folder"] = error_of(lambda: make_run(Path(model) / "config.json", training, model))
    found["side_by_side"] = error_of(lambda: make_run(out / "three", training, model, trainings_at_once=2, **NAMED))
    found["other_options"] = error_of(make_run(out / "two", training, model, learning_rate=0.5, **NAMED))
    (out / f"disk_of_{rank}").mkdir()
    os.chdir(out / f"disk_of_{rank}")
    ranks._SEEN_WITHIN = 0.2
    shutil.copytree(model, "of_machine")
    weights = load_file("of_machine/model.safetensors")
    save_file({name: tensor + int(rank) for name, tensor in weights.items()}, "of_machine/model.safetensors", {"format": "pt"})
    found["other_base"] = error_of(lambda: make_run(out / "four", training, "of_machine"))
    teachers = {"majority": model, "minority": "of_machine"}
    found["other_teacher"] = error_of(lambda: make_run(out / "four", training | {"teachers": teachers}, model))
    found["other_folder"] = error_of(lambda: make_run(Path("run"), training, model))
    return found


@pytest.fixture(scope="module")
def runs(encoder, tmp_path_factory):
    """The folder of a run in one process, of one that two have ended, what these saw, and when its first stages were done."""
    out = tmp_path_factory.mktemp("ranks")
    training = {"learning_rate": 1e-2, "adam_epsilon": 1e-5, "logging_steps": 1, "max_length": 256, "use_cpu": True}
    training |= {"bf16": False, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trl_pafo.pipeline.run.write_report", lambda folders: None)
        make_run(out / "one", training, encoder, **NAMED)()
        make_run(out / "two", training, encoder, only=DONE_BEFORE, **NAMED).do_only(DONE_BEFORE)
    before = manifest(out / "two")
    return out, before, launch(run_on_rank, 2, out, encoder, json.dumps(training))


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())["stages"]


def assert_same_weights(one: Path, two: Path) -> list[Path]:
    """All models are the same to rounding; their files."""
    models = sorted(path.relative_to(one) for path in one.rglob("model.safetensors"))
    assert models == sorted(path.relative_to(two) for path in two.rglob("model.safetensors"))
    for path in models:
        expected, got = load_file(one / path), load_file(two / path)
        assert got.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_allclose(got[name], tensor, atol=1e-4, err_msg=f"{path}: {name}")
    return models


def test_the_run_is_that_of_one_process(runs):
    out, _, seen = runs
    one, two = manifest(out / "one"), manifest(out / "two")
    assert {name: stage["digest"] for name, stage in two.items()} == {name: stage["digest"] for name, stage in one.items()}
    assert len(assert_same_weights(out / "one", out / "two")) == 8  # two models, the chosen point, four teachers, the student
    for path in (out / "one/results").glob("*.jsonl"):
        rows, others = (
            [json.loads(line) for line in (out / n / "results" / path.name).read_text().splitlines()] for n in ("one", "two")
        )
        assert [row["user"] for row in rows] == [row["user"] for row in others]
        for side in ("reward_chosen", "reward_rejected"):
            expected = np.array([row[side] for row in rows])
            np.testing.assert_allclose([row[side] for row in others], expected, atol=1e-3)
    assert seen[0]["results"] == seen[1]["results"] == json.loads((out / "two/results/results.json").read_text())


def test_a_student_that_reads_the_name_of_a_group_is_fitted_alike(runs):
    out, *_ = runs
    one, two = (remembered_groups(load_tokenizer(str(out / name / "models/pafo"))) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in set(one) - {"groups"}:
        np.testing.assert_allclose(two[name], one[name], atol=1e-2, rtol=1e-2, err_msg=name)


def test_stages_that_one_process_has_done_are_kept(runs):
    out, before, _ = runs
    after = manifest(out / "two")
    assert set(before) == set(DONE_BEFORE) < set(after)
    assert {name: after[name] for name in before} == before
    options = (out / "two/run.yaml").read_text()
    assert options.startswith("# On 2 processes.\n")
    assert "per_device_train_batch_size: 2\n" in options


def test_the_first_prepares_what_one_process_prepares(runs):
    out, *_ = runs
    assert manifest(out / "three").keys() == {"prepare"}
    for name in ("train.parquet", "test.parquet", "lengths.npz"):
        assert (out / "three/data" / name).read_bytes() == (out / "one/data" / name).read_bytes()


def test_nothing_half_written_is_left(runs):
    out, *_ = runs
    assert not [path for path in (out / "two").rglob("*") if path.suffix in (".tmp", ".partial")]
    assert (out / "two/report.html").is_file()
    assert (out / "two/models/pafo/README.md").is_file()


def test_what_the_first_does_alone_is_known_to_all(runs):
    *_, seen = runs
    assert [found["alone"] for found in seen] == ["rank 0", "rank 0"]
    assert [found["in_turn"] for found in seen] == ["rank 0", "rank 1"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("failed", "ZeroDivisionError: on the first"),
        ("no_folder", "RunFolderError: The output folder .* is a file"),
        ("other_folder", "RunFolderError: .*, in which process 0 on .* writes, is not what process 1 on .* sees there"),
        ("other_base", "ConfigError: The model 'of_machine' of process 1 on .* is another one than that of process 0 on .*"),
        ("other_teacher", "ConfigError: The model 'of_machine' of process 1 on .* is another one than that of process 0 on .*"),
        ("side_by_side", "ConfigError: `trainings_at_once=2` gives each training a process of its own"),
        ("other_options", "RunFolderError: .* holds the stage .* of another run .*learning_rate: 0.01 -> 0.5"),
    ],
)
def test_an_error_is_that_of_all(runs, what, told):
    *_, seen = runs
    for found in seen:
        assert re.match(told, found[what])


def run_of_a_machine(out: Path, model: str, training: str) -> None:
    """On the machine of the second the model is missing."""
    make_run(out / "lost", json.loads(training), model if os.environ["RANK"] == "0" else "nowhere")()


@pytest.mark.slow
def test_a_process_that_ends_on_another_machine_ends_the_others(encoder, training, tmp_path):
    """Here no launcher watches over them."""
    with pytest.raises(AssertionError, match=r"Process 0 of 2 failed:(?s:.*)TrainingError: Another process has ended"):
        launch(run_of_a_machine, 2, tmp_path, encoder, json.dumps(training))


def sharded_run_on_rank(out: Path, model: str, training: str) -> list[dict]:
    page.SECTIONS = page.SECTIONS[:1]
    wrappers, train = [], PAFORewardTrainer.train

    def train_and_look(self, *args, **kwargs):
        output = train(self, *args, **kwargs)
        wrappers.append(wrapper_of(self))
        return output

    PAFORewardTrainer.train = train_and_look
    make_run(out / "two", json.loads(training) | {"use_cpu": False}, model)()
    return wrappers


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["fsdp2", *(pytest.param(mode, marks=needs_deepspeed) for mode in ("zero1", "zero2", "zero3"))])
def test_models_that_are_sharded_make_the_same_run(mode, decoder, training, short_report, tmp_path):
    training |= {"adam_epsilon": 1e-5}
    make_run(tmp_path / "one", training, decoder)()
    seen = launch(sharded_run_on_rank, 2, tmp_path, decoder, json.dumps(training), mode=mode)
    assert len(assert_same_weights(tmp_path / "one", tmp_path / "two")) == 8
    for wrappers in seen:
        assert len(wrappers) == 7
        for wrapper in wrappers:
            assert_wrapped(wrapper, mode)
