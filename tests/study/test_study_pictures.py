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


def test_more_settings_than_methods_are_lines_of_one_panel_a_method(tmp_path):
    settings = {"default": {}, "half": {"alpha": 0.5}, "all": {"alpha": 1, "methods": ["pafo"]}}
    config = make_config(
        tmp_path / "study", seeds=[1], data={"a": {"source": "styles"}}, settings=settings, methods=["pafo", "bradley_terry"]
    )
    rows = Study(config, attempt=pretend())()
    panels = {axes.get_title(): axes for axes in draw_intervals(rows).axes}
    named = {title: [label.get_text() for label in axes.get_yticklabels()] for title, axes in panels.items()}
    assert named == {"a, Bradley-Terry": ["default", "half"], "a, PAFO": ["default", "half", "all"]}
    found = {
        summary.setting: summary for of_setting in summarize(rows).values() for summary in of_setting if summary.method == "pafo"
    }
    drawn = [line.get_xydata() for line in panels["a, PAFO"].lines]
    for number, setting in enumerate(found.values()):
        value = setting.difference["minority"]["value"]
        assert any(len(points) == 1 and np.allclose(points, [[value, number + 0.15]]) for points in drawn)
    text = (tmp_path / "study/study.md").read_text()
    table = text.partition("## a: PAFO by setting\n\n")[2].partition("\n\n")[0].splitlines()
    assert table[0].startswith("| setting | majority | minority |")
    assert [line.split(" | ")[0] for line in table[2:]] == ["| default", "| half", "| all"]
    half = text.partition("## a, half\n")[2].partition("| PAFO | ")[2].partition("\n")[0]
    assert table[3] == f"| half | {half}"


def test_data_of_one_group_have_no_picture():
    rows = [
        {"data": "a", "setting": "default", "population_seed": 0, "seed": 1, "method": method}
        for method in ("personalized_bt", "pafo")
    ]
    assert not can_draw([complete(row | {"role": "overall", "accuracy": 0.5, "difference": 0.0}) for row in rows])
