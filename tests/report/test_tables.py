import re

import numpy as np
import pytest
from helpers.fake_runs import make_path

from trl_pafo.metrics import fairness_summary
from trl_pafo.report.tables import markdown_path, markdown_table, plain_path, plain_table, splits_of


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
    lines = markdown_table(results).splitlines()
    assert lines[0] == "| method | overall | many | few | gap | worst 10 % of users | Gini |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| users, pairs | 40, 200 | 32, 160 | 8, 40 |  |  |  |"
    assert len(lines) == 5
    for line, name in zip(lines[3:], results, strict=True):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert cells[0].replace("\\|", "|") == name
        assert cells[1:] == [" ".join(entry(results[name], key)) for key in KEYS]


def test_plain_table_is_aligned(results):
    lines = plain_table(results, width=200).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in (lines[0], *lines[2:])}) == 1
    assert lines[1].split() == ["users,", "pairs", "40,", "200", "32,", "160", "8,", "40"]
    assert lines[1].index("8, 40") + len("8, 40") == lines[0].index("few") + len("few")
    assert lines[2].startswith("Bradley-Terry ")
    for key in KEYS:
        assert " ".join(entry(results["Bradley-Terry"], key)) in lines[2]


def test_narrow_terminals_get_the_interval_below_its_value(results):
    wide = max(map(len, plain_table(results, width=200).splitlines()))
    assert len(plain_table(results, width=wide).splitlines()) == 4
    lines = plain_table(results, width=wide - 1).splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= 110
    assert lines[2].split()[-6:] == [entry(results["Bradley-Terry"], key)[0] for key in KEYS]
    assert re.findall(r"\[.*?\]", lines[3]) == [entry(results["Bradley-Terry"], key)[1] for key in KEYS]
    assert len(lines[2]) == len(lines[3]) == len(lines[0])


def test_width_defaults_to_the_terminals(results, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    assert plain_table(results) == plain_table(results, width=60)
    monkeypatch.setenv("COLUMNS", "300")
    assert plain_table(results) == plain_table(results, width=300)


def summary_of(sizes, group=True, user=True):
    """A summary of groups of these numbers of users, with 5 pairs each, 3 of them right."""
    users = np.repeat(np.arange(sum(sizes.values())), 5)
    groups = np.repeat(np.repeat(list(sizes), list(sizes.values())), 5)
    correct = np.tile([1.0, 0.0, 1.0, 1.0, 0.0], sum(sizes.values()))
    return fairness_summary(correct, users if user else None, groups if group else None, num_resamples=50)


def test_without_groups_there_is_the_overall_accuracy_alone():
    table = plain_table({"model": summary_of({"a": 9}, group=False)}, width=200)
    assert table.splitlines()[0].split() == ["method", "overall", "worst", "10", "%", "of", "users", "Gini"]
    assert "gap" not in table
    assert plain_table({"model": summary_of({"a": 9}, False, False)}).split()[:6] == [
        "method",
        "overall",
        "users,",
        "pairs",
        "-,",
        "45",
    ]
    assert "gap" not in markdown_table({"model": summary_of({"a": 9})})  # one group has no gap


def test_intervals_that_are_not_known_are_no_numbers():
    lines = markdown_table({"model": summary_of({"many": 20, "one": 1})}).splitlines()
    cells = [cell.strip() for cell in lines[3].split("|")[1:-1]]
    assert lines[2].split("|")[4].strip() == "1, 5"
    assert cells[3] == ".600 [unknown]"
    assert cells[4] == ".000 [unknown]"
    assert not re.search(r"\bnan\b", "".join(lines))


def test_any_number_of_groups():
    three = plain_table({"m": summary_of({"north": 9, "south": 7, "a|b": 8})}, width=300).splitlines()[0]
    assert three.split()[2:5] == ["north", "a|b", "south"]
    worst = plain_table({"m": summary_of({"north": 9, "worst group": 7})}, width=300, worst_group=True).splitlines()[0]
    assert re.split("  +", worst)[2:6] == ["north", "worst group", "worst of all groups", "gap"]
    many = plain_table({"m": summary_of({f"group {i}": 6 for i in range(9)})}, width=300)
    assert re.split("  +", many.splitlines()[0])[2:4] == ["worst of 9 groups", "best of 9 groups"]
    assert "group 3" not in many


def test_groups_whose_names_are_those_of_other_columns_or_break_lines():
    user = np.arange(40)
    group = np.array(["overall", "Gini", "a\nb", "a b"])[user % 4]
    summary = fairness_summary(user % 4 == 0, user, group, num_resamples=100)
    header, _, counts, row = markdown_table({"x": summary}).splitlines()
    titles = ["overall", "group 'Gini'", "a b", "group 'a b'", "group 'overall'", "gap", "worst 10 % of users", "Gini"]
    assert header.strip("| ").split(" | ") == ["method", *titles]
    assert [cell.split()[0] for cell in row.strip("| ").split(" | ")[1:6]] == [".250", ".000", ".000", ".000", "1.000"]
    assert counts.startswith("| users, pairs | 40, 40 | 10, 10 |")
    assert len(plain_table({"x": summary}, width=500).splitlines()) == 3


@pytest.fixture
def path(results):
    return make_path(("many", "few"), results["PAFO | ours"])


def test_a_path_has_a_table_for_held_out_and_one_for_test_pairs(path):
    held_out, test = (table.splitlines() for table in markdown_path(path).split("\n\n"))
    assert held_out[0] == "| personalized BT, held out | balanced | many | few |"
    assert held_out[2] == "| users, pairs |  | 10, 10 | 10, 10 |"
    assert held_out[3] == "| x0.5, 30 steps | .429 | .507 [.100, .900] | .350 [.100, .900] |"
    assert held_out[5].startswith("| x2, 120 steps * | .500 |")
    assert held_out[6] == "| x4, 240 steps | .524 | .497 [unknown] | .550 [unknown] |"
    assert test[0] == "| personalized BT, test | balanced | many | few |"
    many, few = (path["points"][2]["test"][f"accuracy/{group}"] for group in ("many", "few"))
    values = [f"{value:.3f}".lstrip("0") for value in ((many["value"] + few["value"]) / 2, many["value"], few["value"])]
    assert [cell.split()[0] for cell in test[5].split("|")[2:5]] == values
    lines = plain_path(path, width=200).splitlines()
    assert [line.split("  ")[0] for line in lines if "120" in line] == ["x2, 120 steps *"] * 2


def test_a_path_without_held_out_pairs_has_a_table_of_test_pairs_and_one_point_has_none(path):
    bare = path | {"points": [point | {"validation": None} for point in path["points"]]}
    assert splits_of(bare) == ["test"]
    assert splits_of(path | {"points": path["points"][:1]}) == splits_of({}) == []


def test_with_many_groups_the_path_shows_their_mean_and_the_worst():
    groups = [f"group {i}" for i in range(7)]
    summary = fairness_summary(np.ones(70), np.repeat(np.arange(35), 2), np.repeat(groups, 10), num_resamples=20)
    path = make_path(groups, summary)
    line = markdown_path(path).splitlines()[3]
    assert markdown_path(path).splitlines()[0] == "| personalized BT, held out | balanced | worst of 7 groups |"
    moved = [0.5 + shift / 2 for shift in (0.015, *[-0.3] * 6)]
    assert [float(cell) for cell in line.split("|")[2:4]] == pytest.approx([sum(moved) / 7, min(moved)], abs=5e-4)
