"""What it costs that threads wait for each other where other work is on the cores, and what sharing prefixes gains there.

Threads of torch spin while they wait, unless OMP_WAIT_POLICY=PASSIVE lets them sleep. That is fixed when torch is loaded, so each way of
waiting has a process of its own; processes and sides take training steps in turn, on the shipped corpus with three past pairs. The command
line of trl-pafo sets PASSIVE where nothing is set.

    python benchmarks/busy_cores.py --busy 2
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from statistics import median, quantiles

WAYS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads, spinning": {"OMP_NUM_THREADS": "2"},
    "2 threads, PASSIVE": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
SIDES = ("RewardTrainer", "on")


def work(options: argparse.Namespace) -> None:
    """Take a step of the side that each line of the standard input names; answer with its seconds, and those of CPU time."""
    import datasets
    from prefix_sharing import corpus, load_tokenizer, make_steps

    datasets.disable_progress_bars()
    options.tokenizer = load_tokenizer("smollm2")
    options.attention, options.bf16, options.checkpointing = "sdpa", False, False
    setting = corpus(options.tokenizer, 3, 4 * options.batch)
    with tempfile.TemporaryDirectory() as folder:
        steps = make_steps(setting, options, folder)
        for side in SIDES:
            steps[side]()
        print("ready", flush=True)
        for line in sys.stdin:
            start, cpu = time.perf_counter(), time.process_time()
            steps[line.strip()]()
            print(time.perf_counter() - start, time.process_time() - cpu, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=0, help="processes that keep a core busy beside")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=2, help="pairs in a step")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(options)
    unset = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = {way: subprocess.Popen(command, env=unset | set_here, **pipes) for way, set_here in WAYS.items()}
    others = []
    seconds: dict[tuple[str, str], list[list[float]]] = {(way, side): [] for way in WAYS for side in SIDES}
    try:
        for worker in workers.values():
            assert worker.stdout.readline() == "ready\n"
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
        for turn in range(options.rounds):
            for way, side in [*seconds][turn % len(seconds) :] + [*seconds][: turn % len(seconds)]:
                print(side, file=workers[way].stdin, flush=True)
                seconds[way, side].append([float(number) for number in workers[way].stdout.readline().split()])
    finally:
        for process in (*others, *workers.values()):
            process.kill()
    print(
        "| threads | RewardTrainer: s, CPU s | shared rows: s, CPU s | ratio in a round: median (quartiles) |\n| --- | ---: | ---: | ---: |"
    )
    for way in WAYS:
        two, shared = (seconds[way, side] for side in SIDES)
        ratios = quantiles([a[0] / b[0] for a, b in zip(two, shared, strict=True)], n=4, method="inclusive")
        cells = [f"{median(s for s, _ in side):.2f}, {median(cpu for _, cpu in side):.2f}" for side in (two, shared)]
        print(f"| {way} | {cells[0]} | {cells[1]} | {ratios[1]:.2f} ({ratios[0]:.2f} to {ratios[2]:.2f}) |")


if __name__ == "__main__":
    main()
