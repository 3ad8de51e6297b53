"""Checkpoints: which are complete, which is the last, and that a training resumes from one as if it had never stopped."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
from helpers.parts import TRAINING, StoppedAfter, make_model, make_pairs, make_teachers
from safetensors.torch import save_file

from trl_pafo import PAFOConfig, PAFORewardTrainer
from trl_pafo.errors import ConfigError
from trl_pafo.storage.run_folder import KEPT
from trl_pafo.trainer import checkpoints
from trl_pafo.trainer.checkpoints import (
    checkpoint_to_resume,
    keep_for,
    last_checkpoint,
    own_wandb_run,
    save_complete,
    train_and_save,
    write_checkpoints_to,
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    base = tmp_path_factory.mktemp("parts")
    return make_model("encoder", base / "student"), make_teachers("encoder", base)


@pytest.fixture(scope="module")
def build(parts):
    model, teachers = parts

    def make(out, **more):
        # With dropout and a shuffled order, so that losses depend on the state of the random numbers.
        options = {**TRAINING, "disable_dropout": False, "max_steps": 6, "eos_token": "[SEP]", "num_history": 1, **more}
        options.setdefault("teacher_margin_cache_dir", str(Path(model).parent / "margins"))
        return PAFORewardTrainer(model, PAFOConfig(str(out), **options), train_dataset=make_pairs(), teachers=teachers)

    return make


def losses(trainer):
    return [(log["step"], log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log]


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(build, tmp_path_factory):
    trainer = build(tmp_path_factory.mktemp("unbroken"), save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    return trainer


class TestResume:
    """`resume_from_checkpoint` of PAFORewardTrainer itself, with teachers, drawn histories and dropout."""

    @pytest.mark.parametrize("step", [2, 6])  # 6 is the last: there is nothing left to train
    def test_losses_and_weights_are_those_of_the_unbroken_run(self, unbroken, build, tmp_path, step):
        trainer = build(tmp_path / "resumed")
        trainer.train(resume_from_checkpoint=f"{unbroken.args.output_dir}/checkpoint-{step}")
        trainer.save_model()
        assert len({loss for _, loss, _ in losses(trainer)}) == 6
        assert losses(trainer) == losses(unbroken)
        assert weights(tmp_path / "resumed") == weights(unbroken.args.output_dir)

    def test_in_the_middle_of_accumulation_and_of_an_epoch(self, build, tmp_path):
        options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "num_train_epochs": 2, "max_steps": -1}
        whole = build(tmp_path / "unbroken", save_strategy="steps", save_steps=3, **options)
        whole.train()
        resumed = build(tmp_path / "resumed", **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "unbroken/checkpoint-3"))
        assert losses(resumed) == losses(whole)


class TestTrain:
    """A training of a run: it keeps checkpoints beside its output, and resumes from the last complete one."""

    def do(self, build, out, killed_after=None, **more):
        trainer = build(out / KEPT, **{"save_strategy": "steps", "save_steps": 2, **more})
        write_checkpoints_to(trainer.args, out)
        if killed_after is not None:
            trainer.add_callback(StoppedAfter(killed_after))
        train_and_save(trainer, out, "title")
        return trainer

    def test_an_interrupted_training_resumes_and_ends_the_same(self, build, tmp_path, capsys):
        (tmp_path / "unbroken" / KEPT / "runs").mkdir(parents=True)
        (tmp_path / "unbroken" / KEPT / "runs/events").write_text("of a tracker")
        unbroken = self.do(build, tmp_path / "unbroken")
        shown = capsys.readouterr()
        assert "resuming" not in shown.out
        assert "title: 100%" in shown.err
        assert "6/6" in shown.err
        assert "'loss'" not in shown.out + shown.err
        assert (tmp_path / "unbroken/runs/events").read_text() == "of a tracker"
        assert not [p for p in (tmp_path / "unbroken").iterdir() if "checkpoint" in p.name or "optimizer" in p.name]
        with pytest.raises(KeyboardInterrupt):
            self.do(build, tmp_path / "out", killed_after=5)
        assert [p.name for p in (tmp_path / "out" / KEPT).glob("checkpoint-*")] == ["checkpoint-4"]
        resumed = self.do(build, tmp_path / "out")
        assert "resuming after step 4" in capsys.readouterr().out
        assert losses(resumed) == losses(unbroken)
        assert weights(tmp_path / "out") == weights(tmp_path / "unbroken")
        assert not (tmp_path / "out/README.md").exists()  # that of a run is written when it is evaluated

    def test_interrupted_while_saving_the_checkpoint_before_is_taken(self, build, tmp_path, monkeypatch):
        def interrupted(self, folder):
            raise KeyboardInterrupt

        write_checkpoint(tmp_path / KEPT, 1)
        trainer = build(tmp_path / KEPT, max_steps=2, save_strategy="steps", save_steps=2)
        monkeypatch.setattr(PAFORewardTrainer, "_save_rng_state", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert (tmp_path / KEPT / "checkpoint-2/model.safetensors").exists()
        assert last_checkpoint(tmp_path / KEPT).name == "checkpoint-1"


def test_each_training_has_a_run_of_its_own_in_wandb(monkeypatch):
    """W&B's callback takes the run that is open in the process, and leaves it open."""
    ended = []

    class WandbRun:
        def finish(self, exit_code):
            ended.append(exit_code)
            wandb.run = None

    wandb = types.ModuleType("wandb")
    wandb.run = None
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with own_wandb_run():
        wandb.run = WandbRun()
    assert ended == [0]
    with pytest.raises(KeyboardInterrupt), own_wandb_run():  # noqa: PT012
        wandb.run = WandbRun()
        raise KeyboardInterrupt
    assert ended == [0, 1]
    wandb.run = of_caller = WandbRun()
    with own_wandb_run():
        pass
    assert ended == [0, 1]
    assert wandb.run is of_caller


def test_checkpoints_of_a_run_are_written_as_the_user_says_and_one_is_kept(tmp_path):
    options = {"use_cpu": True, "bf16": False, "report_to": "none"}
    for given, limit in ((None, 1), (3, 3)):
        args = PAFOConfig(str(tmp_path), save_steps=7, save_total_limit=given, save_only_model=True, **options)
        write_checkpoints_to(args, tmp_path / "out")
        assert (args.save_steps, args.save_total_limit, args.save_only_model) == (7, limit, False)
        assert args.output_dir == str(tmp_path / "out" / KEPT)


def write_checkpoint(folder, step, steps=10, written_at=None):
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    save_file({"weights": torch.ones(9)}, checkpoint / "model.safetensors")
    torch.save({"step": step}, checkpoint / "optimizer.pt")
    state = checkpoint / "trainer_state.json"
    state.write_text(json.dumps({"global_step": step, "max_steps": steps}))
    if written_at is not None:
        os.utime(state, (written_at, written_at))
    return checkpoint


def test_the_last_checkpoint_is_the_complete_one_that_was_written_last(tmp_path):
    for written_at, step in enumerate((2, 10, 9)):
        write_checkpoint(tmp_path, step, written_at=written_at)
    assert last_checkpoint(tmp_path).name == "checkpoint-9"  # by a training that began anew
    state = tmp_path / "checkpoint-9/trainer_state.json"
    state.write_text(state.read_text()[:10])  # what the Trainer writes last
    assert last_checkpoint(tmp_path).name == "checkpoint-10"
    (tmp_path / "checkpoint-10/trainer_state.json").unlink()
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    assert last_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_checkpoint_with_a_file_that_lost_its_end_is_not_used(tmp_path, name):
    for step in (2, 4):
        write_checkpoint(tmp_path, step, written_at=step)
    assert last_checkpoint(tmp_path).name == "checkpoint-4"
    os.truncate(tmp_path / "checkpoint-4" / name, (tmp_path / "checkpoint-4" / name).stat().st_size - 1)
    assert last_checkpoint(tmp_path).name == "checkpoint-2"
    with pytest.raises(ConfigError, match="holds no complete checkpoint"):
        checkpoint_to_resume("checkpoint-4", tmp_path)


class TestCheckpointToResume:
    @pytest.fixture
    def stopped(self, tmp_path):
        write_checkpoint(tmp_path, 4)
        return tmp_path

    def test_nothing_to_resume(self, tmp_path):
        assert checkpoint_to_resume(None, tmp_path / "new") is None
        assert checkpoint_to_resume("last", tmp_path / "new") is None
        with pytest.raises(ConfigError, match="Leave out --resume_from_checkpoint, or pass `last`"):
            checkpoint_to_resume("true", tmp_path)

    def test_the_last_one(self, stopped):
        for value in ("True", True, "last", "checkpoint-4"):
            assert checkpoint_to_resume(value, stopped) == str(stopped / "checkpoint-4")

    def test_a_folder_or_a_finished_training_as_for_trl(self, stopped, tmp_path):
        other = write_checkpoint(tmp_path / "elsewhere", 10)
        assert checkpoint_to_resume(str(other), stopped) == str(other)
        assert checkpoint_to_resume(None, tmp_path / "elsewhere") is None

    def test_a_stopped_training_is_not_overwritten_without_a_word(self, stopped):
        for value in (None, ""):
            with pytest.raises(ConfigError, match=r"stopped after step 4 of 10\. Pass --resume_from_checkpoint true"):
                checkpoint_to_resume(value, stopped)
        assert checkpoint_to_resume("false", stopped) is None
        assert checkpoint_to_resume(False, stopped) is None

    def test_one_that_is_not_there_or_not_complete(self, stopped):
        (stopped / "checkpoint-5").mkdir()
        for name in ("checkpoint-5", "checkpoint-6"):
            with pytest.raises(ConfigError, match=f"{name}: there is no such folder, or it holds no complete"):
                checkpoint_to_resume(name, stopped)


def test_versions_and_what_changes_the_last_digits_must_be_the_same_to_resume(tmp_path, monkeypatch):
    def key(**more):
        return keep_for(PAFOConfig(str(tmp_path / str(len(more))), use_cpu=True, bf16=False, **more))

    assert key() == key(logging_steps=3, save_steps=7, resume_from_checkpoint="true", disable_tqdm=True)
    assert key() != key(gradient_checkpointing=False)
    before = key()
    monkeypatch.setattr(checkpoints, "version", lambda name: "0.1")
    assert key() != before


def test_a_model_is_replaced_only_when_it_is_written(tmp_path):
    """In place of a trainer, one that writes a file and then may find the disk full."""

    class Writer:
        args = types.SimpleNamespace(should_save=True)
        text, is_full = "old", False

        def save_model(self, folder, **kwargs):
            Path(folder).mkdir(parents=True)
            (Path(folder) / "model.safetensors").write_text(self.text)
            if self.is_full:
                raise OSError(28, "No space left on device")

    trainer = Writer()
    save_complete(trainer, tmp_path)
    trainer.text, trainer.is_full = "new", True
    with pytest.raises(OSError, match="No space"):
        save_complete(trainer, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "old"
    trainer.is_full = False
    save_complete(trainer, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
