"""How fast and small `trl_pafo.metrics` is, against the plain way: one resample after the other, over all pairs.

Both ways take turns, each measurement in a process of its own, so that its peak memory is its own. The plain way computes
fewer resamples, and its time is scaled up to the same number.

OMP_NUM_THREADS=2 python benchmarks/metrics_speed.py
"""

import argparse
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr

from trl_pafo.metrics import (
    atkinson,
    compare,
    cvar,
    entropy_split,
    fairness_difference,
    fairness_summary,
    gini,
    jain,
    max_min,
    pair_correctness,
    std,
)
from trl_pafo.metrics.calibration import bin_edges, fold, place_in_bins, squared_errors

GROUP_SHARES = {"a": 0.6, "b": 0.25, "c": 0.1, "d": 0.05}
NUM_BINS = 10


class Data(NamedTuple):
    """Margins of two models on the same pairs, whose pairs they are, and the support of each user."""

    margins: np.ndarray
    reference_margins: np.ndarray
    user: list[str]
    group: list[str]
    support: np.ndarray  # one value a pair, another for each user


def draw(num_pairs: int, num_users: int, seed: int = 0) -> Data:
    """Users with unequal numbers of pairs and rates of their own, so that few of them are alike."""
    rng = np.random.default_rng(seed)
    weight = rng.geometric(num_users / num_pairs, num_users)
    counts = 1 + rng.multinomial(num_pairs - num_users, weight / weight.sum())
    user = np.repeat(np.arange(num_users), counts)
    group = rng.choice(list(GROUP_SHARES), num_users, p=list(GROUP_SHARES.values()))
    rate = rng.beta(6, 2, num_users)
    margins = rng.logistic(np.log(rate / (1 - rate))[user])
    names = [f"user-{number}" for number in range(num_users)]
    return Data(
        margins,
        margins + rng.normal(size=num_pairs),
        [names[number] for number in user.tolist()],
        group[user].tolist(),
        rng.random(num_users)[user],
    )


class Plain:
    """Every number of a summary, resample by resample, with `np.bincount` over the pairs and sorts over the users."""

    def __init__(self, data: Data):
        self.correct, self.reference = pair_correctness(data.margins), pair_correctness(data.reference_margins)
        self.user = np.unique(data.user, return_inverse=True)[1]
        self.groups, self.group = np.unique(data.group, return_inverse=True)
        self.num_users = self.user.max() + 1
        self.group_of_user = np.zeros(self.num_users, dtype=np.int64)
        self.group_of_user[self.user] = self.group
        self.support = np.zeros(self.num_users)
        self.support[self.user] = data.support
        self.by_user = np.bincount(self.user, weights=self.correct) / np.bincount(self.user)
        confidence, _ = fold(data.margins)
        self.cell = self.group * NUM_BINS + place_in_bins(confidence, bin_edges(confidence, NUM_BINS))
        self.gap = self.correct - confidence
        self.squared = squared_errors(data.margins)

    def numbers(self, drawn: np.ndarray) -> dict[str, float]:
        """The numbers of the users in `drawn`, each as often as it stands there."""
        times = np.bincount(drawn, minlength=self.num_users)[self.user]
        right, squared, total = (
            np.bincount(self.group, weights=times * values) for values in (self.correct, self.squared, np.ones(len(times)))
        )
        by_group = right / total
        gaps = np.bincount(self.cell, weights=times * self.gap, minlength=len(self.groups) * NUM_BINS)
        gaps = gaps.reshape(len(self.groups), NUM_BINS)
        by_user = self.by_user[drawn]
        found = {
            "overall": right.sum() / total.sum(),
            "group_min": by_group.min(),
            "group_max": by_group.max(),
            "difference": by_group.max() - by_group.min(),
            "ratio": by_group.min() / by_group.max(),
            "user_mean": by_user.mean(),
            "user_worst_decile": cvar(by_user),
            "user_max_min": max_min(by_user),
            "user_std": std(by_user),
            "user_gini": gini(by_user),
            "user_jain": jain(by_user),
            "user_atkinson": atkinson(by_user),
            "support_spearman": spearmanr(by_user, self.support[drawn]).statistic,
            "ece": np.abs(gaps.sum(axis=0)).sum() / total.sum(),
            "brier": squared.sum() / total.sum(),
        }
        for alpha, name in ((1.0, "user_theil"), (2.0, "user_entropy")):
            within, between = entropy_split(by_user, self.group_of_user[drawn], alpha=alpha)
            found |= {name: within + between, f"{name}_within": within, f"{name}_between": between}
        for place, name in enumerate(self.groups):
            found[f"accuracy/{name}"] = by_group[place]
            found[f"ece/{name}"] = np.abs(gaps[place]).sum() / total[place]
            found[f"brier/{name}"] = squared[place] / total[place]
        return {name: float(value) for name, value in found.items()}

    def summary(self, num_resamples: int) -> list[dict[str, float]]:
        """Numbers of resamples of users, drawn within each group."""
        rng = np.random.default_rng(0)
        members = [np.flatnonzero(self.group_of_user == place) for place in range(len(self.groups))]
        return [self.numbers(np.concatenate([rng.choice(m, len(m)) for m in members])) for _ in range(num_resamples)]

    def compare(self, num_resamples: int) -> np.ndarray:
        """Differences of the groups in random halves of the users."""
        rng = np.random.default_rng(0)
        ratios = []
        for _ in range(num_resamples):
            taken = (rng.random(self.num_users) < 0.5)[self.user]
            gained = np.bincount(self.group, weights=taken * (self.correct - self.reference))
            ratios.append(gained / np.bincount(self.group, weights=taken))
        return np.array(ratios)


def ours_summary(data: Data, num_resamples: int, method: str) -> dict[str, Any]:
    """The full summary."""
    correct = pair_correctness(data.margins)
    options: dict[str, Any] = {"method": method, "num_resamples": num_resamples}
    return fairness_summary(correct, data.user, data.group, support=data.support, margins=data.margins, **options)


def ours_difference(data: Data, num_resamples: int) -> dict[str, Any]:
    """The full summary of one model minus that of the other."""
    return fairness_difference(
        pair_correctness(data.margins),
        pair_correctness(data.reference_margins),
        data.user,
        data.group,
        support=data.support,
        margins=data.margins,
        reference_margins=data.reference_margins,
        num_resamples=num_resamples,
    )


def ours_compare(data: Data, num_resamples: int) -> Any:
    """The verdict."""
    correct, reference = pair_correctness(data.margins), pair_correctness(data.reference_margins)
    return compare(correct, reference, data.user, data.group, num_resamples=num_resamples)


# How a way starts, and what it repeats for each resample; only the latter is scaled up for the plain way.
WAYS: dict[str, tuple[Callable[[Data], Any], Callable[[Any, int], Any]]] = {
    "summary, plain": (Plain, Plain.summary),
    "summary": (lambda data: data, lambda data, n: ours_summary(data, n, "percentile")),
    "summary, BCa": (lambda data: data, lambda data, n: ours_summary(data, n, "bca")),
    "paired summary": (lambda data: data, ours_difference),
    "verdict, plain": (Plain, Plain.compare),
    "verdict": (lambda data: data, ours_compare),
}
# The plain way that each is set against.
AGAINST = {"summary": "summary, plain", "summary, BCa": "summary, plain", "verdict": "verdict, plain"}


def measure(way: str, num_pairs: int, num_users: int, num_resamples: int, scale: float, send: Any) -> None:
    """Seconds, those of all cores together, and peak memory in GiB (of the whole process, data and imports too) of one way."""
    data = draw(num_pairs, num_users)
    prepare, repeat = WAYS[way]
    clocks = time.perf_counter, time.process_time
    start = [clock() for clock in clocks]
    ready = prepare(data)
    prepared = [clock() for clock in clocks]
    repeat(ready, num_resamples)
    ends = [clock() for clock in clocks]
    seconds, busy = (p - s + scale * (e - p) for s, p, e in zip(start, prepared, ends, strict=True))
    unit = 2**30 if sys.platform == "darwin" else 2**20
    send.send((seconds, busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit))


def in_own_process(
    way: str, num_pairs: int, num_users: int, num_resamples: int, scale: float = 1.0
) -> tuple[float, float, float]:
    """[`measure`] in a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(way, num_pairs, num_users, num_resamples, scale, send))
    process.start()
    send.close()
    found = receive.recv()
    process.join()
    return found


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pairs", type=int, default=1_000_000)
    parser.add_argument("--num_users", type=int, default=100_000)
    parser.add_argument("--num_resamples", type=int, default=1000)
    parser.add_argument("--plain_resamples", type=int, default=10, help="resamples of the plain way, scaled up")
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    for _ in range(args.repetitions):
        for way, results in found.items():
            resamples = args.plain_resamples if way.endswith("plain") else args.num_resamples
            results.append(in_own_process(way, args.num_pairs, args.num_users, resamples, args.num_resamples / resamples))
    print(f"{args.num_pairs} pairs, {args.num_users} users, {args.num_resamples} resamples; {args.repetitions} repetitions;")
    print(f"{len(os.sched_getaffinity(0))} cores, OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', 'not set')}")
    print(f"plain: {args.plain_resamples} resamples, scaled up\n")
    print("| way | median, s | from, s | to, s | CPU, s | plain / this | peak, GiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    medians = {way: median(seconds for seconds, _, _ in results) for way, results in found.items()}
    for way, results in found.items():
        seconds, busy, peaks = zip(*results, strict=True)
        ratio = f"{medians[AGAINST[way]] / medians[way]:.0f}" if way in AGAINST else ""
        numbers = [f"{number:.2f}" for number in (medians[way], min(seconds), max(seconds), median(busy))]
        print(f"| {' | '.join([way, *numbers, ratio, f'{max(peaks):.2f}'])} |")


if __name__ == "__main__":
    main()
