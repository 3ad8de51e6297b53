"""`trl-pafo evaluate`, `audit` and `score` on two processes: each takes its share of the forward passes; the first writes and says what one does.

An error of all is said once.
"""

import contextlib
import functools
import io
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.parts import make_pairs, make_teacher
from helpers.ranks import CPU_AS_GPU, PATIENCE, accelerate, environment, launch, needs_deepspeed

from trl_pafo.audit.probes import probe_front
from trl_pafo.cli import main
from trl_pafo.models import batches

NAMES = ("evaluate", "audit", "score", "score to standard output")
SHARDED = [pytest.param("fsdp2"), *(pytest.param(zero, marks=needs_deepspeed) for zero in ("zero2", "zero3"))]


def run(*argv: str) -> dict:
    """What a command says and returns, and how many forward passes it took on this process."""
    passes, pad = [], batches.pad_sequences
    said, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        for module in ("models.batches", "evaluation.text_features"):
            patch.setattr(f"trl_pafo.{module}.pad_sequences", lambda *given: passes.append(1) or pad(*given))
        patch.setattr("trl_pafo.models.ranks._SAID_WITHIN", 3.0)
        patch.setattr("trl_pafo.models.ranks.leave", lambda: None)  # the next command needs the group
        patch.setattr("trl_pafo.audit.audit.probe_front", functools.partial(probe_front, folds=2, repeats=1))
        for name, value in (("DIRECTIONS", (8,)), ("PENALTIES", (0.1,)), ("FOLDS", 2)):
            patch.setattr(f"trl_pafo.evaluation.tastes.{name}", value)
        status = main([*argv])
    return {"status": status, "said": said.getvalue(), "errors": errors.getvalue(), "passes": len(passes)}


def run_all(out: Path, name: str) -> dict:
    models, pairs, to = [str(out / model) for model in ("a", "b")], str(out / "pairs.jsonl"), out / name
    score = ["score", "--model_name_or_path", models[0], "--batch_size", "1", "--input"]  # in parts of 16 rows
    rank = os.environ.get("RANK", "")
    evaluate = ["--num_resamples", "50", "--batch_size", "4", "--dataset_name", pairs, "--output_dir", str(to / "evaluate")]
    audit = ["--embedding_model", models[1], "--num_history", "1", "--data_path", pairs, "--output_dir", str(to / "audit")]
    return {
        "evaluate": run("evaluate", "--model_name_or_path", *models, *evaluate),
        "audit": run("audit", "--model_name_or_path", models[0], "--batch_size", "4", *audit),
        "score": run(*score, pairs, "--output", str(to / "score")),
        "score to standard output": run(*score, pairs),
        "evaluate again": run("evaluate", "--model_name_or_path", *models, *evaluate),
        "score again": run(*score, pairs, "--output", str(to / "score")),
        "score other rows": run(*score, str(out / f"rows{rank}.jsonl"), "--output", str(to / "other")),
        "score by other models": run(*score, pairs, "--model_name_or_path", models[rank == "1"]),
        "a wrong flag": run(*score, pairs, "--outptu", "file"),
        "files of their own": run(*score, str(out / f"nothing{rank}.jsonl")),
        "one alone": run("evaluate") if rank != "0" else None,
    }


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, dict]:
    """A folder, and what one process does there."""
    out = tmp_path_factory.mktemp("commands")
    for seed, name in enumerate(("a", "b")):
        make_teacher("decoder", out / name, seed)
    make_pairs(num_users=12, pairs_per_user=3, num_minority=5, history=0).to_json(out / "pairs.jsonl")
    lines = (out / "pairs.jsonl").read_text().splitlines(keepends=True)
    for rank, order in {"": lines, "0": lines, "1": lines[::-1]}.items():
        (out / f"rows{rank}.jsonl").write_text("".join(order))
    (out / "one").mkdir()
    return out, run_all(out, "one")


@pytest.fixture(
    scope="module", params=["ddp", *(pytest.param(*mode.values, marks=[*mode.marks, pytest.mark.slow]) for mode in SHARDED)]
)
def found(one, request) -> tuple[Path, dict, list[dict]]:
    """A folder, what one process has done there, and what two do in the folder `two` beside it, as each launcher starts them."""
    out, of_one = one
    shutil.rmtree(out / "two", ignore_errors=True)
    (out / "two").mkdir()
    return out, of_one, launch(run_all, 2, out, "two", mode=request.param)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_says_what_one_does_and_the_other_nothing(found, name):
    _, one, (first, second) = found
    assert one[name]["status"] == first[name]["status"] == second[name]["status"] == 0, first[name]["errors"]
    assert first[name]["said"] == one[name]["said"].replace("/one/", "/two/") != ""
    assert first[name]["errors"] != second[name]["said"] == second[name]["errors"] == ""


@pytest.mark.parametrize("name", NAMES)
def test_each_takes_its_share_of_the_forward_passes(found, name):
    _, one, (first, second) = found
    assert first[name]["passes"] == second[name]["passes"]
    assert one[name]["passes"] / 2 <= first[name]["passes"] < 0.7 * one[name]["passes"]


def test_what_is_written_has_the_bytes_of_one(found):
    out, one, _ = found
    files = {path.relative_to(out / "one") for path in (out / "one").rglob("*") if path.is_file()}
    assert files == {path.relative_to(out / "two") for path in (out / "two").rglob("*") if path.is_file()} | {Path("other")}
    assert {"evaluate/results.json", "audit/audit.json", "score"} <= set(map(str, files))
    for file in files - {Path("other")}:
        assert (out / "two" / file).read_bytes().replace(b"/two/", b"/one/") == (out / "one" / file).read_bytes(), file
    assert one["score to standard output"]["said"].encode() == (out / "one/score").read_bytes()


ERRORS = {
    "evaluate again": (1, "two/evaluate exists already. Choose another --output_dir"),
    "score again": (1, "two/score exists already. Choose another --output;"),
    "score other rows": (1, "The processes have read different rows"),
    "score by other models": (1, "is another one than that of process 0 on"),
    "a wrong flag": (2, "--outptu is unknown. Did you mean --output?"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_of_all_ends_all_and_is_said_once(found, name):
    _, _, (first, second) = found
    status, message = ERRORS[name]
    assert first[name]["status"] == second[name]["status"] == status
    assert first[name]["errors"].count(message) == 1
    assert second[name]["errors"] == ""


def test_an_error_of_one_is_said_by_it(found):
    for rank, seen in enumerate(found[2]):
        assert f"nothing{rank}.jsonl" in seen["files of their own"]["errors"]
    assert "Give --dataset_name" in found[2][1]["one alone"]["errors"]


@pytest.mark.slow
@pytest.mark.parametrize("config", [pytest.param("multi_gpu"), *SHARDED])
def test_the_configurations_of_trl(one, config, tmp_path):
    out, _ = one

    def start(command: str, *flags: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [*accelerate(config, tmp_path), "-m", "trl_pafo.cli", command, *flags],
            env=environment(**({} if config == "multi_gpu" else CPU_AS_GPU)),
            cwd=tmp_path,  # the package is found by its path alone
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout, done.stderr

    score = ["--model_name_or_path", str(out / "a"), "--batch_size", "1", "--input", str(out / "pairs.jsonl")]
    status, said, errors = start("score", *score, "--output", "score")
    assert status == 0, errors[-4000:]
    assert said == "36 rows scored: score\n"
    assert errors.count("36 rows read") == 1
    assert (tmp_path / "score").read_bytes() == (out / "one/score").read_bytes()
    for command, flags, message in (
        ("score", [*score, "--output", "score"], "score exists already"),
        ("portfolio", ["build"], "trl-pafo portfolio works in one process"),
    ):
        status, said, errors = start(command, *flags)
        assert (status, said) == (1, "")
        assert errors.count(message) == 1, errors[-4000:]
