"""What preparation costs: seconds of each stage at several numbers of pairs, and the peak of memory.

The pairs are made: texts of words, users who each judge some pairs of a common pool, a fifth of them (one at least) in the minority. They are
written to disk and memory-mapped, as `load_dataset` leaves them. The stages of one size run one after the other in a process of its
own. What tokenizes is measured on a sample of the rows: cutting histories to a token budget, TRL's tokenization, and the showings of
an epoch, whose drawn histories are tokenized as they are asked for.

python benchmarks/preparation.py --sizes 10000 100000
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, disable_progress_bars

NUM_HISTORY = 3
VOTES_PER_PAIR = 5
TEST_SHARE = 0.1
MINORITY_SHARE = 0.2
PROMPT_WORDS = (6, 20)
RESPONSE_WORDS = (10, 70)
WRITTEN_AT_ONCE = 50_000
WORDS = [
    first + second for first in ("ban", "cor", "del", "fir", "gol", "hum") for second in ("a", "en", "ist", "ory", "um", "ing")
]


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
        num_users = user[-1] + 1
        minority = rng.permutation(num_users) < max(1, round(MINORITY_SHARE * num_users))
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


def run_stages(folder: Path, size: int, tokenized: int, model: str, seed: int, send: Any) -> None:
    """All stages at one size; sends `{stage: (seconds, number of pairs)}` and the peak of memory in bytes."""
    disable_progress_bars()
    from transformers.utils import logging
    from trl import RewardConfig, RewardTrainer

    from trl_pafo.data import HistoryCutter, add_history_template, attach_history, checks, render_history
    from trl_pafo.data.showings import HistoryDraw
    from trl_pafo.data.sources.splits import add_support_groups, add_type_support, agreement, hold_out_prompts
    from trl_pafo.data.tokenization import tokenize_pairs
    from trl_pafo.models import load_tokenizer
    from trl_pafo.trainer.showings import ShownPairs

    logging.disable_progress_bar()
    tokenizer = add_history_template(load_tokenizer(model))
    found: dict[str, tuple[float, int]] = {}

    @contextmanager
    def stage(name: str, num_pairs: int = size) -> Iterator[None]:
        start = time.perf_counter()
        yield
        found[name] = (found.get(name, (0.0, 0))[0] + time.perf_counter() - start, num_pairs)

    splits = DatasetDict({name: Dataset.from_file(str(folder / f"{name}.arrow")) for name in ("train", "test")})
    with stage("support rates: type"):
        typed = add_type_support(splits)
    with stage("support rates: agreement"):
        bare_splits = splits.remove_columns("group")
        support = {name: agreement(rows) for name, rows in bare_splits.items()}
        add_support_groups(bare_splits, support, quantile=MINORITY_SHARE)
    with stage("checks"):
        for name, rows in typed.items():
            checks.check_pairs(rows, name)
            checks.check_groups(rows, ["majority", "minority"], name)
    with stage("attach histories"):
        train = attach_history(typed["train"], NUM_HISTORY, past_only=False)
        test = attach_history(typed["test"], NUM_HISTORY, min_history=NUM_HISTORY)
    with stage("checks"):
        checks.check_history(train, "train")
        checks.check_apart(train, test)
    with stage("render histories"):
        cutter = HistoryCutter(tokenizer, NUM_HISTORY)
        rendered, rendered_test = render_history(train, cutter), render_history(test, cutter)
    with stage("hold out prompts"):
        trained_on, validation = hold_out_prompts(rendered, 0.1, seed)
    with stage("write Parquet"):
        for name, rows in {"train": trained_on, "validation": validation, "test": rendered_test}.items():
            rows.to_parquet(folder / f"{name}.parquet")
    with stage("draw the histories of an epoch"):
        draw = HistoryDraw(train, rendered, seed, tau=1.0)
        for row in range(len(train)):
            draw(row, 0)
    found["all of these"] = (sum(seconds for seconds, _ in found.values()), size)
    sample = min(tokenized, len(train))
    part = train.select(range(sample))
    with stage("render, with a budget of 128 tokens", sample):
        render_history(part, HistoryCutter(tokenizer, NUM_HISTORY, 128))
    config = RewardConfig(str(folder / "out"), max_length=None, report_to=[], use_cpu=True)
    part = rendered.select(range(sample))
    with stage("tokenize (TRL)", sample):
        RewardTrainer._prepare_dataset(None, part, tokenizer, config, "train")  # type: ignore[arg-type]
    with stage("tokenize", sample):
        tokens = tokenize_pairs(part, tokenizer, title="train")
    drawn = HistoryDraw(train.select(range(sample)), part, seed, tau=1.0)
    with stage("showings of an epoch", sample):
        ShownPairs(tokens, part, tokenizer, drawn).__getitems__(range(sample))
    unit = 1 if sys.platform == "darwin" else 1024
    send.send((found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit))


def make(folder: Path, size: int, between: tuple[int, int], seed: int, send: Any) -> None:
    """[`write_pairs`] in a process of its own, so that its memory is not counted."""
    write_pairs(folder, size, between, seed)
    send.send(None)


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


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="numbers of pairs")
    parser.add_argument("--users", type=int, nargs=2, default=[10, 20], help="a user has between so many and so many pairs")
    parser.add_argument("--tokenized", type=int, default=500, help="rows that are tokenized, of each size")
    parser.add_argument("--model", default="minilm", help="whose tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    stages: list[dict[str, tuple[float, int]]] = []
    peaks: list[float] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as name:
            in_own_process(make, Path(name), size, tuple(args.users), args.seed)
            found, peak = in_own_process(run_stages, Path(name), size, args.tokenized, args.model, args.seed)
            stages.append(found)
            peaks.append(peak)
    print(f"| pairs/s at | {' | '.join(f'{size:,}' for size in args.sizes)} |\n| --- |{' ---: |' * len(args.sizes)}")
    for name in stages[0]:
        speeds = [found[name][1] / found[name][0] for found in stages]
        print(f"| {name} | {' | '.join(f'{speed:,.0f}' for speed in speeds)} |")
    print(f"| peak of memory, GiB | {' | '.join(f'{peak / 2**30:.2f}' for peak in peaks)} |")


if __name__ == "__main__":
    main()
