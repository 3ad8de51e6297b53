"""Rewards of pairs under saved models, and what they say about groups and users."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate import PartialState
from datasets import Dataset

from trl_pafo.data.groups import largest_and_smallest
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.sources.benchmarks import load_benchmark
from trl_pafo.data.sources.files import load_pairs
from trl_pafo.data.sources.judgments import REWARDS, ROW
from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.reward_sources import check_models, columns_in, name_sources, score_sources
from trl_pafo.evaluation.rewards import ScoredPairs
from trl_pafo.metrics import compare, fairness_summary, pair_correctness, preference_score, win_rates
from trl_pafo.metrics.verdict import fewest_resamples
from trl_pafo.models.safe_loading import identity_of_folder, local_folder
from trl_pafo.models.scoring import RewardScorer
from trl_pafo.storage.filenames import folder_names
from trl_pafo.storage.files import json_ready, new_folder, write_text

OWN_MEASURES: dict[str, Callable[[Any, Any], dict[str, float]]] = {
    "personalized_rewardbench": win_rates,
    "personal_rewardbench": lambda margins, _: preference_score(margins),
}
"""What the authors of each benchmark report, from the margins and groups of its pairs."""


def verdict_of(
    scored: ScoredPairs, reference: ScoredPairs, rows: Dataset, sources: Sequence[Any], why_same: str = "", seed: int = 0
) -> dict[str, Any]:
    """The verdict; that two models are one is said by their files, not by their rewards alone."""
    margins, of_reference = (pairs.chosen - pairs.rejected for pairs in (scored, reference))
    verdict = compare(
        pair_correctness(margins),
        pair_correctness(of_reference),
        _column(rows, "user"),
        _column(rows, "group"),
        margins=margins,
        reference_margins=of_reference,
        unit=_units(rows),
        num_resamples=max(2000, fewest_resamples(max(1, len(set(_column(rows, "group") or ()))))),
        seed=seed,
    )
    folders = [local_folder(source) for source in sources if isinstance(source, str)]
    if verdict.verdict == "same" and len(folders) == 2 and len(set(map(identity_of_folder, folders))) == 1:
        verdict = replace(verdict, sentence=f"The same model{f': {why_same}' if why_same else ''}.")
    return asdict(verdict)


def summary_of(scored: ScoredPairs, rows: Dataset, num_resamples: int, seed: int = 0) -> dict[str, Any]:
    margins = scored.chosen - scored.rejected
    return fairness_summary(
        pair_correctness(margins),
        _column(rows, "user"),
        _column(rows, "group"),
        support=_column(rows, "support_rate") if "user" in rows.column_names else None,
        unit=_units(rows),
        num_resamples=num_resamples,
        seed=seed,
    )


def write_rewards(out: Path, name: str, rows: Dataset, scored: ScoredPairs) -> None:
    """`<name>.jsonl` with user, group and raw rewards of each pair, and the number of its row where that is known."""
    nobody: list[Any] = [None] * len(rows)
    numbers = {"row": rows[ROW][:]} if ROW in rows.column_names else {}
    columns = (
        *numbers.values(),
        _column(rows, "user") or nobody,
        _column(rows, "group") or nobody,
        scored.chosen.tolist(),
        scored.rejected.tolist(),
    )
    names = (*numbers, "user", "group", "reward_chosen", "reward_rejected")
    lines = [json.dumps(dict(zip(names, values, strict=True))) + "\n" for values in zip(*columns, strict=True)]
    write_text(out / f"{name}.jsonl", "".join(lines))


def _column(rows: Dataset, name: str) -> list[Any] | None:
    return rows[name][:] if name in rows.column_names else None


def _units(rows: Dataset) -> list[Any] | None:
    """The prompts of each person, where pairs of known people are held out. A `unit` that does not begin with its user is of somebody else,
    such as that of a hospital, and says nothing of what is drawn by itself."""
    units, users = _column(rows, "unit"), _column(rows, "user")
    if units is None or users is None:
        return None
    return units if all(str(unit).startswith(f"{user}, ") for unit, user in zip(units, users, strict=True)) else None


def evaluate_models(
    models: Any,
    data: str | Path | pd.DataFrame | Dataset,
    *,
    reference: Any = None,
    split: str | None = None,
    benchmark: str | None = None,
    columns: Mapping[str, str] | list[str] | None = None,
    preferred_values: Mapping[str, Any] | list[str] | None = None,
    minority_quantile: float | None = None,
    minority_threshold: float | None = None,
    num_history: int | None = None,
    reference_num_history: int | None = None,
    history_max_tokens: int | None = None,
    history_fields: Sequence[str] | None = None,
    batch_size: int = 32,
    bf16: bool = False,
    num_resamples: int = 1000,
    output_dir: str | Path | None = None,
    processes: PartialState | None = None,
) -> dict[str, Any]:
    """Score pairs under reward models of any training, and say what that means for groups and users.

    Of data without a column `group` nothing is said of groups, unless they are made of support rates; of data without a `user` nothing of
    users: each pair then counts as another person's.

    Args:
        models (`str`, `Path`, `tuple[str, ...]`, `Callable`, `list` or `dict` of these):
            Folders or Hub ids of reward models or adapters; two columns of the table, with the rewards of the first response (chosen, or A)
            and of the second; functions in the shape of TRL's, `f(prompts, completions, **columns) -> list[float]`. A `dict` names them.
        data (`str`, `Path`, `pandas.DataFrame` or [`~datasets.Dataset`]):
            Rows of judgments, or where they are: a folder of `trl-pafo prepare`, a file, a Hub id; see
            [`~trl_pafo.data.sources.files.load_pairs`].
        reference (*optional*):
            The model that the others are compared with: one of them or its name, or a further folder or Hub id. By default the first of
            several.
        split (`str`, *optional*):
            Split of a folder or Hub id, by default `"test"`.
        benchmark (`str`, *optional*):
            `data` is a public benchmark in its own schema, see [`~trl_pafo.data.sources.benchmarks.load_benchmark`].
        columns, preferred_values (*optional*):
            What the columns and their values are, as in [`~trl_pafo.data.sources.arguments.DataArguments`].
        minority_quantile, minority_threshold (`float`, *optional*):
            Make groups of the users' support rates, where the data have none.
        num_history, history_max_tokens, history_fields (*optional*):
            In place of what the models remember of their training.
        reference_num_history (`int`, *optional*):
            Past pairs that the reference is shown, in place of `num_history`: a model of others is then compared as it was trained.
        batch_size (`int`, *optional*, defaults to `32`):
            Pairs in a forward pass.
        bf16 (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16 mixed precision.
        num_resamples (`int`, *optional*, defaults to `1000`):
            Bootstrap resamples over users.
        output_dir (`str` or `Path`, *optional*):
            New folder for `results.json` and the rewards of each pair.
        processes ([`~accelerate.PartialState`], *optional*):
            All of them call this with the same arguments, and share the forward passes of saved models; the first alone writes.

    Returns:
        `dict`, ready for JSON: `methods` (a summary a model), `verdicts` against the `reference`, `majority` and `minority`, `models` (what
        each is), `dataset` and what was read of it (`read`); of a `benchmark` its name, and `own_measures`, what its authors report, a
        model.

    Raises:
        ConfigError, DataError, TeacherError: If an option, a model, its rewards or the data cannot be used.

    Example:

    ```python
    >>> from trl_pafo.evaluation import evaluate_models

    >>> def short(prompts, completions, **columns):
    ...     return [-len(completion) for completion in completions]

    >>> results = evaluate_models({"theirs": "their-model", "short": short}, "survey.csv", minority_quantile=0.2)
    >>> print(results["verdicts"]["short"]["sentence"])
    ```
    """
    for name, value in {"batch_size": batch_size, "num_resamples": num_resamples}.items():
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1, got {value}.")
    check_models(models, reference)
    how = {"num_history": num_history, "history_max_tokens": history_max_tokens, "history_fields": history_fields, "bf16": bf16}
    table: dict[str, Any] = {"columns": columns, "preferred_values": preferred_values}
    if benchmark and (named := [f"--{name}" for name, value in table.items() if value]):
        raise ConfigError(f"{', '.join(named)}: no effect on a benchmark, whose columns are known. Leave it out.")
    table |= {"minority_quantile": minority_quantile, "minority_threshold": minority_threshold}
    if processes is not None and not processes.is_main_process:
        output_dir = None
    with nullcontext() if output_dir is None else new_folder(Path(output_dir)) as out:
        given, part = data, split
        if benchmark:
            if not isinstance(data, str | Path):
                raise ConfigError("A benchmark is read from a folder, file or Hub id. Give its path, or leave out `benchmark`.")
            given, part = load_benchmark(benchmark, data, split), None
        rows, read = load_pairs(given, part, scores=columns_in(models), **table)
        what = f"The data {data}" if isinstance(data, str | Path) else "The table"
        user, group = _column(rows, "user"), _column(rows, "group")
        has_history = "history" in rows.column_names
        if num_history and not {"history", "chat_template_kwargs"} & set(rows.column_names):
            raise ConfigError(
                f"--num_history {num_history}: no effect on {what[0].lower()}{what[1:]}, whose rows have no `history`. Give a folder of "
                "`trl-pafo prepare`, which makes histories of the users' other pairs, or leave it out."
            )
        num_in_table = len(rows[REWARDS][0]) if REWARDS in rows.column_names else 0
        sources, compared = name_sources(models, reference, num_in_table)
        of_reference, how_reference = sources.get(compared or ""), how
        if reference_num_history is not None:
            if not isinstance(of_reference, str):
                raise ConfigError(
                    "--reference_num_history is for a --reference that is a saved model. Name one, or leave it out."
                )
            how_reference = {**how, "num_history": reference_num_history}

        def scorer_of(source: str) -> RewardScorer:
            return _scorer_of(source, how_reference if source == of_reference else how, len(sources) > 1, has_history)

        scored, folders = score_sources(sources, rows, what, scorer_of, batch_size, processes)
        majority, minority = (None, None) if group is None else largest_and_smallest(group, user)
        margins = {name: pairs.chosen - pairs.rejected for name, pairs in scored.items()}
        own_measures = {name: OWN_MEASURES[benchmark](values, group) for name, values in margins.items()} if benchmark else {}
        results = json_ready(
            {
                "dataset": (str(data) if isinstance(data, str | Path) else "a table") + (f", split {split}" if split else ""),
                "read": read,
                "majority": majority,
                "minority": minority,
                "models": {name: s if isinstance(s, str) else vars(s) for name, s in sources.items()},
                "reference": compared,
                **({"benchmark": benchmark, "own_measures": own_measures} if benchmark else {}),
                "methods": {name: summary_of(pairs, rows, num_resamples) for name, pairs in scored.items()},
                "verdicts": {
                    name: verdict_of(pairs, scored[compared], rows, [str(folders[n]) for n in (name, compared) if n in folders])
                    for name, pairs in scored.items()
                    if compared is not None and name != compared
                },
            }
        )
        if out is not None:
            out.mkdir()
            for name, file in folder_names(scored).items():
                write_rewards(out, file, rows, scored[name])
            write_text(out / "results.json", json.dumps(results, indent=2, default=str) + "\n")
    return results


def _scorer_of(source: str, how: Mapping[str, Any], beside_others: bool, has_history: bool) -> RewardScorer:
    """Reads rows as the model was trained. One that was trained without histories, beside others, or remembers nothing is shown none."""
    scorer = RewardScorer.from_pretrained(source, **how)
    trained = scorer.renderer.trained
    if beside_others and trained is not None and trained["num_history"] == 0:
        scorer.renderer = InputRenderer(scorer.tokenizer, 0)
    elif trained is None and has_history and how["num_history"] is None:
        warnings.warn(
            f"{source} does not say how it was trained, so it is shown no past pairs: text that it has never seen could only confuse it. If it was "
            "trained with histories, say how many to show with --num_history (of a reference alone: --reference_num_history).",
            stacklevel=2,
        )
        scorer.renderer = InputRenderer(scorer.tokenizer, 0)
    return scorer
