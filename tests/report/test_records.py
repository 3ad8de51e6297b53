import json

import pytest
from helpers.fake_runs import LOG, make_rows, make_run, write_inspection, write_json

from trl_pafo.errors import RunFolderError
from trl_pafo.report.records import read_record, same_pairs


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "whole")


def test_a_whole_run(whole):
    record = read_record(whole)
    assert record.name == "whole"
    assert (record.reference, record.student) == ("personalized_bt", "pafo")
    assert record.groups == ["majority", "minority"]
    assert record.has_minority
    first = json.loads((whole / "results/pafo.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert record.rewards["pafo"].margins[0] == pytest.approx(first["reward_chosen"] - first["reward_rejected"])
    assert record.rewards["pafo"].correct.mean() == pytest.approx(record.methods["pafo"]["overall"]["value"])
    assert len(record.pairs) == len(record.rewards["pafo"].user) == 17 * 4
    assert record.trainings == {
        name: LOG for name in ("Bradley-Terry", "personalized BT", "PAFO", "teacher of majority", "teacher of minority")
    }
    assert set(record.missing) == {"inspection"}


def test_inspection_is_read(tmp_path):
    folder = make_run(tmp_path / "run")
    arrays = write_inspection(folder)
    record = read_record(folder)
    assert set(record.inspection) == set(arrays)
    assert not record.missing


def test_what_is_missing_is_said(tmp_path):
    folder = make_run(tmp_path / "run")
    for name in ("manifest.json", "data/test.parquet", "results/group_routed.jsonl", "models/pafo/trainer_state.json"):
        (folder / name).unlink()
    record = read_record(folder)
    assert set(record.missing) == {"manifest", "pairs", "rewards/group_routed", "training/PAFO", "inspection"}
    assert record.pairs is None
    assert list(record.trainings) == ["Bradley-Terry", "personalized BT"]


def test_rewards_and_texts_of_other_pairs_are_left_out(tmp_path):
    folder = make_run(tmp_path / "run")
    path = folder / "results/pafo.jsonl"
    path.write_text("\n".join(path.read_text(encoding="utf-8").splitlines()[1:]), encoding="utf-8")
    assert "over other pairs" in read_record(folder).missing["rewards/pafo"]
    other = make_run(tmp_path / "other", users=(3, 3))
    (other / "data/test.parquet").write_bytes((folder / "data/test.parquet").read_bytes())
    assert "does not hold the pairs that were scored" in read_record(other).missing["pairs"]


def test_three_groups_from_the_largest_to_the_smallest(tmp_path):
    record = read_record(make_run(tmp_path / "run", groups=("zebra", "ant", "bee"), users=(9, 3, 5)))
    assert record.groups == ["zebra", "ant", "bee"]  # majority, the others, minority
    assert record.has_minority


def test_the_output_of_evaluate(tmp_path, whole):
    results = json.loads((whole / "results/results.json").read_text(encoding="utf-8"))
    kept = {"model": results["methods"]["pafo"]}
    write_json(tmp_path / "results.json", {"majority": "majority", "minority": "minority", "methods": kept, "verdicts": {}})
    record = read_record(tmp_path)
    assert (record.reference, record.student) == (None, "model")
    assert record.title("model") == "the model"
    assert {"manifest", "pairs", "rewards/model", "training/the model", "inspection"} == set(record.missing)


def test_same_pairs(tmp_path, whole):
    other = make_run(tmp_path / "other", seed=3)
    assert same_pairs(read_record(whole), read_record(other))
    changed = make_run(tmp_path / "changed", text="other")
    assert not same_pairs(read_record(whole), read_record(changed))
    assert len(make_rows()) == 68


def test_folders_that_cannot_be_read(tmp_path):
    with pytest.raises(RunFolderError, match=r"holds no results\.json.*Finish the run"):
        read_record(tmp_path)
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_record(tmp_path)
    write_json(tmp_path / "results.json", {"methods": {}})
    with pytest.raises(RunFolderError, match="names no methods"):
        read_record(tmp_path)
    write_json(tmp_path / "results.json", {"methods": {"model": {"overall": {"value": 0.5}}}})
    with pytest.raises(RunFolderError, match="written by another version"):
        read_record(tmp_path)


@pytest.mark.parametrize("line", ["{", "{}", "[]", '{"user": null, "group": null, "reward_chosen": "a", "reward_rejected": 1}'])
def test_rewards_that_cannot_be_read(tmp_path, line):
    folder = make_run(tmp_path / "run")
    (folder / "results/pafo.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"pafo\.jsonl is not what an evaluation writes .*Evaluate again"):
        read_record(folder)
