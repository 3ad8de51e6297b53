"""Methods of a run that show what can be had without teachers of groups: other losses, and an ensemble distilled into one model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from trl_pafo.baselines.table import TRAINERS
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.evaluation.rewards import score_rows
from trl_pafo.pipeline.stage import Stage
from trl_pafo.storage.files import replacing
from trl_pafo.trainer.cache_keys import DRAWING_OPTIONS, student_inputs

if TYPE_CHECKING:
    from trl_pafo.pipeline.run import Run

NUM_MEMBERS = 5
MARGINS = "ensemble_margins.npy"
"""File in the folder of a run: the mean margin of the members of the ensemble for each training pair, float64."""


def baseline(run: "Run", method: str, train: Dataset) -> Stage:
    """A trainer of `TRAINERS` in the place of personalized Bradley-Terry: the student's steps, from the base, on the same pairs."""
    trainer = TRAINERS[method].load()
    return run._of_all(method, TITLES[method], train, trainer=trainer, columns=trainer.columns)


def distilled_ensemble(run: "Run", train: Dataset) -> list[Stage]:
    """Five personalized Bradley-Terry models of other seeds, the mean of their margins, and the model that learns it, without
    groups.

    None of the training pairs is too long.
    """
    members = [
        run._of_all(f"ensemble_seed{seed}", f"Ensemble, seed {seed}", train, method="personalized_bt", changes={"seed": seed})
        for seed in range(run.args.seed + 1, run.args.seed + 1 + NUM_MEMBERS)
    ]
    identities = [member.digest for member in members]

    def average(out: Path) -> None:
        folders = [str(run.folder / member.output) for member in members]
        how: dict[str, Any] = run._scoring()
        margins = [np.subtract(*score_rows(f, train, desc="Training pairs, ensemble", **how), dtype=np.float64) for f in folders]
        with replacing(out) as temporary, open(temporary, "wb") as file:
            np.save(file, np.mean(margins, axis=0), allow_pickle=False)

    made_from = {"members": identities, "max_length": run.args.max_length}
    names = tuple(member.name for member in members)
    mean = Stage("ensemble_margins", MARGINS, made_from | run._inputs_of_scoring(), average, names, derived=True, scores=True)
    method, changes = "distilled_ensemble", {"max_steps": run._steps}

    def work(out: Path) -> None:
        rows = train.add_column("teacher_margin", np.load(run.folder / MARGINS, allow_pickle=False))  # type: ignore[arg-type]
        run._train(out, TITLES[method], rows, columns=("teacher_margin",), changes=changes)

    options = {name: value for name, value in student_inputs(run.args).items() if name not in DRAWING_OPTIONS}
    inputs = run._inputs(run.model, method=method, members=identities, **options, **changes)
    return [*members, mean, Stage(method, f"models/{method}", inputs, work, (mean.name,), steps=run._steps)]
