"""Results in the shape of RewardBench's command line, with the group and the user of each pair.

`rewardbench` (Lambert et al., 2024, https://github.com/allenai/reward-bench) leaves two files for a model: `<model>.json`
with the accuracy, and `<model>_outputs.jsonl` with a line for each pair. What reads those reads these. What differs:

- a tie is half a right answer, as everywhere in this package, where RewardBench counts it as wrong;
- the accuracies of subsets (`extra_results`) are those of the groups, and `extra_counts` holds their numbers of pairs;
- a model name stays within one folder: `org/model` becomes `org--model.json`, not a file in a folder `org`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from trl_pafo.data.labels import normalize_labels
from trl_pafo.errors import ConfigError, DataError, RunFolderError
from trl_pafo.metrics import group_accuracy, pair_correctness
from trl_pafo.metrics.accuracy import FloatArray
from trl_pafo.storage.run_folder import write_text

# A file name may have 255 bytes; `_outputs.jsonl` and the ending of a file written aside come on top.
_LONGEST_NAME = 200


def write_rewardbench(
    folder: str | Path,
    model_name: str,
    rows: Iterable[Mapping[str, Any]],
    chosen_rewards: ArrayLike,
    rejected_rewards: ArrayLike,
    *,
    tokenizer: str | None = None,
    chat_template: str | None = None,
) -> tuple[Path, Path]:
    """Write `<model>.json` and `<model>_outputs.jsonl`, each aside and then renamed, the first one last.

    Args:
        folder (`str` or `Path`):
            Where to; made if it does not exist.
        model_name (`str`):
            Name or path of the model. It stands in the files as it is; see [`file_name`] for their names.
        rows (`Iterable` of mappings, one a pair):
            Each with `text_chosen` and `text_rejected`, the texts **as the model read them**: chat template applied,
            history included; so they are in RewardBench's files too, and only they explain a reward. Further, as
            far as there are any, `group` (in all rows or in none), `prompt` (text) and `user`. All else is passed through, as
            RewardBench does; give the plain `chosen` and `rejected` along if they are wanted.
        chosen_rewards (array of shape `(num_pairs,)`):
            Rewards of the chosen responses, raw (no sigmoid), in reward units.
        rejected_rewards (array of shape `(num_pairs,)`):
            Rewards of the rejected responses.
        tokenizer (`str`, *optional*, defaults to `model_name`):
            Name or path of the tokenizer.
        chat_template (`str`, *optional*):
            Name of the chat template; `None` for the tokenizer's.

    Returns:
        The paths of the two files.

    Raises:
        ConfigError: If the model name makes no file name.
        DataError: If there is no pair, a row lacks something, or the rewards are not finite or not one a row.
        RunFolderError: If one of the files exists.
    """
    name = file_name(model_name)
    scores, outputs = Path(folder) / f"{name}.json", Path(folder) / f"{name}_outputs.jsonl"
    for path in (scores, outputs):
        if path.exists():
            raise RunFolderError(f"{path} exists already. Choose another folder or `model_name`; nothing is overwritten.")
    chosen = _rewards(chosen_rewards, "chosen_rewards")
    rejected = _rewards(rejected_rewards, "rejected_rewards")
    rows = [_checked_row(row, number) for number, row in enumerate(rows, 1)]
    if not rows or not len(rows) == len(chosen) == len(rejected):
        raise DataError(
            f"There are {len(rows)} rows, {len(chosen)} rewards of chosen and {len(rejected)} of rejected responses; give one "
            "of each a pair, and at least one pair."
        )
    correct = pair_correctness(chosen - rejected)
    groups, users = (
        normalize_labels([row.get(name) for row in rows], name, "The rows", missing="keep") for name in ("group", "user")
    )
    has_groups = any(groups)
    if has_groups and None in groups:
        raise DataError(f"Row {groups.index(None) + 1}: `group` is missing, but other rows have one. Give it to all or to none.")
    lines = []
    columns = (rows, groups, users, correct.tolist(), chosen.tolist(), rejected.tolist())
    for row, group, user, result, a, b in zip(*columns, strict=True):
        line = {
            "prompt": row.get("prompt"),
            "results": int(result) if result in (0, 1) else result,
            "scores_chosen": a,
            "scores_rejected": b,
            "text_chosen": row["text_chosen"],
            "text_rejected": row["text_rejected"],
            "group": group,
            "user": user,
        }
        # NaN, as in a support rate that nobody knows, is no JSON.
        rest = {key: value for key, value in row.items() if key not in line}
        line |= {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in rest.items()}
        lines.append(json.dumps(line, default=str) + "\n")
    summary = {
        "accuracy": float(correct.mean()),
        "num_prompts": len(rows),
        "model": model_name,
        "ref_model": None,
        "tokenizer": model_name if tokenizer is None else tokenizer,
        "chat_template": chat_template,
        "extra_results": group_accuracy(correct, groups) if has_groups else {},
        "extra_counts": dict(sorted(Counter(groups).items())) if has_groups else {},
    }
    scores.parent.mkdir(parents=True, exist_ok=True)
    write_text(outputs, "".join(lines))
    write_text(scores, json.dumps(summary, indent=2) + "\n")
    return scores, outputs


def file_name(model_name: str) -> str:
    """The name of a model as that of a file: `org/model` becomes `org--model`, as in the Hub's cache.

    Letters, digits, `_`, `-` and `.` stay, anything else becomes `_`. Dots and hyphens at the ends go, so that no name
    leads to another folder or hides the file.

    Raises:
        ConfigError: If nothing is left, or too much.
    """
    name = re.sub(r"[^\w.-]", "_", re.sub(r"[/\\]+", "--", model_name)).strip(".-")
    if not name or len(name.encode()) > _LONGEST_NAME:
        raise ConfigError(f"`model_name` {model_name!r} makes no file name; give one of 1 to {_LONGEST_NAME} letters or digits.")
    return name


def _rewards(values: ArrayLike, name: str) -> FloatArray:
    rewards = np.asarray(values, dtype=np.float64)
    if rewards.ndim != 1 or not np.isfinite(rewards).all():
        raise DataError(
            f"`{name}` must be finite and of shape (num_pairs,), got shape {rewards.shape} with "
            f"{int((~np.isfinite(rewards)).sum())} NaN or infinite values. Score these pairs again, in float32."
        )
    return rewards


def _checked_row(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
    for name in ("text_chosen", "text_rejected"):
        if not isinstance(row.get(name), str):
            raise DataError(f"Row {number}: `{name}` must be the text that the model read, got {row.get(name)!r:.60}.")
    if not isinstance(row.get("prompt", ""), str | None):
        raise DataError(f"Row {number}: `prompt` must be a text, got {row['prompt']!r:.60}. Join the contents of its messages.")
    return row
