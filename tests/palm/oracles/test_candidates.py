import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_pafo.errors import ConfigError, DataError, PortfolioError
from trl_pafo.palm import CandidateOracle, RewardScale

RNG = np.random.default_rng(0)
REWARDS = RNG.random((6, 4, 3))
REFERENCE = RNG.dirichlet(np.ones(4), size=6)
WEIGHTS = np.array([0.5, 0.2, 0.3])


def objective(oracle, result, weights):
    return float(np.asarray(result.values) @ weights - oracle.beta * result.kl)


class TestPolicy:
    @pytest.mark.parametrize("beta", [0.05, 0.7])
    def test_it_is_the_tilted_reference_prompt_by_prompt(self, beta):
        oracle = CandidateOracle(REWARDS, beta, REFERENCE)
        result = oracle(WEIGHTS)
        for prompt in range(6):
            tilted = [REFERENCE[prompt, k] * np.exp(REWARDS[prompt, k] @ WEIGHTS / beta) for k in range(4)]
            probabilities = np.array(tilted) / sum(tilted)
            values = sum(probabilities[k] * REWARDS[prompt, k] for k in range(4))
            kl = sum(probabilities[k] * np.log(probabilities[k] / REFERENCE[prompt, k]) for k in range(4))
            np.testing.assert_allclose(oracle.policy(WEIGHTS)[prompt], probabilities, atol=1e-12)
            np.testing.assert_allclose(result.prompt_values[prompt], values, atol=1e-12)
            assert result.prompt_kl[prompt] == pytest.approx(kl, abs=1e-12)
        np.testing.assert_allclose(result.values, result.prompt_values.mean(axis=0), atol=1e-12)
        assert result.kl == pytest.approx(result.prompt_kl.mean())
        assert result.policy == {"candidates": 4, "beta": beta, "weights": WEIGHTS.tolist()}

    @settings(max_examples=60)
    @given(st.integers(0, 10**6), st.sampled_from([0.0, 1e-8, 0.02, 0.5, 30.0]))
    def test_the_optimum_is_reached_by_its_policy_and_by_no_other(self, seed, beta):
        rng = np.random.default_rng(seed)
        shape = rng.integers(1, 5, size=3)
        oracle = CandidateOracle(rng.random(shape), beta, rng.dirichlet(np.ones(shape[1]), size=shape[0]))
        weights = rng.dirichlet(np.ones(shape[2]))
        best = oracle.optimum(weights)
        assert objective(oracle, oracle(weights), weights) == pytest.approx(best, abs=1e-9)
        other = oracle.evaluate(rng.dirichlet(np.full(shape[1], 0.3), size=shape[0]))
        assert objective(oracle, other, weights) <= best + 1e-9

    def test_a_large_beta_stays_at_the_reference_and_a_tiny_one_is_the_argmax(self):
        large = CandidateOracle(REWARDS, 1e6, REFERENCE)(WEIGHTS)
        assert large.kl < 1e-9
        np.testing.assert_allclose(large.prompt_values, np.einsum("pk,pkd->pd", REFERENCE, REWARDS), atol=1e-6)
        sharp = CandidateOracle(REWARDS, 0.0, REFERENCE)
        for beta in (1e-6, 1e-300):
            np.testing.assert_allclose(
                CandidateOracle(REWARDS, beta, REFERENCE).policy(WEIGHTS), sharp.policy(WEIGHTS), atol=1e-9
            )
        best = (REWARDS @ WEIGHTS).argmax(axis=1)
        np.testing.assert_array_equal(sharp.policy(WEIGHTS), np.eye(4)[best])
        np.testing.assert_allclose(sharp(WEIGHTS).prompt_kl, -np.log(REFERENCE[np.arange(6), best]))

    @pytest.mark.parametrize("beta", [0.0, 1e-12])
    def test_ties_share_in_proportion_to_the_reference(self, beta):
        rewards = np.array([[[1.0, 0.0], [1.0, 0.8], [0.3, 1.0]]])
        oracle = CandidateOracle(rewards, beta, np.array([0.2, 0.6, 0.2]))
        np.testing.assert_allclose(oracle.policy(np.array([1.0, 0.0])), [[0.25, 0.75, 0.0]], atol=1e-12)
        np.testing.assert_allclose(oracle(np.array([1.0, 0.0])).values, [1.0, 0.6], atol=1e-12)

    @pytest.mark.parametrize("beta", [0.0, 0.3])
    def test_a_candidate_of_probability_zero_does_not_exist(self, beta):
        rewards = np.concatenate([REWARDS, np.full((6, 1, 3), np.nan)], axis=1)
        reference = np.concatenate([REFERENCE, np.zeros((6, 1))], axis=1)
        padded, plain = CandidateOracle(rewards, beta, reference), CandidateOracle(REWARDS, beta, REFERENCE)
        np.testing.assert_allclose(padded.policy(WEIGHTS)[:, :4], plain.policy(WEIGHTS), atol=1e-12)
        assert (padded.policy(WEIGHTS)[:, 4] == 0).all()
        assert padded.optimum(WEIGHTS) == pytest.approx(plain.optimum(WEIGHTS))
        with pytest.raises(DataError, match="its KL is infinite"):
            padded.evaluate(np.full((6, 5), 0.2))


class TestInput:
    @pytest.mark.parametrize(
        ("rewards", "changes", "error", "message"),
        [
            (REWARDS[0], {}, DataError, r"shape \(num_prompts, num_candidates, num_rewards\), got \(4, 3\)"),
            (REWARDS + 0.5, {}, DataError, r"rewards are not in \[0, 1\].*RewardScale"),
            (np.where(REWARDS > 0.9, np.nan, REWARDS), {}, DataError, r"not in \[0, 1\], the first is nan"),
            (REWARDS, {"beta": -0.1}, ConfigError, "`beta` must be a finite number of at least 0"),
            (REWARDS, {"reference": np.ones((6, 4))}, DataError, "`reference` must hold probabilities"),
            (REWARDS, {"reference": REFERENCE[:3]}, DataError, r"`reference` must have the shape .* = \(6, 4\), got \(3, 4\)"),
        ],
    )
    def test_bad_input_is_named(self, rewards, changes, error, message):
        with pytest.raises(error, match=message):
            CandidateOracle(rewards, **changes)


class TestScale:
    RAW = np.random.default_rng(2).normal([3.0, -5.0], [2.0, 0.1], size=(50, 4, 2))

    def test_both_kinds(self):
        scale = RewardScale.fit(self.RAW)
        low, high = self.RAW.min(axis=(0, 1)), self.RAW.max(axis=(0, 1))
        np.testing.assert_allclose(scale(self.RAW), (self.RAW - low) / (high - low), atol=1e-12)
        np.testing.assert_array_equal(scale(np.stack([low - 1, high + 1])), [[0, 0], [1, 1]])
        standard = (self.RAW - self.RAW.mean(axis=(0, 1))) / self.RAW.std(axis=(0, 1))
        np.testing.assert_allclose(RewardScale.fit(self.RAW, "sigmoid")(self.RAW), 1 / (1 + np.exp(-standard)), atol=1e-12)

    def test_what_has_no_scale(self):
        with pytest.raises(ConfigError, match="min_max or sigmoid, got 'rank'"):
            RewardScale.fit(self.RAW, "rank")
        with pytest.raises(DataError, match="Reward 1 is the same for all responses"):
            RewardScale.fit(np.stack([np.arange(4.0), np.ones(4)], axis=-1))
        with pytest.raises(DataError, match="must be finite"):
            RewardScale.fit(np.array([[1.0], [np.nan]]))

    @pytest.mark.parametrize("kind", ["min_max", "sigmoid"])
    def test_saved_and_loaded(self, kind, tmp_path):
        path = tmp_path / "scale.json"
        scale = RewardScale.fit(self.RAW, kind)
        scale.save(path)
        np.testing.assert_array_equal(RewardScale.load(path, 2)(self.RAW), scale(self.RAW))
        saved = json.loads(path.read_text())
        with pytest.raises(PortfolioError, match=r"scale\.json is no scale of 3 rewards.*Build the portfolio again"):
            RewardScale.load(path, 3)
        for change in (
            {"kind": "rank"},
            {"origin": [0.0]},
            {"origin": [np.nan, 0.0]},
            {"unit": [1.0, 0.0]},
            {"unit": [1.0, -1.0]},
        ):
            path.write_text(json.dumps({**saved, **change}))
            with pytest.raises(PortfolioError, match="no scale of 2 rewards"):
                RewardScale.load(path, 2)
        for damaged in ("{", "[]", '{"kind": "sigmoid"}', '{"kind": "sigmoid", "origin": ["a"], "unit": [1]}'):
            path.write_text(damaged)
            with pytest.raises(PortfolioError, match=r"scale\.json cannot be read as a scale"):
                RewardScale.load(path, 2)
