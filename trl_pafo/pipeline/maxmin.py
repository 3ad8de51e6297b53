"""MaxMin-RLHF in a run: which models are trained on whom, for how long, and what is kept of a training that was interrupted."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from trl_pafo.baselines.maxmin import NUM_ROUNDS, hard_em, serve, user_log_likelihood
from trl_pafo.data.history import without_history
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.evaluation.mixture import score_with_past
from trl_pafo.evaluation.rewards import ScoredPairs, score_rows
from trl_pafo.models.ranks import on_first
from trl_pafo.pipeline.stage import Stage
from trl_pafo.storage.files import link_folder, remove, write_text
from trl_pafo.storage.run_folder import KEPT

if TYPE_CHECKING:
    from trl_pafo.pipeline.run import Run

FACTS = "maxmin.json"
"""File beside the models: `num_users`, the training users of each, and `offset`, its mean reward on the training responses."""
_DONE = "trainer_state.json"
"""File that a training writes last."""


def maxmin(run: "Run", train: Dataset) -> Stage:
    """As many models as there are groups, though nothing else is known of groups: without histories, each for the student's steps in
    all, a part in each round from where it was.

    None of the training pairs is too long.
    """
    method, num_models = "maxmin", max(2, len(train.unique("group")))
    steps = math.ceil(run._steps / NUM_ROUNDS)
    users = sorted(train.unique("user"))
    of_pair = np.searchsorted(users, train["user"][:])

    def work(out: Path) -> None:
        alone = without_history(train)
        at: dict[int, Path] = {}
        scored: list[ScoredPairs] = []

        def train_further(model: int, mine: NDArray[Any], number: int) -> None:
            start, at[model] = at.get(model), out / KEPT / f"round_{number + 1}/model_{model + 1}"
            if not (at[model] / _DONE).exists():
                rows = train.select(np.flatnonzero(np.isin(of_pair, mine)))
                title = f"{TITLES[method]}, round {number + 1}, model {model + 1}"
                changes = {"max_steps": steps}
                run._train(
                    at[model], title, rows, start=None if start is None else str(start), with_history=False, changes=changes
                )
            on_first(lambda: remove(at[model] / KEPT))  # its checkpoints

        def log_likelihood() -> NDArray[np.float64]:
            desc = "Training pairs, model {}".format
            scored[:] = [score_rows(at[k], alone, desc=desc(k + 1), **run._scoring()) for k in range(num_models)]
            margins = [np.subtract(*pairs, dtype=np.float64) for pairs in scored]
            return user_log_likelihood(np.stack(margins, axis=1), of_pair)

        of_user = hard_em(train_further, log_likelihood, len(users), num_models, seed=run.args.seed)
        counts = np.bincount(of_user, minlength=num_models).tolist()
        print(f"    training users of each model: {', '.join(map(str, counts))}", flush=True)
        facts = {"num_users": counts, "offset": [float(np.mean(pairs, dtype=np.float64)) for pairs in scored]}

        def write() -> None:
            for model, folder in enumerate(folders_of(out, num_models)):
                link_folder(at[model], folder)
            write_text(out / FACTS, json.dumps(facts, indent=2) + "\n")

        on_first(write)

    inputs = run._inputs(run.model, method=method, num_models=num_models, num_rounds=NUM_ROUNDS, max_steps=steps)
    return Stage(method, f"models/{method}", inputs | run._inputs_of_scoring(), work, steps=num_models * NUM_ROUNDS * steps)


def folders_of(folder: str | Path, num_models: int) -> list[Path]:
    """Where the models are."""
    return [Path(folder) / f"model_{number:02}" for number in range(1, num_models + 1)]


def score_maxmin(folder: str | Path, rows: Dataset, **scoring: Any) -> ScoredPairs:
    """Score each row under the model that explains its history best, and without a history by the least reward of all
    ([`~trl_pafo.baselines.maxmin.serve`]). Rows are those of `trl-pafo prepare`, `scoring` as for
    [`~trl_pafo.evaluation.mixture.score_alone`].
    """
    offset = json.loads((Path(folder) / FACTS).read_text(encoding="utf-8"))["offset"]
    models = {path.name: str(path) for path in folders_of(folder, len(offset))}
    scored, past_margins, past = score_with_past(models, rows, **scoring)
    rewards = np.stack([np.stack(pairs, axis=1) for pairs in scored], axis=2)
    return ScoredPairs(*serve(rewards, past_margins, past, offset).T)
