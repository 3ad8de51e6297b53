"""What preparation costs at 10,000, 100,000 and 1,000,000 pairs: time of each stage, whether it is linear, memory.

The pairs are made: texts of words drawn from a list, users who each judge some pairs of a common pool, a fifth of the users in
the minority. They are written to disk and memory-mapped, as `load_dataset` leaves them. The stages of one size run one
after the other in a process of its own, so that its peak memory is its own. Tokenization is TRL's, on a sample of the rows, and
is reported apart, as is the cutting of histories to a token budget, which tokenizes them too.

python benchmarks/preparation.py --sizes 10000 100000 1000000
"""

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, disable_progress_bars

GIB = 2**30
NUM_HISTORY = 3
VOTES_PER_PAIR = 5
TEST_SHARE = 0.1
MINORITY_SHARE = 0.2
NUM_REWARD_MODELS = 8
NUM_PROBES = 256
PROMPT_WORDS = (6, 20)
RESPONSE_WORDS = (10, 70)
WRITTEN_AT_ONCE = 50_000

_TEXT = """a about above after again all almost along also always an and another any are around as ask at away back be because been
before began being below between big book both but by call came can change children city close come could country cut day did
different do does done down each earth eat end enough even every example eyes far father feet few find first follow food for
form found four from get give go good got great group grow had hand hard has have he head hear help her here high him his home
house how however idea if important in into is it its just keep kind know land large last later learn leave left letter life
light like line list little live long look made make man many may me mean men might mile miss more most mother mountain move
much must my name near need never new next night no not now number of off often old on once one only open or other our out
over own page paper part people perhaps place plant play point possible quite rather reason recommend remember response river
run said same saw say school sea second see seem sentence set she should show side simple since small so some something
sometimes song soon sound spell stand start state still stop story study such take talk tell than that the their them then
there these they thing think this those though thought three through time to together too took tree try turn two under
understand until up us use usually very walk want was watch water way we well went were what when where which while white who
why will with without word work world would write year you young your"""
WORDS = _TEXT.split()


def texts(rng: np.random.Generator, number: int, between: tuple[int, int]) -> pa.Array:
    """Texts of words, so many of them, of lengths between two numbers of words."""
    lengths = rng.integers(between[0], between[1] + 1, number)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    drawn = pa.array(WORDS).take(pa.array(rng.integers(0, len(WORDS), offsets[-1])))
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), drawn), " ")


def write_pairs(folder: Path, size: int, between: tuple[int, int], seed: int) -> None:
    """Write `train` and `test`: users of their own, who judge the pairs of a pool of their own, each pair by several users."""
    rng = np.random.default_rng(seed)
    for split, rows in (("train", size - round(TEST_SHARE * size)), ("test", round(TEST_SHARE * size))):
        of_user = rng.integers(between[0], between[1] + 1, 2 * rows // sum(between) + 10)
        while of_user.sum() < rows:
            of_user = np.concatenate([of_user, rng.integers(between[0], between[1] + 1, 10)])
        user = np.repeat(np.arange(len(of_user)), of_user)[:rows]
        user = np.minimum(user, user[-1] - 1)  # nobody is left with a single pair where the rows end
        minority = rng.random(len(of_user)) < MINORITY_SHARE
        pool = max(rows // VOTES_PER_PAIR, 2 * between[1])
        pair = (rng.integers(0, pool, len(of_user))[user] + np.arange(rows)) % pool  # a user sees no pair twice
        prompt, first, second = (texts(rng, pool, words) for words in (PROMPT_WORDS, RESPONSE_WORDS, RESPONSE_WORDS))
        # The majority mostly likes the first response, the minority the second; a tenth of the votes goes astray.
        likes_second = minority[user] ^ (rng.random(rows) < 0.1)
        schema = pa.schema([(name, pa.string()) for name in ("prompt", "chosen", "rejected", "user", "group")])
        path = folder / f"{split}.arrow"
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for start in range(0, rows, WRITTEN_AT_ONCE):
                part = slice(start, start + WRITTEN_AT_ONCE)
                at, swapped = pa.array(pair[part]), pa.array(likes_second[part])
                a, b = first.take(at), second.take(at)
                columns = [
                    prompt.take(at),
                    pc.if_else(swapped, b, a),
                    pc.if_else(swapped, a, b),
                    pa.array([f"{split}-user-{number}" for number in user[part].tolist()]),
                    pc.if_else(pa.array(minority[user[part]]), "minority", "majority"),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), max_chunksize=1000)


class Memory:
    """The highest private and mapped memory of this process so far, looked at by a thread. Linux alone tells them apart."""

    def __init__(self) -> None:
        self.private = self.mapped = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        status = Path("/proc/self/status")
        while status.exists() and not self._stop.wait(0.02):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            private, mapped = (int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
            self.private, self.mapped = max(self.private, private), max(self.mapped, mapped)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()


class Stages:
    """Seconds of each stage, those of all cores together, and the highest private memory by its end."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.found: dict[str, tuple[float, float, int]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what stands inside; a stage of the same name adds up."""
        clocks = time.perf_counter, time.process_time
        start = [clock() for clock in clocks]
        yield
        seconds, busy = (clock() - since for clock, since in zip(clocks, start, strict=True))
        before = self.found.get(name, (0.0, 0.0, 0))
        self.found[name] = (before[0] + seconds, before[1] + busy, self.memory.private)


def run_stages(folder: Path, size: int, tokenized: int, model: str, seed: int, send: Any) -> None:
    """All stages at one size; sends `{stage: (seconds, of all cores, private memory by then, number of pairs)}` and the peaks."""
    disable_progress_bars()
    from transformers.utils import logging
    from trl import RewardConfig, RewardTrainer

    from trl_pafo.data import checks
    from trl_pafo.data.attaching import attach_history
    from trl_pafo.data.counterfactual import counterfactual_rows
    from trl_pafo.data.groups import assign_groups, count_by_group, support_rate_by_type, support_rate_by_weights
    from trl_pafo.data.history import HistoryCutter, render_history
    from trl_pafo.data.sources.splits import add_support_groups, add_type_support, agreement, hold_out_prompts
    from trl_pafo.data.template import add_history_template
    from trl_pafo.models import load_tokenizer

    logging.disable_progress_bar()
    tokenizer = add_history_template(load_tokenizer(model))
    rng = np.random.default_rng(seed)
    with Memory() as memory:
        stages = Stages(memory)
        time.sleep(0.1)
        bare = memory.private
        splits = DatasetDict({name: Dataset.from_file(str(folder / f"{name}.arrow")) for name in ("train", "test")})
        num_users = len(set(splits["train"]["user"][:]))

        with stages.stage("support rates: type"):
            typed = add_type_support(splits)
        with stages.stage("support rates: weights"):
            weights = rng.dirichlet(np.ones(NUM_REWARD_MODELS), num_users)
            rates = support_rate_by_weights(weights, rng.normal(size=(NUM_PROBES, NUM_REWARD_MODELS)))
            assign_groups(rates, quantile=MINORITY_SHARE)
            assign_groups(support_rate_by_type(["a", "b", "b", "b"] * (num_users // 4 + 1)), threshold=0.5)
        with stages.stage("support rates: agreement"):
            bare_splits = splits.remove_columns("group")
            support = {name: agreement(rows) for name, rows in bare_splits.items()}
            add_support_groups(bare_splits, support, quantile=MINORITY_SHARE)

        with stages.stage("checks"):
            for name, rows in typed.items():
                checks.check_pairs(rows, name)
                checks.check_groups(rows, ["majority", "minority"], name)
        with stages.stage("attach histories"):
            train = attach_history(typed["train"], NUM_HISTORY, past_only=False)
            test = attach_history(typed["test"], NUM_HISTORY, min_history=NUM_HISTORY)
        with stages.stage("checks"):
            checks.check_history(train, "train")
            checks.check_apart(train, test)
        with stages.stage("render histories"):
            cutter = HistoryCutter(tokenizer, NUM_HISTORY)
            rendered = render_history(train, cutter)
            rendered_test = render_history(test, cutter)
        with stages.stage("hold out prompts"):
            trained_on, validation = hold_out_prompts(rendered, 0.1, seed)
        with stages.stage("write Parquet"):
            for name, rows in {"train": trained_on, "validation": validation, "test": rendered_test}.items():
                rows.to_parquet(folder / f"{name}.parquet")
        with stages.stage("counterfactual rows"):
            both = counterfactual_rows(train, ["majority", "minority"], 1.0, seed)
            count_by_group(both)
        before = [sum(found[i] for found in stages.found.values()) for i in range(2)]

        sample = min(tokenized, len(train))
        part = train.select(range(sample))
        with stages.stage("render histories, budget of 128 tokens"):
            render_history(part, HistoryCutter(tokenizer, NUM_HISTORY, 128))
        config = RewardConfig(str(folder / "out"), max_length=None, report_to=[], use_cpu=True)
        with stages.stage("tokenize (TRL)"):
            RewardTrainer._prepare_dataset(None, rendered.select(range(sample)), tokenizer, config, "train")  # type: ignore[arg-type]
    unit = 1 if sys.platform == "darwin" else 1024
    apart = ("render histories, budget of 128 tokens", "tokenize (TRL)")
    send.send(
        {
            "stages": {name: (*found, sample if name in apart else size) for name, found in stages.found.items()},
            "before": before,
            "bare": bare,
            "private": memory.private,
            "mapped": memory.mapped,
            "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
            "arrow": pa.default_memory_pool().max_memory(),
        }
    )


def in_own_process(function: Callable[..., None], *args: Any) -> Any:
    """What a function sends, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*args, send))
    process.start()
    send.close()
    found = receive.recv()
    process.join()
    return found


def make(folder: Path, size: int, between: tuple[int, int], seed: int, send: Any) -> None:
    """[`write_pairs`] in a process of its own, so that its memory is not counted; sends the number of bytes."""
    write_pairs(folder, size, between, seed)
    send.send(sum(path.stat().st_size for path in folder.iterdir()))


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of pairs")
    parser.add_argument("--users", type=int, nargs=2, default=[10, 20], help="a user has between so many and so many pairs")
    parser.add_argument("--tokenized", type=int, default=4000, help="rows that are tokenized, of each size")
    parser.add_argument("--model", default="minilm", help="whose tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found: dict[int, dict[str, Any]] = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            num_bytes = in_own_process(make, Path(name), size, tuple(args.users), args.seed)
            found[size] = in_own_process(run_stages, Path(name), size, args.tokenized, args.model, args.seed)
            found[size]["bytes"] = num_bytes
    print(f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, pyarrow {pa.__version__}\n")
    head = [*(f"{size:,}" for size in args.sizes), "cost, last : one before", "CPU, last : one before", "private GiB"]
    print(f"| pairs/s at | {' | '.join(head)} |\n|{' --- |' + ' ---: |' * len(head)}")
    for name in [*next(iter(found.values()))["stages"], "all before tokenization"]:
        rows = [one["stages"].get(name, (*one["before"], 0, size)) for size, one in found.items()]
        costs = [[row[clock] / row[-1] for row in rows] for clock in range(2)]
        ratios = [f"{cost[-1] / cost[-2]:.2f}" if len(cost) > 1 else "" for cost in costs]
        private = f"{rows[-1][2] / GIB:.2f}" if rows[-1][2] else ""
        print(f"| {name} | {' | '.join([*(f'{1 / cost:,.0f}' for cost in costs[0]), *ratios, private])} |")
    print("\n| GiB at | " + " | ".join(f"{size:,}" for size in args.sizes) + " |\n| --- |" + " ---: |" * len(args.sizes))
    told = {
        "the pairs on disk": "bytes",
        "private memory after imports": "bare",
        "peak of private memory": "private",
        "of it Arrow": "arrow",
        "peak of mapped files": "mapped",
        "ru_maxrss": "rss",
    }
    for name, key in told.items():
        print(f"| {name} | {' | '.join(f'{one[key] / GIB:.2f}' for one in found.values())} |")


if __name__ == "__main__":
    main()
