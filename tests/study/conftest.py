"""Drawing takes longer than a made-up run: only tests of pictures draw."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def nothing_is_drawn(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if request.module.__name__ != "test_study_pictures":
            patch.setattr("trl_pafo.study.study.can_draw", lambda rows: False)
        yield
