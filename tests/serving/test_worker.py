"""Sequences that come together are scored together, in groups of similar length, first come, first served."""

from threading import Event

import pytest
import torch
from helpers.rounding import rounding

from trl_pafo.models import RewardScorer
from trl_pafo.serving.worker import BatchingWorker, by_length


class Scorer:
    """The reward of a sequence is its sum; it remembers what came together, and waits to be let go on."""

    model = None

    def __init__(self):
        self.batches = []
        self.may = Event()
        self.may.set()
        self.began = Event()

    def read_tokens(self, rows, *, batch_size):
        self.began.set()
        assert self.may.wait(60)
        assert batch_size >= len(rows)
        batch = [row["response"] for row in rows]
        self.batches.append(batch)
        if any(-1 in ids for ids in batch):
            raise ValueError(f"one of {len(batch)}")
        return [{"response": float(sum(ids))} for ids in batch]


@pytest.fixture
def make():
    started = []

    def build(scorer, batch_tokens=1000, wait=0.0):
        told = []
        worker = BatchingWorker(scorer, batch_tokens, wait, lambda *numbers: told.append(numbers), lambda: None)
        worker.start()
        started.append(worker)
        return worker, told

    yield build
    for worker in started:
        worker.stop()


def test_what_came_meanwhile_is_one_batch(make):
    scorer = Scorer()
    worker, told = make(scorer)
    scorer.may.clear()
    first = worker.submit([[1]])
    assert scorer.began.wait(60)
    others = [worker.submit([[n], [n, n]]) for n in (2, 3)]
    scorer.may.set()
    assert first.result(60) == [1.0]
    assert [other.result(60) for other in others] == [[2.0, 4.0], [3.0, 6.0]]
    assert scorer.batches == [[[1]], [[2, 2], [3, 3], [2], [3]]]
    assert told == [(1, 1), (4, 6)]


def test_the_first_of_a_batch_waits_for_others(make):
    scorer = Scorer()
    worker, _ = make(scorer, batch_tokens=2, wait=600.0)
    first, second = worker.submit([[1]]), worker.submit([[2]])
    assert (first.result(60), second.result(60)) == ([1.0], [2.0])
    assert scorer.batches == [[[1], [2]]]


def test_long_and_short_sequences_do_not_pad_each_other():
    lengths = [100, 3, 60, 16, 49, 1, 33, 500]
    groups = [[lengths[number] for number in group] for group in by_length(lengths)]
    assert groups == [[500], [100, 60], [49, 33], [16, 3, 1]]
    assert by_length([]) == []


def test_an_error_is_of_its_sequence_alone(make):
    scorer = Scorer()
    worker, _ = make(scorer, batch_tokens=4, wait=600.0)
    bad, good = worker.submit([[1], [-1]]), worker.submit([[2], [3]])
    assert good.result(60) == [2.0, 3.0]
    one, error = bad.result(60)
    assert one == 1.0
    assert isinstance(error, ValueError)
    assert str(error) == "one of 1"


def test_all_that_was_submitted_is_answered_before_the_end():
    scorer = Scorer()
    worker = BatchingWorker(scorer, 1, 0.0, lambda *_: None, lambda: None)
    answers = [worker.submit([[n], [n]]) for n in range(50)]
    worker.start()
    worker.stop()
    assert [answer.result(0) for answer in answers] == [[float(n)] * 2 for n in range(50)]


def test_rewards_are_those_of_each_sequence_alone(make, decoder):
    scorer = RewardScorer(decoder)
    worker, told = make(scorer, batch_tokens=4000)
    torch.manual_seed(0)
    sequences = [torch.randint(6, 50, (length,)).tolist() for length in torch.randint(1, 200, (60,)).tolist()]
    found = worker.submit(sequences).result(60)
    expected = [scorer.score_tokens([{"response": ids}])[0]["response"] for ids in sequences]
    assert found == pytest.approx(expected, abs=rounding(expected))
    assert sum(tokens for _, tokens in told) == sum(map(len, sequences))
    assert len(told) < len(sequences) / 2
