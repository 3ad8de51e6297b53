"""Trainings that go on where they were killed: when checkpoints are written, which of them are whole, which is the last."""

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trl_pafo.errors import ConfigError
from trl_pafo.storage.files import remove, rename, sync, write_text
from trl_pafo.storage.run_folder import KEPT
from trl_pafo.trainer.cache_keys import rounding_options
from trl_pafo.trainer.progress import PairProgress
from trl_pafo.versions import __version__

MARK = "whole.json"
"""File in a checkpoint that says whether it is whole: which files it has, and how long the training took so far."""

EVERY_SECONDS = 300.0
"""Time between two checkpoints where the user has not said when to write them."""

_STATE = "trainer_state.json"
# Writing checkpoints takes this share of the time at most.
_SHARE = 0.05


class Checkpoints(TrainerCallback):
    """
    Marks checkpoints as whole, writes them by time, and removes the older ones.

    The Trainer writes a checkpoint file by file into the folder that it will stay in. A folder without a mark, or whose mark
    says so, was being written when the training was killed.

    Args:
        seconds (`float`, *optional*):
            Least time between two checkpoints, each written at the next log, so that no log is torn apart, and rarer where
            writing takes long. By default they are written when the options of the Trainer say so.
        limit (`int`, *optional*):
            Keep so many of them; by default `save_total_limit`. A checkpoint is removed only after a later one is whole, which the
            Trainer does not wait for.
    """

    def __init__(self, seconds: float | None = None, limit: int | None = None):
        self.seconds, self.limit = seconds, limit
        self.before = 0.0
        """Seconds that the training took before it was killed, up to the checkpoint that it went on from."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._asked, args.save_total_limit = args.save_total_limit, None
        self._start = self._last = self._due = time.monotonic()
        self._wait = self.seconds or 0.0
        for checkpoint in checkpoints_in(Path(args.output_dir)):
            if _step_of(checkpoint) == state.global_step:
                self.before = _read(checkpoint / MARK).get("seconds", 0.0)
            elif _step_of(checkpoint) > state.global_step and args.should_save:
                _disown(checkpoint)  # of another training, or one that will be written again

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        waited = time.monotonic() - self._last
        if self.seconds is not None and waited >= self._wait and state.global_step < state.max_steps:
            control.should_save |= waited >= 2 * self._wait > 0 or self._is_at_log(args, state)
        self._announce(args, state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._announce(args, state, control)

    @staticmethod
    def _is_at_log(args: Any, state: Any) -> bool:
        return args.logging_strategy != "steps" or state.global_step % state.logging_steps == 0

    def _announce(self, args: Any, state: Any, control: Any) -> None:
        if control.should_save and args.should_save:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            checkpoint.mkdir(parents=True, exist_ok=True)
            _disown(checkpoint)
            self._due = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PartialState().wait_for_everyone()  # each process writes its part
        if not args.should_save:
            return
        folder = Path(args.output_dir)
        checkpoint = folder / f"checkpoint-{state.global_step}"
        sync(checkpoint)
        files = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in _files(checkpoint)}
        self._last = time.monotonic()
        self._wait = max(self.seconds or 0.0, (self._last - self._due) / _SHARE)
        seconds = self.before + self._last - self._start
        write_text(checkpoint / MARK, json.dumps({"whole": True, "seconds": round(seconds, 1), "files": files}) + "\n")
        limit = self._asked if self.limit is None else self.limit
        best = state.best_model_checkpoint and Path(state.best_model_checkpoint).name
        others = [path for path in checkpoints_in(folder) if path != checkpoint and path.name != best]
        if limit and limit > 0:
            for old in others[: max(0, len(others) + 1 + bool(best and best != checkpoint.name) - limit)]:
                shutil.rmtree(old, ignore_errors=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        args.save_total_limit = self._asked


def checkpoints_in(folder: Path) -> list[Path]:
    """Folders `checkpoint-<step>`, whole or not, the one written last at the end."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _step_of(path) >= 0]
    return sorted(found, key=lambda path: (_time_of(path), _step_of(path)))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end.

    One without a mark was written by another trainer, whose last file is `trainer_state.json`.
    """
    mark = _read(checkpoint / MARK)
    if not mark:
        return not (checkpoint / MARK).exists() and "global_step" in _read(checkpoint / _STATE)
    sizes = mark.get("files", {})
    paths = {name: checkpoint / name for name in sizes}
    return bool(mark.get("whole")) and all(path.is_file() and path.stat().st_size == sizes[n] for n, path in paths.items())


def last_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint that was written last."""
    return next((path for path in reversed(checkpoints_in(folder)) if is_whole(path)), None)


def checkpoint_to_resume(value: str | bool | None, folder: Path) -> str | None:
    """What `--resume_from_checkpoint` means.

    Args:
        value (`str` or `bool`, *optional*):
            - `true`: the last whole checkpoint in `folder`;
            - `last`: the same, and the beginning where there is none;
            - a folder, of its own or in `folder`: that checkpoint;
            - `false`: the beginning, whatever is in `folder`;
            - not given: the beginning, if no unfinished training is in `folder`.
        folder (`Path`):
            The output folder of the training.

    Returns:
        The checkpoint, or `None` for the beginning.

    Raises:
        ConfigError: If there is no such checkpoint, it is not whole, or an unfinished training would be overwritten.
    """
    word = "" if value is None else str(value).strip()
    last = last_checkpoint(folder)
    if not word:
        step, steps = _progress(last)
        if step < steps:
            raise ConfigError(
                f"{folder} holds a training that was stopped after step {step} of {steps}. Pass --resume_from_checkpoint true to go on "
                "with it, false to begin anew in its place, or choose another --output_dir."
            )
        return None
    if word.lower() in ("true", "last"):
        if last is None and word.lower() == "true":
            raise ConfigError(
                f"{folder} holds no whole checkpoint. Leave out --resume_from_checkpoint, or pass `last`, which begins anew where there "
                "is none."
            )
        return None if last is None else str(last)
    if word.lower() == "false":
        return None
    found = next((path for path in (Path(word), folder / word) if path.is_dir()), None)
    if found is None:
        raise ConfigError(
            f"--resume_from_checkpoint {word}: there is no such folder. Give true (the last in --output_dir), last, false, or a "
            "folder checkpoint-<step>."
        )
    if not is_whole(found):
        raise ConfigError(
            f"{found} is no whole checkpoint: the training was stopped while writing it, or it is something else. Give another, "
            "or true for the last whole one in --output_dir."
        )
    return str(found)


def keep_for(args: TrainingArguments) -> dict[str, Any]:
    """What must be the same for a stage to go on from a checkpoint, beside its inputs: options of rounding, versions of libraries."""
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "accelerate", "peft")}
    return {"options": rounding_options(args), "versions": {**versions, "trl-pafo": __version__}}


def write_checkpoints_to(args: TrainingArguments, out: Path) -> Checkpoints:
    """Let a training that makes the folder `out` keep its checkpoints in `out/KEPT`; return the callback that it needs.

    `save_strategy`, `save_steps` and `save_total_limit` are respected, but for their defaults: by time instead of every 500
    steps, the last one instead of all.
    """
    args.output_dir = str(out / KEPT)
    args.save_only_model = False  # nothing could go on from a checkpoint without the optimizer's state
    fields = {field.name: field.default for field in dataclasses.fields(TrainingArguments)}
    by_default = args.save_strategy == fields["save_strategy"] and args.save_steps == fields["save_steps"]
    if by_default:
        args.save_strategy = "no"  # type: ignore[assignment]
    return Checkpoints(EVERY_SECONDS if by_default else None, args.save_total_limit or 1)


def train(trainer: Trainer, out: Path, title: str, checkpoints: Checkpoints) -> float:
    """Train, from the last whole checkpoint if there is one, and save to `out`; return the seconds it took before that one."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    progress = PairProgress(title)
    trainer.add_callback(progress)
    trainer.add_callback(checkpoints)
    folder = out / KEPT
    for checkpoint in checkpoints_in(folder):
        if not is_whole(checkpoint):
            remove(checkpoint)
    last = last_checkpoint(folder)
    if last is not None:
        print(f"    going on after step {_step_of(last)}", flush=True)
    try:
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        progress.on_train_end(trainer.args, trainer.state, trainer.control)  # else an error would stand in the line of the bar
    trainer.save_model(str(out), _internal_call=True)  # without a card: that of a run holds the evaluation, too
    trainer.state.save_to_json(str(out / _STATE))
    for path in folder.iterdir():  # such as what a tracker has written
        if path.is_dir() and _step_of(path) < 0:
            shutil.copytree(path, out / path.name, dirs_exist_ok=True)
    return checkpoints.before


def save_whole(trainer: Trainer, out: Path) -> None:
    """`trainer.save_model(out)`, but what is in `out` is replaced only when all is written."""
    aside = out / f"{KEPT}_model"
    is_writer = trainer.args.should_save
    if is_writer:
        remove(aside)
    PartialState().wait_for_everyone()
    try:
        trainer.save_model(str(aside), _internal_call=True)
        PartialState().wait_for_everyone()
        if is_writer and aside.is_dir():
            sync(aside)
            for path in sorted(aside.iterdir()):
                if path.is_dir():
                    remove(out / path.name)
                rename(path, out / path.name)
    finally:
        if is_writer:
            shutil.rmtree(aside, ignore_errors=True)
    PartialState().wait_for_everyone()


def _progress(checkpoint: Path | None) -> tuple[int, int]:
    state = {} if checkpoint is None else _read(checkpoint / _STATE)
    return int(state.get("global_step", 0)), int(state.get("max_steps", 0))


def _disown(checkpoint: Path) -> None:
    # The time of the folder is that of the training that wrote it, and tells which one is the last.
    write_text(checkpoint / MARK, json.dumps({"whole": False}) + "\n")


def _step_of(path: Path) -> int:
    step = path.name.removeprefix("checkpoint-")
    return int(step) if step.isdecimal() and step != path.name else -1


def _time_of(checkpoint: Path) -> float:
    state = checkpoint / _STATE
    return state.stat().st_mtime if state.exists() else checkpoint.stat().st_mtime


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MARK)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
