"""`trl-pafo portfolio` as a user types it, on files."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.parts import make_model, make_pairs, remember_inputs

from trl_pafo.cli import main
from trl_pafo.models import RewardScorer
from trl_pafo.palm import CandidateOracle, Portfolio, RewardScale, WeightPosterior, history_differences

NAMES = ["helpful", "harmless", "humour"]
REWARDS = np.random.default_rng(0).beta(2, 2, size=(30, 6, 3))


def portfolio(*flags: object) -> int:
    return main(["portfolio", *map(str, flags)])


def lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rewards of candidates, users, a table of policies, and a portfolio built from the first."""
    root = tmp_path_factory.mktemp("files")
    lines(
        root / "candidates.jsonl", [{"rewards": [dict(zip(NAMES, r, strict=True)) for r in table.tolist()]} for table in REWARDS]
    )
    rng = np.random.default_rng(1)
    users = [{"weights": rng.dirichlet([5, 2, 1]).tolist(), "group": "majority", "user": f"m{n}"} for n in range(12)]
    users += [{"weights": rng.dirichlet([1, 1, 6]).tolist(), "group": "minority", "user": f"s{n}"} for n in range(4)]
    lines(root / "users.jsonl", users)
    rows = [f"p{n},{0.1 * n},{a},{b}" for n, (a, b) in enumerate(rng.random((12, 2)))]
    (root / "table.csv").write_text("policy,kl,helpful,brief\n" + "\n".join(rows) + "\n")
    assert portfolio("build", "--candidates", root / "candidates.jsonl", "--epsilon", 0.05, "--output_dir", root / "built") == 0
    return root


def test_build_keeps_its_promise_to_the_true_optimum(files: Path) -> None:
    built = Portfolio.load(files / "built")
    assert built.reward_names == tuple(NAMES)
    assert built.gap <= 0.05
    oracle = CandidateOracle(REWARDS)
    for weights in np.random.default_rng(2).dirichlet(np.ones(3), 100):
        assert built.values[built.choose(weights)] @ weights >= (1 - built.gap) * oracle.optimum(weights) - 1e-9


def test_build_from_yaml_with_raw_rewards_a_kl_term_and_known_policies(tmp_path, capsys) -> None:
    raw = 7 * REWARDS - 2
    logprobs = [-1.0, -2, -3, -1, -2, -3]
    lines(tmp_path / "c.jsonl", [{"rewards": table.tolist(), "logprobs": logprobs} for table in raw])
    config = tmp_path / "build.yaml"
    config.write_text(
        f"candidates: {tmp_path / 'c.jsonl'}\nnormalize: min_max\nreward_names: [a, b, c]\nbeta: 0.05\nepsilon: 0.0\ndelta: 0.05\n"
    )
    assert portfolio("build", "--config", config, "--output_dir", tmp_path / "built") == 0
    assert "objective w.R - 0.05 KL" in capsys.readouterr().out
    built, scale = Portfolio.load(tmp_path / "built"), RewardScale.fit(raw)
    oracle = CandidateOracle(scale(raw), 0.05, np.exp(logprobs) / np.exp(logprobs).sum())
    assert built.values[0] == pytest.approx(np.asarray(oracle(built.weights[0]).values))
    kept = RewardScale.load(tmp_path / "built/scale.json", 3)
    assert kept.origin == pytest.approx(scale.origin)
    rows = [f"{kl},{','.join(map(str, values))}" for values, kl in zip(built.values, built.kl, strict=True)]
    (tmp_path / "pool.csv").write_text("kl,a,b,c\n" + "\n".join(rows) + "\n")
    assert portfolio("build", "--config", config, "--policies", tmp_path / "pool.csv") == 0
    calls = int(re.findall(r"(\d+) oracle calls", capsys.readouterr().out)[0])
    assert calls < built.oracle_calls + 3


def test_build_from_a_table_and_for_users(files: Path, capsys, tmp_path) -> None:
    assert portfolio("build", "--policies", files / "table.csv", "--epsilon", 0.03, "--output_dir", tmp_path / "pool") == 0
    assert set(Portfolio.load(tmp_path / "pool").policies) <= {f"p{n}" for n in range(12)}
    flags = ["--candidates", files / "candidates.jsonl", "--users", files / "users.jsonl"]
    assert portfolio("build", *flags, "--output_dir", tmp_path / "u") == 0
    printed = capsys.readouterr().out
    assert "For 16 different weights of users: relative gap" in printed
    assert "minority: 4 users" in printed
    assert len(Portfolio.load(tmp_path / "u")) <= len(Portfolio.load(files / "built"))


def test_a_table_of_scores_is_spoken_of_by_the_names_of_its_policies(files: Path, capsys, tmp_path) -> None:
    rows = [["terse", 1, 5], ["warm", 5, 1], ["both", 3.8, 3.8], ["worse", 2, 2]]
    (tmp_path / "t.csv").write_text("policy,helpful,brief\n" + "\n".join(",".join(map(str, row)) for row in rows) + "\n")
    flags = ["--policies", tmp_path / "t.csv", "--reward_range", 1, 5]
    assert portfolio("build", *flags, "--output_dir", tmp_path / "built") == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"^3 of the 4 policies serve all weights: (terse|warm|both), (terse|warm|both), (terse|warm|both)\.$", printed, re.M
    )
    assert "The promise is kept: over all weights the relative gap is at most 0.0000, within epsilon = 0.05." in printed
    assert re.search(r"^\| \d warm \|", printed, re.M)
    assert "oracle" not in printed
    assert "| unknown |" in printed
    assert portfolio("build", *flags, "--num_members", 1) == 0
    printed = capsys.readouterr().out
    assert "1 of the 4 policies serves all weights: both." in printed
    assert (
        "The promise is not kept with so few: the relative gap is 0.3000 at the worst weights, above epsilon = 0.05." in printed
    )
    assert portfolio("choose", "--portfolio", tmp_path / "built", "--weights", 1, 0) == 0
    assert re.search(r"Policy warm \(member \d\): helpful 1.0000, brief 0.0000, KL unknown$", capsys.readouterr().out, re.M)
    assert json.loads((tmp_path / "built/scale.json").read_text()) == {"kind": "min_max", "origin": [1, 1], "unit": [4, 4]}
    assert portfolio("certify", *flags, "--members", "both", "warm", "--output", tmp_path / "c.json") == 0
    assert "both, warm: relative gap 0.3000" in capsys.readouterr().out
    assert portfolio("certify", *flags, "--members", 2, 1, "--output", tmp_path / "n.json") == 0
    assert (tmp_path / "c.json").read_text() == (tmp_path / "n.json").read_text()


def test_certify(files: Path, tmp_path, capsys) -> None:
    assert portfolio("certify", "--portfolio", files / "built", "--output", tmp_path / "c.json", "--num_resamples", 20) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["relative_gap"] == Portfolio.load(files / "built").gap
    assert result["interval"][0] < result["interval"][1]
    assert "95 % interval" in capsys.readouterr().out
    assert portfolio("certify", "--policies", files / "table.csv", "--members", 0, 1, "--output", tmp_path / "t.json") == 0
    both = np.genfromtxt(files / "table.csv", delimiter=",", skip_header=1)[:, 2:]
    share = np.linspace(0, 1, 100_001)[:, None]
    values = np.hstack([1 - share, share]) @ both.T
    worst = (1 - values[:, :2].max(axis=1) / values.max(axis=1)).max()
    assert json.loads((tmp_path / "t.json").read_text())["relative_gap"] == pytest.approx(worst, abs=1e-4)
    assert f"Data: policies {files / 'table.csv'}\n" in capsys.readouterr().out


def test_choose_by_weights_answers_and_users(files: Path, tmp_path, capsys) -> None:
    built = Portfolio.load(files / "built")

    def choose(*flags: object) -> dict:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        assert portfolio("choose", "--portfolio", files / "built", "--output", out, *flags) == 0
        return json.loads(out.read_text())

    member = choose("--weights", 0.2, 0.3, 0.5)["member"]
    assert member == built.choose([0.2, 0.3, 0.5])
    assert f"Member {member}: helpful" in capsys.readouterr().out
    rng, weights, rows = np.random.default_rng(0), np.array([0.1, 0.2, 0.7]), []
    for first, second in rng.random((25, 2, 3)):
        liked = "first" if weights @ (first - second) > 0 else "second"
        rows.append({"first": first.tolist(), "second": dict(zip(NAMES, second.tolist(), strict=True)), "liked": liked})
    answers = lines(tmp_path / "answers.jsonl", rows)
    for extra in ([], ["--sharpness", 50]):
        result = choose("--answers", answers, *extra)
        assert 1 - built.values[result["member"]] @ weights / (built.values @ weights).max() <= 0.03
    lines(answers, [*rows, {**rows[0], "liked": "second" if rows[0]["liked"] == "first" else "first"}])
    assert portfolio("choose", "--portfolio", files / "built", "--answers", answers) == 1
    assert "No weights fit answer 26" in capsys.readouterr().err
    result = choose("--users", files / "users.jsonl")
    assert result["users"] == len(result["members"]) == 16
    assert {group["name"] for group in result["groups"]} == {"majority", "minority"}
    assert f"worst-served group: {result['groups'][0]['name']}" in capsys.readouterr().out


def test_choose_by_preference_history_of_a_population(files: Path, tmp_path, capsys) -> None:
    made = [make_model("encoder", tmp_path / name, seed=seed) for seed, name in enumerate(NAMES)]
    models = [remember_inputs(model, num_history=0) for model in made]
    pairs = make_pairs(num_users=3, pairs_per_user=3, num_minority=1, history=0).to_list()
    raw = history_differences(pairs, [RewardScorer(model) for model in models])
    # The tiny models' raw rewards hardly differ; the scale that the build kept brings them into its units.
    scale = RewardScale("min_max", np.full(3, -5.0), np.abs(raw).max(axis=0))
    scaled = tmp_path / "scaled"
    scaled.mkdir()
    (scaled / "portfolio.json").write_text((files / "built/portfolio.json").read_text())
    scale.save(scaled / "scale.json")
    history = lines(tmp_path / "history.jsonl", pairs)
    out = tmp_path / "out.json"
    flags = ["--portfolio", scaled, "--history", history, "--reward_models", *models]
    assert portfolio("choose", *flags, "--output", out) == 0
    result = json.loads(out.read_text())
    assert set(result["members"]) == {"user-0", "user-1", "user-2"}
    assert {group["name"]: group["users"] for group in result["groups"]} == {"majority": 2, "minority": 1}
    posterior = WeightPosterior(3)
    own = [row for row in pairs if row["user"] == "user-0"]
    posterior.update(history_differences(own, [RewardScorer(model) for model in models], scale))
    assert result["members"]["user-0"]["weights"] == pytest.approx(posterior.mean.tolist(), abs=1e-6)
    assert "worst-served group" in capsys.readouterr().out
    assert portfolio("choose", *flags, "--sharpness", 0) == 1
    assert "sharpness must be positive, got 0.0" in capsys.readouterr().err
    lines(history, [{**pairs[0], "group": group} for group in (0, 1)])
    assert portfolio("choose", *flags) == 1
    assert "has pairs in several groups (0, 1); give it one" in capsys.readouterr().err


def test_plot_and_compare(files: Path, tmp_path, capsys) -> None:
    flags = ["--portfolio", files / "built", "--users", files / "users.jsonl"]
    assert portfolio("plot", *flags, "--output_dir", tmp_path / "p") == 0
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"cells.png", "gap.png", "usage.png"}
    flags = ["--portfolio", files / "built", "--candidates", files / "candidates.jsonl", "--output_dir", tmp_path / "c"]
    assert portfolio("compare", *flags, "--max_size", 2, "--num_seeds", 2) == 0
    assert "against the true optimum" in capsys.readouterr().out
    rows = json.loads((tmp_path / "c/comparison.json").read_text())
    found = {(row["method"], row["size"]): row["gap"] for row in rows}
    assert found["PALM", 2] < min(found["uniform", 2], found["random", 2])
    assert (tmp_path / "c/gap_by_size.png").exists()


def test_compare_refuses_what_the_portfolio_was_not_built_from(files: Path, tmp_path, capsys) -> None:
    raw = lines(tmp_path / "raw.jsonl", [{"rewards": (0.3 + 0.4 * table).tolist()} for table in REWARDS])
    assert portfolio("build", "--candidates", raw, "--normalize", "min_max", "--output_dir", tmp_path / "built") == 0
    flags = ["compare", "--portfolio", tmp_path / "built", "--candidates", raw, "--max_size", 1, "--num_seeds", 1]
    assert portfolio(*flags, "--normalize", "min_max") == 0
    assert portfolio(*flags) == 1  # whose rewards are in [0, 1] too
    assert "with the same --normalize or --reward_range" in capsys.readouterr().err
    (tmp_path / "table.csv").write_text("reward_0,reward_1,reward_2\n.2,.3,.4\n.1,.5,.4\n")
    assert portfolio(*flags[:3], "--policies", tmp_path / "table.csv") == 1
    pool = ["--policies", files / "table.csv"]
    assert portfolio("build", *pool, "--beta", 0.1, "--output_dir", tmp_path / "pool") == 0
    flags = ["compare", "--portfolio", tmp_path / "pool", *pool, "--max_size", 1]
    assert portfolio(*flags) == portfolio(*flags, "--beta", 0.1) == 0
    capsys.readouterr()
    assert portfolio(*flags, "--beta", 0) == 1
    assert "beta=0.1, the oracle helpful, brief and beta=0." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "status", "match"),
    [
        ("dance", 2, "unknown command 'dance'; choose one of build, train"),
        ("build", 1, "Give --candidates or --policies.*portfolio train"),
        ("build --candidates C --users U --num_members 2", 1, "--num_members: no effect with --users"),
        ("build --candidates C --reward_names a b", 1, "has 3 rewards"),
        ("build --candidates C --output_dir BUILT", 1, "holds a finished portfolio.*nothing is overwritten"),
        ("build --policies T --normalize min_max", 1, "--normalize: for --candidates; say what the rewards"),
        ("build --policies T --reward_range 5 1", 1, "--reward_range takes the least and the greatest value"),
        ("build --candidates C --reward_range 0 1 --normalize min_max", 1, "--normalize and --reward_range both say"),
        ("build --candidates C --reward_range 0 0.5", 1, "rewards outside --reward_range 0 0.5"),
        ("certify", 1, "Give --portfolio .* or --policies"),
        ("certify --policies T", 1, "Give --members"),
        ("certify --policies T --members 12", 1, r"by name \(p0, .*\) or row of the table, 0 to 11; got 12"),
        ("certify --portfolio BUILT --members 0 --beta 1", 1, "--members, --beta: for --policies alone"),
        ("certify --policies T --members 0 --num_resamples 9", 1, "--num_resamples: for --portfolio alone"),
        ("choose --portfolio BUILT --weights 1 0 0 --sharpness 2", 1, "--sharpness: for --answers and"),
        ("choose --portfolio BUILT --users U --tolerance 1", 1, "--tolerance: for --answers that are never"),
        ("compare --portfolio BUILT --candidates C --policies T", 1, "--policies: no effect beside --candidates"),
        ("choose --portfolio BUILT", 1, "Give one of --weights, --answers"),
        ("choose --weights 1 0 0", 1, "Give --portfolio"),
        ("choose --portfolio BUILT --weights 1 0 0 --output T", 1, "exists already"),
        ("export --portfolio BUILT", 1, "Give --output_dir"),
    ],
)
def test_bad_input_is_one_line(flags: str, status: int, match: str, files: Path, capsys) -> None:
    named = {"C": "candidates.jsonl", "U": "users.jsonl", "T": "table.csv", "BUILT": "built"}
    places = {name: str(files / path) for name, path in named.items()}
    capsys.readouterr()
    assert portfolio(*(places.get(flag, flag) for flag in flags.split())) == status
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "rows read" not in line]
    assert error.startswith("trl-pafo portfolio: ")
    assert re.search(match, error), error
