"""A run of a test, on a tiny encoder, whose report has its first section alone."""

from collections.abc import Callable

import pytest
from helpers.small_runs import small_run

from trl_pafo.pipeline.run import Run


@pytest.fixture
def run(encoder, training, tmp_path, short_report) -> Callable[..., Run]:
    return lambda model=encoder, **options: small_run(tmp_path / "run", training, model, **options)
