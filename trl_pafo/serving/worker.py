"""One thread that owns the model: sequences that have come within a few milliseconds are scored together. (Not from the paper.)"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import NamedTuple

from trl_pafo.evaluation.score_lines import score_apart
from trl_pafo.models.scoring import RewardScorer

# Below so many tokens, what is computed for each token is not what a forward pass takes its time for.
_SHORT = 16


class _Request:
    """The sequences of a request, whose rewards may come from several batches. Only the thread of the model touches it."""

    def __init__(self, size: int):
        self.rewards: list[float | Exception] = [0.0] * size
        self.missing = size
        self.answer: Future[list[float | Exception]] = Future()
        self.answer.set_running_or_notify_cancel()  # from now on nobody who waits can cancel it, which would stop the thread

    def found(self, place: int, reward: float | Exception) -> None:
        self.rewards[place] = reward
        self.missing -= 1
        if not self.missing:
            self.answer.set_result(self.rewards)


class _Sequence(NamedTuple):
    request: _Request
    place: int
    ids: Sequence[int]
    arrived: float


class BatchingWorker:
    """
    Scores sequences of many requests in one thread, first come, first served.

    Args:
        scorer ([`~trl_pafo.models.RewardScorer`]):
            The model, whose weights the thread loads.
        batch_tokens (`int`):
            So many tokens are not waited for others any more: they are scored together.
        wait (`float`):
            Seconds that the first sequence of a batch waits for others.
        on_batch (`Callable`):
            Told the number of sequences and of tokens of each forward pass, in the thread.
        on_failure (`Callable`):
            Called, in the thread, if the weights cannot be loaded; `failure` is then the reason.
    """

    def __init__(
        self,
        scorer: RewardScorer,
        batch_tokens: int,
        wait: float,
        on_batch: Callable[[int, int], None],
        on_failure: Callable[[], None],
    ):
        self.scorer, self.batch_tokens, self.wait = scorer, batch_tokens, wait
        self.on_batch, self.on_failure = on_batch, on_failure
        self.ready = Event()
        self.failure: Exception | None = None
        self._queue: SimpleQueue[_Sequence | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="rewards")

    def start(self) -> None:
        """Load the weights and begin."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what was submitted, and end."""
        self._queue.put(None)
        self._thread.join()

    def submit(self, sequences: Sequence[Sequence[int]]) -> "Future[list[float | Exception]]":
        """The rewards of token sequences, at least one, in their order; for one that cannot be scored, why."""
        request, now = _Request(len(sequences)), time.monotonic()
        for place, ids in enumerate(sequences):
            self._queue.put(_Sequence(request, place, ids, now))
        return request.answer

    def _run(self) -> None:
        try:
            self.scorer.model  # noqa: B018  # loaded now, not at the first request
        except Exception as error:
            self.failure = error
            self.on_failure()
            return
        self.ready.set()
        while batch := self._collect():
            for group in by_length([len(sequence.ids) for sequence in batch]):
                sequences = [batch[place] for place in group]
                tokens = [{"response": sequence.ids} for sequence in sequences]
                self.on_batch(len(tokens), sum(len(sequence.ids) for sequence in sequences))
                rewards = score_apart(self.scorer.read_tokens, tokens, len(tokens), Exception)
                for sequence, reward in zip(sequences, rewards, strict=True):
                    sequence.request.found(sequence.place, reward if isinstance(reward, Exception) else reward["response"])

    def _collect(self) -> list[_Sequence]:
        """What is scored next: nothing once all is done and no more will come."""
        sequence = self._queue.get()
        batch: list[_Sequence] = []
        num_tokens = 0
        while sequence is not None:
            batch.append(sequence)
            num_tokens += len(sequence.ids)
            left = batch[0].arrived + self.wait - time.monotonic()
            try:
                if num_tokens >= self.batch_tokens:
                    return batch
                sequence = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except Empty:
                return batch
        self._queue.put(None)  # for the next call, after which there is nothing left
        return batch


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Numbers of sequences in groups none of which is padded to more than twice its length, the longest first."""
    groups: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not groups or lengths[groups[-1][0]] > 2 * max(lengths[number], _SHORT):
            groups.append([])
        groups[-1].append(number)
    return groups
