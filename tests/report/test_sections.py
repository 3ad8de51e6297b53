"""What each section says, with everything there and with parts missing."""

import json

import numpy as np
import pytest
from helpers.fake_runs import make_run, write_json

from trl_pafo.metrics import compare, fairness_summary
from trl_pafo.report import sections
from trl_pafo.report.page import SECTIONS
from trl_pafo.report.record import read_record
from trl_pafo.report.sections import number


def names(section):
    return [picture.name for picture in section.pictures]


def test_numbers():
    assert number({"value": 0.912, "low": 0.89, "high": 1.0}) == {"text": ".912", "interval": "[.890, 1.000]"}
    assert number({"value": 0.1, "low": -0.2, "high": 0.3}, signed=True) == {"text": "+.100", "interval": "[-.200, +.300]"}
    assert number({"value": 0.5, "low": float("nan"), "high": None}) == {"text": ".500", "interval": "[unknown]"}
    assert number({"value": None, "low": None, "high": None}) == {"text": "-", "interval": ""}
    assert number(12345) == {"text": "12,345", "interval": ""}
    assert number(None)["text"] == "-"


def test_a_complete_run_misses_nothing(record):
    made = [make(record) for make in SECTIONS]
    assert len({section.id for section in made}) == len(made)
    assert [line for section in made for line in section.missing] == []
    pictures = [picture.name for section in made for picture in section.pictures]
    assert len(pictures) == len(set(pictures)) == 2 + 1 + 2


def test_the_verdict_stands_first_in_its_own_words(record):
    section = sections.answer(record)
    verdict = record.results["verdicts"]["pafo"]
    assert section.verdict["sentence"] == verdict["sentence"]
    assert section.verdict["word"] == f"PAFO against personalized BT: {verdict['verdict']}"
    assert section.verdict["meaning"]
    assert any(line.startswith("Bradley-Terry: ") for line in section.points)
    assert not any(line.startswith("PAFO: ") for line in section.points)


def test_every_verdict_has_a_meaning():
    from typing import get_args, get_type_hints

    from trl_pafo.metrics import Verdict

    assert set(sections.MEANINGS) == set(get_args(get_type_hints(Verdict)["verdict"]))


def test_the_table_holds_the_summaries(record):
    table = sections.answer(record).tables[0]
    assert table["header"] == ["method", "overall", "majority", "minority", "gap", "worst 10 % of users", "Gini"]
    counts, *rows = table["rows"]
    assert [counts[0], *(cell["text"] for cell in counts[1:])] == ["users, pairs", "17, 68", "12, 48", "5, 20", "", "", ""]
    assert [row[0] for row in rows] == ["Bradley-Terry", "personalized BT", "PAFO", "group-routed teachers"]
    keys = ("overall", "accuracy/majority", "accuracy/minority", "difference", "user_worst_decile", "user_gini")
    assert rows[2][1:] == [number(record.methods["pafo"][key]) for key in keys]
    assert "68 test pairs of 17 users" in table["note"]
    assert rows[2][3]["interval"] == "[unknown]"  # of five users
    assert "[unknown]: too few users" in table["note"]


def test_the_path_and_what_was_chosen_are_told(record):
    section = sections.answer(record)
    path = record.results["path"]
    assert path["sentence"] in section.points
    held_out, test = section.tables[1:]
    assert held_out["header"] == ["personalized BT, held out", "balanced", "majority", "minority"]
    assert [row[0] for row in test["rows"][1:]] == ["x0.5, 30 steps", "x1, 60 steps", "x2, 120 steps *", "x4, 240 steps"]
    for split, table in (("validation", held_out), ("test", test)):
        for point, row in zip(path["points"], table["rows"][1:], strict=True):
            assert row[3] == number(point[split]["accuracy/minority"])
            values = [point[split][f"accuracy/{group}"]["value"] for group in ("majority", "minority")]
            assert row[1] == number(sum(values) / 2)
    assert "pairs that no training saw" in held_out["note"]
    assert "the path of personalized BT" in sections.groups(record).pictures[0].caption


def test_ties_are_told(record):
    record.rewards["pafo"].margins[:3] = 0
    assert "count half: PAFO 3." in sections.answer(record).tables[0]["note"]


def test_it_is_reproduced_by_the_saved_options(record):
    section = sections.reproduction(record)
    assert section.code == ["trl-pafo run --config run.yaml --output_dir NEW_FOLDER", (record.folder / "run.yaml").read_text()]
    assert {row[0]: row[1]["text"] for row in section.tables[0]["rows"]}["teacher:minority"] == "3"


def test_what_could_be_had_is_told_and_drawn(record):
    front = record.results.pop("front")
    assert "no held-out pairs" in sections.front(record).missing[0]
    record.results["front"] = front
    assert front["sentence"] in sections.answer(record).points
    assert "Nothing was distilled: PAFO is personalized BT." in sections.answer(record).points
    front["points"]["PAFO"] = front["points"]["group-routed teachers"]
    front["students"] = ["PAFO"]
    assert not any("Nothing was distilled" in line for line in sections.answer(record).points)
    section = sections.front(record)
    table, drawn = section.tables[0], section.pictures[0].figure.axes[0]
    assert table["header"] == [
        "on held-out pairs",
        "majority",
        "minority",
        "log likelihood, majority",
        "log likelihood, minority",
    ]
    assert [row[0] for row in table["rows"][1:]] == list(front["points"])
    assert table["rows"][1][1] == {"text": ".750", "interval": "[.730, .770]"}
    assert {text.get_text() for text in drawn.texts} >= {"0", "1", "x1", "x2"}
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("accuracy, majority", "accuracy, minority")
    same, other = (front["points"][place["name"]] for place in front["mixture"])
    same |= {name: other[name] for name in ("accuracy/majority", "accuracy/minority")}
    assert "0, 1" in {text.get_text() for text in sections.front(record).pictures[0].figure.axes[0].texts}
    for point in front["points"].values():
        point.pop("accuracy/minority", None)
    assert not sections.front(record).pictures


def test_names_of_groups_that_do_not_say_their_role(tmp_path):
    record = read_record(make_run(tmp_path / "run", groups=("road", "rail"), methods=("personalized_bt", "pafo")))
    assert sections.answer(record).tables[0]["header"][2:4] == ["road (majority)", "rail (minority)"]
    axes = sections.groups(record).pictures[0].figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("accuracy, road (majority)", "accuracy, rail (minority)")


def test_four_groups(tmp_path):
    folder = make_run(tmp_path / "run", groups=("a", "b", "c", "d"), users=(8, 5, 4, 4))
    record = read_record(folder)
    made = {section.id: section for section in (make(record) for make in SECTIONS)}
    assert made["answer"].tables[0]["header"][2:6] == ["a (majority)", "b", "c", "d (minority)"]
    assert "Of 4 groups" in made["groups"].pictures[0].caption
    assert {case["group"] for case in made["cases"].cases} <= {"a", "b", "c", "d"}
    assert not any(section.missing for section in made.values())


def test_a_group_without_test_pairs_is_said_to_be_untested(record):
    for summary in record.methods.values():
        summary["accuracy/lone"] = {"value": None, "low": None, "high": None}
    record.results["not_evaluated"] = ["lone"]
    section = sections.groups(record)
    assert section.missing == ["Accuracy of lone: there are no test pairs of theirs."]


def test_one_group_has_no_minority(tmp_path):
    rng = np.random.default_rng(0)
    summary = fairness_summary(rng.random(40) < 0.7, np.repeat(range(10), 4), ["all"] * 40, num_resamples=50)
    write_json(tmp_path / "results.json", {"majority": "all", "minority": "all", "methods": {"model": summary}, "verdicts": {}})
    record = read_record(tmp_path)
    made = {section.id: section for section in (make(record) for make in SECTIONS)}
    assert names(made["groups"]) == []
    assert "one group only" in made["groups"].missing[0]
    assert made["answer"].verdict is None
    assert "No verdict" in made["answer"].missing[0]
    for name in ("users", "cases", "reproduce"):
        assert made[name].missing, name
        assert not made[name].pictures
    assert "gap" not in made["answer"].tables[0]["header"]


def test_data_without_groups_make_no_claim_on_groups(tmp_path):
    rng = np.random.default_rng(0)
    margins = rng.normal(size=(2, 40))
    correct = (np.sign(margins) + 1) / 2
    who = (np.repeat(range(10), 4), None)
    verdict = compare(*correct, *who)
    results = {"majority": None, "minority": None, "verdicts": {"model": {**vars(verdict)}}}
    results["methods"] = {
        m: fairness_summary(c, *who, num_resamples=50) for m, c in zip(("model", "reference"), correct, strict=True)
    }
    write_json(tmp_path / "results.json", results)
    for method, of_method in zip(("model", "reference"), margins, strict=True):
        lines = [
            {"user": str(i // 4), "group": None, "reward_chosen": m, "reward_rejected": 0.0} for i, m in enumerate(of_method)
        ]
        (tmp_path / f"{method}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    record = read_record(tmp_path)
    made = {section.id: section for section in (make(record) for make in SECTIONS)}
    table = made["answer"].tables[0]
    assert table["header"] == ["method", "overall", "worst 10 % of users", "Gini"]
    assert "name no groups" in table["note"]
    assert made["answer"].verdict["meaning"].startswith("The data name no groups")
    assert names(made["groups"]) == ["differences"]
    assert "the data name no groups" in made["groups"].missing[0]
    assert [row[0] for row in made["cases"].tables[0]["rows"]] == ["all pairs"]


@pytest.mark.parametrize(
    ("gone", "section", "why"),
    [
        ("data/test.parquet", "users", "no data/test.parquet"),
        ("data/test.parquet", "cases", "The texts: there is no data/test.parquet"),
        ("results/pafo.jsonl", "cases", "takes the rewards of a reference and of a model"),
        ("run.yaml", "reproduce", "no run.yaml"),
    ],
)
def test_what_is_gone_is_said_and_the_rest_stays(gone, section, why, tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / gone).unlink()
    record = read_record(folder)
    made = {s.id: s for s in (make(record) for make in SECTIONS)}
    assert any(why in line for line in made[section].missing)
    assert made["answer"].verdict
    assert len(made["groups"].pictures) == 2


def test_whose_numbers_these_are(record):
    text = " ".join(sections.about(record).points)
    assert "Not from the paper: " in text
    assert "arXiv 2606.07988" in text
