import json

import pytest
from helpers.fake_runs import make_run, write_json

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
    assert not record.missing


def test_what_is_missing_is_said(tmp_path):
    folder = make_run(tmp_path / "run")
    for name in ("manifest.json", "run.yaml", "data/summary.json", "data/test.parquet"):
        (folder / name).unlink()
    (folder / "results/group_routed.jsonl").unlink()
    record = read_record(folder)
    assert record.missing.pop("rewards/group_routed") == "there is no group_routed.jsonl"
    assert set(record.missing) == {"manifest", "config", "summary", "pairs"}
    assert record.missing["manifest"] == "there is no manifest.json"
    assert record.pairs is None


def test_rewards_and_texts_of_other_pairs_are_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "results/pafo.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[1:]), encoding="utf-8")
    record = read_record(folder)
    assert "over other pairs" in record.missing["rewards/pafo"]
    assert record.compared == ["personalized_bt"]
    other = make_run(tmp_path / "other", users=(3, 3))
    (other / "data/test.parquet").write_bytes((folder / "data/test.parquet").read_bytes())
    assert "does not hold the pairs that were scored" in read_record(other).missing["pairs"]


def test_three_groups_from_the_largest_to_the_smallest(tmp_path):
    record = read_record(make_run(tmp_path / "run", groups=("zebra", "ant", "bee"), users=(9, 3, 5)))
    assert record.groups == ["zebra", "ant", "bee"]  # majority, the others, minority
    assert [record.group_title(group) for group in record.groups] == ["zebra (majority)", "ant", "bee (minority)"]


def test_the_output_of_evaluate(tmp_path, complete):
    results = json.loads((complete / "results/results.json").read_text(encoding="utf-8"))
    kept = {"model": results["methods"]["pafo"]}
    write_json(tmp_path / "results.json", {"majority": "majority", "minority": "minority", "methods": kept, "verdicts": {}})
    record = read_record(tmp_path)
    assert (record.reference, record.student, record.compared) == (None, "model", [])
    assert record.title("model") == "the model"
    assert {"manifest", "config", "pairs", "rewards/model"} < set(record.missing)


def test_given_teachers_are_told_from_trained_ones(record):
    assert not record.has_given_teachers
    for group in ("majority", "minority"):
        del record.stages[f"teacher:{group}"]
    assert record.has_given_teachers


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no results\.json.*Finish the run"):
        read_record(tmp_path)
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_record(tmp_path)
    for results in ([], {"methods": {}}, {"methods": {"model": {"overall": {"value": 0.5}}}}):
        write_json(tmp_path / "results.json", results)
        with pytest.raises(RunFolderError, match="is not what this version of trl-pafo writes"):
            read_record(tmp_path)


@pytest.mark.parametrize("line", ["{", "{}", "[]", '{"user": null, "group": null, "reward_chosen": "a", "reward_rejected": 1}'])
def test_rewards_that_cannot_be_read(tmp_path, line):
    folder = make_run(tmp_path / "run")
    (folder / "results/pafo.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"pafo\.jsonl is not what an evaluation writes .*Evaluate again"):
        read_record(folder)
