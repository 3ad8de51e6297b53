"""How well the intervals and verdicts of `trl_pafo.metrics` hold, on simulated users.

python benchmarks/coverage.py            # the tables of docs/evaluation.md; minutes
python benchmarks/coverage.py --runs 50  # a look
"""

import argparse
from collections import Counter

import numpy as np

from trl_pafo.metrics import compare, fairness_summary

MEANS = {0.95: (19, 1), 0.80: (8, 2), 0.50: (2, 2)}


def coverage(num_users: int, right: tuple[int, int], num_runs: int) -> float:
    """How often the interval of users of 4 pairs with beta-distributed rates of their own holds their true mean."""
    rng = np.random.default_rng(1)
    user, held = np.repeat(np.arange(num_users), 4), 0
    for run in range(num_runs):
        rates = rng.beta(*right, size=num_users)
        entry = fairness_summary(rng.random(len(user)) < rates[user], user, None, num_resamples=200, seed=run)["overall"]
        held += entry["low"] <= right[0] / sum(right) <= entry["high"]
    return held / num_runs


def rates_of(kind: str, rng: np.random.Generator, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies of users under a model and a reference that do not differ on average, or by .3 (`better`)."""
    if kind == "equal":
        return np.full(num_users, 0.7), np.full(num_users, 0.7)
    if kind == "own":  # each user fares differently under each model, by chance better or worse
        return rng.beta(4, 2, size=num_users), rng.beta(4, 2, size=num_users)
    if kind == "skewed":  # one user in ten loses much, the others gain little
        return np.where(rng.random(num_users) < 0.1, 0.05, 0.55), np.full(num_users, 0.5)
    return np.full(num_users, 0.9), np.full(num_users, 0.6)


def verdicts(kind: str, num_users: int, num_runs: int) -> tuple[Counter[str], float]:
    """Verdicts of studies of two groups, and how often all intervals held the true difference at once."""
    rng = np.random.default_rng(1)
    truth, found, held = 0.3 if kind == "better" else 0.0, Counter[str](), 0
    for run in range(num_runs):
        user = np.repeat(np.arange(2 * num_users), np.minimum(rng.geometric(0.15, size=2 * num_users), 40))
        correct, reference = (rng.random(len(user)) < rates[user] for rates in rates_of(kind, rng, 2 * num_users))
        result = compare(correct, reference, user, user % 2, seed=run)
        found[result.verdict] += 1
        held += all(d["low"] <= truth <= d["high"] for d in result.differences.values())
    return found, held / num_runs


def main() -> None:
    """Simulate and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    runs = parser.parse_args().runs
    print(f"Intervals of means over users ({runs} runs)\n\n| users | {' | '.join(f'mean {mean:.2f}' for mean in MEANS)} |")
    print("| ---: | ---: | ---: | ---: |")
    for num_users in (6, 8, 12, 20, 40):
        shares = [f"{100 * coverage(num_users, right, runs):.1f} %" for right in MEANS.values()]
        print(f"| {num_users} | {' | '.join(shares)} |", flush=True)
    print("\nVerdicts of two groups\n\n| users | improves | degrades | intervals hold |\n| --- | ---: | ---: | ---: |")
    for kind in ("equal", "own", "skewed", "better"):
        for num_users in (15, 30):
            found, held = verdicts(kind, num_users, runs)
            numbers = [found["improves"] / runs, found["degrades"] / runs, held]
            print(f"| {kind}, {num_users} a group | {' | '.join(f'{100 * number:.1f} %' for number in numbers)} |", flush=True)


if __name__ == "__main__":
    main()
