"""What a reward model does with the history: rewards of test pairs under the histories of every group.

Each pair of a sample is shown under its own user's history and under that of a user of each other group. A model that serves
users who want different things must judge the same two answers differently then; this is what tells whether it does. (Not from the paper.)
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from pyarrow.parquet import read_table

from trl_pafo.data.showings import HistoryDraw
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.evaluation.rewards import score_tokenized, tokenize_rendered
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.storage.files import replacing
from trl_pafo.storage.run_folder import MANIFEST

INSPECTION = "results/inspection.npz"
_FORMAT = 2
STUDENTS = ("pafo",)
"""Methods that distill teachers; the first that a run has is the one that is looked at."""


def inspect_run(folder: str | Path, *, pairs_per_group: int = 30, progress: bool = True) -> Path:
    """Write `results/inspection.npz` of a finished run, unless it is there already.

    The models are the reference and the student, if they are shown histories, and the teachers that the run trained.
    Rewards are computed in the dtype of the run, bfloat16 mixed precision or float32.

    Args:
        folder (`str` or `Path`):
            Folder of the run.
        pairs_per_group (`int`, *optional*, defaults to `30`):
            Test pairs of each group in the sample; all where there are fewer.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar a model.

    Returns:
        `Path`: The file. With `m` entries, one for each pair and history, it holds

        - `row`, int of shape `(m,)`: the row of `data/test.parquet`;
        - `group`, `shown`, str of shape `(m,)`: the group of the pair's user, and that of the history shown;
        - `rewards/{method}`, float32 of shape `(m, 2)`: of the chosen and of the rejected response, raw;
        - `rewards/teacher`, float32 of shape `(m, 2)`: under the teacher of the group whose history is shown, NaN without
          one;
        - `about`: JSON text with the options.

    Raises:
        ConfigError: If an option cannot be used.
        DataError: If the run lacks results, test pairs, models, histories or a second group.
        TeacherError: If a reward is not finite.
    """
    if pairs_per_group < 1:
        raise ConfigError(f"`pairs_per_group` must be at least 1, got {pairs_per_group}.")
    run = Path(folder)
    stages = _stages_of(run)
    done = {name: stage.get("digest") for name, stage in sorted(stages.items())}
    about = json.dumps({"format": _FORMAT, "pairs_per_group": pairs_per_group, "stages": done})
    path = run / INSPECTION
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["about"]) == about:
                return path
    models, teachers, bf16 = _find_models(run, stages)
    if not (run / "data/test.parquet").exists():
        raise DataError(f"{run} holds no data/test.parquet, so there are no pairs to look at.")
    test = Dataset(read_table(run / "data/test.parquet"))
    entries = _within(_entries(test, pairs_per_group), [*models.values(), *teachers.values()])

    def rewards(source: Path, rows: Dataset, title: str) -> np.ndarray:
        scorer = RewardScorer(source, bf16=bf16)
        desc = f"Inspecting {title}" if progress else None
        return np.stack(score_tokenized(scorer, tokenize_rendered(scorer, rows), desc=desc), axis=1)

    group = np.asarray(test["group"])[entries["row"]]
    shown = np.asarray(entries["shown"])
    arrays = {"about": np.asarray(about), "row": np.asarray(entries["row"]), "group": group, "shown": shown}
    for method, source in models.items():
        arrays[f"rewards/{method}"] = rewards(source, entries, TITLES.get(method, method))
    if teachers:
        arrays["rewards/teacher"] = np.full((len(entries), 2), np.nan, dtype=np.float32)
        for name, source in teachers.items():
            mine = np.flatnonzero(shown == name)
            if len(mine):
                arrays["rewards/teacher"][mine] = rewards(source, entries.select(mine), f"the teacher of {name}")
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def _stages_of(run: Path) -> dict[str, Any]:
    manifest = run / MANIFEST
    return json.loads(manifest.read_text(encoding="utf-8"))["stages"] if manifest.exists() else {}


def _find_models(run: Path, stages: dict[str, Any]) -> tuple[dict[str, Path], dict[str, Path], bool]:
    """Folders of the reference and the student by method, of the teachers by group, and whether the run was in bfloat16."""
    results = run / "results/results.json"
    if not results.exists():
        raise DataError(f"{run} is not a finished run of trl-pafo: it holds no results/results.json.")
    reference = json.loads(results.read_text(encoding="utf-8")).get("reference")
    wanted = [reference, next((m for m in STUDENTS if (run / "models" / m).is_dir()), None)]
    # Plain Bradley-Terry is never shown a history, so there is nothing to see.
    models = {m: run / "models" / m for m in wanted if m and m != "bradley_terry" and (run / "models" / m).is_dir()}
    if not models:
        raise DataError(f"{run} keeps no model that is shown histories (looked for in {run / 'models'}).")
    teachers = {n.removeprefix("teacher:"): run / s["output"] for n, s in stages.items() if n.startswith("teacher:")}
    bf16 = any(stage["inputs"].get("bf16") for stage in stages.values())
    return models, {group: source for group, source in teachers.items() if source.is_dir()}, bf16


def _entries(test: Dataset, pairs_per_group: int) -> Dataset:
    """The sample under its own and the other groups' histories, with the columns `row` and `shown`."""
    group = np.asarray(test["group"])
    groups = sorted(set(group.tolist()))
    if not {"history", "chat_template_kwargs"} <= set(test.column_names) or not any(test["history"]):
        raise DataError("The test pairs have no histories, so there is nothing to look at.")
    if len(groups) < 2:
        raise DataError("The test pairs are of one group, so there is no history of another to show.")
    rng = np.random.default_rng(0)
    picked = [rng.permutation(np.flatnonzero(group == name))[:pairs_per_group] for name in groups]
    rows = np.sort(np.concatenate(picked))
    sample = test.select(rows).add_column("row", rows.tolist())
    draw, pairs = HistoryDraw(sample, sample, seed=0, tau=1.0), [(row, row) for row in range(len(sample))]
    for place, name in enumerate(groups):
        others = np.flatnonzero(np.asarray(sample["group"]) != name).tolist()
        drawn = [(row, draw.donor(row, place, rng)) for row in others]
        pairs += [(row, donor) for row, donor in drawn if donor is not None]
    judged, donors = np.array(pairs).T
    histories = sample.select_columns(["history", "chat_template_kwargs"]).select(donors)
    entries = concatenate_datasets([sample.remove_columns(histories.column_names).select(judged), histories], axis=1)
    return entries.add_column("shown", np.asarray(sample["group"])[donors].tolist())


def _within(entries: Dataset, sources: Iterable[Path]) -> Dataset:
    """Entries that every model can read: a borrowed history may be longer than the pair's own."""
    scorers = [scorer for scorer in map(RewardScorer, sources) if scorer.positions is not None]
    if not scorers:
        return entries
    shortest = min(scorers, key=lambda scorer: scorer.positions)  # type: ignore[arg-type, return-value]
    lengths = [max(map(len, row.values())) for row in tokenize_rendered(shortest, entries)]
    kept = entries.select(np.flatnonzero(np.asarray(lengths) <= shortest.positions))
    if not len(kept):
        raise DataError(f"No pair of the sample is within the {shortest.positions} positions of {shortest.folder}.")
    return kept
