"""The Hub on this machine that the tests of this wing push to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub_endpoint import Hub, hub_in_place


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    yield from hub_in_place(monkeypatch, tmp_path)
