"""The guide from an arena log to a report, command by command."""

from pathlib import Path

import pytest
from helpers.guides import Guide

from trl_pafo.data.people import read_people
from trl_pafo.evaluation import tastes
from trl_pafo.report.page import SECTIONS


@pytest.fixture
def arena(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in (("DIRECTIONS", (8,)), ("PENALTIES", (0.1,)), ("FOLDS", 2)):
        monkeypatch.setattr(tastes, name, value)
    return Guide("guide_arena.md")


def facts(lines):
    """Those that do not depend on the features of the model."""
    return [line for line in lines if not any(word in line for word in ("Tastes: ", "probability", "majority"))]


def test_the_guide(arena, encoder, monkeypatch, capfd, caplog):
    for number, name in enumerate(("audit", "prepare")):
        arena.do(name, encoder)
        printed = capfd.readouterr().out + caplog.text
        assert len(facts(arena.said[number])) > 1
        for line in facts(arena.said[number]):
            assert line in printed
        assert "groups found in the pairs alone, majority" in printed
        people = read_people(Path("audits/arena" if name == "audit" else "data/arena"))
        assert len(people) == 40
        assert people["posterior"].between(0.5, 1).all()
        # As the script makes them, but for some who slipped.
        likes_kind = people["user"].str.removeprefix("judge-").astype(int) % 4 == 0
        assert ((people["group"] == "minority") == likes_kind).mean() > 0.9
        assert set(people["country"]) == {"FI", "PT"}
    assert Path("audits/arena/groups.png").is_file()
    monkeypatch.setattr("trl_pafo.report.page.SECTIONS", SECTIONS[:2])
    arena.do("run", encoder, "--methods", "personalized_bt")
    report = Path("runs/arena/report.html").read_text(encoding="utf-8")
    assert "The groups were found in the training pairs" in report
    assert "How sure the groups are" in report
    assert "none of them among these." in report
    assert read_people(Path("runs/arena/data")).equals(people)
