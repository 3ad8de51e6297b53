"""How many questions find a member for a user whose weights are not known: the figures of `docs/portfolio.md`.

python benchmarks/portfolio_elicitation.py [--fronts 5] [--users 40] [--epsilon 0.1]

Simulated: 4 rewards; the best policies lie on ellipsoids with axes drawn from [0.2, 1] (a seed each), so that the optimum is
known. Users' weights are drawn evenly from the simplex. Questions are pairs of responses whose rewards are drawn evenly from
[0, 1]^4. Users answer by w.R, without mistakes. A user is served well when
the true relative gap of its member is at most 1.2 times the true worst gap of the portfolio over all weights, which a user
with known weights may have as well.
"""

import argparse
import time

import numpy as np

from trl_pafo.palm import Interview, OracleResult, Portfolio, build_portfolio, certify, question_pool

NUM_REWARDS, MOST, FACTOR = 4, 10, 1.2


class Ellipsoid:
    """V*(w) = |axes * w|, reached at axes^2 w / V*(w)."""

    def __init__(self, seed: int):
        self.axes = np.random.default_rng(seed).uniform(0.2, 1.0, NUM_REWARDS)

    def __call__(self, weights: np.ndarray) -> OracleResult:
        return OracleResult(self.axes**2 * weights / self.optimum(weights))

    def optimum(self, weights: np.ndarray) -> np.ndarray:
        return np.linalg.norm(self.axes * weights, axis=-1)


class AtRandom(Interview):
    """The control: any question that can still say something."""

    rng = np.random.default_rng(0)

    def next_question(self) -> int | None:
        heights = self.consistent.points @ self.questions.T
        open_ones = np.flatnonzero((heights.min(axis=0) < -1e-9) & (heights.max(axis=0) > 1e-9))
        return int(self.rng.choice(open_ones)) if len(open_ones) else None


def interview(
    make: type[Interview], portfolio: Portfolio, front: Ellipsoid, pool: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """True gap after 0 to 10 answers, and the gap that the interview claims then."""
    talk = make(portfolio, pool)
    true, claimed = np.empty(MOST + 1), np.empty(MOST + 1)
    for number in range(MOST + 1):
        member, claimed[number] = talk.recommend()
        true[number] = 1 - portfolio.values[member] @ weights / front.optimum(weights)
        question = talk.next_question() if number < MOST else None
        if question is None:
            true[number:], claimed[number:] = true[number], claimed[number]
            break
        talk.answer(question, bool(weights @ pool[question] > 0))
    return true, claimed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fronts", type=int, default=5, help="fronts, by seed from 0 on (default: 5)")
    parser.add_argument("--users", type=int, default=40, help="users a front (default: 40)")
    parser.add_argument("--epsilon", type=float, default=0.1, help="tolerance of the portfolios (default: 0.1)")
    options = parser.parse_args()
    cases: dict[str, type[Interview]] = {"`Interview`": Interview, "questions at random": AtRandom}
    found: dict[str, list[tuple[np.ndarray, np.ndarray, float, float]]] = {name: [] for name in cases}
    seconds: dict[str, float] = dict.fromkeys(cases, 0.0)
    for seed in range(options.fronts):
        front = Ellipsoid(seed)
        portfolio = build_portfolio(front, NUM_REWARDS, options.epsilon, progress=False)
        worst = certify(portfolio.values, front.optimum).relative_gap
        print(f"front {seed}: {len(portfolio)} members, gap {worst:.4f} (certified {portfolio.gap:.4f})", flush=True)
        rng = np.random.default_rng([seed, 1])
        pool, _ = question_pool(rng.random((100, 4, NUM_REWARDS)), 300, seed)
        people = rng.dirichlet(np.ones(NUM_REWARDS), options.users)
        for name, make in cases.items():
            start = time.perf_counter()
            for weights in people:
                true, claimed = interview(make, portfolio, front, pool, weights)
                found[name].append((true, claimed, worst, portfolio.gap))
            seconds[name] += time.perf_counter() - start
    print(f"\n{options.fronts * options.users} users; served well: true gap at most {FACTOR} x the portfolio's true worst gap\n")
    shown = (0, 2, 4, 6, 8, 10)
    print("| questions | " + " | ".join(f"after {n}" for n in shown) + " | known to be | s a user |")
    print("| --- |" + " ---: |" * (len(shown) + 2))
    for name, rows in found.items():
        well = np.array([true <= FACTOR * worst for true, _, worst, _ in rows])
        sure = np.mean([claimed[-1] <= FACTOR * gap for _, claimed, _, gap in rows])
        by_front = well.reshape(options.fronts, -1, MOST + 1).mean(axis=1)
        cells = [f"{well[:, n].mean():.1%} [{by_front[:, n].min():.0%}, {by_front[:, n].max():.0%}]" for n in shown]
        print(f"| {name} | " + " | ".join(cells) + f" | {sure:.1%} | {seconds[name] / len(rows):.2f} |")
    print("\nShares of users, [least, greatest front]. Known to be: the interview's own bound is")
    print(f"at most {FACTOR} x the certified gap after {MOST} answers.")


if __name__ == "__main__":
    main()
