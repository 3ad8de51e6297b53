"""What the closer looks at a run say; where parts are missing is tested with the other sections."""

import pytest
from helpers.fake_runs import make_run, write_inspection, write_json

from trl_pafo.report import details, findings
from trl_pafo.report.records import read_record
from trl_pafo.report.sections import number


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    write_inspection(folder)
    return folder


@pytest.fixture
def record(folder):
    return read_record(folder)


def test_users_have_a_trend_for_the_reference_and_the_student(record):
    section = details.users(record)
    support = findings.support_of_pairs(record)
    assert [row[0] for row in section.tables[0]["rows"]] == ["personalized BT", "PAFO"]
    trend = findings.support_means(record.rewards["pafo"], support)[1]
    assert section.tables[0]["rows"][1][1] == number(trend, signed=True)
    assert [picture.name for picture in section.pictures] == ["support_personalized_bt", "support_pafo"]


def test_users_of_one_support_have_no_trend(record):
    for row in record.pairs:
        row["support_rate"] = 0.5
    section = details.users(record)
    assert section.tables[0]["rows"][0][1]["text"] == "-"
    assert len(section.pictures) == 2


def test_history_and_teachers_show_the_findings(record):
    rows = {row[0]: row[1:] for row in details.history(record).tables[0]["rows"]}
    found = findings.history_use(record, "pafo")
    assert rows["PAFO, pairs of minority"] == [number(found["minority"]["higher"]), number(found["minority"]["follows"])]
    table = details.teachers(record).tables[0]
    rows, margins = findings.teacher_margins(record)
    rewards = record.rewards["pafo"]
    same = findings.interval_of(findings.agreement(margins, rewards.margins[rows]), rewards.user, rewards.group, "majority")
    assert table["rows"][1][1] == number(same)


def test_without_teachers_their_section_says_so(tmp_path):
    folder = make_run(tmp_path / "run", methods=("personalized_bt", "pafo"))
    write_inspection(folder, teacher=False)
    record = read_record(folder)
    section = details.teachers(record)
    assert "no teachers' margins on test pairs are kept" in section.missing[0]
    use = details.history(record)
    assert [row[2]["text"] for row in use.tables[0]["rows"]] == ["-"] * 4


def test_a_training_that_logged_nothing(tmp_path):
    folder = make_run(tmp_path / "run")
    write_json(folder / "models/pafo/trainer_state.json", {"log_history": [{"step": 3, "train_loss": 0.5}]})
    section = details.training(read_record(folder))
    assert "Curves of PAFO: its trainer logged no loss" in section.missing[0]
    assert len(section.pictures) == 4


def test_cases_are_of_both_kinds_and_counted(record):
    section = details.cases(record)
    counts = {row[0]: [int(cell["text"]) for cell in row[1:]] for row in section.tables[0]["rows"]}
    assert sum(map(sum, counts.values())) == 68
    shown = [(case["group"], case["kind"]) for case in section.cases]
    for name, (_, gained, lost, *_) in counts.items():
        assert shown.count((name, "gained")) == min(gained, 2)
        assert shown.count((name, "lost")) == min(lost, 2)
    assert {kind for _, kind in shown} == {"gained", "lost"}
    assert dict(section.cases[0]["margins"]).keys() == {record.title(m) for m in record.methods}
