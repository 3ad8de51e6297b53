"""What a service costs: `trl-pafo serve`, asked by several clients at once, against what `trl-pafo score` takes for the same lines.

    OMP_NUM_THREADS=1 python benchmarks/serving.py --items 1

Both sides score the same pairs with three past pairs in the prompt, with the same weights, in turn; ratios are taken within a turn. Of
`score` the parts of a file are tokenized and scored as it does it, with the model in memory: the check of the file, which reads it twice
before, and the loading are left out, so it is at its best. `serve` runs in a process of its own, and its clients, who each ask again as
soon as they are answered, are threads of this one: they take part of the same cores. The rewards of both sides are compared.
"""

import argparse
import http.client
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from statistics import median
from typing import Any

import datasets
import numpy as np
import transformers
from measuring import common_parser

from trl_pafo.data import HistoryCutter, add_history_template, attach_history
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.models import RewardScorer, load_tokenizer, materialize_model
from trl_pafo.models.batches import BATCHES_AT_ONCE

BATCH = 32


def ask(connection: http.client.HTTPConnection, rows: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """Seconds until the answer, and the rewards of chosen and rejected, one after the other."""
    body = json.dumps(rows).encode()
    start = time.perf_counter()
    connection.request("POST", "/score", body)
    response = connection.getresponse()
    answer = response.read()
    seconds = time.perf_counter() - start
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {answer.decode()}")
    return seconds, [row[name] for row in json.loads(answer) for name in ("reward_chosen", "reward_rejected")]


@contextmanager
def running(folder: str) -> Any:
    """A service in a process of its own; its port, once it is ready."""
    command = [sys.executable, "-m", "trl_pafo.cli", "serve", "--model_name_or_path", folder, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = int(next(line for line in process.stderr or () if line.startswith("Serving ")).rsplit(":", 1)[1])
            while True:
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", port)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            if process.wait() != 0:
                raise RuntimeError(f"the service ended with {process.returncode}")


def served(port: int, rows: list[dict[str, Any]], num_items: int, num_clients: int) -> tuple[float, list[float], list[float]]:
    """Seconds for all rows, the seconds of each request, and the rewards in the order of the rows."""
    requests = [rows[start : start + num_items] for start in range(0, len(rows), num_items)]
    found: list[Any] = [None] * len(requests)

    def client(first: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for number in range(first, len(requests), num_clients):
            found[number] = ask(connection, requests[number])

    start = time.perf_counter()
    with ThreadPoolExecutor(num_clients) as pool:
        list(pool.map(client, range(num_clients)))
    total = time.perf_counter() - start
    return total, [seconds for seconds, _ in found], [reward for _, rewards in found for reward in rewards]


def scored(scorer: RewardScorer, rows: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """Seconds of `trl-pafo score` for its last pass over the rows, and the rewards."""
    start = time.perf_counter()
    rewards: list[float] = []
    for first in range(0, len(rows), size := BATCHES_AT_ONCE * BATCH):
        for row in scorer.score(rows[first : first + size], batch_size=BATCH):
            rewards += [row["chosen"], row["rejected"]]
    return time.perf_counter() - start, rewards


def main() -> None:
    parser = common_parser(__doc__)
    parser.set_defaults(model="minilm", layers=3, pairs=400)
    parser.add_argument("--items", type=int, default=8, help="pairs in a request")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    options: argparse.Namespace = parser.parse_args()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    data = DataArguments(source=options.source, data_path=options.data_path, max_words=options.max_words)
    pairs = attach_history(load_source(data)["train"].shuffle(seed=0), num_history=options.history, past_only=False)
    names = ["prompt", "chosen", "rejected", "history"]
    rows = [{name: row[name] for name in names} for row in pairs.select(range(options.pairs))]
    with tempfile.TemporaryDirectory() as folder:
        materialize_model(options.model, folder, options.layers, 0)
        tokenizer = add_history_template(load_tokenizer(options.model))
        HistoryCutter(tokenizer, options.history, max_tokens=256).remember()
        tokenizer.save_pretrained(folder)
        scorer = RewardScorer(folder)
        lengths = [len(ids) for row in scorer.tokenize(rows) for ids in row.values()]
        print(f"{len(rows)} pairs, tokens of a sequence: {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.0f}")
        ratios, theirs, ours, latencies = [], [], [], []
        with running(folder) as port:
            scored(scorer, rows[:BATCH])
            served(port, rows[:BATCH], options.items, options.clients)
            for turn in range(options.turns):
                sides = {
                    "score": lambda: scored(scorer, rows),
                    "serve": lambda: served(port, rows, options.items, options.clients),
                }
                found = {side: sides[side]() for side in (list(sides) if turn % 2 == 0 else [*sides][::-1])}
                theirs.append(len(rows) / found["score"][0])
                ours.append(len(rows) / found["serve"][0])
                ratios.append(ours[-1] / theirs[-1])
                latencies += found["serve"][1]
                np.testing.assert_allclose(found["serve"][2], found["score"][1], atol=1e-4)
    print(f"score: {median(theirs):.1f} pairs/s [{min(theirs):.1f}, {max(theirs):.1f}]")
    print(
        f"serve: {median(ours):.1f} pairs/s [{min(ours):.1f}, {max(ours):.1f}], {median(ours) / options.items:.1f} requests/s of "
        f"{options.items}; {median(ratios):.2f} x score [{min(ratios):.2f}, {max(ratios):.2f}]"
    )
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    print(f"{options.clients} clients: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


if __name__ == "__main__":
    main()
