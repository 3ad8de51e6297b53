"""`trl-pafo evaluate`, `audit` and `score` on two processes: each takes its share of the forward passes; the first writes and says what one does."""

import contextlib
import functools
import io
import os
from pathlib import Path

import pytest
from helpers.parts import make_pairs, make_teacher
from helpers.ranks import launch

from trl_pafo.audit.probes import probe_front
from trl_pafo.cli import main
from trl_pafo.models import batches

NAMES = ("evaluate", "audit", "score", "score to standard output")


def run(*argv: str) -> dict:
    """What a command says and returns, and how many forward passes it took on this process."""
    passes, pad = [], batches.pad_sequences
    said, errors = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        for module in ("models.batches", "evaluation.text_features"):
            patch.setattr(f"trl_pafo.{module}.pad_sequences", lambda *given: passes.append(1) or pad(*given))
        patch.setattr("trl_pafo.models.ranks.leave", lambda: None)  # the next command needs the group
        patch.setattr("trl_pafo.audit.audit.probe_front", functools.partial(probe_front, folds=2, repeats=1))
        for name, value in (("DIRECTIONS", (8,)), ("PENALTIES", (0.1,)), ("FOLDS", 2)):
            patch.setattr(f"trl_pafo.evaluation.tastes.{name}", value)
        status = main([*argv])
    return {"status": status, "said": said.getvalue(), "errors": errors.getvalue(), "passes": len(passes)}


def run_all(out: Path, name: str) -> dict:
    models, pairs, to = [str(out / model) for model in ("a", "b")], str(out / "pairs.jsonl"), out / name
    score = ["score", "--model_name_or_path", models[0], "--batch_size", "1", "--input"]  # in parts of 16 rows
    other_rows = str(out / f"rows{os.environ.get('RANK', '')}.jsonl")
    evaluate = ["--num_resamples", "50", "--batch_size", "4", "--dataset_name", pairs, "--output_dir", str(to / "evaluate")]
    audit = ["--embedding_model", models[1], "--num_history", "1", "--data_path", pairs, "--output_dir", str(to / "audit")]
    return {
        "evaluate": run("evaluate", "--model_name_or_path", *models, *evaluate),
        "audit": run("audit", "--model_name_or_path", models[0], "--batch_size", "4", *audit),
        "score": run(*score, pairs, "--output", str(to / "score")),
        "score to standard output": run(*score, pairs),
        "score again": run(*score, pairs, "--output", str(to / "score")),
        "score other rows": run(*score, other_rows, "--output", str(to / "other")),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Path, dict, list[dict]]:
    """A folder, and what one process and what two do there."""
    out = tmp_path_factory.mktemp("commands")
    for seed, name in enumerate(("a", "b")):
        make_teacher("decoder", out / name, seed)
    make_pairs(num_users=12, pairs_per_user=3, num_minority=5, history=0).to_json(out / "pairs.jsonl")
    lines = (out / "pairs.jsonl").read_text().splitlines(keepends=True)
    for rank, order in {"": lines, "0": lines, "1": lines[::-1]}.items():
        (out / f"rows{rank}.jsonl").write_text("".join(order))
    for name in ("one", "two"):
        (out / name).mkdir()
    return out, run_all(out, "one"), launch(run_all, 2, out, "two")


@pytest.mark.parametrize("name", NAMES)
def test_the_first_says_what_one_does_and_the_other_nothing(found, name):
    _, one, (first, second) = found
    assert one[name]["status"] == first[name]["status"] == second[name]["status"] == 0, first[name]["errors"]
    assert first[name]["said"] == one[name]["said"].replace("/one/", "/two/") != ""
    assert second[name]["said"] == ""


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


def test_an_error_ends_all(found):
    _, _, seen = found
    for rank in seen:
        assert rank["score again"]["status"] == rank["score other rows"]["status"] == 1
        assert "two/score exists already. Choose another --output" in rank["score again"]["errors"]
        assert "The processes have read different rows" in rank["score other rows"]["errors"]
