"""The predicted front of a run: teachers and the path of the reference on held-out pairs, before a student is trained."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.data.groups import count_by_group, largest_and_smallest
from trl_pafo.data.overlap import PairNumbers, telling_fields
from trl_pafo.data.rows import read_rows
from trl_pafo.evaluation.front import TAUS, predict_front
from trl_pafo.evaluation.mixture import TeacherMixture, draw_histories, margins_of, num_shown, score_alone
from trl_pafo.report.front import write_front
from trl_pafo.storage.files import json_ready, write_text

KEPT = (
    "Nothing is distilled, the reference is the result. To judge more of what can be had, hold out more pairs (--validation_share); to "
    "distill all the same, pass --distill_anyway true."
)
_DRAWS = 8


def predict_run(
    out: Path,
    held_out: Dataset,
    train: Dataset,
    teachers: Mapping[str, str | Sequence[str]],
    path: Mapping[str, Any],
    tau: float,
    num_resamples: int,
    seed: int,
    **scoring: Any,
) -> None:
    """Write `front.json`, `front.md` and `front.png` to a new folder.

    Histories are drawn from the held-out pairs ([`~trl_pafo.evaluation.mixture.draw_histories`]) and as long as those of the rows,
    prepared ones that no model was trained on. A group has the folder of its teacher, or those of its folds. `path` is the output
    of [`~trl_pafo.evaluation.reference_path.score_path`] on the same rows. The student's `tau` is judged beside
    [`~trl_pafo.evaluation.front.TAUS`]. `scoring` are options of [`~trl_pafo.evaluation.rewards.score_rows`].
    """
    if len(held_out):
        found = _predict(held_out, train, teachers, path, sorted({*TAUS, tau}), num_resamples, seed, scoring)
    else:
        found = predict_front({}, {}, 0.0, np.zeros(0), [], [], sorted(teachers))
    majority, minority = largest_and_smallest(train["group"], train["user"])
    found |= {"majority": majority, "minority": minority}
    out.mkdir(parents=True)
    write_text(out / "front.json", json.dumps(json_ready(found), indent=2) + "\n")
    write_front(out, found)


def _predict(
    held_out: Dataset,
    train: Dataset,
    teachers: Mapping[str, str | Sequence[str]],
    path: Mapping[str, Any],
    taus: Sequence[float],
    num_resamples: int,
    seed: int,
    scoring: Mapping[str, Any],
) -> dict[str, Any]:
    user, group = held_out["user"][:], held_out["group"][:]
    margins = margins_of(score_alone(teachers, held_out, desc="Held-out pairs", **scoring))
    fields = telling_fields(held_out)
    texts = [*map(PairNumbers(fields), read_rows(held_out, fields))]
    past = draw_histories(user, group, texts, num_shown(held_out), _DRAWS, seed)
    shares = {name: number / len(train) for name, number in count_by_group(train).items()}
    mixture = TeacherMixture.fit(shares, margins, group, margins, past)
    repeated = np.tile(margins, (_DRAWS, 1))
    found = predict_front(
        {tau: mixture.margins(repeated, margins, past, tau).reshape(_DRAWS, len(held_out)) for tau in taus},
        {float(multiple): np.array(of_point) for multiple, of_point in path["margins"].items()},
        path["chosen"],
        (margins / mixture.temperature)[np.arange(len(held_out)), np.searchsorted(mixture.groups, group)],
        user,
        group,
        mixture.groups,
        num_resamples=num_resamples,
        seed=seed,
    )
    return found | {"fitted": mixture.as_json()}
