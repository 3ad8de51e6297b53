"""The Hub that the tests of this wing push to."""

import pytest
from helpers.fake_hub import FakeHub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    found = FakeHub()
    monkeypatch.setattr("trl_pafo.hub.upload.HfApi", found)
    return found
