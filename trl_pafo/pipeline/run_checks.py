"""What a run cannot end with: all that options and data alone decide, told before its first training."""

import copy
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trl_pafo.data import checks
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import ID_COLUMNS, sequence_lengths, tokenize_pairs, tokenize_row
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.history_effect import STUDENTS
from trl_pafo.evaluation.methods import RunArguments
from trl_pafo.evaluation.teacher_gain import fewest_users
from trl_pafo.models.scoring import check_positions, positions_of
from trl_pafo.teachers.teacher import Teacher, check_teacher
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.samplers import check_budget

_TEXT_COLUMNS = ("prompt", "chosen", "rejected", "chat_template_kwargs")


def check_run_options(run: RunArguments, args: PAFOConfig) -> None:
    """Raise [`ConfigError`] if an option of a run has no effect, or would be refused after the trainings."""
    students = set(STUDENTS) & set(run.methods)
    if args.teachers and not run.needs_teachers:
        raise ConfigError(
            "--teachers: no effect, as none of the methods has teachers. Leave it out, or add pafo or group_routed to --methods."
        )
    if args.teachers and run.teacher_start != "base":
        raise ConfigError("--teacher_start: no effect on teachers that are given. Leave it or --teachers out.")
    if students and args.num_history == 0:
        raise ConfigError(
            f"--num_history 0 shows no histories, by which {' and '.join(sorted(students))} would tell whom to serve. Raise it, or leave "
            "them out of --methods."
        )
    if args.push_to_hub and not students:
        raise ConfigError(
            "--push_to_hub pushes the model of PAFO, and the methods have none. Add pafo to --methods, or leave it out."
        )
    if args.per_device_eval_batch_size < 1:
        raise ConfigError(f"`per_device_eval_batch_size` must be at least 1, got {args.per_device_eval_batch_size}.")


def check_run_data(
    data: DatasetDict,
    run: RunArguments,
    args: PAFOConfig,
    tokenizer: PreTrainedTokenizerBase,
    longest: int | None,
    given: Mapping[str, Teacher],
) -> None:
    """Raise if data and options do not fit together.

    Args:
        data ([`~datasets.DatasetDict`]):
            What [`~trl_pafo.pipeline.prepare.prepare`] wrote.
        run ([`RunArguments`]):
            Methods and teachers.
        args ([`PAFOConfig`]):
            The trainings.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Of the model that everything starts from.
        longest (`int`, *optional*):
            Number of its positions.
        given (`Mapping[str, Teacher]`):
            Teachers that are not trained here.

    Raises:
        ConfigError, DataError, TeacherError: If the run could not end.
    """
    groups = sorted(count_by_group(data["train"]))
    if given:
        checks.check_groups(data["train"], given, "The training data")
        for teacher in given.values():
            check_teacher(teacher, tokenizer)
    if run.needs_teachers and len(groups) < 2:
        raise DataError(
            f"The training data have one group alone ({groups[0]!r}), so there is nothing to distill for another. Give each row the group "
            "of its user, or leave the methods with teachers out."
        )
    _check_training_lengths(data["train"], groups, run, args, tokenizer)
    judged = ["test", *(["validation"] if run.judges_teachers and "validation" in data else [])]
    for name in judged:
        check_lengths(data[name], tokenizer, longest, f"the {name} data", "the model")
    for group, teacher in given.items():
        own = teacher.tokenizer
        positions = positions_of(teacher.config)
        for name in judged if "group_routed" in run.methods else judged[1:]:
            rows = data[name].select(np.flatnonzero(np.asarray(data[name]["group"]) == group))
            fitting = tokenizer if own is None else add_history_template(copy.deepcopy(own))
            check_lengths(rows, fitting, positions, f"the {name} data", f"the teacher of {group}")
    _warn_of_unjudged(data, groups, run)


def check_lengths(rows: Dataset, tokenizer: PreTrainedTokenizerBase, longest: int | None, what: str, whose: str) -> None:
    """Raise [`DataError`] if a pair has more tokens than a model has positions."""
    if longest is not None and len(rows):
        check_positions(_lengths(rows, tokenizer).max(axis=1), longest, f"pairs of {what}", whose)


def _check_training_lengths(
    train: Dataset, groups: Iterable[str], run: RunArguments, args: PAFOConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    lengths = _lengths(train, tokenizer).max(axis=1)
    fits = np.ones(len(train), dtype=bool) if args.max_length is None else lengths <= args.max_length
    kept = count_by_group(train.select(np.flatnonzero(fits)))
    for group in groups:
        if not kept[group] and (run.needs_teachers or not fits.any()):
            raise ConfigError(
                f"No training pair of the group {group!r} is within max_length={args.max_length} tokens. Raise `max_length`, or lower "
                "`num_history` or `history_max_tokens`."
            )
        if run.needs_teachers and args.dataloader_drop_last and kept[group] < args.per_device_train_batch_size:
            raise ConfigError(
                f"The {kept[group]} training pairs of the group {group!r} make no batch of {args.per_device_train_batch_size}, and "
                "`dataloader_drop_last` leaves smaller ones out, so that its teacher would learn nothing. Leave it out."
            )
    if args.max_tokens_per_batch is not None:
        # With shared prefixes a pair is one row, of which no more is known here than that it is no shorter than either sequence.
        check_budget(lengths[fits], 2 if args.prefix_sharing == "off" else 1, args.max_tokens_per_batch)


def _lengths(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """Tokens of both sequences of each pair, as the trainings and the evaluation read them."""
    texts = rows.select_columns([name for name in _TEXT_COLUMNS if name in rows.column_names])
    tokenized = tokenize_pairs(texts, tokenizer, title="given")
    if ID_COLUMNS[0] in tokenized.column_names:
        return sequence_lengths(tokenized)
    lengths = [[len(tokenize_row(tokenizer, row, side)) for side in checks.PAIR_COLUMNS] for row in texts]
    return np.array(lengths, dtype=np.int64).reshape(-1, 2)


def _warn_of_unjudged(data: DatasetDict, groups: Iterable[str], run: RunArguments) -> None:
    """Say which teachers nothing could judge, since then nothing is distilled."""
    if not run.judges_teachers or not set(STUDENTS) & set(run.methods):
        return
    held_out = data["validation"] if "validation" in data else data["test"].select([])
    users = Counter(dict(zip(held_out["user"][:], held_out["group"][:], strict=True)).values())
    least = fewest_users(run.teacher_min_gain)
    few = [f"{group} ({users[group]} users)" for group in groups if users[group] < least]
    if few:
        print(
            f"    Too few held-out users to judge the teacher of {', '.join(few)}: nothing will be distilled. Hold out more pairs "
            "(--validation_share), or pass --teacher_min_gain=-inf to distill unjudged teachers.",
            flush=True,
        )
