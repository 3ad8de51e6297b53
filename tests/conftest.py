"""Fixtures of all tests, and what must be set before torch is imported."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command line does before it imports
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import sys
import warnings
from collections.abc import Iterator

import datasets
import pytest
import torch
import transformers
from datasets import Dataset
from helpers.fake_hub import FakeHub
from helpers.parts import TRAINING, make_model, make_pairs
from hypothesis import settings

from trl_pafo.report.page import SECTIONS

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

settings.register_profile("untimed", deadline=None)  # no test depends on how fast a machine is
settings.load_profile("untimed")

DEPRECATIONS = (FutureWarning, DeprecationWarning, PendingDeprecationWarning)


def pytest_collection_finish() -> None:
    """Each training collects garbage: not among all that was imported, which took it most of its time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nothing_deprecated_is_called() -> Iterator[None]:
    """A deprecation that trl_pafo causes is an error, also where it calls a model, which a filter by module does not see."""
    warn = warnings.warn

    def watch(message, category=None, stacklevel=1, **more):
        frame = sys._getframe(stacklevel) if stacklevel > 0 else None
        while frame and frame.f_globals.get("__name__") == "torch.nn.modules.module":
            frame = frame.f_back
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        if frame and frame.f_globals.get("__name__", "").startswith("trl_pafo") and issubclass(kind, DEPRECATIONS):
            raise kind(message)
        return warn(message, category, stacklevel + 1, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warnings, "warn", watch)
        yield


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model("encoder", tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model("decoder", tmp_path_factory.mktemp("models") / "decoder")


@pytest.fixture(params=["encoder", "decoder"])
def base_model(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(request.param)


@pytest.fixture
def pairs() -> Dataset:
    return make_pairs()


@pytest.fixture
def short_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of runs have their first section alone: drawing all pictures takes longer than a tiny run (all: tests/report)."""
    monkeypatch.setattr("trl_pafo.report.page.SECTIONS", SECTIONS[:1])


@pytest.fixture
def training() -> dict[str, object]:
    """Options of a training that takes a second."""
    return dict(TRAINING)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The Hub that a test pushes to."""
    found = FakeHub()
    monkeypatch.setattr("trl_pafo.models.upload.HfApi", found)
    return found
