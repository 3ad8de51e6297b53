import json
import shutil

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


RESULTS = [[], {"methods": {}}, {"methods": {"model": {"overall": {"value": 0.5}}}}]
BAD_REWARD = '{"user": null, "group": null, "reward_chosen": "a", "reward_rejected": 1}'
SPOILED = [
    *((name, None, rf"{name} is missing\. Give the folder of a `trl-pafo run`") for name in ("results/results.json", "run.yaml")),
    ("results/results.json", "{", "cannot be read"),
    *(("results/results.json", json.dumps(results), "is not what this version of trl-pafo writes") for results in RESULTS),
    *(("results/pafo.jsonl", line, r"pafo\.jsonl is not what an eval.*Evaluate again") for line in ("{", "{}", "[]", BAD_REWARD)),
    ("results/pafo.jsonl", "", "The rewards of pafo in .* are those of other pairs"),
    ("results/pafo.jsonl", None, r"pafo\.jsonl is not what an evaluation writes"),
]


def test_a_run_that_is_not_complete_or_cannot_be_read_is_named(complete, tmp_path):
    for number, (name, text, message) in enumerate(SPOILED):
        folder = tmp_path / str(number)
        shutil.copytree(complete, folder)
        (folder / name).unlink()
        if text is not None:
            (folder / name).write_text(text, encoding="utf-8")
        with pytest.raises(RunFolderError, match=message):
            read_record(folder)
