"""The bar counts pairs, in every setting of a training."""

from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from trl_pafo.trainer import progress
from trl_pafo.trainer.progress import PairProgress

ARGS = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=3, world_size=2)


class Bar:
    """Records what is shown."""

    def __init__(self, **options):
        self.options, self.done, self.postfix, self.closed = options, options["initial"], {}, False

    def update(self, number):
        self.done += number

    def set_postfix(self, **values):
        self.postfix = values

    def close(self):
        self.closed = True


@pytest.fixture
def bars(monkeypatch):
    made = []
    monkeypatch.setattr(progress, "tqdm", lambda **options: made.append(Bar(**options)) or made[-1])
    return made


def train(callback, steps, before=0, logs=(), is_first=True):
    state = TrainerState(max_steps=10, is_world_process_zero=is_first, global_step=before)
    callback.on_train_begin(ARGS, state, TrainerControl())
    for _ in range(steps):
        state.global_step += 1
        callback.on_step_end(ARGS, state, TrainerControl())
    for log in logs:
        callback.on_log(ARGS, state, TrainerControl(), logs=log)
    callback.on_train_end(ARGS, state, TrainerControl())


def test_it_counts_the_pairs_of_all_processes_and_shows_the_last_loss(bars):
    train(PairProgress("Teacher of minority"), steps=3, logs=[{"loss": 0.75}, {"loss": "0.51239"}, {"eval_loss": 0.1}, None])
    (bar,) = bars
    assert bar.options["total"] == 10 * 4 * 3 * 2
    assert bar.done == 3 * 4 * 3 * 2
    assert (bar.options["desc"], bar.options["unit"]) == ("Teacher of minority", "pair")
    assert bar.postfix == {"loss": "0.512"}
    assert bar.closed


def test_a_resumed_training_goes_on_where_it_was(bars):
    train(PairProgress("t"), steps=6, before=4)
    assert bars[0].options["initial"] == 4 * 24
    assert bars[0].done == bars[0].options["total"]


def test_other_processes_show_nothing(bars):
    train(PairProgress("t"), steps=2, logs=[{"loss": 1.0}], is_first=False)
    assert bars == []
