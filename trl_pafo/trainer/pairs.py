"""PairsRewardTrainer: the hooks of a trainer by which preference pairs become rows of token ids, checked before a model is loaded."""

from collections import Counter
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import get_dataset_column_names, is_conversational

from trl_pafo.data import HISTORY_FIELDS, checks
from trl_pafo.data.counterfactual import counterfactual_rows
from trl_pafo.data.groups import count_by_group
from trl_pafo.data.history import HistoryCutter, is_rendered, remember_rendering, remembered, render_history, rows_as_messages
from trl_pafo.data.rendering import InputRenderer
from trl_pafo.data.template import add_history_template
from trl_pafo.data.tokenization import drop_long_pairs, tokenize_pairs, without_limit
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.hub.card import Card
from trl_pafo.hub.trainer_mixin import HubMixin
from trl_pafo.teachers.teacher import Teacher
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.evaluation import ExactRewardTrainer
from trl_pafo.trainer.model_card import card_of_training
from trl_pafo.trainer.samplers import is_tokenized

logger = get_logger(__name__)

_NO_HISTORY_IN_STREAMS = "A streaming dataset cannot have a `history` column; write it into `chat_template_kwargs` first."

# Stands in for the training set where there is none.
NO_PAIRS = Dataset.from_dict({"chosen_ids": [], "rejected_ids": []})


def _title(argument: str, name: str) -> str:
    """What a dataset is called in messages."""
    if argument == "train_dataset":
        return "The training dataset"
    return "The evaluation dataset" + ("" if name == "eval" else f" {name}")


class PairsRewardTrainer(HubMixin, ExactRewardTrainer):  # type: ignore[misc]  # TRL's `create_model_card` is not transformers'
    """
    [`ExactRewardTrainer`] whose pairs may have histories: they are rendered into the prompt, and shown under those of other groups.

    A subclass sets `_distills` and `_teachers`, calls `_check_train_dataset`, and hands `NO_PAIRS` to the base class where there
    is no training set.
    """

    _teachers: dict[str, Teacher]
    _distills: bool
    _train_is_prepared = False
    dropped_pairs: dict[str, Counter[str]]
    """Pairs dropped because they are longer than `max_length`, by dataset and group."""

    def model_card(self) -> Card:
        return card_of_training(self, self.dropped_pairs.get("train", {}), self._distills)

    @staticmethod
    def _check_datasets(train_dataset: Any, eval_dataset: Any) -> None:
        """Raise where a dataset is none, or has gaps; streams are looked at as they come."""
        evaluated = eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}
        given = [("train_dataset", "train", train_dataset), *(("eval_dataset", name, rows) for name, rows in evaluated.items())]
        for argument, name, rows in given:
            if rows is None:
                continue
            checks.check_dataset(rows, argument if name in ("train", "eval") else f"{argument}[{name!r}]")
            if isinstance(rows, Dataset):
                checks.check_filled(rows, _title(argument, name))

    def _check_train_dataset(self, dataset: Dataset | IterableDataset, args: PAFOConfig) -> None:
        what = "The training dataset"
        columns = get_dataset_column_names(dataset)
        uses_teachers = self._distills and "teacher_margin" not in columns
        if not isinstance(dataset, Dataset):
            if args.max_tokens_per_batch is not None:
                raise ConfigError(
                    "`max_tokens_per_batch` looks at the lengths of all pairs, and a stream has no end to look for. Load without "
                    "streaming, or leave it out."
                )
            if uses_teachers and isinstance(dataset, IterableDataset):
                checks.check_columns(columns, ["group"], f"{what} (a stream, with `teachers`)")
                if args.teacher_scale != "none":
                    raise ConfigError(
                        f"teacher_scale={args.teacher_scale!r} needs the margins of all rows before training, and a stream has no "
                        "end to wait for. Use teacher_scale='none', load without streaming, or add a `teacher_margin` column."
                    )
                if args.num_history != 0 and not {"chosen_ids", "history"} & set(columns):
                    first: dict[str, Any] = next(iter(dataset), {})
                    checks.check_personalized("history" in (first.get("chat_template_kwargs") or {}), columns, what)
            if "history" in columns and "chosen_ids" not in columns:
                raise DataError(_NO_HISTORY_IN_STREAMS)
            return  # the base class raises for other types
        num_with_history = 0
        if "history" in columns or is_rendered(dataset):
            if "chosen_ids" not in columns:
                checks.check_columns(columns, ["prompt"], f"{what} has a `history` column, so it needs an explicit prompt; it")
            if args.num_history != 0:  # what is rendered already has the fields that it shows
                given = "history" in columns
                num_with_history = checks.check_history(dataset, what, HISTORY_FIELDS if given else (), may_lack=not given)
        if self._distills:
            if self._teachers and not uses_teachers:
                raise DataError(
                    f"{what} has the column `teacher_margin`, beside which `teachers` would not be used. Leave out one of them."
                )
            checks.check_pairs(dataset, what)
            if uses_teachers and args.counterfactual_share > 0 and {"chosen_ids", "history"} <= set(columns):
                raise DataError(
                    f"{what} is tokenized, so its pairs cannot be shown under other histories. Leave out `chosen_ids` and "
                    "`rejected_ids`, or set counterfactual_share=0."
                )
            if uses_teachers:
                if args.num_history != 0 and "chosen_ids" not in columns:
                    checks.check_personalized(num_with_history > 0, columns, what)
                checks.check_groups(dataset, self._teachers, what)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        is_train = not self._train_is_prepared  # the base class prepares the training dataset first
        self._train_is_prepared = True
        if dataset is NO_PAIRS:
            return dataset
        what = _title("train_dataset" if is_train else "eval_dataset", dataset_name)
        columns = get_dataset_column_names(dataset)
        if isinstance(dataset, Dataset):
            checks.check_filled(dataset, what)
        else:
            dataset = checks.filled_stream(dataset, what)
        if is_train and isinstance(dataset, Dataset):
            dataset = self._add_counterfactual_rows(dataset, args)
        elif not is_train and "has_label" in columns:
            dataset = dataset.filter(lambda row: row["has_label"])  # nothing tells whether a model is right about the others
        if not {"chosen_ids", "chosen_input_ids"} & set(columns):
            if "chat_template_kwargs" in columns:
                # A template that knows no `history` would lose it in silence.
                add_history_template(processing_class)
            if not isinstance(dataset, Dataset):
                dataset = self._render_stream(dataset, processing_class, args, is_train)
            elif is_train:
                dataset = self._render(dataset, processing_class, args)
            else:
                dataset = self._renderer(processing_class, args).render(dataset, what, args.dataset_num_proc)
        if processing_class.eos_token is None and "chosen_ids" not in columns and not is_conversational(next(iter(dataset))):
            raise ConfigError(
                f"{what} holds texts, which end with the end token, and the tokenizer has none. Set `eos_token`, for a tokenizer of "
                "BERT's family to '[SEP]'."
            )
        if not isinstance(dataset, Dataset):
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        before, num_rows = count_by_group(dataset), len(dataset)
        dataset = tokenize_pairs(dataset, processing_class, title=dataset_name, num_proc=args.dataset_num_proc)
        if args.max_length is not None and is_tokenized(dataset):
            dataset = drop_long_pairs(dataset, args.max_length)
            dataset = super()._prepare_dataset(dataset, processing_class, without_limit(args), dataset_name)
        else:
            dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        self._report_drops(before, num_rows, dataset, dataset_name, args)  # type: ignore[arg-type]
        return dataset

    @staticmethod
    def _is_cut(dataset: Dataset, args: PAFOConfig) -> bool:
        """Whether the histories are shown as they came."""
        return is_rendered(dataset) and args.num_history is None and args.history_max_tokens is None

    def _remember(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: PAFOConfig) -> None:
        """Let the tokenizer remember how the training pairs are read."""
        if self._is_cut(dataset, args):
            remember_rendering(dataset, tokenizer)
        elif "history" in dataset.column_names or is_rendered(dataset):
            HistoryCutter(tokenizer, args.num_history, args.history_max_tokens, args.history_fields).remember()
        else:
            HistoryCutter(tokenizer, 0).remember("messages" if len(dataset) and is_conversational(dataset[0]) else "text")

    def _render(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, args: PAFOConfig) -> Dataset:
        """The training pairs as the model reads them; the tokenizer remembers how."""
        self._remember(dataset, tokenizer, args)
        if self._is_cut(dataset, args):
            return rows_as_messages(dataset.remove_columns([n for n in ("history",) if n in dataset.column_names]))
        if "history" in dataset.column_names or is_rendered(dataset):
            add_history_template(tokenizer)
            return render_history(dataset, HistoryCutter.of(tokenizer), args.dataset_num_proc)
        return dataset

    @staticmethod
    def _renderer(tokenizer: PreTrainedTokenizerBase, args: PAFOConfig) -> InputRenderer:
        """How the model was trained, which the options override."""
        fields = None if list(args.history_fields) == list(HISTORY_FIELDS) else args.history_fields
        return InputRenderer(tokenizer, args.num_history, args.history_max_tokens, fields)

    @staticmethod
    def _render_stream(
        dataset: IterableDataset, tokenizer: PreTrainedTokenizerBase, args: PAFOConfig, is_train: bool
    ) -> IterableDataset:
        """A stream as it comes; what its first row shows is remembered."""
        first: dict[str, Any] = next(iter(dataset), {})
        if "history" in first:
            raise DataError(_NO_HISTORY_IN_STREAMS)
        history = (first.get("chat_template_kwargs") or {}).get("history")
        inputs = "messages" if is_conversational(first) else "text"
        if inputs == "text" and history is not None:
            raise DataError(
                "A streaming dataset holds texts with a `history` in `chat_template_kwargs`, which only messages show. Write "
                '`prompt`, `chosen` and `rejected` as messages, such as [{"role": "user", "content": ...}].'
            )
        trained = remembered(tokenizer)
        if is_train:
            shown = [name for name in HISTORY_FIELDS if any(entry.get(name) for entry in history or [])]
            HistoryCutter(tokenizer, args.num_history if history else 0, fields=shown or HISTORY_FIELDS).remember(inputs)
        elif trained is not None and trained["inputs"] != inputs:
            raise DataError(
                f"A streaming dataset holds {inputs}, and the model was trained on {trained['inputs']}. Give the same."
            )
        return dataset

    def _add_counterfactual_rows(self, dataset: Dataset, args: PAFOConfig) -> Dataset:
        if "has_label" in dataset.column_names:
            if not self._distills:  # such rows have no label to learn from
                dataset = dataset.filter(lambda row: row["has_label"], desc="Leaving out counterfactual rows")
            return dataset
        if not (self._distills and self._teachers and "teacher_margin" not in dataset.column_names):
            return dataset
        if args.counterfactual_share == 0 or "history" not in dataset.column_names or args.num_history == 0:
            return dataset
        return counterfactual_rows(dataset, list(self._teachers), args.counterfactual_share, args.seed)

    def _report_drops(self, before: Counter[str], num_rows: int, dataset: Dataset, dataset_name: str, args: PAFOConfig) -> None:
        dropped = before - count_by_group(dataset)
        self.dropped_pairs[dataset_name] = dropped
        counterfactual = num_rows - len(dataset) - dropped.total()
        if dropped or counterfactual:
            parts = [f"{group}: {count} of {before[group]} ({count / before[group]:.1%})" for group, count in dropped.items()]
            if counterfactual:
                of = num_rows - before.total()
                parts.append(f"counterfactual rows: {counterfactual} of {of} ({counterfactual / of:.1%})")
            logger.warning(
                f"Pairs of the {dataset_name} dataset dropped because they are longer than max_length={args.max_length} tokens, by "
                f"group: {'; '.join(parts)}. Raise `max_length` or lower `history_max_tokens` to keep them."
            )
        if not len(dataset):
            raise ConfigError(
                f"No pair of the {dataset_name} dataset is within max_length={args.max_length} tokens. Raise `max_length`, or lower "
                "`num_history` or `history_max_tokens`."
            )
