import json
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from trl_pafo.data.checks import check_pairs
from trl_pafo.data.sources.personal_llm import load_personal_llm, load_personal_llm_types
from trl_pafo.data.sources.splits import is_cut_by_support
from trl_pafo.data.sources.typed_users import Population
from trl_pafo.errors import ConfigError, DataError

MODELS = ("gemma_2b", "oasst_deberta_v3", "beaver_7b")
SMALL = {"train_users": 20, "test_users": 10, "pairs_per_user": 3, "context_pairs": 1}


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


@pytest.fixture(scope="module")
def path(rows, tmp_path_factory):
    file = tmp_path_factory.mktemp("personal_llm") / "scored.parquet"
    Dataset.from_list(rows).to_parquet(file)
    return file


def z_scores(rows):
    scores = np.array([[[row[f"response_{i}_{m}"] for m in sorted(MODELS)] for i in range(1, 9)] for row in rows])
    return (scores - scores.mean((0, 1))) / scores.std((0, 1))


def place(answer):
    _, response, _, prompt = answer.split()
    return int(prompt), int(response) - 1


class TestScored:
    def test_users_and_prompts_apart(self, path):
        splits = load_personal_llm(path, **SMALL)
        train, test = splits["train"], splits["test"]
        assert not set(train["user"]) & set(test["user"])
        assert not set(train["prompt"]) & set(test["prompt"])
        assert len(train) == 80
        assert len(test) == 40
        assert len(set(test["prompt"])) <= 10
        for name, split in splits.items():
            check_pairs(split, name)
            assert set(split.to_pandas().groupby("user")["prompt"].nunique()) == {4}

    def test_users_close_to_one_model_like_its_best_answer(self, path, rows):
        # With such a low concentration, each user follows one model up to rounding.
        scores = z_scores(rows)
        for user, own in load_personal_llm(path, concentration=1e-4, **SMALL)["train"].to_pandas().groupby("user"):
            fits = np.ones(len(MODELS), dtype=bool)
            for chosen, rejected in zip(own["chosen"], own["rejected"], strict=True):
                (prompt, best), (_, worst) = place(chosen), place(rejected)
                fits &= (scores[prompt].argmax(0) == best) & (scores[prompt].argmin(0) == worst)
            assert fits.any(), user

    def test_random_pairs_follow_the_reward_too(self, path, rows):
        scores = z_scores(rows)
        for user, own in (
            load_personal_llm(path, pairing="random", concentration=1e-4, **SMALL)["train"].to_pandas().groupby("user")
        ):
            margins = [scores[place(c)] - scores[place(r)] for c, r in zip(own["chosen"], own["rejected"], strict=True)]
            assert (np.array(margins) > 0).all(axis=0).any(), user

    def test_an_even_mix_is_not_swayed_by_the_scales(self, path, rows):
        # With a high concentration all weigh the models nearly alike: the reward is the mean of the z-scores.
        reward = z_scores(rows).mean(2)
        for row in load_personal_llm(path, concentration=1e5, num_probes=20_000, **SMALL)["test"]:
            (prompt, best), (_, worst) = place(row["chosen"]), place(row["rejected"])
            # Weights differ from even ones by less than a percent.
            assert reward[prompt, best] == pytest.approx(reward[prompt].max(), abs=0.02)
            assert reward[prompt, worst] == pytest.approx(reward[prompt].min(), abs=0.02)

    def test_users_of_a_rare_taste_are_the_minority(self, path):
        splits = load_personal_llm(path, concentration=0.01, minority_quantile=0.2, **SMALL | {"train_users": 60})
        assert is_cut_by_support(splits["train"])
        people = splits["train"].to_pandas().drop_duplicates("user")
        rates = people.groupby("group")["support_rate"]
        assert rates.max()["minority"] < rates.min()["majority"]
        assert 0 < (people["group"] == "minority").mean() < 0.5
        assert people["support_rate"].between(0, 1).all()

    def test_support_of_test_users_is_measured_on_training_users_alone(self, path):
        # An average over 500 probes of shares of 20 training users; 9 other test users would give other fractions.
        rates = np.array(load_personal_llm(path, **SMALL)["test"]["support_rate"][:])
        np.testing.assert_allclose(rates * 20 * 500, np.round(rates * 20 * 500), atol=1e-6)
        assert not np.allclose(rates * 9 * 500, np.round(rates * 9 * 500), atol=1e-6)

    def test_the_seed_decides(self, path):
        found = [load_personal_llm(path, seed=seed, **SMALL)["train"].to_list() for seed in (0, 0, 1)]
        assert found[0] == found[1] != found[2]

    def test_rows_that_cannot_be_used_are_counted(self, tmp_path, rows, caplog):
        bad = [{**rows[0]}, {**rows[1], "response_2": rows[1]["response_1"]}, {**rows[2], "response_3": None}]
        file = tmp_path / "scored.parquet"
        Dataset.from_list([*rows, *bad]).to_parquet(file)
        load_personal_llm(file, **SMALL)
        assert "3 of 43 rows are left out" in caplog.text

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pairing": "all"}, "`pairing` must be one of best_worst, random"),
            ({"concentration": 0.0}, "must be above 0"),
            ({"pairs_per_user": 0}, "must be above 0"),
            ({"pairs_per_user": 30}, "Each user judges 31 different prompts"),
            ({"test_prompt_share": 0.0}, "leave 0 for test"),
        ],
    )
    def test_options_are_checked(self, path, options, message):
        with pytest.raises(ConfigError, match=message):
            load_personal_llm(path, **SMALL | options)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"response_3_gemma_2b": float("nan")}, "row 1: the score response_3_gemma_2b is missing or not finite"),
            ({"response_3_gemma_2b": None}, "row 1: the score response_3_gemma_2b is missing or not finite"),
        ],
    )
    def test_bad_scores_are_named(self, tmp_path, rows, changes, message):
        file = tmp_path / "scored.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in [rows[0], {**rows[1], **changes}]))
        with pytest.raises(DataError, match=message):
            load_personal_llm(file)

    def test_missing_columns(self, tmp_path, rows):
        file = tmp_path / "scored.jsonl"
        file.write_text(json.dumps({k: v for k, v in rows[0].items() if k != "response_8_beaver_7b"}))
        with pytest.raises(DataError, match="lacks the column response_8_beaver_7b"):
            load_personal_llm(file)
        file.write_text(json.dumps({"prompt": "p", "response_1": "x", "response_1_model": "m"}))
        with pytest.raises(DataError, match="has no scores of two or more responses"):
            load_personal_llm(file)

    def test_a_model_that_scores_all_alike(self, tmp_path, rows):
        file = tmp_path / "scored.parquet"
        Dataset.from_list([row | {f"response_{i}_beaver_7b": 1.0 for i in range(1, 9)} for row in rows]).to_parquet(file)
        with pytest.raises(DataError, match="all scores of the reward model 'beaver_7b' are the same"):
            load_personal_llm(file)


class TestTypes:
    @pytest.fixture
    def typed(self, tmp_path):
        rows = [
            {"prompt": f"prompt {p}", "chosen": f"liked by {uid}", "rejected": "another", "uid": uid}
            for p in range(40)
            for uid in range(4)
        ]
        file = tmp_path / "typed.parquet"
        Dataset.from_list(rows).to_parquet(file)
        return file

    def population(self, **options):
        return Population(**{"majority": ("0", "1"), "minority": ("3",), "train_users": 20, "test_users": 10} | options)

    def test_users_and_prompts_apart_and_types_held(self, typed):
        splits = load_personal_llm_types(typed, self.population(minority_ratio=0.2))
        train, test = splits["train"], splits["test"]
        assert not set(train["user"]) & set(test["user"])
        assert not set(train["prompt"]) & set(test["prompt"])
        for split in splits.values():
            for row in split:
                assert row["chosen"] in (["liked by 3"] if row["group"] == "minority" else ["liked by 0", "liked by 1"])
                assert row["support_rate"] == (0.2 if row["group"] == "minority" else 0.4)
            assert set(split.to_pandas().groupby("user")["prompt"].nunique()) == {5}
        assert len(set(train["user"])) == 20

    def test_label_noise_turns_pairs_round(self, typed):
        train = load_personal_llm_types(typed, self.population(label_noise=0.3, train_users=60))["train"]
        turned = np.mean([row["chosen"] == "another" for row in train])
        assert 0.2 < turned < 0.4

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"majority": ("9",)}, "`majority` must name types of the corpus"),
            ({"taste_mix": 0.1}, "`taste_mix` must be 0"),
            ({"pairs_per_user": 30}, "lower `pairs_per_user`"),
        ],
    )
    def test_populations_that_cannot_be_made(self, typed, options, message):
        with pytest.raises(ConfigError, match=message):
            load_personal_llm_types(typed, self.population(**options))

    def test_a_type_with_too_few_prompts_in_one_split(self, tmp_path):
        rows = [
            {"prompt": f"{uid} {p}", "chosen": "a", "rejected": "b", "uid": uid} for uid, n in ((0, 60), (1, 7)) for p in range(n)
        ]
        file = tmp_path / "typed.parquet"
        Dataset.from_list(rows).to_parquet(file)
        population = Population(majority=("0",), minority=("1",), pairs_per_user=2, context_pairs=0, test_prompt_share=0.3)

        def load_twenty_divisions():
            return [load_personal_llm_types(file, replace(population, seed=seed)) for seed in range(20)]

        # In one of them the test has less than two prompts of the rare type.
        with pytest.raises(ConfigError, match=r"but the test split has [01] of the type '1'"):
            load_twenty_divisions()

    def test_missing_columns(self, path):
        with pytest.raises(DataError, match="lacks the columns chosen, rejected, uid"):
            load_personal_llm_types(path, self.population())
