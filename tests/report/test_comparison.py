import pytest
from helpers.fake_runs import make_run

from trl_pafo.metrics import compare
from trl_pafo.report import write_report
from trl_pafo.report.comparison import compare_runs, compare_sections
from trl_pafo.report.record import read_record


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "first")
    make_run(root / "second", seed=1)
    make_run(root / "<third>", text="other", groups=("road", "rail"))
    make_run(root / "one", methods=("personalized_bt",), groups=("x",), users=(9,))
    return [root / "first", root / "second", root / "<third>", root / "one"]


@pytest.fixture
def records(folders):
    return [read_record(folder) for folder in folders]


def test_a_row_a_run(records):
    _, _, sections = compare_sections(records)
    table, options = sections[0].tables
    assert [row[0] for row in table["rows"]] == ["1. first", "2. second", "3. <third>", "4. one"]
    verdict = records[1].results["verdicts"]["pafo"]["verdict"]
    assert table["rows"][1][-1] == f"PAFO against personalized BT: {verdict}"
    assert table["rows"][0][4]["text"] == f"{records[0].methods['pafo']['accuracy/minority']['value']:.3f}".replace("0.", ".")
    assert table["rows"][3][1:] == [{"text": "-", "interval": ""}] * 4 + ["-"]
    assert options["rows"] == [["seed", "0", "1", "0", "0"]]  # where they differ


def test_the_picture_has_the_reference_and_the_model_of_every_run_with_two_groups(records):
    _, _, sections = compare_sections(records)
    figure = sections[0].pictures[0].figure
    axes = figure.axes[0]
    assert sorted(text.get_text() for text in axes.texts if text.get_text()) == ["1", "1", "2", "2", "3", "3"]
    places = [tuple(container[2][0].get_segments()[0].mean(axis=0)) for container in axes.containers]
    assert len(places) == 6
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["personalized BT", "PAFO", "both groups served alike"]


def test_pair_by_pair_only_on_the_same_pairs(records):
    _, _, sections = compare_sections(records)
    against = sections[1]
    assert len(against.points) == 1
    assert against.points[0].startswith("PAFO of 2. second against PAFO of 1. first: ")
    assert "3. <third>, 4. one" in against.missing[0]
    ours, theirs = (record.rewards["pafo"] for record in records[1::-1])
    assert compare_runs(*records[:2]) == compare(ours.correct, theirs.correct, ours.user, ours.group)
    del records[1].rewards["pafo"]
    assert compare_runs(*records[:2]) is None


def test_every_run_has_its_section(records, folders, tmp_path):
    _, _, sections = compare_sections(records)
    assert [section.title for section in sections[2:-1]] == [f"Run {i}. {r.name}" for i, r in enumerate(records, start=1)]
    path = write_report(folders[1:3], tmp_path / "all.html")
    text = path.read_text(encoding="utf-8")
    assert "<third>" not in text
    assert "2. &lt;third&gt;" in text
    assert 'id="run2-majority_minority"' in text


def test_runs_on_known_people_are_compared_over_their_prompts(records, tmp_path):
    known = [read_record(make_run(tmp_path / f"run{seed}", seed=seed, units=True)) for seed in (0, 1)]
    ours, theirs = (record.rewards["pafo"] for record in known[::-1])
    unit = [row["unit"] for row in known[0].pairs]
    verdict = compare_runs(*known)
    assert verdict == compare(ours.correct, theirs.correct, ours.user, ours.group, unit=unit)
    assert "over 34 prompts of 17 known users" in verdict.sentence
    notes = [compare_sections(some)[2][0].tables[0]["note"] for some in (records, known, [records[0], known[0]])]
    for note, over in zip(notes, ("users", "prompts of known users", "users or prompts of known users"), strict=True):
        assert f"intervals over {over}. Each" in note
