"""What each section says, with everything there and with parts missing."""

from helpers.fake_runs import make_run

from trl_pafo.report import details, sections
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
    assert len(pictures) == len(set(pictures)) == 2 + 1 + 2 + 2


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
    assert "0 to 1" in {text.get_text() for text in sections.front(record).pictures[0].figure.axes[0].texts}
    for point in front["points"].values():
        point.pop("accuracy/minority", None)
    assert not sections.front(record).pictures


def test_a_group_without_test_pairs_is_said_to_be_untested(record):
    for summary in record.methods.values():
        summary["accuracy/lone"] = {"value": None, "low": None, "high": None}
    record.results["not_evaluated"] = ["lone"]
    section = sections.groups(record)
    assert section.missing == ["Accuracy of lone: there are no test pairs of theirs."]


def test_one_group_has_no_minority_and_a_reference_alone_no_verdict(tmp_path):
    record = read_record(make_run(tmp_path / "run", groups=("all",), users=(12,), methods=("personalized_bt",)))
    made = {section.id: section for section in (make(record) for make in SECTIONS)}
    assert names(made["groups"]) == []
    assert "one group only" in made["groups"].missing[0]
    assert made["answer"].verdict is None
    assert "No verdict" in made["answer"].missing[0]
    assert "no method beside the reference" in made["cases"].missing[0]
    assert "gap" not in made["answer"].tables[0]["header"]


def test_intervals_are_over_what_was_held_out(record, tmp_path):
    known = read_record(make_run(tmp_path / "run", units=True))
    for of_run, what in ((record, "over users"), (known, "over prompts of known users")):
        captions = [picture.caption for picture in sections.groups(of_run).pictures]
        notes = [sections.answer(of_run).tables[0]["note"], sections.about(of_run).points[0]]
        assert all(what in text for text in captions + notes)
    assert details.users(record).tables[0]["note"].endswith("95 % intervals over users.")
    assert "No intervals: no new users were held out." in details.users(known).tables[0]["note"]
    assert {row[1]["interval"] for row in details.users(known).tables[0]["rows"]} == {"[unknown]"}
