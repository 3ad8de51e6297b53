"""The finished portfolio: choosing, showing, saving."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.fronts import Gibbs, Sphere

from trl_pafo.errors import PortfolioError
from trl_pafo.palm import OracleResult, Portfolio, build_portfolio, certify, random_weights


@pytest.fixture(scope="module")
def portfolio() -> Portfolio:
    return build_portfolio(Sphere(), 3, 0.1, reward_names=["safe", "brief", "kind"], progress=False)


@pytest.fixture(scope="module")
def regularized() -> Portfolio:
    gibbs = Gibbs(np.random.default_rng(0).random((5, 2)), 0.1)
    existing = OracleResult([0.5, 0.5], kl=0.3, policy=Path("old"))
    return build_portfolio(gibbs, 2, 0.0, 0.01, beta=0.1, warm_start=[existing], progress=False)


def test_members_are_the_calls_that_are_kept(portfolio: Portfolio) -> None:
    assert len(portfolio) == len(portfolio.weights) == len(portfolio.values) == len(portfolio.kl) == len(portfolio.policies)
    for place, call in enumerate(portfolio.members):
        assert np.array_equal(portfolio.weights[place], portfolio.calls[call].weights)
        assert np.array_equal(portfolio.values[place], portfolio.calls[call].result.values)
        assert portfolio.policies[place] == f"policy {call + 1}"


def test_the_choice_is_the_best_member(portfolio: Portfolio, regularized: Portfolio) -> None:
    for chosen in (portfolio, regularized):
        for weights in random_weights(chosen.values.shape[1], 50):
            scores = [weights @ v - chosen.beta * kl for v, kl in zip(chosen.values, chosen.kl, strict=True)]
            assert chosen.choose(weights) == int(np.argmax(scores))
        weights = random_weights(chosen.values.shape[1], 50)
        assert chosen.choose_many(weights).tolist() == [chosen.choose(row) for row in weights]


def test_weights_off_the_simplex(portfolio: Portfolio) -> None:
    with pytest.raises(PortfolioError, match="simplex"):
        portfolio.choose([0.5, 0.5, 0.5])
    with pytest.raises(PortfolioError, match=r"got \[0.5, 0.6, 0. \]"):
        portfolio.choose_many([[0.5, 0.5, 0.0], [0.5, 0.6, 0.0]])
    with pytest.raises(PortfolioError, match=r"\(num_users, 3\), got \(3,\)"):
        portfolio.choose_many([0.5, 0.5, 0.0])


def test_the_gap_can_be_computed_from_what_it_holds(portfolio: Portfolio, regularized: Portfolio) -> None:
    assert certify(portfolio.values, portfolio.upper_bound).relative_gap == pytest.approx(portfolio.gap, abs=1e-9)
    again = certify(regularized.values, regularized.upper_bound, kl=regularized.kl, beta=0.1)
    assert again.additive_gap == pytest.approx(regularized.gap, abs=1e-9)
    assert portfolio.measure.name == "relative gap"
    assert regularized.measure.name == "additive gap"


def test_outputs_name_the_objective_and_show_kl(portfolio: Portfolio, regularized: Portfolio) -> None:
    assert "objective w.R; against the upper bound from" in str(portfolio)
    assert "objective w.R - 0.1 KL; against the upper bound from" in str(regularized)
    assert regularized.table().splitlines()[0].split(" | ")[-2:] == ["KL", "w.R - 0.1 KL |"]
    rows = portfolio.table().splitlines()
    assert rows[0] == "| member | w safe | w brief | w kind | safe | brief | kind | KL | w.R |"
    # Which of several smallest covers is kept may hang on rounding; what is shown of a member may not.
    weights, values = portfolio.weights[1], portfolio.values[1]
    shown = [*(f"{w:.3f}" for w in weights), *(f"{v:.4f}" for v in values), "0.000", f"{weights @ values:.4f}"]
    assert rows[3] == f"| 1 | {' | '.join(shown)} |"
    assert len(rows) == len(portfolio) + 2


def test_a_policy_of_unknown_weights_has_dashes() -> None:
    portfolio = build_portfolio(
        Sphere(), 2, 0.5, warm_start=[OracleResult([0.7, 0.7], policy="old")], num_members=1, progress=False
    )
    assert portfolio.table().splitlines()[2] == "| 0 | - | - | 0.7000 | 0.7000 | 0.000 | - |"
    assert np.isnan(portfolio.weights).all()


def test_saved_and_loaded(portfolio: Portfolio, regularized: Portfolio, tmp_path: Path) -> None:
    for name, saved in (("plain", portfolio), ("kl", regularized)):
        saved.save(tmp_path / name)
        for source in (tmp_path / name, tmp_path / name / "portfolio.json"):
            loaded = Portfolio.load(source)
            assert str(loaded) == str(saved)
            assert np.array_equal(loaded.values, saved.values)
            assert np.array_equal(loaded.kl, saved.kl)
            assert np.array_equal(loaded.weights, saved.weights, equal_nan=True)
            assert (loaded.gap, loaded.members, loaded.oracle_calls) == (saved.gap, saved.members, saved.oracle_calls)
            weights = random_weights(saved.values.shape[1], 20)
            assert np.array_equal(loaded.upper_bound.at(weights), saved.upper_bound.at(weights))
        assert [p.name for p in (tmp_path / name).iterdir()] == ["portfolio.json"]
    content = json.loads((tmp_path / "kl" / "portfolio.json").read_text())
    assert content["objective"] == "w.R - 0.1 KL"
    assert content["calls"][0]["policy"] == "old"


def test_what_cannot_be_saved_or_loaded(portfolio: Portfolio, tmp_path: Path) -> None:
    in_memory = build_portfolio(lambda w: OracleResult(w / np.linalg.norm(w), policy=object()), 2, 0.3, progress=False)
    with pytest.raises(PortfolioError, match="return its path"):
        in_memory.save(tmp_path)
    with pytest.raises(PortfolioError, match="No portfolio at"):
        Portfolio.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(PortfolioError, match="cannot be written to"):
        portfolio.save(tmp_path / "file")
    portfolio.save(tmp_path / "old")
    content = json.loads((tmp_path / "old" / "portfolio.json").read_text())
    for change, message in [
        ({"format": "trl-pafo portfolio 0"}, "no portfolio of this version"),
        ({"members": [99]}, "cannot be read as a portfolio"),
        ({"calls": None}, "cannot be read as a portfolio"),
    ]:
        (tmp_path / "old" / "portfolio.json").write_text(json.dumps({**content, **change}))
        with pytest.raises(PortfolioError, match=message):
            Portfolio.load(tmp_path / "old")
