import re

import numpy as np
import pytest

from trl_pafo.errors import DataError
from trl_pafo.metrics import fairness_summary
from trl_pafo.report.tables import markdown_table, plain_table


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(40), 5)
    group = np.where(user < 8, "few", "many")
    return {
        name: fairness_summary(rng.random(200) < rate, user, group, num_resamples=100)
        for name, rate in (("Bradley-Terry", 0.6), ("PAFO | ours", 0.9))
    }


def entry(summary, key):
    value, low, high = (f"{summary[key][part]:.3f}".lstrip("0") for part in ("value", "low", "high"))
    return value, f"[{low}, {high}]"


KEYS = ("overall", "accuracy/many", "accuracy/few", "difference", "user_worst_decile", "user_gini")


def test_markdown_has_a_row_a_method_with_value_and_interval(results):
    lines = markdown_table(results, "many", "few").splitlines()
    assert lines[0] == "| method | overall | Maj | Min | gap | worst 10 % of users | Gini |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert len(lines) == 4
    for line, name in zip(lines[2:], results, strict=True):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert cells[0].replace("\\|", "|") == name
        assert cells[1:] == [" ".join(entry(results[name], key)) for key in KEYS]


def test_markdown_takes_the_groups_as_told(results):
    cells = markdown_table(results, "few", "many").splitlines()[2].split("|")
    assert cells[3].strip() == " ".join(entry(results["Bradley-Terry"], "accuracy/few"))
    assert cells[4].strip() == " ".join(entry(results["Bradley-Terry"], "accuracy/many"))


def test_plain_table_is_aligned(results):
    lines = plain_table(results, "many", "few", width=200).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("Bradley-Terry ")
    for key in KEYS:
        assert " ".join(entry(results["Bradley-Terry"], key)) in lines[1]


def test_narrow_terminals_get_the_interval_below_its_value(results):
    wide = max(map(len, plain_table(results, "many", "few", width=200).splitlines()))
    assert len(plain_table(results, "many", "few", width=wide).splitlines()) == 3
    lines = plain_table(results, "many", "few", width=wide - 1).splitlines()
    assert len(lines) == 5
    assert max(map(len, lines)) <= 110
    assert lines[1].split()[-6:] == [entry(results["Bradley-Terry"], key)[0] for key in KEYS]
    assert re.findall(r"\[.*?\]", lines[2]) == [entry(results["Bradley-Terry"], key)[1] for key in KEYS]
    assert len(lines[1]) == len(lines[2]) == len(lines[0])


def test_width_defaults_to_the_terminals(results, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert plain_table(results, "many", "few") == plain_table(results, "many", "few", width=60)
    monkeypatch.setenv("COLUMNS", "300")
    assert plain_table(results, "many", "few") == plain_table(results, "many", "few", width=300)


@pytest.mark.parametrize("table", [markdown_table, plain_table])
def test_missing_numbers_are_named(results, table):
    with pytest.raises(DataError, match=r"'Bradley-Terry' lack \['accuracy/some'\]; make them with `fairness_summary`"):
        table(results, "many", "some")
    with pytest.raises(DataError, match="evaluate at least one"):
        table({}, "many", "few")
