"""Drawing takes longer than a made-up run: only tests of pictures draw."""

import pytest


@pytest.fixture(autouse=True)
def nothing_is_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.module.__name__ != "test_study_pictures":
        monkeypatch.setattr("trl_pafo.study.study.can_draw", lambda rows: False)
