"""How attention of shared rows went."""

import pytest

from trl_pafo.prefix_sharing.attention import RowMask


@pytest.fixture
def attended(monkeypatch) -> list[int]:
    """Number of rows, for each time that attention went row by row."""
    calls: list[int] = []
    original = RowMask._attend

    def spy(self, *args, **kwargs):
        calls.append(len(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(RowMask, "_attend", spy)
    return calls
