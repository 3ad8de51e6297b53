"""What is looked at, under whose history, and that rewards are the models' own."""

import json
import shutil

import numpy as np
import pytest
from helpers.fake_runs import write_json
from helpers.parts import make_model, make_pairs
from transformers import AutoTokenizer

from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.history_effect import inspect_run
from trl_pafo.evaluation.rewards import score_rows


def write_run(folder, kind="encoder", history=2, reference="personalized_bt", teachers=True, num_users=6):
    """A run with tiny models in it."""
    for seed, method in enumerate((reference, "pafo")):
        make_model(kind, folder / "models" / method, seed=seed)
    stages = {}
    for seed, group in enumerate(("majority", "minority"), start=5):
        if teachers:
            make_model(kind, folder / f"teachers/{group}", seed=seed)
            stages[f"teacher:{group}"] = {"inputs": {}, "output": f"teachers/{group}"}
    tokenizer = add_history_template(AutoTokenizer.from_pretrained(folder / "models/pafo"))
    rows = make_pairs(num_users=num_users, history=history)
    if history:
        rows = render_history(rows, HistoryCutter(tokenizer, 1, fields=["chosen"])).add_column("history", rows["history"][:])
    (folder / "data").mkdir()
    (folder / "results").mkdir()
    rows.to_parquet(folder / "data/test.parquet")
    write_json(folder / "results/results.json", {"reference": reference, "methods": {reference: {}, "pafo": {}}})
    write_json(folder / "manifest.json", {"stages": stages})
    return rows


def load(folder, **kwargs):
    with np.load(inspect_run(folder, progress=False, **kwargs), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(params=["encoder", "decoder"])
def run(request, tmp_path):
    return tmp_path, write_run(tmp_path, request.param)


def test_entries_are_each_pair_under_its_own_and_another_groups_history(run):
    folder, rows = run
    seen = load(folder, pairs_per_group=4)
    assert sorted(zip(seen["group"], seen["shown"], strict=True)) == sorted(
        [(group, shown) for group in ("majority", "minority") for shown in ("majority", "minority")] * 4
    )
    assert [rows["group"][int(row)] for row in seen["row"]] == seen["group"].tolist()
    assert len(set(seen["row"].tolist())) == 8


def test_rewards_under_the_own_history_are_those_of_the_evaluation(run):
    folder, rows = run
    seen = load(folder, pairs_per_group=5)
    own = seen["shown"] == seen["group"]
    for method in ("personalized_bt", "pafo"):
        expected = np.stack(score_rows(folder / "models" / method, rows.select(seen["row"][own]))[:2], axis=1)
        assert seen[f"rewards/{method}"][own] == pytest.approx(expected, abs=1e-4)
        assert np.abs(seen[f"rewards/{method}"][own] - seen[f"rewards/{method}"][~own]).max() > 1e-3
    mine = own & (seen["group"] == "minority")
    expected = np.stack(score_rows(folder / "teachers/minority", rows.select(seen["row"][mine]))[:2], axis=1)
    assert seen["rewards/teacher"][mine] == pytest.approx(expected, abs=1e-4)


def test_a_borrowed_history_is_judged_by_its_groups_teacher(run):
    folder, rows = run
    seen = load(folder, pairs_per_group=5)
    i = np.flatnonzero((seen["group"] == "majority") & (seen["shown"] == "minority"))[0]
    pair = rows.select([int(seen["row"][i])]).remove_columns("chat_template_kwargs")
    histories = [kwargs for kwargs, group in zip(rows["chat_template_kwargs"], rows["group"], strict=True) if group == "minority"]
    tried = [
        [
            float(side[0])
            for side in score_rows(folder / "teachers/minority", pair.add_column("chat_template_kwargs", [kwargs]))[:2]
        ]
        for kwargs in histories
    ]
    assert any(rewards == pytest.approx(seen["rewards/teacher"][i], abs=1e-4) for rewards in tried)


def test_it_is_kept_until_asked_for_something_else_or_a_model_changes(tmp_path):
    write_run(tmp_path, reference="bradley_terry")
    path = inspect_run(tmp_path, pairs_per_group=2, progress=False)
    kept = path.stat().st_mtime_ns
    assert inspect_run(tmp_path, pairs_per_group=2, progress=False).stat().st_mtime_ns == kept
    before = load(tmp_path, pairs_per_group=3)
    assert len(before["row"]) == 12
    assert "rewards/bradley_terry" not in before  # it reads no histories
    make_model("encoder", tmp_path / "models/pafo", seed=9)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["stages"]["pafo"] = {"digest": "of another training", "inputs": {}, "output": "models/pafo"}
    write_json(tmp_path / "manifest.json", manifest)
    assert (load(tmp_path, pairs_per_group=3)["rewards/pafo"] != before["rewards/pafo"]).any()


def test_pairs_that_are_too_long_under_a_borrowed_history_are_left_out(tmp_path):
    rows = write_run(tmp_path)
    long = [
        {**row, "chat_template_kwargs": {"history": [{"chosen": "soup " * 250}]}} if row["group"] == "minority" else row
        for row in rows
    ]
    type(rows).from_list(long).to_parquet(tmp_path / "data/test.parquet")
    seen = load(tmp_path, pairs_per_group=3)
    assert set(seen["shown"]) == {"majority"}


def test_what_cannot_be_inspected(tmp_path):
    with pytest.raises(DataError, match=r"holds no results/results\.json"):
        inspect_run(tmp_path)
    rows = write_run(tmp_path, teachers=False)
    assert "rewards/teacher" not in load(tmp_path, pairs_per_group=1)
    with pytest.raises(ConfigError, match="`pairs_per_group` must be at least 1"):
        inspect_run(tmp_path, pairs_per_group=0)
    rows.filter(lambda row: row["group"] == "majority").to_parquet(tmp_path / "data/test.parquet")
    with pytest.raises(DataError, match="are of one group"):
        inspect_run(tmp_path)
    rows.remove_columns("history").to_parquet(tmp_path / "data/test.parquet")
    with pytest.raises(DataError, match="have no histories"):
        inspect_run(tmp_path)
    (tmp_path / "data/test.parquet").unlink()
    with pytest.raises(DataError, match=r"no data/test\.parquet"):
        inspect_run(tmp_path)
    shutil.rmtree(tmp_path / "models")
    with pytest.raises(DataError, match="keeps no model that is shown histories"):
        inspect_run(tmp_path)
    assert json.loads((tmp_path / "results/results.json").read_text(encoding="utf-8"))
