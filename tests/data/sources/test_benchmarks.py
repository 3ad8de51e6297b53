"""Public benchmarks in their own schemas: small rows written by hand, as the Hub's files hold them."""

import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from trl_pafo.data.sources.benchmarks import SUBSETS, load_benchmark
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation import evaluate_models


def asked(number: int, **changes) -> dict:
    """A row of Personalized RewardBench."""
    profile = [{"id": f"p{n}", "category": "Movies", "text": f"Earlier question {n} of {number}?"} for n in (1, 2)]
    aspects = [{"aspect": "Depth", "evidence": "secret", "reason": "secret"}]
    row = {"id": f"q{number}", "question": f"Which film {number}?", "profile": profile, "rubric_aspects": aspects}
    row |= {"narrative": "secret", "category": "Movies", "chosen": "A long one.", "rejected": f"Short {number}."}
    return row | changes


def judged(user: str, split: str, number: int, **changes) -> dict:
    """A row of PersonalRewardBench, with one of the columns that it has beside those that are read."""
    row = {"user_id": user, "split": split, "context": [{"role": "user", "content": f"{user} asks {number}"}], "agreement": 0.5}
    row |= {"chosen": {"role": "model", "content": "Yes."}, "rejected": {"role": "model", "content": f"No {number}."}}
    return row | changes


def write_subsets(folder: Path, rows: dict[str, list[dict]]) -> Path:
    for subset, own in rows.items():
        (folder / subset).mkdir(parents=True)
        half = (len(own) + 1) // 2
        for part, some in enumerate([own[:half], own[half:]]):
            if some:
                Dataset.from_list(some).to_parquet(folder / subset / f"test-0000{part}-of-00002.parquet")
    return folder


@pytest.fixture
def subsets(tmp_path) -> Path:
    rows = [asked(n) for n in range(6)]
    return write_subsets(tmp_path / "bench", dict(zip(SUBSETS, (rows[:3], rows[3:5], rows[5:]), strict=True)))


ROWS = [
    judged("ann", "train", 1),
    judged("ann", "val", 2),
    judged("ann", "train", 3),
    judged("ann", "test", 4),
    judged("ann", "test", 3, rejected={"role": "model", "content": "Never."}),
    judged("bob", "test", 5),
    judged("bob", "train", 6),
]


@pytest.fixture
def users(tmp_path) -> Path:
    (tmp_path / "prism/data").mkdir(parents=True)
    Dataset.from_list(ROWS).to_parquet(tmp_path / "prism/data/test-00000-of-00001.parquet")
    Dataset.from_list([judged("cy", "test", 7)]).to_parquet(tmp_path / "prism/data/train-00000-of-00001.parquet")
    return tmp_path / "prism"


class TestPersonalizedRewardBench:
    def test_rows_of_all_subsets_and_files(self, subsets):
        rows = load_benchmark("personalized_rewardbench", subsets)
        assert rows["prompt"][:] == [f"Which film {n}?" for n in range(6)]
        assert rows["group"][:] == [SUBSETS[0]] * 3 + [SUBSETS[1]] * 2 + [SUBSETS[2]]
        assert rows[0]["history"] == [{"prompt": "Earlier question 1 of 0?"}, {"prompt": "Earlier question 2 of 0?"}]
        assert "secret" not in str(rows.to_list())  # rubric and narrative tell the answer

    def test_its_own_measure_gives_nothing_for_a_tie_and_ours_one_half(self, subsets):
        margin = {0: 1.0, 1: 0.0, 2: -1.0, 3: 2.0, 4: 3.0, 5: 0.0}

        def reward(prompts, completions, **columns):
            assert not {"narrative", "rubric_aspects"} & set(columns)
            numbers = [int(prompt.split()[2].removesuffix("?")) for prompt in prompts]
            return [margin[n] if text == "A long one." else 0.0 for n, text in zip(numbers, completions, strict=True)]

        results = evaluate_models(reward, subsets, benchmark="personalized_rewardbench", num_resamples=2)
        by_subset = dict(zip([f"chosen_win_rate/{name}" for name in SUBSETS], [1 / 3, 1.0, 0.0], strict=True))
        expected = {"chosen_win_rate": 0.5, **by_subset, "ties": 2.0, "mean_difference": 5 / 6}
        assert results["own_measures"]["reward"] == pytest.approx(expected)
        assert results["methods"]["reward"]["overall"]["value"] == pytest.approx(4 / 6)
        assert results["methods"]["reward"][f"accuracy/{SUBSETS[2]}"]["value"] == 0.5


class TestPersonalRewardBench:
    def test_test_rows_are_judged_and_the_other_rows_of_the_user_are_its_history(self, users):
        rows = load_benchmark("personal_rewardbench", users)
        asks = [[past["prompt"][0]["content"] for past in history] for history in rows["history"]]
        assert rows["user"][:] == ["ann", "ann", "bob"]
        assert asks == [["ann asks 3", "ann asks 2", "ann asks 1"], ["ann asks 2", "ann asks 1"], ["bob asks 6"]]
        assert rows[0]["chosen"] == [{"role": "assistant", "content": "Yes."}]
        assert load_benchmark("personal_rewardbench", users, "train")["user"][:] == ["cy"]

    def test_a_file_and_a_saved_dataset_are_read_alike(self, users, tmp_path):
        expected = load_benchmark("personal_rewardbench", users).to_list()
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
        DatasetDict(test=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
        for path in ("rows.jsonl", "saved"):
            assert load_benchmark("personal_rewardbench", tmp_path / path).to_list() == expected

    def test_histories_are_found_also_where_the_splits_of_the_hub_hold_rows_and_not_users(self, users, tmp_path):
        expected = load_benchmark("personal_rewardbench", users).to_list()
        kinds = {"train": "train", "validation": "val", "test": "test"}
        saved = {name: Dataset.from_list([row for row in ROWS if row["split"] == kind]) for name, kind in kinds.items()}
        DatasetDict(saved).save_to_disk(tmp_path / "saved")
        found = load_benchmark("personal_rewardbench", tmp_path / "saved").to_list()
        key = lambda past: past["prompt"][0]["content"]  # noqa: E731
        assert [sorted(row["history"], key=key) for row in found] == [sorted(row["history"], key=key) for row in expected]

    def test_its_own_measure_counts_minus_one_for_a_wrong_pair(self, users):
        def reward(prompts, completions, **_):
            liked = {"ann asks 4": 1.0, "ann asks 3": 0.0, "bob asks 5": 1.0}
            return [liked[p[-1]["content"]] * (c[0]["content"] == "Yes.") for p, c in zip(prompts, completions, strict=True)]

        results = evaluate_models(reward, users, benchmark="personal_rewardbench", num_resamples=2)
        assert results["own_measures"]["reward"] == pytest.approx({"mean": 2 / 3, "accuracy": 5 / 6})
        assert results["methods"]["reward"]["user_mean"]["value"] == pytest.approx((0.75 + 1) / 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"profile": "none"}, "row 0: `profile` must be a list of objects"),
        ({"profile": [{"id": "p", "text": " "}]}, "row 0, profile: the field `text` must be a text that is not empty"),
        ({"chosen": ""}, "row 0: the field `chosen` must be a text"),
    ],
)
def test_what_does_not_fit_the_schema_of_personalized_rewardbench(tmp_path, row, message):
    folder = write_subsets(tmp_path / "bench", {name: [asked(1, **row)] for name in SUBSETS})
    with pytest.raises(DataError, match=message):
        load_benchmark("personalized_rewardbench", folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"split": "validation"},
            "row 0: needs a `user_id`, and a `split` that is train, val or test; got 'ann' and 'validation'",
        ),
        ({"user_id": None}, "row 0: needs a `user_id`"),
        ({"context": "Hello"}, "row 0: `context` must be a message with role and content, or a list of them, got 'Hello'"),
        ({"chosen": {"role": "model", "content": None}}, "row 0: `chosen` must be a message"),
        ({"split": "train"}, "no row to be judged"),
    ],
)
def test_what_does_not_fit_the_schema_of_personalrewardbench(tmp_path, changes, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(judged("ann", "test", 1) | changes))
    with pytest.raises(DataError, match=message):
        load_benchmark("personal_rewardbench", tmp_path / "rows.jsonl")


def test_other_data_other_names_and_options_without_effect(subsets, users, tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(
        DataError, match=r"schema of personal_rewardbench: user_id, split, context is missing; its columns are prompt"
    ):
        load_benchmark("personal_rewardbench", tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match=f"has no folder {SUBSETS[0]}. Give a folder with those of the repository"):
        load_benchmark("personalized_rewardbench", users)
    with pytest.raises(DataError, match=r"has no split 'validation'; it has test-00000-of-00001, train-00000-of-00001"):
        load_benchmark("personal_rewardbench", users, "validation")
    with pytest.raises(ConfigError, match="Unknown benchmark 'rewardbench'; choose one of personalized_rewardbench, personal_"):
        load_benchmark("rewardbench", users)
    with pytest.raises(ConfigError, match="--columns: no effect on a benchmark"):
        evaluate_models(len, users, benchmark="personal_rewardbench", columns={"user": "user_id"})
    with pytest.raises(ConfigError, match="A benchmark is read from a folder, file or Hub id"):
        evaluate_models(len, Dataset.from_list(ROWS), benchmark="personal_rewardbench")
