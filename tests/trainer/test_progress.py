"""The bar counts pairs, in every setting of a training."""

from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from trl_pafo.trainer import progress
from trl_pafo.trainer.progress import PairProgress


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


ARGS = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=3, world_size=2)


def state(**changes):
    return TrainerState(**{"max_steps": 10, "is_world_process_zero": True, **changes})


@pytest.fixture
def bars(monkeypatch):
    made = []
    monkeypatch.setattr(progress, "tqdm", lambda **options: made.append(Bar(**options)) or made[-1])
    return made


def train(callback, state, steps, logs=(), args=ARGS, **kwargs):
    callback.on_train_begin(args, state, TrainerControl(), **kwargs)
    for _ in range(steps):
        state.global_step += 1
        callback.on_step_end(args, state, TrainerControl())
    for log in logs:
        callback.on_log(args, state, TrainerControl(), logs=log)


def test_it_counts_the_pairs_of_all_devices(bars):
    train(PairProgress("Teacher of minority"), state(), steps=3)
    (bar,) = bars
    assert bar.options["total"] == 10 * 4 * 3 * 2
    assert bar.done == 3 * 4 * 3 * 2
    assert (bar.options["desc"], bar.options["unit"]) == ("Teacher of minority", "pair")


def test_with_a_budget_of_tokens_it_counts_the_mean_of_a_step(bars):
    """25 pairs in 9 batches of a process, three a step."""
    args = SimpleNamespace(**vars(ARGS), max_tokens_per_batch=64)
    batches = type("Batches", (list,), {"dataset": range(25)})(range(9))
    train(PairProgress("t"), state(max_steps=6), steps=3, args=args, train_dataloader=batches)
    assert bars[0].options["total"] == 50
    assert bars[0].done == 25


def test_a_resumed_training_goes_on_where_it_was(bars):
    train(PairProgress("t"), state(global_step=4), steps=6)
    assert bars[0].options["initial"] == 4 * 24
    assert bars[0].done == bars[0].options["total"]


def test_the_last_loss_is_shown(bars):
    train(PairProgress("t"), state(), 1, logs=[{"loss": 0.75}, {"loss": "0.51239"}, {"eval_loss": 0.1}, None])
    assert bars[0].postfix == {"loss": "0.512"}


def test_the_bar_is_closed_and_made_anew_by_the_next_training(bars):
    callback = PairProgress("t")
    for number in range(2):
        train(callback, state(), steps=1)
        callback.on_train_end(ARGS, state(), TrainerControl())
        assert bars[number].closed
    assert len(bars) == 2


def test_other_processes_show_nothing(bars):
    callback = PairProgress("t")
    train(callback, state(is_world_process_zero=False), steps=2, logs=[{"loss": 1.0}])
    callback.on_train_end(ARGS, state(), TrainerControl())
    assert bars == []
