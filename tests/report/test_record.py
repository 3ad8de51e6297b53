import json

import pytest
from helpers.fake_runs import make_run

from trl_pafo.errors import RunFolderError
from trl_pafo.report.record import read_record


def test_a_complete_run(complete, record):
    assert record.name == "complete"
    assert (record.reference, record.student) == ("personalized_bt", "pafo")
    assert record.compared == ["personalized_bt", "pafo"]
    assert record.groups == ["majority", "minority"]
    assert record.has_minority
    first = json.loads((complete / "results/pafo.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert record.rewards["pafo"].margins[0] == pytest.approx(first["reward_chosen"] - first["reward_rejected"])
    assert record.rewards["pafo"].correct.mean() == pytest.approx(record.methods["pafo"]["overall"]["value"])
    assert len(record.pairs) == len(record.rewards["pafo"].user) == 17 * 4
    assert "alpha: 0.25" in record.config


def test_three_groups_from_the_largest_to_the_smallest(tmp_path):
    record = read_record(make_run(tmp_path / "run", groups=("zebra", "ant", "bee"), users=(9, 3, 5)))
    assert record.groups == ["zebra", "ant", "bee"]  # majority, the others, minority
    assert [record.group_title(group) for group in record.groups] == ["zebra (majority)", "ant", "bee (minority)"]


def test_given_teachers_are_told_from_trained_ones(record):
    assert not record.has_given_teachers
    record.stages["teacher_without_fold_0:minority"] = record.stages.pop("teacher:minority")
    del record.stages["teacher:majority"]
    assert not record.has_given_teachers
    del record.stages["teacher_without_fold_0:minority"]
    assert record.has_given_teachers


@pytest.mark.parametrize(
    "name", ["results/results.json", "manifest.json", "run.yaml", "data/summary.json", "data/test.parquet", "results/pafo.jsonl"]
)
def test_a_run_that_is_not_complete_is_named(tmp_path, name):
    folder = make_run(tmp_path / "run")
    (folder / name).unlink()
    with pytest.raises(
        RunFolderError,
        match=rf"{name}.* (is missing\. Give the folder of a `trl-pafo run`, and finish one|is not what an evaluation writes)",
    ):
        read_record(folder)


def test_rewards_of_other_pairs_are_refused(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "results/pafo.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[1:]), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"The rewards of pafo in .* are those of other pairs"):
        read_record(folder)


@pytest.mark.parametrize("results", ["{", [], {"methods": {}}, {"methods": {"model": {"overall": {"value": 0.5}}}}])
def test_results_that_cannot_be_read(tmp_path, results):
    folder = make_run(tmp_path / "run")
    (folder / "results/results.json").write_text(results if isinstance(results, str) else json.dumps(results), encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"cannot be read|is not what this version of trl-pafo writes"):
        read_record(folder)


@pytest.mark.parametrize("line", ["{", "{}", "[]", '{"user": null, "group": null, "reward_chosen": "a", "reward_rejected": 1}'])
def test_rewards_that_cannot_be_read(tmp_path, line):
    folder = make_run(tmp_path / "run")
    (folder / "results/pafo.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"pafo\.jsonl is not what an evaluation writes .*Evaluate again"):
        read_record(folder)
