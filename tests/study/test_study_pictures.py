"""The pictures of a study show the means and intervals of its table."""

import matplotlib.image
import numpy as np
from helpers.studies import make_config, pretend

from trl_pafo.study.pictures import can_draw, draw_front, draw_intervals
from trl_pafo.study.rows import complete
from trl_pafo.study.study import Study
from trl_pafo.study.summary import summarize


def test_what_is_drawn_is_what_the_table_says(tmp_path):
    config = make_config(tmp_path / "study", seeds=[1], data={"a": {"source": "styles"}})
    rows = Study(config, attempt=pretend())()
    for name in ("front.png", "intervals.png"):
        picture = matplotlib.image.imread(tmp_path / "study" / name)
        assert picture.std() > 0.05  # not blank
    [summaries] = summarize(rows).values()
    [axes] = draw_front(rows).axes
    drawn = [line.get_xydata() for line in axes.lines]
    for summary in summaries:
        place = [summary.accuracy[side]["value"] for side in ("majority", "minority")]
        assert any(np.isclose(points, place).all(axis=1).any() for points in drawn), summary.method
    assert {text.get_text() for text in axes.texts} == {"x0.5", "x1", "x2", "x4"}

    [axes] = draw_intervals(rows).axes
    segments = [line.get_xdata() for line in axes.lines]
    others = [summary for summary in summaries if summary.method != "personalized_bt" and not summary.is_point]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Bradley-Terry", "PAFO", "group-routed teachers"]
    for summary in others:
        for side in ("majority", "minority"):
            ends = [summary.difference[side][end] for end in ("low", "high")]
            assert any(len(x) == 2 and np.allclose(x, ends) for x in segments), (summary.method, side)


def test_data_of_one_group_have_no_picture():
    rows = [
        {"data": "a", "setting": "default", "population_seed": 0, "seed": 1, "method": method}
        for method in ("personalized_bt", "pafo")
    ]
    assert not can_draw([complete(row | {"role": "overall", "accuracy": 0.5, "difference": 0.0}) for row in rows])
