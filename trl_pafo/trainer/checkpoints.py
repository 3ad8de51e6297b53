"""Trainings that resume where they were interrupted: which checkpoints are complete, and which of them is the last."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from trl_pafo.errors import ConfigError
from trl_pafo.models.safe_loading import ADAPTER_CONFIG
from trl_pafo.models.upload import remove_adapter
from trl_pafo.storage.files import remove
from trl_pafo.storage.run_folder import KEPT
from trl_pafo.storage.versions import __version__
from trl_pafo.trainer.cache_keys import rounding_options

_STATE = "trainer_state.json"
_LAUNCHER = ("ACCELERATE_USE_", "ACCELERATE_DEEPSPEED_", "FSDP_")
"""Beginnings of the variables by which `accelerate launch` says how a student is wrapped."""


def last_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint that was written last, which is not that of the highest step where a training began anew."""
    found = [path for path in folder.glob("checkpoint-*") if _steps(path) is not None]
    return max(found, key=lambda path: (path / _STATE).stat().st_mtime_ns, default=None)


def checkpoint_to_resume(value: str | bool | None, folder: Path) -> str | None:
    """The checkpoint that `--resume_from_checkpoint` means in an output folder, `None` for the beginning.

    - `true`: the last complete checkpoint in the folder;
    - `last`: the same, and the beginning where there is none;
    - a folder, of its own or in the output folder: that checkpoint;
    - `false`: the beginning, whatever is in the folder;
    - not given: the beginning, if no unfinished training is in the folder.

    Raises:
        ConfigError: If there is no such checkpoint, it is not complete, or an unfinished training would be overwritten.
    """
    word = "" if value is None else str(value).strip()
    last = last_checkpoint(folder)
    if not word:
        step, steps = (last and _steps(last)) or (0, 0)
        if step < steps:
            raise ConfigError(
                f"{folder} holds a training that was stopped after step {step} of {steps}. Pass --resume_from_checkpoint true to "
                "resume it, false to start over and replace it, or choose another --output_dir."
            )
        return None
    if word.lower() in ("true", "last"):
        if last is None and word.lower() == "true":
            raise ConfigError(
                f"{folder} holds no complete checkpoint. Leave out --resume_from_checkpoint, or pass `last`, which starts over if "
                "there is none."
            )
        return None if last is None else str(last)
    if word.lower() == "false":
        return None
    found = next((path for path in (Path(word), folder / word) if path.is_dir()), None)
    if found is None or _steps(found) is None:
        raise ConfigError(
            f"--resume_from_checkpoint {word}: there is no such folder, or it holds no complete checkpoint. Give true (the last "
            "complete one in --output_dir), last, false, or a folder checkpoint-<step>."
        )
    return str(found)


def keep_for(args: TrainingArguments) -> dict[str, Any]:
    """What must be the same for a stage to resume from a checkpoint, beside its inputs: options of rounding, versions of libraries,
    and the launcher of several processes, each of which has a part in a checkpoint."""
    versions = {name: version(name) for name in ("torch", "transformers", "trl", "accelerate", "peft")}
    kept: dict[str, Any] = {"options": rounding_options(args), "versions": {**versions, "trl-pafo": __version__}}
    if args.world_size > 1:
        kept["processes"] = args.world_size
        kept["launcher"] = {name: value for name, value in os.environ.items() if name.startswith(_LAUNCHER)}
    return kept


def write_checkpoints_to(args: TrainingArguments, out: Path) -> None:
    """Let a training that makes the folder `out` keep its checkpoints in `out/KEPT`, as many as `save_total_limit` says, or one."""
    args.output_dir = str(out / KEPT)
    args.save_only_model = False  # nothing could resume from a checkpoint without the optimizer's state
    args.save_on_each_node = False  # the folder is one
    args.save_total_limit = args.save_total_limit or 1


class TitledProgress(ProgressCallback):
    """The Trainer's bar under a title; what is logged is kept, and not printed."""

    def __init__(self, title: str):
        super().__init__()
        self.title = title

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.title)

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class StepReport(TrainerCallback):
    """Tells the steps done and the steps in all, at most once a second and at the end."""

    def __init__(self, tell: Callable[[int, int], None]):
        self.tell, self.last = tell, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.last >= 1 or state.global_step >= state.max_steps:
            self.last = time.monotonic()
            self.tell(state.global_step, state.max_steps)


def train_and_save(trainer: Trainer, out: Path, title: str) -> None:
    """Train, from the last complete checkpoint in `out/KEPT` if there is one, and save the model and the logs to `out`."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    progress = TitledProgress(title)
    trainer.add_callback(progress)
    (last,) = broadcast_object_list([last_checkpoint(out / KEPT)])
    if last is not None and trainer.args.should_save:
        print(f"    resuming after step {last.name.removeprefix('checkpoint-')}", flush=True)
    try:
        with own_wandb_run():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        if progress.training_bar is not None:  # else an error would stand in the line of the bar
            progress.training_bar.close()
    trainer.save_model(str(out), _internal_call=True)  # without a card: that of a run holds the evaluation, too
    if trainer.args.should_save:
        trainer.state.save_to_json(str(out / _STATE))
        for path in (out / KEPT).iterdir():  # such as what a tracker has written
            if path.is_dir() and not path.name.startswith("checkpoint-"):
                shutil.copytree(path, out / path.name, dirs_exist_ok=True)


@contextmanager
def own_wandb_run() -> Iterator[None]:
    """End the run of W&B that a training begins. Its callback leaves it open, and the next training of the process would be logged into it."""
    run: Callable[[], Any] = lambda: getattr(sys.modules.get("wandb"), "run", None)  # noqa: E731
    of_caller, exit_code = run(), 1
    try:
        yield
        exit_code = 0
    finally:
        if (own := run()) is not None and own is not of_caller:
            own.finish(exit_code=exit_code)


def save_complete(trainer: Trainer, out: Path) -> None:
    """`trainer.save_model(out)`, but what is in `out` is replaced only when all is written."""
    temporary = out / f"{KEPT}_model"
    is_writer = trainer.args.should_save
    if is_writer:
        remove(temporary)
    PartialState().wait_for_everyone()
    try:
        trainer.save_model(str(temporary), _internal_call=True)
        PartialState().wait_for_everyone()
        if is_writer and temporary.is_dir():
            is_full = not (temporary / ADAPTER_CONFIG).exists()
            for path in sorted(temporary.iterdir()):
                if path.is_dir():
                    remove(out / path.name)
                path.replace(out / path.name)
            if is_full:
                remove_adapter(out)
    finally:
        if is_writer:
            shutil.rmtree(temporary, ignore_errors=True)
    PartialState().wait_for_everyone()


def _steps(checkpoint: Path) -> tuple[int, int] | None:
    """Steps done and steps in all of a checkpoint; `None` if it is not complete: the Trainer writes this file last, but a machine that
    loses power may keep it and lose the end of others."""
    try:
        if not all(_has_end(file) for file in checkpoint.rglob("*")):
            return None
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        return int(state["global_step"]), int(state["max_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_end(file: Path) -> bool:
    """Whether a file of tensors is as long as it says. Those of torch are zip files, which end with their table of contents."""
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt"):
                return True
        except SafetensorError:
            return False
    return file.suffix not in (".bin", ".pt", ".pth") or is_zipfile(file)
