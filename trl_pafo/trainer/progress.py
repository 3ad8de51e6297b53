"""Progress of a training in pairs, with speed and remaining time."""

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback


class PairProgress(TrainerCallback):
    """
    One progress bar a training: pairs done, pairs/s, remaining time, the last logged loss.

    Args:
        title (`str`):
            Title of the bar.
    """

    def __init__(self, title: str):
        self.title = title
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._pairs_a_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        if state.is_world_process_zero:
            self._done, total = (steps * self._pairs_a_step for steps in (state.global_step, state.max_steps))
            self._bar = tqdm(total=total, initial=self._done, desc=self.title, unit="pair", mininterval=1.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            before, self._done = self._done, state.global_step * self._pairs_a_step
            self._bar.update(self._done - before)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
