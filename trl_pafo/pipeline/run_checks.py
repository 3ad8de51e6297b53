"""What a run cannot end with: all that options and data alone decide, told before its first training."""

import copy
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trl_pafo.baselines.p_rlhf import NUM_USER_TOKENS
from trl_pafo.baselines.table import USER_MODELS
from trl_pafo.data import checks
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.evaluation.front import FEWEST_USERS
from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS, TITLES, RunArguments
from trl_pafo.evaluation.mixture import num_shown, past_pairs_alone
from trl_pafo.models.loading import check_positions, positions_of
from trl_pafo.pipeline.prepare import longest_sequences
from trl_pafo.storage.canonical import canonical, default_of
from trl_pafo.trainer.cache_keys import DRAWING_OPTIONS, STUDENT_OPTIONS
from trl_pafo.trainer.config import PAFOConfig, check_visible_gpus
from trl_pafo.trainer.teacher import Teacher

logger = logging.getLogger(__name__)

_FLAG_OF = {
    "dtype": "--dtype",
    "torch_dtype": "--dtype",
    "attn_implementation": "--attn_implementation",
    "revision": "--model_revision",
    "quantization_config": "--load_in_4bit or --load_in_8bit",
}
"""Flags of TRL's ModelConfig, which decide every training of a run, by the names that `model_init_kwargs` has for the same."""


def check_run_options(run: RunArguments, args: PAFOConfig) -> None:
    """Raise [`ConfigError`] if an option of a run would be refused after the trainings, and warn of those without effect."""
    check_visible_gpus(args)
    students = [method for method in STUDENTS if method in run.methods]
    if args.teachers and not run.needs_teachers:
        raise ConfigError(
            "--teachers: no effect, as none of the methods has teachers. Leave it out, or add pafo or group_routed to --methods."
        )
    if args.num_history == 0 and (of_histories := [TITLES[m] for m in (*STUDENTS, *USER_MODELS) if m in run.methods]):
        raise ConfigError(
            f"--num_history 0 shows no histories, without which nothing is known of a user. Raise it, or leave {' and '.join(of_histories)} "
            "out of --methods."
        )
    if args.push_to_hub and not students:
        raise ConfigError(
            "--push_to_hub pushes the model of PAFO, and the methods have none. Add pafo to --methods, or leave it out."
        )
    if (args.eval_strategy != "no" and not args.best_checkpoint) or args.eval_on_start:
        raise ConfigError(
            f"--{'eval_on_start' if args.eval_on_start else 'eval_strategy'}: a run judges finished models, and its trainings have no pairs to evaluate "
            "on. Leave it out."
        )
    if of_model := [name for name in _FLAG_OF if name in (args.model_init_kwargs or {})]:
        raise ConfigError(
            f"--model_init_kwargs: {', '.join(of_model)} would decide the trainings from the base alone, not those that start from trained models, as a "
            f"student from its teachers. Give {', '.join(dict.fromkeys(_FLAG_OF[name] for name in of_model))} instead."
        )
    if args.per_device_eval_batch_size < 1:
        raise ConfigError(f"`per_device_eval_batch_size` must be at least 1, got {args.per_device_eval_batch_size}.")
    of_students = DRAWING_OPTIONS if "distilled_ensemble" in run.methods else STUDENT_OPTIONS
    unused: list[tuple[Any, str]] = [] if students else [(args, name) for name in of_students] + [(run, "student_learning_rate")]
    trains_teachers = run.needs_teachers and not args.teachers
    if not trains_teachers:
        of_teachers = ("teacher_start", "teacher_min_steps", "teacher_epochs", "teacher_folds", "student_start")
        unused += [(run, name) for name in of_teachers]
    elif run.teacher_folds > 1:  # margins of folds are no margins of a teacher, and are not kept
        unused += [(args, "teacher_margin_cache_dir")]
    if trains_teachers and args.max_steps > 0 and (run.teacher_epochs is not None or run.teacher_min_steps > args.max_steps):
        name = "teacher_min_steps" if run.teacher_epochs is None else "teacher_epochs"
        logger.warning("--%s: no effect beside --max_steps, which is for teachers, too.", name)
    if "personalized_bt" not in run.methods:
        unused += [(run, "reference_steps")]
    defaults = {name: default_of(options.__dataclass_fields__[name]) for options, name in unused}
    given = [f"--{name}" for options, name in unused if canonical(getattr(options, name)) != defaults[name]]
    if given:
        logger.warning("%s: no effect in this run, which trains no model that uses them.", ", ".join(given))


def check_group_names(run: RunArguments, given: Mapping[str, Teacher], train: Dataset) -> None:
    """Raise if methods with teachers find one group alone, or other groups than the teachers that are `given`."""
    groups = train.unique("group")
    if run.needs_teachers and len(groups) < 2:
        raise ConfigError(
            f"The training data have only one group ({groups[0]!r}), so there is nothing to distill for another. Give each row the "
            "group of its user, find groups in the pairs with --infer_groups, or leave the methods with teachers out."
        )
    if given:
        checks.check_groups(train, given, "The training data")


def check_run_data(
    data: DatasetDict,
    lengths: Mapping[str, NDArray[np.int64]],
    run: RunArguments,
    args: PAFOConfig,
    tokenizer: PreTrainedTokenizerBase,
    longest: int | None,
    given: Mapping[str, Teacher],
) -> None:
    """Raise if data, as [`~trl_pafo.pipeline.prepare.prepare`] wrote them, and options do not fit together, so that the run could
    not end.

    `lengths` are tokens of the longer sequence of each pair of each split, `longest` the number of positions of the model that
    everything starts from. The teachers that are `given` are not trained here.
    """
    num_pairs = count_by_group(data["train"])
    groups = sorted(num_pairs)
    check_group_names(run, given, data["train"])
    fits = lengths["train"] <= (args.max_length or np.inf)
    kept = count_by_group(data["train"].select(np.flatnonzero(fits)))
    for group in groups:
        if not kept[group] and (run.needs_teachers or not fits.any()):
            raise ConfigError(
                f"No training pair of the group {group!r} is within max_length={args.max_length} tokens. Raise `max_length`, or "
                "lower `num_history` or `history_max_tokens`."
            )
        if run.needs_teachers and args.dataloader_drop_last and kept[group] < args.pairs_at_once:
            raise ConfigError(
                f"The {kept[group]} training pairs of the group {group!r} are fewer than a batch of "
                f"{args.pairs_at_once}, and `dataloader_drop_last` drops smaller batches, so its teacher would not be trained. Leave that option out."
            )
    needy = [name for name in ("worst_group_bt", "teacher_mixture") if name in run.methods]
    if needy and "validation" not in data:
        raise ConfigError(
            f"{' and '.join(needy)}: chosen on held-out pairs, and none are held out. Raise `validation_share`, or leave the method out."
        )
    of_users = [TITLES[method] for method in USER_MODELS if method in run.methods]
    if of_users and not any(num_shown(data["train"].select(np.flatnonzero(fits)))):
        raise DataError(
            f"No training pair has a past pair, and {' and '.join(of_users)} learn from nothing else what users are like. Give users at least "
            "two pairs on different prompts, or leave these out of --methods."
        )
    held_out = ["validation"] if "validation" in data else []
    judged = ["test", *(held_out if "personalized_bt" in run.methods else [])]
    read_whole = ["train", *held_out, "test"] if of_users else ["test"] if "maxmin" in run.methods else []
    for name in read_whole:
        past, _ = past_pairs_alone(data[name])
        if len(past):  # where other methods cut them to their budget
            what = f"past pairs in the histories of the {name} data"
            check_positions(longest_sequences(past, tokenizer), longest, what, "the model", "past pair {}".format)
    for name in sorted({*judged, *read_whole} - {"train"}):
        check_positions(lengths[name], longest, f"pairs of the {name} data", "the model")
    if "p_rlhf" in run.methods:
        check_positions(
            lengths["test"] + NUM_USER_TOKENS, longest, "pairs of the test data with P-RLHF's tokens of users", "the model"
        )
    for group, teacher in given.items():
        teacher.read(data["train"].select([0]), tokenizer)  # one that was trained on texts cannot read the messages of a run
        own, positions = teacher.tokenizer, positions_of(teacher.config)
        for name in judged if set(OF_TEACHERS) & set(run.methods) else judged[1:]:
            alone = name == "validation" or "teacher_mixture" in run.methods
            rows = np.flatnonzero(alone | (np.asarray(data[name]["group"]) == group))
            found = lengths[name][rows]
            if own is not None:
                found = longest_sequences(data[name].select(rows), add_history_template(copy.deepcopy(own)))
            check_positions(found, positions, f"pairs of the {name} data", f"the teacher of {group}")
    _warn_of_unjudged(data, groups, run)


def _warn_of_unjudged(data: DatasetDict, groups: list[str], run: RunArguments) -> None:
    """Say for which groups nothing could be judged, since then nothing is distilled."""
    if not run.predicts_front or run.distill_anyway or not set(STUDENTS) & set(run.methods):
        return
    held_out = data["validation"] if "validation" in data else data["test"].select([])
    users = Counter(dict(zip(held_out["user"][:], held_out["group"][:], strict=True)).values())
    few = [f"{group} ({users[group]})" for group in groups if users[group] < FEWEST_USERS]
    if few:
        print(
            f"    Too few held-out users to judge what can be had for {', '.join(few)}, so nothing will be distilled. Hold out more pairs "
            "(--validation_share), or pass --distill_anyway true.",
            flush=True,
        )
