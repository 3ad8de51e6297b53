"""`trl-pafo score` of which a process is killed: any number of processes goes on, and the output has the bytes of one process."""

import contextlib
import io
import os
import signal
from pathlib import Path

import pytest
from helpers.parts import make_pairs, make_teacher
from helpers.ranks import launch

from trl_pafo.cli import main
from trl_pafo.models import RewardScorer

PART = 16  # rows, with a batch of 1


def score(out: Path, name: str, killed: str = "", after: str = "") -> dict:
    """What the command says and returns; the process `killed` ends by SIGKILL after so many parts."""
    parts, real = [], RewardScorer.score

    def score_or_die(self, *given, **how):
        parts.append(1)
        if os.environ.get("RANK") == killed and len(parts) > int(after):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *given, **how)

    flags = ["--model_name_or_path", str(out / "model"), "--input", str(out / "rows.jsonl"), "--batch_size", "1"]
    errors = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(errors):
        patch.setattr(RewardScorer, "score", score_or_die)
        return {"status": main(["score", *flags, "--output", str(out / name)]), "errors": errors.getvalue()}


def interrupted(out: Path, num_processes: int, killed: int, after: int) -> int:
    """How many rows stand there when the command was killed once more."""
    with pytest.raises(AssertionError, match=r"Process \d of \d failed"):
        launch(score, num_processes, out, "out", str(killed), str(after))
    assert not (out / "out").exists()
    return (out / "out.partial/lines").read_bytes().count(b"\n")


@pytest.mark.slow
def test_whoever_is_killed_any_number_of_processes_goes_on(tmp_path):
    make_teacher("decoder", tmp_path / "model", 0)
    rows = make_pairs(num_users=4, pairs_per_user=4 * PART // 4 - 1, history=0)
    rows.select_columns(["prompt", "chosen", "rejected"]).to_json(tmp_path / "rows.jsonl")
    assert score(tmp_path, "one")["status"] == 0
    assert interrupted(tmp_path, 1, killed=0, after=1) == PART
    assert interrupted(tmp_path, 2, killed=1, after=1) == 2 * PART
    assert interrupted(tmp_path, 3, killed=0, after=1) == 3 * PART
    first, second = launch(score, 2, tmp_path, "out")
    assert f"Going on after {3 * PART} of {len(rows)} rows" in first["errors"]
    assert "Going on" not in second["errors"]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "one").read_bytes()
    assert not (tmp_path / "out.partial").exists()
