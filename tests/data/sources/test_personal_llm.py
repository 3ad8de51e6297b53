import numpy as np
import pytest
from datasets import Dataset
from helpers.sources import check_splits, load, write_lines

from trl_pafo.data.sources import personal_llm
from trl_pafo.data.sources.splits import is_cut_by_support
from trl_pafo.errors import ConfigError, DataError

MODELS = ("gemma_2b", "oasst_deberta_v3", "beaver_7b")


def scored_rows(num_prompts=40, num_responses=8):
    rng = np.random.default_rng(0)
    rows = []
    for p in range(num_prompts):
        row = {"prompt": f"prompt {p}"}
        for i in range(1, num_responses + 1):
            row |= {f"response_{i}": f"answer {i} to {p}", f"response_{i}_model": "writer"}
            # The models' scales differ widely, as those of real reward models do.
            row |= {f"response_{i}_{m}": float(10**k * rng.normal() + 5 * k) for k, m in enumerate(MODELS)}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def rows():
    return scored_rows()


@pytest.fixture
def of(rows, tmp_path):
    def load_rows(changed=rows, **options):
        Dataset.from_list(changed).to_parquet(tmp_path / "scored.parquet")
        return load(
            "personal_llm", tmp_path / "scored.parquet", **{"train_users": 20, "test_users": 10, "pairs_per_user": 3} | options
        )

    return load_rows


def z_scores(rows):
    scores = np.array([[[row[f"response_{i}_{m}"] for m in sorted(MODELS)] for i in range(1, 9)] for row in rows])
    return (scores - scores.mean((0, 1))) / scores.std((0, 1))


def place(answer):
    _, response, _, prompt = answer.split()
    return int(prompt), int(response) - 1


def test_users_and_prompts_apart(of):
    splits = of()
    check_splits(splits)
    assert (len(splits["train"]), len(splits["test"])) == (80, 40)
    assert len(set(splits["test"]["prompt"])) <= 10
    for split in splits.values():
        assert set(split.to_pandas().groupby("user")["prompt"].nunique()) == {4}
    first, again, other = (of(population_seed=seed)["train"].to_list() for seed in (0, 0, 1))
    assert first == again != other


def test_users_close_to_one_model_like_its_best_answer(of, rows, monkeypatch):
    monkeypatch.setattr(personal_llm, "CONCENTRATION", 1e-4)  # each user follows one model up to rounding
    scores = z_scores(rows)
    for user, own in of()["train"].to_pandas().groupby("user"):
        fits = np.ones(len(MODELS), dtype=bool)
        for chosen, rejected in zip(own["chosen"], own["rejected"], strict=True):
            (prompt, best), (_, worst) = place(chosen), place(rejected)
            fits &= (scores[prompt].argmax(0) == best) & (scores[prompt].argmin(0) == worst)
        assert fits.any(), user


def test_an_even_mix_is_not_swayed_by_the_scales(of, rows, monkeypatch):
    monkeypatch.setattr(personal_llm, "CONCENTRATION", 1e5)  # all weigh the models alike, to less than a percent
    monkeypatch.setattr(personal_llm, "NUM_PROBES", 20_000)
    reward = z_scores(rows).mean(2)
    for row in of()["test"]:
        (prompt, best), (_, worst) = place(row["chosen"]), place(row["rejected"])
        assert reward[prompt, best] == pytest.approx(reward[prompt].max(), abs=0.02)
        assert reward[prompt, worst] == pytest.approx(reward[prompt].min(), abs=0.02)


def test_users_of_a_rare_taste_are_the_minority(of):
    splits = of(minority_quantile=0.2, train_users=60)
    assert is_cut_by_support(splits["train"])
    people = splits["train"].to_pandas().drop_duplicates("user")
    rates = people.groupby("group")["support_rate"]
    assert rates.max()["minority"] < rates.min()["majority"]
    assert 0 < (people["group"] == "minority").mean() < 0.5
    assert people["support_rate"].between(0, 1).all()


def test_support_of_test_users_is_measured_on_training_users_alone(of):
    # An average over 500 probes of shares of 20 training users; 9 other test users would give other fractions.
    rates = np.array(of()["test"]["support_rate"][:])
    np.testing.assert_allclose(rates * 20 * 500, np.round(rates * 20 * 500), atol=1e-6)
    assert not np.allclose(rates * 9 * 500, np.round(rates * 9 * 500), atol=1e-6)


def test_rows_that_cannot_be_used_are_counted(of, rows, caplog):
    of([*rows, rows[0], {**rows[1], "response_2": rows[1]["response_1"]}, {**rows[2], "response_3": None}])
    assert "3 of 43 rows were dropped" in caplog.text


def test_a_user_without_a_preference_has_a_pair_all_the_same(of, rows):
    alike = {name: 0.0 for name in rows[0] if name.endswith(MODELS)}
    check_splits(of([{**row, **alike} if number % 2 else row for number, row in enumerate(rows)]))


def test_too_few_prompts(of):
    for options in ({"pairs_per_user": 30}, {"test_prompt_share": 0.01}):
        with pytest.raises(ConfigError, match=r"Each user judges \d+ different prompts"):
            of(**options)


def test_a_bad_score_is_named(tmp_path, rows):
    path = write_lines(tmp_path / "scored.jsonl", [rows[0], {**rows[1], "response_3_gemma_2b": None}])
    with pytest.raises(DataError, match="row 1: the score response_3_gemma_2b is missing or not finite"):
        load("personal_llm", path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {k: v for k, v in row.items() if k != "response_8_beaver_7b"}, "lacks the column response_8_beaver_7b"),
        (lambda row: {"prompt": "p", "response_1": "x", "response_1_model": "m"}, "has no scores of two or more responses"),
        (lambda row: row | {f"response_{i}_beaver_7b": 1.0 for i in range(1, 9)}, "all scores of the reward model 'beaver_7b'"),
        (lambda row: row | {"response_1_beaver_7b": "high"}, "a score is not a number"),
        (lambda row: row | {"response_2": 7}, "row 0: the prompt and the responses must be texts"),
    ],
)
def test_columns_that_cannot_be_used(tmp_path, rows, change, message):
    path = write_lines(tmp_path / "scored.jsonl", map(change, rows[:3]))
    with pytest.raises(DataError, match=message):
        load("personal_llm", path)
