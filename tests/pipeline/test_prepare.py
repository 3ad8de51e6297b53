"""The files of a run's data: what they hold, and nothing beside them."""

import json

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from helpers.parts import full_after, make_pairs, make_tokenizer
from trl import RewardConfig, RewardTrainer

from trl_pafo.data.history import HistoryCutter
from trl_pafo.data.people import read_people
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.models.base_models import load_tokenizer
from trl_pafo.pipeline.prepare import LENGTHS, load_prepared, prepare
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.trainer import PAFORewardTrainer


def prepared(folder, num_history=1, **data):
    """The folder of pairs of a source, prepared for an encoder."""
    data = data or {"source": "styles", "train_users": 12, "test_users": 10, "validation_share": 0.2}
    args = PAFOConfig(str(folder), num_history=num_history, use_cpu=True, bf16=False)
    prepare(DataArguments(**data), args, add_history_template(make_tokenizer("encoder")), folder / "data")
    return folder / "data"


def test_prepared_rows_show_what_the_cutter_leaves_of_their_whole_history(tmp_path):
    tokenizer = add_history_template(make_tokenizer("encoder"))
    how = {"num_history": 2, "history_max_tokens": 12, "history_fields": ["chosen"]}
    args = PAFOConfig(str(tmp_path), **how, use_cpu=True, bf16=False)
    data = DataArguments(source="styles", train_users=12, test_users=10, validation_share=0.2)
    prepare(data, args, tokenizer, tmp_path / "data", with_lengths=True)
    names = {"train", "validation", "test"}
    written = {f"{name}.parquet" for name in names} | {"chat_template.jinja", "summary.json", "groups.csv", LENGTHS}
    assert {path.name for path in (tmp_path / "data").iterdir()} == written
    cutter = HistoryCutter(make_tokenizer("encoder"), *how.values())
    loaded = load_prepared(tmp_path / "data")
    assert set(loaded) == names
    summary = json.loads((tmp_path / "data/summary.json").read_text())
    for name, rows in loaded.items():
        assert rows.column_names[-2:] == ["chat_template_kwargs", "history"]
        for row in rows:
            assert 1 <= len(row["history"]) <= 2
            assert row["chat_template_kwargs"] == {"history": cutter(row["history"])}
            assert [message["role"] for message in row["prompt"] + row["chosen"]] == ["user", "assistant"]
        assert sum(summary[name]["pairs"].values()) == len(rows)
        longer = [max(len(tokenize_row(tokenizer, row, side)) for side in ("chosen", "rejected")) for row in rows]
        assert np.load(tmp_path / "data" / LENGTHS)[name].tolist() == longer
    assert summary["groups"] == "data"


@pytest.mark.parametrize("source", ["styles", "files"])
def test_what_was_prepared_is_prepared_again_with_its_validation_pairs(source, tmp_path):
    """Those of new people, as of styles, and those of training people on other prompts."""
    options = {"source": "styles", "train_users": 12, "test_users": 10, "validation_users": 8}
    if source == "files":
        make_pairs(20, pairs_per_user=6, num_minority=8, history=0).to_json(tmp_path / "pairs.jsonl")
        options = {"data_path": str(tmp_path / "pairs.jsonl"), "validation_share": 0.3}
    folder = prepared(tmp_path / "once", **options)
    once, again = load_prepared(folder), load_prepared(prepared(tmp_path / "again", data_path=str(folder)))
    names = [
        name for name in once["train"].column_names if name not in ("unit", "support_rate")
    ]  # made anew of the training pairs
    for name, rows in once.items():
        assert set(rows.column_names) == set(again[name].column_names)
        found, given = ([json.dumps(row, sort_keys=True) for row in part.select_columns(names)] for part in (again[name], rows))
        assert sorted(found) == sorted(given)


def test_groups_that_were_inferred_are_told_from_given_ones(tmp_path):
    rows = [
        {"prompt": f"what {p}", "chosen": a, "rejected": b, "user": f"u{u}", "support_rate": u / 20}
        for u in range(20)
        for p, (a, b) in enumerate([("yes", "no"), ("tea", "soup"), (f"sun {u}", "rain")])
    ]
    test = [{**row, "prompt": f"how {row['prompt']}", "user": f"t{row['user']}"} for row in rows]
    for groups in ("support", "data"):
        paths = {}
        for name, part in (("train", rows), ("test", test)):
            part = (
                [{**row, "group": "even" if row["support_rate"] < 0.5 else "odd"} for row in part] if groups == "data" else part
            )
            paths[name] = str(tmp_path / f"{groups}-{name}.jsonl")
            Dataset.from_list(part).to_json(paths[name])
        options = {"data_path": paths["train"], "test_data_path": paths["test"], "validation_share": 0}
        folder = prepared(tmp_path / groups, source="files", **options)
        assert json.loads((folder / "summary.json").read_text())["groups"] == groups


@pytest.mark.parametrize("named", [True, False])
def test_groups_are_found_in_training_pairs(named, encoder, tmp_path, monkeypatch, capsys):
    for name, value in (("DIRECTIONS", (8,)), ("PENALTIES", (0.1,)), ("FOLDS", 2)):
        monkeypatch.setattr(f"trl_pafo.evaluation.tastes.{name}", value)
    rows = make_pairs(40, pairs_per_user=4, num_minority=12, history=0)
    rows = rows if named else rows.remove_columns("group")
    rows.to_json(tmp_path / "pairs.jsonl")
    prepared(tmp_path, source="files", data_path=str(tmp_path / "pairs.jsonl"), infer_groups=encoder)
    assert "Tastes: 2 groups found in the pairs alone, majority" in capsys.readouterr().out
    summary = json.loads((tmp_path / "data/summary.json").read_text())
    assert summary["groups"] == ("training pairs" if named else "pairs")
    people = read_people(tmp_path / "data").set_index("user")
    assert people["posterior"].isna().to_dict() == {user: named and split == "test" for user, split in people["split"].items()}
    assert (people["posterior"].dropna() >= 0.5).all()
    for split in load_prepared(tmp_path / "data").values():
        assert {"group", "support_rate"} <= set(split.column_names)
        for user, group in zip(split["user"], split["group"], strict=True):
            assert (group == "minority") == (int(user.removeprefix("user-")) < 12)
            assert people.loc[user, "group"] == group


def test_what_users_are_is_counted_and_stays_out_of_the_pairs(tmp_path, capsys):
    rows = [
        {**row, "country": "DE" if row["group"] == "minority" else "FR"}
        for row in make_pairs(12, pairs_per_user=4, num_minority=4, history=0)
    ]
    Dataset.from_list(rows).to_json(tmp_path / "pairs.jsonl")
    prepared(tmp_path, source="files", data_path=str(tmp_path / "pairs.jsonl"), describe=["country"])
    printed = capsys.readouterr().out
    assert "country of 8 majority users: FR (8); of 4 minority users: DE (4)." in printed
    assert "No probability of a group is known: the groups come with the data." in printed
    people = read_people(tmp_path / "data")
    assert len(people) == 12
    assert set(zip(people["group"], people["country"], strict=True)) == {("majority", "FR"), ("minority", "DE")}
    for split in load_prepared(tmp_path / "data").values():
        assert not {"about", "country"} & set(split.column_names)


def few_pairs():
    """People who share their prompts, one of whom has a single pair."""
    rows = make_pairs(40, pairs_per_user=5, num_minority=10, history=0).to_list()
    rows = [{**row, "prompt": f"what {n % 5}"} for n, row in enumerate(rows)]
    return [*rows, {**rows[0], "user": "once"}]


@pytest.mark.parametrize("how", ["users", "users_and_prompts", "pairs"])
def test_what_is_held_out_is_known_to_the_files(how, tmp_path):
    Dataset.from_list(few_pairs()).to_json(tmp_path / "pairs.jsonl")
    prepared(tmp_path, 2, source="files", data_path=str(tmp_path / "pairs.jsonl"), hold_out=how, test_prompt_share=0.4)
    assert json.loads((tmp_path / "data/summary.json").read_text())["hold_out"] == how
    loaded = load_prepared(tmp_path / "data")
    assert all(("unit" in rows.column_names) == (how == "pairs") for rows in loaded.values())
    people = {name: set(rows["user"]) for name, rows in loaded.items()}
    assert len(people["test"]) == (40 if how == "pairs" else 8)
    assert not any("once" in own for own in people.values())
    assert all(len(row["history"]) == len(row["chat_template_kwargs"]["history"]) == 2 for row in loaded["test"])
    prompts = {name: {row["prompt"][0]["content"] for row in rows} for name, rows in loaded.items()}
    assert bool(prompts["test"] & (prompts["train"] | prompts["validation"])) == (how != "users_and_prompts")


def test_who_has_no_past_is_served_without_it_where_that_is_asked_for(tmp_path, encoder, training):
    Dataset.from_list([{**row, "group": "all"} for row in few_pairs()]).to_json(tmp_path / "pairs.jsonl")
    options = {"min_pairs": 1, "validation_share": 0.0, "population_seed": 3}
    prepared(tmp_path, 2, source="files", data_path=str(tmp_path / "pairs.jsonl"), **options)
    loaded = load_prepared(tmp_path / "data")
    [row] = [row for rows in loaded.values() for row in rows if row["user"] == "once"]
    assert (row["history"], row["chat_template_kwargs"]) == ([], {"history": []})
    rows = loaded["train"] if "once" in loaded["train"]["user"] else loaded["test"]
    # The student reads such a row beside others.
    PAFORewardTrainer(encoder, PAFOConfig(str(tmp_path / "out"), **training), train_dataset=rows).train()


def test_prepared_rows_train_plain_reward_trainer(encoder, training, tmp_path):
    """`trl reward --dataset_name FOLDER --chat_template_path ...`: the same columns, the same tokens."""
    folder = prepared(tmp_path)
    dataset = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(dataset) == {"train", "validation", "test"}
    trainer = RewardTrainer(
        encoder,
        RewardConfig(str(tmp_path / "out"), chat_template_path=str(folder / "chat_template.jinja"), **training),
        train_dataset=dataset["train"],
    )
    text = trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"])
    assert text.startswith("[CLS]")
    assert text.count("[SEP]") == 5  # past prompt, chosen, rejected; prompt; response
    trainer.train()
    trainer.save_model()
    assert "history" in load_tokenizer(str(tmp_path / "out")).chat_template


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path, monkeypatch):
    write = Dataset.to_parquet

    def without_room(*given, **how):
        with full_after(500):
            write(*given, **how)

    monkeypatch.setattr(Dataset, "to_parquet", without_room)
    with pytest.raises(OSError, match="File too large"):
        prepared(tmp_path)
