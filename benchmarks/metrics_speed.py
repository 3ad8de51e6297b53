"""How fast and small `trl_pafo.metrics` is on many users with unequal numbers of pairs, each function in a process of its own.

OMP_NUM_THREADS=2 python benchmarks/metrics_speed.py
"""

import argparse
import multiprocessing
import resource
import sys
import time
from statistics import median
from typing import Any

import numpy as np

from trl_pafo.metrics import compare, fairness_difference, fairness_summary, pair_correctness

GROUP_SHARES = {"a": 0.6, "b": 0.25, "c": 0.1, "d": 0.05}


def measure(name: str, num_pairs: int, num_users: int, num_resamples: int, send: Any) -> None:
    """Seconds and peak memory in GiB (of the complete process, data and imports too) of one function."""
    rng = np.random.default_rng(0)
    weight = rng.geometric(num_users / num_pairs, num_users)
    user = np.repeat(np.arange(num_users), 1 + rng.multinomial(num_pairs - num_users, weight / weight.sum()))
    rate = rng.beta(6, 2, num_users)
    margins = rng.logistic(np.log(rate / (1 - rate))[user])
    reference = margins + rng.normal(size=num_pairs)
    group = rng.choice(list(GROUP_SHARES), num_users, p=list(GROUP_SHARES.values()))[user].tolist()
    support, names = rng.random(num_users)[user], [f"user-{number}" for number in user.tolist()]
    correct, of_reference = pair_correctness(margins), pair_correctness(reference)
    how = {"num_resamples": num_resamples}
    parts = {"support": support, "margins": margins, **how}
    start = time.perf_counter()
    if name == "fairness_summary":
        fairness_summary(correct, names, group, **parts)
    elif name == "fairness_difference":
        fairness_difference(correct, of_reference, names, group, reference_margins=reference, **parts)
    else:
        compare(correct, of_reference, names, group, **how)
    seconds = time.perf_counter() - start
    unit = 2**30 if sys.platform == "darwin" else 2**20
    send.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit))


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_pairs", type=int, default=1_000_000)
    parser.add_argument("--num_users", type=int, default=100_000)
    parser.add_argument("--num_resamples", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    print("| function | median, s | from, s | to, s | peak, GiB |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in ("fairness_summary", "fairness_difference", "compare"):
        found = []
        for _ in range(args.repetitions):
            receive, send = context.Pipe(duplex=False)
            options = (name, args.num_pairs, args.num_users, args.num_resamples, send)
            process = context.Process(target=measure, args=options)
            process.start()
            send.close()
            found.append(receive.recv())
            process.join()
        seconds, peaks = zip(*found, strict=True)
        numbers = [f"{number:.2f}" for number in (median(seconds), min(seconds), max(seconds), max(peaks))]
        print(f"| {' | '.join([name, *numbers])} |", flush=True)


if __name__ == "__main__":
    main()
