"""What a reward model does with the history: rewards and hidden states of test pairs under the histories of every group.

Each pair of a sample is shown under its own user's history and under that of a user of each other group. A model that serves
users who want different things must judge the same two answers differently then; this is what tells whether it does. (Not from the paper.)
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from pyarrow.parquet import read_table

from trl_pafo.data.counterfactual import counterfactual_rows
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.methods import TITLES
from trl_pafo.models.base_models import longest_input
from trl_pafo.models.safe_loading import ADAPTER_CONFIG
from trl_pafo.models.scoring import load_reward_model, load_saved_tokenizer, pad_id_of, score_pairs
from trl_pafo.storage.files import replacing
from trl_pafo.storage.run_folder import MANIFEST

INSPECTION = "results/inspection.npz"
_FORMAT = 1
STUDENTS = ("pafo", "pafo_own_group")
"""Methods that distill teachers; the first that a run has is the one that is looked at."""


def inspect_run(
    folder: str | Path, *, pairs_per_group: int = 30, batch_size: int = 32, seed: int = 0, progress: bool = True
) -> Path:
    """Write `results/inspection.npz` of a finished run, unless it is there already.

    The models are the reference and the student, as far as they are shown histories, and the teachers that the run trained.
    Rewards are computed in the dtype of the run, bfloat16 mixed precision or float32.

    Args:
        folder (`str` or `Path`):
            Folder of the run.
        pairs_per_group (`int`, *optional*, defaults to `30`):
            Test pairs of each group in the sample; all where there are fewer.
        batch_size (`int`, *optional*, defaults to `32`):
            Sequences in a forward pass.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the sample and of whose histories are borrowed.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar a model.

    Returns:
        `Path`: The file. With `m` entries, one for each pair and history, it holds

        - `row`, int of shape `(m,)`: the row of `data/test.parquet`;
        - `group`, `shown`, str of shape `(m,)`: the group of the pair's user, and that of the history shown (`""`: the run has none);
        - `rewards/{method}`, float32 of shape `(m, 2)`: of the chosen and of the rejected response, raw;
        - `states/{method}`, float16 of shape `(m, hidden_size)`: the last hidden state of the chosen response at the pooled token;
        - `rewards/teacher`, float32 of shape `(m, 2)`: under the teacher of the group whose history is shown (of the pair's group
          where the run has none), NaN without one;
        - `about`: JSON text with the options.

    Raises:
        ConfigError: If an option cannot be used.
        DataError: If the run lacks results, test pairs or models.
        TeacherError: If a reward is not finite.
    """
    if pairs_per_group < 1 or batch_size < 1:
        raise ConfigError(f"`pairs_per_group` and `batch_size` must be at least 1, got {pairs_per_group} and {batch_size}.")
    run = Path(folder)
    stages = _stages_of(run)
    done = {name: stage.get("digest") for name, stage in sorted(stages.items())}
    options = {"pairs_per_group": pairs_per_group, "batch_size": batch_size, "seed": seed}
    about = json.dumps({"format": _FORMAT, **options, "stages": done})
    path = run / INSPECTION
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["about"]) == about:
                return path
    models, teachers, bf16 = _find_models(run, stages)
    if not (run / "data/test.parquet").exists():
        raise DataError(f"{run} holds no data/test.parquet, so there are no pairs to look at.")
    test = Dataset(read_table(run / "data/test.parquet"))
    entries = _within(_entries(test, pairs_per_group, seed), [*models.values(), *teachers.values()])

    def forward(source: Path, rows: Dataset, title: str) -> tuple[np.ndarray, np.ndarray]:
        return _forward(source, rows, batch_size, bf16, f"Inspecting {title}" if progress else None)

    group = np.asarray(test["group"])[entries["row"]]
    shown = np.asarray(entries["shown"])
    arrays: dict[str, np.ndarray] = {
        "about": np.asarray(about),
        "row": np.asarray(entries["row"]),
        "group": group,
        "shown": shown,
    }
    for method, source in models.items():
        arrays[f"rewards/{method}"], arrays[f"states/{method}"] = forward(source, entries, TITLES.get(method, method))
    if teachers:
        arrays["rewards/teacher"] = np.full((len(entries), 2), np.nan, dtype=np.float32)
        whose = shown if (shown != "").any() else group
        for name, source in teachers.items():
            mine = np.flatnonzero(whose == name)
            if len(mine):
                arrays["rewards/teacher"][mine] = forward(source, entries.select(mine), f"the teacher of {name}")[0]
    with replacing(path) as aside, open(aside, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return path


def _stages_of(run: Path) -> dict[str, Any]:
    manifest = run / MANIFEST
    return json.loads(manifest.read_text(encoding="utf-8"))["stages"] if manifest.exists() else {}


def _find_models(run: Path, stages: dict[str, Any]) -> tuple[dict[str, Path], dict[str, Path], bool]:
    """Folders of the reference and the student by method, of the teachers by group, and whether the run was in bfloat16."""
    results = run / "results/results.json"
    if not results.exists():
        raise DataError(f"{run} is no finished run of trl-pafo: it holds no results/results.json.")
    reference = json.loads(results.read_text(encoding="utf-8")).get("reference")
    wanted = [reference, next((m for m in STUDENTS if (run / "models" / m).is_dir()), None)]
    # Plain Bradley-Terry is never shown a history, so there is nothing to see.
    models = {m: run / "models" / m for m in wanted if m and m != "bradley_terry" and (run / "models" / m).is_dir()}
    if not models:
        raise DataError(f"{run} keeps no model that is shown histories (looked for in {run / 'models'}).")
    teachers = {n.removeprefix("teacher:"): run / s["output"] for n, s in stages.items() if n.startswith("teacher:")}
    bf16 = any(stages[m]["inputs"].get("bf16") for m in models if m in stages)
    return models, {group: source for group, source in teachers.items() if source.is_dir()}, bf16


def _entries(test: Dataset, pairs_per_group: int, seed: int) -> Dataset:
    """The sample under its own and the other groups' histories, with the columns `row` and `shown`."""
    group = np.asarray(test["group"])
    groups = sorted(set(group.tolist()))
    rng = np.random.default_rng(seed)
    picked = [rng.permutation(np.flatnonzero(group == name))[:pairs_per_group] for name in groups]
    rows = np.sort(np.concatenate(picked))
    sample = test.select(rows).add_column("row", rows.tolist())
    if not {"history", "chat_template_kwargs"} <= set(test.column_names) or not any(sample["history"]):
        return sample.add_column("shown", [""] * len(sample))
    entries = counterfactual_rows(sample, groups, 1.0, seed) if len(groups) > 1 else sample
    return entries.add_column("shown", entries["group"][:])


def _within(entries: Dataset, sources: Sequence[Path]) -> Dataset:
    """Entries that every model can read: a borrowed history may be longer than the pair's own."""
    limits = {}
    for source in sources:
        if not (source / ADAPTER_CONFIG).exists() and (longest := longest_input(str(source))):
            limits[source] = longest
    if not limits:
        return entries
    source = min(limits, key=lambda s: limits[s])
    lengths = [max(map(len, pair)) for pair in zip(*_tokenize(load_saved_tokenizer(source), entries), strict=True)]
    kept = entries.select(np.flatnonzero(np.asarray(lengths) <= limits[source]))
    if not len(kept):
        raise DataError(f"No pair of the sample is within the {limits[source]} positions of {source}.")
    return kept


def _tokenize(tokenizer: Any, entries: Dataset) -> tuple[list[list[int]], list[list[int]]]:
    if "chat_template_kwargs" in entries.column_names:
        add_history_template(tokenizer)
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    for number, row in enumerate(entries):
        for name, ids in zip(("chosen", "rejected"), sides, strict=True):
            ids.append(tokenize_row(tokenizer, row, name, f"Row {number}"))
    return sides


def _forward(source: Path, entries: Dataset, batch_size: int, bf16: bool, desc: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of shape `(m, 2)`, and hidden states of the chosen responses of shape `(m, hidden_size)`."""
    tokenizer = load_saved_tokenizer(source)
    sides = _tokenize(tokenizer, entries)
    device = PartialState().device
    model = load_reward_model(source).to(device)
    pad = pad_id_of(model.config, tokenizer)
    with pooled_states(model, pad) as states:
        rewards = score_pairs(
            model,
            *sides,
            pad,
            batch_size=batch_size,
            device=device,
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            desc=desc,
        )
    return np.stack(rewards, axis=1), np.stack([states[tuple(ids)] for ids in sides[0]])


@contextmanager
def pooled_states(model: Any, pad_token_id: int) -> Iterator[dict[tuple[int, ...], np.ndarray]]:
    """While it is open, keeps the last hidden state of each sequence at the pooled token.

    That is the last token that is no padding where the head scores every position, as decoders do, and else the first ([CLS]), as
    encoders do.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Sequence classification model with one label.
        pad_token_id (`int`):
            Its pad id.

    Yields:
        `dict`: The token ids of a sequence, without padding, to a float16 array of shape `(hidden_size,)`.
    """
    kept: dict[tuple[int, ...], np.ndarray] = {}
    read: dict[str, torch.Tensor] = {}

    def at_backbone(module: torch.nn.Module, args: tuple, output: Any) -> None:
        read["states"] = output.last_hidden_state.detach()

    def at_head(module: torch.nn.Module, args: tuple, output: torch.Tensor) -> None:
        read["scores"] = output.detach()

    def at_model(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        ids, mask, states = kwargs["input_ids"], kwargs["attention_mask"], read.pop("states")
        place = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        if read.pop("scores").dim() == 3:
            place = ((ids != pad_token_id).int() * torch.arange(ids.shape[1], device=ids.device)).argmax(-1)
        pooled = states[torch.arange(len(ids), device=ids.device), place]
        for sequence, seen, state in zip(ids.tolist(), mask.sum(-1).tolist(), pooled.half().cpu().numpy(), strict=True):
            kept[tuple(sequence[:seen])] = state

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    heads = [module for module in inner.modules() if isinstance(module, torch.nn.Linear) and module.out_features == 1]
    handles = [head.register_forward_hook(at_head) for head in heads]
    handles.append(inner.base_model.register_forward_hook(at_backbone))
    handles.append(model.register_forward_hook(at_model, with_kwargs=True))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
