"""PairPreparer: preference pairs as rows of token ids, checked before a model is loaded. It knows no model and no trainer."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any
from weakref import WeakSet

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import get_dataset_column_names, is_conversational

from trl_pafo.data import HISTORY_FIELDS, checks
from trl_pafo.data.counterfactual import counterfactual_rows
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.history import HistoryCutter, is_rendered, remember_rendering, remembered, render_history, rows_as_messages
from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import drop_long_pairs, tokenize_pairs
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.teachers.teacher import Teacher, check_inputs, check_teacher
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.samplers import is_tokenized

logger = get_logger(__name__)

_TRAIN = "The training dataset"


class PairPreparer:
    """
    Preference pairs as rows of token ids: [`check`] the datasets of a trainer, then [`prepare`] each of them.

    A history is rendered into the prompt by the chat template, and with teachers each training pair is also shown under histories of
    the other groups.

    Args:
        args ([`PAFOConfig`]):
            What is shown of histories, and how long pairs may be.
        groups (`Collection[str]`, *optional*):
            Groups that have teachers.
    """

    def __init__(self, args: PAFOConfig, groups: Collection[str] = ()):
        self.args, self.groups = args, list(groups)
        self.distills = False
        """Whether the training rows have margins of teachers, or get them."""
        self.dropped: dict[str, Counter[str]] = {}
        """Pairs dropped because they are longer than `max_length`, by dataset and group."""
        self._train: Any = None
        self._checked: WeakSet[Any] = WeakSet()

    def check(self, train_dataset: Any, eval_dataset: Any) -> tuple[Any, Any]:
        """The datasets with groups and users as texts; rows of a stream are checked as they come.

        Raises:
            DataError: If a dataset is none or has gaps, or its columns do not fit each other or the options.
            TeacherError: If groups and teachers do not match.
            ConfigError: If an option does not fit the dataset.
        """
        if train_dataset is not None:
            checks.check_dataset(train_dataset, "train_dataset")
            columns = get_dataset_column_names(train_dataset)
            self.distills = self.args.alpha < 1 and bool(self.groups or "teacher_margin" in columns)
            if not isinstance(train_dataset, Dataset):
                self._check_stream(train_dataset, columns)
            needs_groups = self.distills and ("teacher_margin" not in columns or self.args.teacher_scale == "rms")
            train_dataset = self._look_at(train_dataset, _TRAIN, ["group"] if needs_groups else [])
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
        return self._look_at(dataset, _title(name))

    def _look_at(self, dataset: Any, what: str, needed: Collection[str] = ()) -> Any:
        dataset = normalize_columns(dataset, what, needed)
        if isinstance(dataset, Dataset):
            checks.check_filled(dataset, what)
        else:
            dataset = checks.filled_stream(dataset, what)
            _check_history_of_stream(_first(dataset))
        self._checked.add(dataset)
        return dataset

    def _check_stream(self, dataset: IterableDataset, columns: Collection[str]) -> None:
        args = self.args
        if not self._needs_teachers(columns):
            return
        checks.check_columns(columns, ["group"], f"{_TRAIN} (a stream, with `teachers`)")
        if args.teacher_scale != "none":
            raise ConfigError(
                f"teacher_scale={args.teacher_scale!r} needs the margins of all rows before training, which a stream "
                "cannot give. Use teacher_scale='none', load without streaming, or add a `teacher_margin` column."
            )
        if args.num_history != 0 and "chosen_ids" not in columns:
            checks.check_personalized("history" in (_first(dataset).get("chat_template_kwargs") or {}), columns, _TRAIN)

    def _check_rows(self, dataset: Dataset, columns: Collection[str]) -> None:
        args = self.args
        num_with_history = 0
        if _has_history(dataset):
            if "chosen_ids" not in columns:
                checks.check_columns(columns, ["prompt"], f"{_TRAIN} has a `history` column, so it needs an explicit prompt; it")
            if args.num_history != 0:  # what is rendered already has the fields that it shows
                given = "history" in columns
                num_with_history = checks.check_history(dataset, _TRAIN, HISTORY_FIELDS if given else (), may_lack=not given)
        if not self.distills:
            return
        checks.check_pairs(dataset, _TRAIN)
        if args.teacher_scale == "rms":
            checks.check_columns(columns, ["group"], f"{_TRAIN} (teacher_scale='rms' needs groups)")
        if not self._needs_teachers(columns):
            if self.groups:
                raise DataError(
                    f"{_TRAIN} has the column `teacher_margin`, so `teachers` would have no effect. Leave out one of them."
                )
            return
        if args.counterfactual_share > 0 and {"chosen_ids", "history"} <= set(columns):
            raise DataError(
                f"{_TRAIN} is tokenized, so its pairs cannot be shown under other histories. Leave out `chosen_ids` and "
                "`rejected_ids`, or set counterfactual_share=0."
            )
        if args.num_history != 0 and "chosen_ids" not in columns:
            checks.check_personalized(num_with_history > 0, columns, _TRAIN)
        checks.check_groups(dataset, self.groups, _TRAIN)

    def _needs_teachers(self, columns: Iterable[str]) -> bool:
        return self.distills and "teacher_margin" not in columns

    def check_teachers(self, teachers: Mapping[str, Teacher], tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise [`TeacherError`] where a teacher cannot score the student's tokens, or has not learnt to read such rows."""
        if not self.distills or not teachers:
            return
        for teacher in teachers.values():
            check_teacher(teacher, tokenizer)
        if {"chosen_ids", "chosen_input_ids"} & set(get_dataset_column_names(self._train)):
            return
        self._remember(self._train, tokenizer)
        found = remembered(tokenizer) or {}
        is_stream = not isinstance(self._train, Dataset)
        if is_stream and found["inputs"] == "messages" and found["num_history"] == 0:
            return  # of its first row; later ones may have a history
        for teacher in teachers.values():
            check_inputs(teacher, found, as_found=is_stream or self._is_cut(self._train))

    def prepare(
        self, dataset: Any, tokenizer: PreTrainedTokenizerBase, name: str, tokenize_rest: Callable[..., Any]
    ) -> Dataset | IterableDataset:
        """Rows with `chosen_ids` and `rejected_ids`, those longer than `max_length` left out and counted by group.

        Args:
            dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
                One that was checked, the training dataset first, or one that is evaluated later.
            tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
                Remembers how the training rows are read.
            name (`str`):
                `"train"`, `"eval"`, or the name of an evaluation dataset.
            tokenize_rest (`Callable`):
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
        if is_train:
            dataset = self._counterfactual(dataset)
        elif "has_label" in columns:
            dataset = dataset.filter(lambda row: row["has_label"])  # nothing tells whether a model is right about the others
        if not {"chosen_ids", "chosen_input_ids"} & set(columns):
            if "chat_template_kwargs" in columns:
                add_history_template(tokenizer)  # a template that knows no `history` would lose it in silence
            if is_train:
                self._remember(dataset, tokenizer)
            dataset = self._render(dataset, tokenizer, what, is_train)
        if tokenizer.eos_token is None and "chosen_ids" not in columns and not is_conversational(_first(dataset)):
            raise ConfigError(
                f"{what} holds texts, which end with the end token, and the tokenizer has none. Set `eos_token`, for a tokenizer "
                "of BERT's family to '[SEP]'."
            )
        if not isinstance(dataset, Dataset):
            return tokenize_rest(dataset, tokenizer, self.args, name)
        given = dataset
        dataset = tokenize_pairs(dataset, tokenizer, title=name, num_proc=self.args.dataset_num_proc)
        if not is_tokenized(dataset):
            dataset = tokenize_rest(dataset, tokenizer, self.args, name)
        if self.args.max_length is not None:
            dataset = drop_long_pairs(dataset, self.args.max_length)
        self._report_drops(given, dataset, name)
        return dataset

    def _is_cut(self, dataset: Dataset) -> bool:
        """Whether the histories were cut before, and are shown unchanged."""
        return is_rendered(dataset) and self.args.num_history is None and self.args.history_max_tokens is None

    def _remember(self, dataset: Any, tokenizer: PreTrainedTokenizerBase) -> None:
        """Let the tokenizer remember how the training pairs are read; of a stream, what its first row shows."""
        args, first = self.args, _first(dataset)
        if not isinstance(dataset, Dataset):
            history = (first.get("chat_template_kwargs") or {}).get("history")
            shown = [name for name in HISTORY_FIELDS if any(entry.get(name) for entry in history or [])]
            HistoryCutter(tokenizer, args.num_history if history else 0, fields=shown or HISTORY_FIELDS).remember(
                _inputs_of(first)
            )
        elif self._is_cut(dataset):
            remember_rendering(dataset, tokenizer)
        elif _has_history(dataset):
            HistoryCutter(tokenizer, args.num_history, args.history_max_tokens, args.history_fields).remember()
        else:
            HistoryCutter(tokenizer, 0).remember(_inputs_of(first))

    def _render(self, dataset: Any, tokenizer: PreTrainedTokenizerBase, what: str, is_train: bool) -> Any:
        """Pairs as the model reads them; evaluation pairs as it was trained to, which the options override."""
        args = self.args
        if not isinstance(dataset, Dataset):
            trained, inputs = remembered(tokenizer), _inputs_of(_first(dataset))
            if trained is not None and trained["inputs"] != inputs:
                raise DataError(f"{what} holds {inputs}, and the model was trained on {trained['inputs']}. Give the same.")
            return dataset
        if not is_train:
            fields = None if list(args.history_fields) == list(HISTORY_FIELDS) else args.history_fields
            renderer = InputRenderer(tokenizer, args.num_history, args.history_max_tokens, fields)
            return renderer.render(dataset, what, args.dataset_num_proc)
        if self._is_cut(dataset):
            return rows_as_messages(dataset.remove_columns([n for n in ("history",) if n in dataset.column_names]))
        if not _has_history(dataset):
            return dataset
        add_history_template(tokenizer)
        return render_history(dataset, HistoryCutter.of(tokenizer), args.dataset_num_proc)

    def _counterfactual(self, dataset: Any) -> Any:
        """The training rows and, with teachers, below them the same pairs under histories of the other groups."""
        if not isinstance(dataset, Dataset):
            return dataset
        columns, args = dataset.column_names, self.args
        if "has_label" in columns:
            if not self.distills:  # such rows have no label to learn from
                dataset = dataset.filter(lambda row: row["has_label"], desc="Leaving out counterfactual rows")
            return dataset
        if not self._needs_teachers(columns) or "history" not in columns or 0 in (args.counterfactual_share, args.num_history):
            return dataset
        return counterfactual_rows(dataset, self.groups, args.counterfactual_share, args.seed)

    def _report_drops(self, given: Dataset, kept: Dataset, name: str) -> None:
        before = count_by_group(given)
        dropped = self.dropped[name] = before - count_by_group(kept)
        counterfactual = len(given) - len(kept) - dropped.total()
        if dropped or counterfactual:
            parts = [f"{group}: {count} of {before[group]} ({count / before[group]:.1%})" for group, count in dropped.items()]
            if counterfactual:
                of = len(given) - before.total()
                parts.append(f"counterfactual rows: {counterfactual} of {of} ({counterfactual / of:.1%})")
            logger.warning(
                f"Pairs of the {name} dataset dropped because they are longer than max_length={self.args.max_length} tokens, by "
                f"group: {'; '.join(parts)}. Raise `max_length` or lower `history_max_tokens` to keep them."
            )
        if not len(kept):
            raise ConfigError(
                f"No pair of the {name} dataset is within max_length={self.args.max_length} tokens. Raise `max_length`, or lower "
                "`num_history` or `history_max_tokens`."
            )


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
