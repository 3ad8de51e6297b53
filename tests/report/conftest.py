"""A complete run, made once; each test reads it anew, and may change what it read."""

from pathlib import Path

import pytest
from helpers.fake_runs import make_run

from trl_pafo.report.record import Record, read_record


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "complete")
    return folder


@pytest.fixture
def record(complete: Path) -> Record:
    return read_record(complete)
