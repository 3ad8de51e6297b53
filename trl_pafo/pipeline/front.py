"""The predicted front of a run: teachers and the path of the reference on held-out pairs, before a student is trained."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.groups import count_by_group, largest_and_smallest
from trl_pafo.evaluation.front import TAUS, predict_front
from trl_pafo.evaluation.mixture import DRAWS, held_out_histories, margins_of, score_alone
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.report.front import write_front
from trl_pafo.storage.files import json_ready, write_text

KEPT = (
    "Nothing is distilled, the reference is the result. To judge more of what can be had, hold out more pairs (--validation_share); to "
    "distill all the same, pass --distill_anyway true."
)


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
        margins = margins_of(score_alone(teachers, held_out, desc="Held-out pairs", **scoring))
        shares = {name: number / len(train) for name, number in count_by_group(train).items()}
        past = held_out_histories(held_out, seed)
        mixture = GroupMixture.fit(shares, margins, held_out["group"][:], margins, past)
        found = front_of_mixture(mixture, margins, past, held_out, path, sorted({*TAUS, tau}), num_resamples, seed)
        found |= {"fitted": mixture.as_json()}
    else:
        found = predict_front({}, {}, 0.0, np.zeros(0), [], [], sorted(teachers))
    majority, minority = largest_and_smallest(train["group"], train["user"])
    found |= {"majority": majority, "minority": minority}
    out.mkdir(parents=True)
    write_text(out / "front.json", json.dumps(json_ready(found), indent=2) + "\n")
    write_front(out, found)


def front_of_mixture(
    mixture: GroupMixture,
    margins: FloatArray,
    past: Sequence[Sequence[int]],
    held_out: Dataset,
    path: Mapping[str, Any],
    taus: Sequence[float],
    num_resamples: int,
    seed: int,
    mix: Callable[..., FloatArray] = GroupMixture.margins,
) -> dict[str, Any]:
    """[`~trl_pafo.evaluation.front.predict_front`] for margins of the held-out pairs under each group, of shape `(num_pairs, num_groups)`,
    which the method `mix` of the mixture makes one, with their histories ([`~trl_pafo.evaluation.mixture.held_out_histories`]).
    """
    group, repeated = held_out["group"][:], np.tile(margins, (DRAWS, 1))
    return predict_front(
        {tau: mix(mixture, repeated, margins, past, tau).reshape(DRAWS, len(held_out)) for tau in taus},
        {float(multiple): np.array(of_point) for multiple, of_point in path["margins"].items()},
        path["chosen"],
        (margins / mixture.temperature)[np.arange(len(held_out)), np.searchsorted(mixture.groups, group)],
        held_out["user"][:],
        group,
        mixture.groups,
        num_resamples=num_resamples,
        seed=seed,
    )
