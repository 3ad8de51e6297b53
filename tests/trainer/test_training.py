"""Checkpoints: which are whole, when they are written, and that a training goes on from one as if it had never stopped."""

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.parts import make_model
from transformers import TrainerCallback

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.storage.run_folder import KEPT
from trl_pafo.trainer import checkpoints as training
from trl_pafo.trainer.checkpoints import (
    MARK,
    Checkpoints,
    checkpoint_to_resume,
    checkpoints_in,
    is_whole,
    keep_for,
    last_checkpoint,
    save_whole,
    train,
    write_checkpoints_to,
)

GROUPS = ("majority", "minority")


class KilledAfter(TrainerCallback):
    """Ends the training within the step after the given one, when its checkpoint is written."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    base = tmp_path_factory.mktemp("parts")
    teachers = {group: make_model("encoder", base / group, seed=seed) for seed, group in enumerate(GROUPS, 1)}
    return make_model("encoder", base / "student"), teachers


@pytest.fixture
def build(parts, training, pairs, tmp_path):
    model, teachers = parts

    def make(out, **more):
        # With dropout and a shuffled order, so that losses depend on the state of the random numbers.
        options = {**training, "disable_dropout": False, "max_steps": 6, "eos_token": "[SEP]", "num_history": 1, **more}
        options.setdefault("teacher_margin_cache_dir", str(tmp_path / "margins"))
        return PAFORewardTrainer(model, PAFOConfig(str(out), **options), train_dataset=pairs, teachers=teachers)

    return make


def losses(trainer):
    return [(log["step"], log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


class TestResume:
    """`resume_from_checkpoint` of PAFORewardTrainer itself, with teachers, counterfactual rows and dropout."""

    @pytest.fixture
    def unbroken(self, build, tmp_path):
        trainer = build(tmp_path / "unbroken", save_strategy="steps", save_steps=2)
        trainer.train()
        trainer.save_model()
        return trainer

    @pytest.mark.parametrize("step", [2, 4, 6])  # 6 is the last: there is nothing left to train
    def test_losses_and_weights_are_those_of_the_unbroken_run(self, unbroken, build, tmp_path, step):
        trainer = build(tmp_path / "resumed")
        trainer.train(resume_from_checkpoint=str(tmp_path / f"unbroken/checkpoint-{step}"))
        trainer.save_model()
        assert len({loss for _, loss, _ in losses(trainer)}) == 6
        assert losses(trainer) == losses(unbroken)
        assert weights(tmp_path / "resumed") == weights(tmp_path / "unbroken")

    def test_they_depend_on_the_random_numbers(self, unbroken, build, tmp_path):
        """Else the test above could not fail."""
        checkpoint = tmp_path / "unbroken/checkpoint-2"
        (checkpoint / "rng_state.pth").unlink()
        trainer = build(tmp_path / "resumed")
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert losses(trainer)[:2] == losses(unbroken)[:2]
        assert losses(trainer)[2:] != losses(unbroken)[2:]

    def test_in_the_middle_of_accumulation_and_of_an_epoch(self, build, tmp_path):
        options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "num_train_epochs": 2, "max_steps": -1}
        whole = build(tmp_path / "unbroken", save_strategy="steps", save_steps=3, **options)
        whole.train()
        resumed = build(tmp_path / "resumed", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken/checkpoint-3"))
        assert losses(resumed) == losses(whole)


class TestTrain:
    """A training of a run: it keeps checkpoints beside its output, and goes on from the last whole one."""

    def do(self, build, out, killed_after=None, **more):
        args = {"save_strategy": "steps", "save_steps": 2, **more}
        trainer = build(out / KEPT, **args)
        checkpoints = write_checkpoints_to(trainer.args, out)
        if killed_after is not None:
            trainer.add_callback(KilledAfter(killed_after))
        return trainer, train(trainer, out, "title", checkpoints)

    def test_a_killed_training_goes_on_and_ends_the_same(self, build, tmp_path, capsys):
        whole, _ = self.do(build, tmp_path / "whole")
        assert "going on" not in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            self.do(build, tmp_path / "killed", killed_after=5)
        assert [p.name for p in checkpoints_in(tmp_path / "killed" / KEPT)] == ["checkpoint-4"]
        resumed, before = self.do(build, tmp_path / "killed")
        assert "going on after step 4" in capsys.readouterr().out
        assert losses(resumed) == losses(whole)
        assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
        assert before > 0

    @pytest.mark.parametrize("cut", ["model.safetensors", "optimizer.pt", "trainer_state.json", MARK])
    def test_a_half_written_checkpoint_is_not_used(self, build, tmp_path, capsys, cut):
        with pytest.raises(KeyboardInterrupt):
            self.do(build, tmp_path / "out", killed_after=4, save_total_limit=2)
        half = tmp_path / "out" / KEPT / "checkpoint-4"
        os.truncate(half / cut, (half / cut).stat().st_size // 2)
        resumed, _ = self.do(build, tmp_path / "out")
        assert "going on after step 2" in capsys.readouterr().out
        assert [step for step, _, _ in losses(resumed)] == [1, 2, 3, 4, 5, 6]

    def test_killed_while_saving_the_checkpoint_before_is_taken(self, build, tmp_path, capsys, monkeypatch):
        saved = PAFORewardTrainer._save_rng_state

        def killed(self, folder):
            if folder.endswith("-4"):
                raise KeyboardInterrupt
            saved(self, folder)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
            patch.setattr(PAFORewardTrainer, "_save_rng_state", killed)
            self.do(build, tmp_path / "out")
        assert (tmp_path / "out" / KEPT / "checkpoint-4/model.safetensors").exists()
        resumed, _ = self.do(build, tmp_path / "out")
        assert "going on after step 2" in capsys.readouterr().out
        assert len(losses(resumed)) == 6

    def test_what_a_tracker_wrote_is_kept(self, build, tmp_path):
        trainer = build(tmp_path / "out" / KEPT)
        checkpoints = write_checkpoints_to(trainer.args, tmp_path / "out")
        (tmp_path / "out" / KEPT / "runs").mkdir()
        (tmp_path / "out" / KEPT / "runs/events").write_text("1")
        train(trainer, tmp_path / "out", "title", checkpoints)
        assert (tmp_path / "out/runs/events").read_text() == "1"
        assert not [p for p in (tmp_path / "out").iterdir() if "checkpoint" in p.name or "optimizer" in p.name]


class TestWhenCheckpointsAreWritten:
    def options(self, tmp_path, **more):
        return PAFOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **more)

    def test_by_time_unless_the_user_says_when(self, tmp_path):
        args = self.options(tmp_path)
        callback = write_checkpoints_to(args, tmp_path / "out")
        assert (args.save_strategy, callback.seconds, callback.limit) == ("no", training.EVERY_SECONDS, 1)
        assert args.output_dir == str(tmp_path / "out" / KEPT)

    @pytest.mark.parametrize("more", [{"save_steps": 7}, {"save_strategy": "epoch"}, {"save_strategy": "no"}], ids=str)
    def test_as_the_user_says(self, tmp_path, more):
        args = self.options(tmp_path, **more, save_total_limit=3, save_only_model=True)
        callback = write_checkpoints_to(args, tmp_path / "out")
        assert (callback.seconds, callback.limit) == (None, 3)
        assert (args.save_strategy, args.save_steps) == (more.get("save_strategy", "steps"), more.get("save_steps", 500))
        assert not args.save_only_model

    def steps_saved(self, tmp_path, callback, monkeypatch, *, logging_steps=1, seconds_a_step=1.0, seconds_a_save=0.0, steps=40):
        now = [0.0]
        monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
        args = SimpleNamespace(output_dir=str(tmp_path), should_save=True, save_total_limit=None, logging_strategy="steps")
        state = SimpleNamespace(global_step=0, max_steps=steps, logging_steps=logging_steps, best_model_checkpoint=None)
        callback.on_train_begin(args, state, None)
        saved = []
        for step in range(1, steps + 1):
            now[0] += seconds_a_step
            state.global_step = step
            control = SimpleNamespace(should_save=False)
            callback.on_step_end(args, state, control)
            if control.should_save:
                saved.append(step)
                checkpoint = tmp_path / f"checkpoint-{step}"
                (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step}))
                assert not is_whole(checkpoint)  # other processes may still be writing
                now[0] += seconds_a_save
                callback.on_save(args, state, control)
                assert is_whole(checkpoint)
        return saved

    @pytest.mark.parametrize(
        ("options", "saved"),
        [
            ({}, [10, 20, 30]),  # none at the end: the model itself is saved then
            ({"logging_steps": 4}, [12, 24, 36]),  # whole logs
            ({"logging_steps": 500}, [20]),  # but not without an end
            ({"seconds_a_step": 0.2}, []),  # too short for any
            ({"seconds_a_save": 1.0}, [10, 30]),  # at most 5 % of the time
        ],
        ids=str,
    )
    def test_by_time(self, tmp_path, monkeypatch, options, saved):
        assert self.steps_saved(tmp_path, Checkpoints(10.0), monkeypatch, **options) == saved

    def test_not_without_being_asked(self, tmp_path, monkeypatch):
        assert self.steps_saved(tmp_path, Checkpoints(), monkeypatch) == []

    def test_seconds_add_up(self, tmp_path, monkeypatch):
        self.steps_saved(tmp_path, Checkpoints(10.0, limit=9), monkeypatch)
        assert [json.loads((tmp_path / f"checkpoint-{n}" / MARK).read_text())["seconds"] for n in (10, 20, 30)] == [10, 20, 30]


class TestLimit:
    @pytest.mark.parametrize(
        ("limit", "best", "left"),
        [(1, None, {5}), (2, None, {4, 5}), (2, 1, {1, 5}), (1, 1, {1, 5}), (3, 5, {3, 4, 5}), (None, None, {1, 2, 3, 4, 5})],
    )
    def test_older_ones_are_removed_but_the_best(self, tmp_path, limit, best, left):
        callback = Checkpoints()
        args = SimpleNamespace(output_dir=str(tmp_path), should_save=True, save_total_limit=limit, logging_strategy="steps")
        state = SimpleNamespace(global_step=0, max_steps=9, best_model_checkpoint=best and str(tmp_path / f"checkpoint-{best}"))
        callback.on_train_begin(args, state, None)
        assert args.save_total_limit is None  # the Trainer would remove the last whole one before the next is whole
        for step in range(1, 6):
            state.global_step = step
            write_checkpoint(tmp_path, step, marked=False)
            os.utime(tmp_path / f"checkpoint-{step}/trainer_state.json", (step, step))
            callback.on_save(args, state, None)
        callback.on_train_end(args, state, None)
        assert args.save_total_limit == limit
        assert {int(p.name[11:]) for p in checkpoints_in(tmp_path)} == left


def write_checkpoint(folder, step, steps=10, marked=True):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": step, "max_steps": steps}))
    if marked:
        sizes = {path.name: path.stat().st_size for path in checkpoint.iterdir()}
        (checkpoint / MARK).write_text(json.dumps({"whole": True, "seconds": 1.0, "files": sizes}))
    return checkpoint


class TestWhichCheckpoint:
    def test_the_last_that_is_whole(self, tmp_path):
        for step in (2, 10, 9):
            write_checkpoint(tmp_path, step)
            time.sleep(0.01)
        assert last_checkpoint(tmp_path).name == "checkpoint-9"  # written last, by a training that began anew
        (tmp_path / "checkpoint-9/model.safetensors").write_bytes(b"wei")
        assert last_checkpoint(tmp_path).name == "checkpoint-10"
        shutil.rmtree(tmp_path / "checkpoint-10")
        assert last_checkpoint(tmp_path).name == "checkpoint-2"
        assert last_checkpoint(tmp_path / "nowhere") is None

    def test_those_of_trl_have_no_mark(self, tmp_path):
        checkpoint = write_checkpoint(tmp_path, 3, marked=False)
        assert is_whole(checkpoint)
        (checkpoint / "trainer_state.json").unlink()  # what it writes last
        assert not is_whole(checkpoint)

    def test_a_mark_that_was_half_written(self, tmp_path):
        checkpoint = write_checkpoint(tmp_path, 3)
        (checkpoint / MARK).write_text("")
        assert not is_whole(checkpoint)

    def test_later_ones_of_another_training_are_never_taken(self, tmp_path):
        """A training that begins anew would else, when killed, go on with what is not its own."""
        for step in (4, 8):
            write_checkpoint(tmp_path, step, marked=step == 4)
        args = SimpleNamespace(output_dir=str(tmp_path), should_save=True, save_total_limit=None, logging_strategy="steps")
        Checkpoints().on_train_begin(args, SimpleNamespace(global_step=0, max_steps=9), None)
        assert last_checkpoint(tmp_path) is None


class TestCheckpointToResume:
    @pytest.fixture
    def stopped(self, tmp_path):
        write_checkpoint(tmp_path, 4)
        return tmp_path

    def test_nothing_to_resume(self, tmp_path):
        assert checkpoint_to_resume(None, tmp_path / "new") is None
        assert checkpoint_to_resume("last", tmp_path / "new") is None
        with pytest.raises(ConfigError, match=r"holds no whole checkpoint. Leave out --resume_from_checkpoint, or pass `last`"):
            checkpoint_to_resume("true", tmp_path)

    @pytest.mark.parametrize("value", ["true", "True", True, "last", "checkpoint-4"])
    def test_the_last_one(self, stopped, value):
        assert checkpoint_to_resume(value, stopped) == str(stopped / "checkpoint-4")

    def test_a_folder(self, stopped, tmp_path):
        other = write_checkpoint(tmp_path / "elsewhere", 2)
        assert checkpoint_to_resume(str(other), stopped) == str(other)

    @pytest.mark.parametrize("value", [None, ""])
    def test_a_stopped_training_is_not_overwritten_without_a_word(self, stopped, value):
        match = r"stopped after step 4 of 10. Pass --resume_from_checkpoint true to go on with it, false to begin anew"
        with pytest.raises(ConfigError, match=match):
            checkpoint_to_resume(value, stopped)
        assert checkpoint_to_resume("false", stopped) is None
        assert checkpoint_to_resume(False, stopped) is None

    def test_a_finished_training_is_as_for_trl(self, tmp_path):
        write_checkpoint(tmp_path, 10)
        assert checkpoint_to_resume(None, tmp_path) is None

    def test_one_that_is_not_there(self, stopped):
        with pytest.raises(ConfigError, match=r"--resume_from_checkpoint checkpoint-5: there is no such folder. Give true"):
            checkpoint_to_resume("checkpoint-5", stopped)

    def test_one_that_is_not_whole(self, stopped):
        (stopped / "checkpoint-4/model.safetensors").unlink()
        with pytest.raises(ConfigError, match=r"checkpoint-4 is no whole checkpoint"):
            checkpoint_to_resume("checkpoint-4", stopped)


def test_what_must_be_the_same_to_go_on(tmp_path, monkeypatch):
    def key(**more):
        return keep_for(PAFOConfig(str(tmp_path / str(len(more))), use_cpu=True, bf16=False, **more))

    assert key() == key(logging_steps=3, save_steps=7, resume_from_checkpoint="true", disable_tqdm=True)
    assert key() != key(gradient_checkpointing=False)
    assert key() != key(prefix_sharing="off")
    assert json.loads(json.dumps(key())) == key()
    before = key()
    monkeypatch.setattr(training, "version", lambda name: "0.1")
    assert key() != before


def test_a_model_is_replaced_only_when_it_is_written(build, tmp_path, monkeypatch):
    trainer = build(tmp_path / "out")
    save_whole(trainer, tmp_path / "out")
    old = weights(tmp_path / "out")
    with torch.no_grad():
        next(trainer.model.parameters()).add_(1)

    def full(self, folder, **kwargs):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):  # noqa: PT012
        patch.setattr(PAFORewardTrainer, "save_model", full)
        save_whole(trainer, tmp_path / "out")
    assert weights(tmp_path / "out") == old
    save_whole(trainer, tmp_path / "out")
    assert weights(tmp_path / "out") != old
    assert not list((tmp_path / "out").glob(f"{KEPT}*"))
