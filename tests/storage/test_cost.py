"""What a training costs, in words."""

import pytest
import torch

from trl_pafo.storage.cost import hardware, seconds_in_words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3540, "59 min"),
        (3599, "1 h 0 min"),
        (3600, "1 h 0 min"),
        (11100, "3 h 5 min"),
    ],
)
def test_seconds_in_words(seconds, words):
    assert seconds_in_words(seconds) == words


def test_the_processor_is_named_with_its_threads():
    name, threads = hardware().rsplit(", ", 1)
    assert name
    assert threads in (f"{torch.get_num_threads()} threads", "1 thread")
