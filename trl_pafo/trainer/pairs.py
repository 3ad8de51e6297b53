"""PairPreparer: preference pairs as rows of token ids, checked before a model is loaded. It knows no model and no trainer."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakSet

import numpy as np
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import get_dataset_column_names, is_conversational

from trl_pafo.data import HISTORY_FIELDS, checks
from trl_pafo.data.group_mixture import GroupMixture
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.history import HistoryCutter, is_rendered, remember_rendering, remembered, render_history, rows_as_messages
from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.data.named_groups import forget_groups, group_line, name_groups, plain_rows, remember_groups, remembered_groups
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import rows_within, tokenize_pairs
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.losses import ONE_SIDED
from trl_pafo.trainer.samplers import is_tokenized
from trl_pafo.trainer.teacher import Teacher, check_gives_rewards, check_teacher

logger = get_logger(__name__)

_TRAIN = "The training dataset"
_MARGINS = ("teacher_margin", "teacher_margins")
_LIKELIHOOD = "history_log_likelihood"


@dataclass
class TrainingRows:
    """
    The training pairs that are not too long, row by row, for teachers and for showings under drawn histories: as they were given,
    and as the chat template reads them, with their own history.
    """

    given: Dataset
    messages: Dataset


class PairPreparer:
    """
    Preference pairs as rows of token ids: [`check`] the datasets of a trainer, then [`prepare`] each of them.

    A history is rendered into the prompt by the chat template. `args` say what is shown of it; `teachers` are those of the groups.
    """

    def __init__(self, args: PAFOConfig, teachers: Mapping[str, Teacher] | None = None):
        self.args, self.groups = args, list(teachers or ())
        self._teachers = teachers or {}
        self.distills = False
        """Whether the training rows have margins of teachers, or get them."""
        self.draws_donors = False
        """Whether training pairs are shown under histories of other users."""
        self.names_groups = False
        """Whether the prompts of the training pairs name a group in place of a history."""
        self.rows: TrainingRows | None = None
        """What teachers and showings need of the training pairs; `None` where they need nothing."""
        self.dropped: dict[str, Counter[str]] = {}
        """Pairs dropped because they are longer than `max_length`, by dataset and group."""
        self._train: Any = None
        self._checked: WeakSet[Any] = WeakSet()

    def check(self, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
        """The datasets with groups and users as texts; rows of a stream are checked as they come. What takes no look at the texts comes first.

        Raises:
            DataError: If a dataset is none or has gaps, or its columns do not fit each other or the options.
            TeacherError: If groups and teachers do not match, or a teacher is no reward model.
            ConfigError: If an option does not fit the dataset.
        """
        if train_dataset is not None:
            checks.check_dataset(train_dataset, "train_dataset")
            columns = get_dataset_column_names(train_dataset)
            self.distills = self.args.alpha < 1 and bool(self.groups or {*_MARGINS} & {*columns})
            of_groups = self.distills and "teacher_margin" not in columns
            self.names_groups = of_groups and self.args.conditioning == "named"
            self.draws_donors = (
                of_groups and self.args.conditioning in ("counterfactual", "posterior") and self.args.num_history != 0
            )
            if (self.draws_donors or self.names_groups) and self.args.distillation_loss in ONE_SIDED:
                logger.warning(
                    f"distillation_loss={self.args.distillation_loss!r} is one-sided: a teacher that prefers the rejected response asks nothing of the "
                    "student, so it does not learn where groups differ. Use 'bce', or set conditioning='own'."
                )
            if not isinstance(train_dataset, Dataset):
                self._check_stream(columns)
            train_dataset = normalize_columns(train_dataset, _TRAIN, ["group"] if of_groups else [])
            if self.distills and self._teachers:
                self._match_teachers(train_dataset, columns)
            train_dataset = self._look_at(train_dataset, _TRAIN)
        if isinstance(eval_dataset, dict):
            eval_dataset = {name: self._look_at_evaluated(rows, name) for name, rows in eval_dataset.items()}
        elif eval_dataset is not None:
            eval_dataset = self._look_at_evaluated(eval_dataset, "eval")
        if isinstance(train_dataset, Dataset):
            self._check_rows(train_dataset, columns)
        self._train = train_dataset
        return train_dataset, eval_dataset

    def _look_at_evaluated(self, dataset: Any, name: str) -> Any:
        checks.check_dataset(dataset, "eval_dataset" if name == "eval" else f"eval_dataset[{name!r}]")
        return self._look_at(normalize_columns(dataset, _title(name)), _title(name))

    def _look_at(self, dataset: Any, what: str) -> Any:
        if isinstance(dataset, Dataset):
            checks.check_filled(dataset, what)
        else:
            dataset = checks.filled_stream(dataset, what)
            _check_history_of_stream(_first(dataset))
        self._checked.add(dataset)
        return dataset

    def _check_stream(self, columns: Collection[str]) -> None:
        if self.distills and "teacher_margin" not in columns:
            raise DataError(
                f"{_TRAIN} is a stream, whose pairs no teacher can score before the training, and which lends no histories. Load it "
                "without streaming, or add what each pair is to learn as a `teacher_margin` column."
            )
        if self.args.min_num_history is not None:
            raise ConfigError(
                f"min_num_history={self.args.min_num_history} draws histories anew at each showing, which a stream cannot do. Load the "
                "dataset without streaming, or leave it out."
            )

    def _match_teachers(self, dataset: Dataset, columns: Collection[str]) -> None:
        if sources := [name for name in _MARGINS if name in columns]:
            _refuse_several([*sources, "teachers"])
        checks.check_groups(dataset, self.groups, _TRAIN)
        for teacher in self._teachers.values():
            check_gives_rewards(teacher)

    def _check_rows(self, dataset: Dataset, columns: Collection[str]) -> None:
        args = self.args
        num_with_history = 0
        if _has_history(dataset):
            if "chosen_ids" not in columns:
                checks.check_columns(columns, ["prompt"], f"{_TRAIN} has a `history` column, so it needs an explicit prompt; it")
            if args.num_history != 0 and not self.names_groups:  # what is rendered already has the fields that it shows
                given = "history" in columns
                rendered = "chat_template_kwargs" in columns  # by `prepare`, which says of whom nothing is known
                fields = HISTORY_FIELDS if given else ()
                num_with_history = checks.check_history(dataset, _TRAIN, fields, may_lack=rendered or not given)
        if args.min_num_history is not None and "chosen_ids" in columns:
            raise DataError(
                f"{_TRAIN} is tokenized, so the number of past pairs cannot be drawn. Give messages, or leave out `min_num_history`."
            )
        if not self.distills:
            return
        checks.check_pairs(dataset, _TRAIN)
        if len(sources := [name for name in _MARGINS if name in columns]) > 1:
            _refuse_several(sources)
        if "teacher_margin" in columns:
            return
        if "teacher_margins" in columns:
            self.groups = checks.check_group_numbers(dataset, "teacher_margins", _TRAIN)
            if self.draws_donors and args.conditioning == "posterior":
                checks.check_columns(columns, [_LIKELIHOOD], f"{_TRAIN} (conditioning='posterior' without `teachers`)")
                checks.check_group_numbers(dataset, _LIKELIHOOD, _TRAIN)
            checks.check_groups(dataset, self.groups, _TRAIN)
        if self.names_groups and "chosen_ids" in columns:
            raise DataError(
                f"{_TRAIN} is tokenized, so its prompts cannot name a group. Give messages, or set conditioning='own'."
            )
        if args.num_history == 0 or self.names_groups:
            return
        if self.draws_donors:
            fix = "or set conditioning='own'"
            if "chosen_ids" in columns:
                raise DataError(
                    f"{_TRAIN} is tokenized, so its pairs cannot be shown under other histories. Give messages, {fix}."
                )
            checks.check_personalized(num_with_history > 0, columns, _TRAIN)
            checks.check_columns(columns, ["history"], f"{_TRAIN} (to be shown under other histories; {fix})")
        elif "chosen_ids" not in columns:
            checks.check_personalized(num_with_history > 0, columns, _TRAIN)

    def check_teachers(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise [`TeacherError`] where a teacher cannot score the training pairs, or not whatever history they have."""
        if not self.distills or not self._teachers:
            return
        is_tokenized = "chosen_ids" in get_dataset_column_names(self._train)
        for teacher in self._teachers.values():
            check_teacher(teacher, tokenizer, shares_tokens=is_tokenized, alone=self.draws_donors or self.names_groups)

    def prepare(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str, tokenize_rest: Callable[..., Any]
    ) -> Dataset | IterableDataset:
        """Rows with `chosen_ids` and `rejected_ids`, those longer than `max_length` left out and counted by group.

        The dataset is one that was checked, the training dataset first, or one that is evaluated later; its name is `"train"`,
        `"eval"`, or that of an evaluation dataset. The tokenizer remembers how the training rows are read. `tokenize_rest` is
        RewardTrainer's `_prepare_dataset`, for streams and for tokenizers of an unusual kind.

        Raises:
            DataError: If rows cannot be read as in the training.
            ConfigError: If no pair is short enough.
        """
        is_train = dataset is self._train
        what = _TRAIN if is_train else _title(name)
        if is_train:
            self._train = None
        if dataset not in self._checked:
            dataset = self._look_at_evaluated(dataset, name)
        columns = get_dataset_column_names(dataset)
        given, groups = dataset, None
        if not {"chosen_ids", "chosen_input_ids"} & set(columns):
            if "chat_template_kwargs" in columns:
                add_history_template(tokenizer)  # a template that knows no `history` would lose it in silence
            if is_train:
                self._remember(dataset, tokenizer)
            groups = remembered_groups(tokenizer)
            if groups and (not isinstance(dataset, Dataset) or "group" not in columns):
                raise DataError(
                    f"{what} lacks the column group, or is a stream: the model reads the name of a group in the prompt. Add the group of each "
                    "pair and load it without streaming, or let `trl-pafo evaluate` weigh the groups by each user's past pairs."
                )
            dataset = self._render(dataset, tokenizer, what, is_train)
        if tokenizer.eos_token is None and "chosen_ids" not in columns and not is_conversational(_first(dataset)):
            raise ConfigError(
                f"{what} holds texts, which end with the end token, and the tokenizer has none. Set `eos_token`, for a tokenizer "
                "of BERT's family to '[SEP]'."
            )
        if not isinstance(dataset, Dataset):
            return tokenize_rest(dataset, tokenizer, self.args, name)
        messages = dataset
        longest: Any = self.args.max_length
        if groups:
            dataset = name_groups(dataset, given["group"][:])  # each pair names its own
            if longest is not None and is_train:
                longest = longest - self.left_for_names(dataset, tokenizer)
        dataset = tokenize_pairs(dataset, tokenizer, title=name, num_proc=self.args.dataset_num_proc)
        if not is_tokenized(dataset):
            dataset = tokenize_rest(dataset, tokenizer, self.args, name)
        draws = self.draws_donors or self.names_groups or self.args.min_num_history is not None
        keeps_rows = is_train and (draws or (self.distills and bool(self._teachers)))
        rows = [dataset, *([given, messages] if keeps_rows else [])]
        if longest is not None and len(kept := rows_within(dataset, longest)) < len(dataset):
            rows = [part.select(kept) for part in rows]
        self._report_drops(messages, rows[0], name)
        if keeps_rows:
            self.rows = TrainingRows(*rows[1:])
        return rows[0]

    def left_for_names(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Tokens by which training pairs that name their own group are shorter than under the longest name, of shape `(num_rows, 1)`; 0
        where none are named.
        """
        if not self.names_groups:
            return 0
        names = remembered_groups(tokenizer)["groups"]  # type: ignore[index]
        lengths = {name: len(tokenizer(group_line(name), add_special_tokens=False)["input_ids"]) for name in names}
        return np.array([[max(lengths.values()) - lengths[name]] for name in dataset["group"][:]])

    def _is_cut(self, dataset: Dataset) -> bool:
        """Whether the histories were cut before, and are shown unchanged."""
        asked = (self.args.num_history, self.args.history_max_tokens, self._fields())
        return is_rendered(dataset) and asked == (None, None, None)

    def _fields(self) -> list[str] | None:
        """What of a past pair is to be shown; `None` where nothing else than the default is asked for."""
        return None if list(self.args.history_fields) == list(HISTORY_FIELDS) else self.args.history_fields

    def _remember(self, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the tokenizer remember how the training pairs are read; of a stream, what its first row shows."""
        args, first = self.args, _first(dataset)
        forget_groups(tokenizer)  # those of an earlier training
        if self.names_groups:
            HistoryCutter(tokenizer, args.num_history).remember("messages" if is_rendered(dataset) else _inputs_of(first))
            counts = count_by_group(dataset)
            shares = {name: counts[name] / len(dataset) for name in self.groups}
            remember_groups(tokenizer, GroupMixture.unfitted(shares).as_json(), args.tau)
        elif not isinstance(dataset, Dataset):
            history = (first.get("chat_template_kwargs") or {}).get("history")
            shown = [name for name in HISTORY_FIELDS if any(entry.get(name) for entry in history or [])]
            HistoryCutter(tokenizer, args.num_history if history else 0, fields=shown or HISTORY_FIELDS).remember(
                _inputs_of(first)
            )
        elif is_rendered(dataset):
            remember_rendering(dataset, tokenizer)
            given = {"num_history": args.num_history, "max_tokens": args.history_max_tokens, "fields": self._fields()}
            HistoryCutter.of(tokenizer, **given).remember()
        elif _has_history(dataset):
            HistoryCutter(tokenizer, args.num_history, args.history_max_tokens, args.history_fields).remember()
        else:
            HistoryCutter(tokenizer, 0).remember(_inputs_of(first))

    def _render(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, what: str, is_train: bool) -> Any:
        """Pairs as the model reads them; evaluation pairs as it was trained to, which the options override."""
        args = self.args
        if remembered_groups(tokenizer):
            return InputRenderer(tokenizer, 0).render(plain_rows(dataset), what, args.dataset_num_proc)
        if not isinstance(dataset, Dataset):
            trained, inputs = remembered(tokenizer), _inputs_of(_first(dataset))
            if trained is not None and trained["inputs"] != inputs:
                raise DataError(f"{what} holds {inputs}, and the model was trained on {trained['inputs']}. Give the same.")
            return dataset
        if not is_train:
            renderer = InputRenderer(tokenizer, args.num_history, args.history_max_tokens, self._fields())
            return renderer.render(dataset, what, args.dataset_num_proc)
        if self._is_cut(dataset):
            return rows_as_messages(dataset.remove_columns([n for n in ("history",) if n in dataset.column_names]))
        if not _has_history(dataset):
            return dataset
        add_history_template(tokenizer)
        return render_history(dataset, HistoryCutter.of(tokenizer), args.dataset_num_proc)

    def _report_drops(self, given: Dataset, kept: Dataset, name: str) -> None:
        before = count_by_group(given)
        dropped = self.dropped[name] = before - count_by_group(kept)
        if dropped:
            parts = [f"{group}: {count} of {before[group]} ({count / before[group]:.1%})" for group, count in dropped.items()]
            logger.warning(
                f"Pairs of the {name} dataset dropped because they are longer than max_length={self.args.max_length} tokens, by "
                f"group: {'; '.join(parts)}. Raise `max_length` or lower `history_max_tokens` to keep them."
            )
        if not len(kept):
            raise ConfigError(
                f"No pair of the {name} dataset is within max_length={self.args.max_length} tokens. Raise `max_length`, or lower "
                "`num_history` or `history_max_tokens`."
            )


def _refuse_several(sources: Sequence[str]) -> NoReturn:
    raise DataError(f"{_TRAIN} would be distilled from {' and '.join(f'`{name}`' for name in sources)}. Give one of them.")


def _title(name: str) -> str:
    """What an evaluation dataset is called in messages."""
    return "The evaluation dataset" + ("" if name == "eval" else f" {name}")


def _first(dataset: Any) -> dict[str, Any]:
    return next(iter(dataset), {})


def _has_history(dataset: Dataset) -> bool:
    return "history" in dataset.column_names or is_rendered(dataset)


def _inputs_of(row: dict[str, Any]) -> str:
    return "messages" if is_conversational(row) else "text"


def _check_history_of_stream(first: dict[str, Any]) -> None:
    """Raise [`DataError`] if the rows of a stream, of which this is the first, have a history that would not be shown."""
    if "chosen_ids" in first:
        return
    if "history" in first:
        raise DataError("A streaming dataset cannot have a `history` column; write it into `chat_template_kwargs` first.")
    if (first.get("chat_template_kwargs") or {}).get("history") is not None and not is_conversational(first):
        raise DataError(
            "A streaming dataset holds texts with a `history` in `chat_template_kwargs`, which only messages show. Write "
            '`prompt`, `chosen` and `rejected` as messages, such as [{"role": "user", "content": ...}].'
        )
