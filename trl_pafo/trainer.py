"""PAFORewardTrainer: wires margins, teachers and history into the hooks of TRL's RewardTrainer; it holds no formula."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from peft import PeftConfig
from transformers import AutoTokenizer, DataCollator, PreTrainedTokenizerBase
from trl import RewardConfig
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from trl_pafo import checks
from trl_pafo.collator import PAIR_KEYS, DataCollatorForGroupPreference
from trl_pafo.config import PAFOConfig
from trl_pafo.errors import ConfigError, DataError
from trl_pafo.exact_evaluation import PairSums
from trl_pafo.exact_trainer import ExactRewardTrainer
from trl_pafo.history import HistoryCutter, add_history_template, is_rendered, remember_rendering, render_history
from trl_pafo.history_rows import count_by_group, counterfactual_rows
from trl_pafo.losses import bradley_terry, pafo_loss
from trl_pafo.margins import compute_teacher_margins, scale_margins
from trl_pafo.scoring import reward_of
from trl_pafo.teachers import TeacherSpec, as_teachers, check_teacher

logger = get_logger(__name__)

# Keys of a batch that no model takes: models swallow unknown keyword arguments in silence.
_OWN_KEYS = ("margin", "teacher_margin", "has_label", "group_id", *PAIR_KEYS)


# Stands in for the training set where there is none.
_NO_PAIRS = Dataset.from_dict({"chosen_ids": [], "rejected_ids": []})


class PAFORewardTrainer(ExactRewardTrainer):
    """
    [`~trl.RewardTrainer`] with Pareto Fairness Optimization: the margins of one teacher a preference group are distilled,
    conditionally on the group, into one reward model that needs no group label at inference.

    Without teachers and without a `teacher_margin` column, or with `alpha=1`, it is [`~trl.RewardTrainer`], to the last
    digit of its losses. What it saves is a plain sequence classification model or adapter, with the tokenizer.

    Example:

    ```python
    >>> from trl_pafo import PAFOConfig, PAFORewardTrainer

    >>> trainer = PAFORewardTrainer(
    ...     model="Qwen/Qwen3-0.6B",
    ...     args=PAFOConfig(output_dir="fair-reward-model"),
    ...     train_dataset=dataset,  # prompt, chosen, rejected, user, group, history
    ...     teachers={"majority": "teachers/majority", "minority": "teachers/minority"},
    ... )
    >>> trainer.train()
    ```

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            As for [`~trl.RewardTrainer`].
        args ([`PAFOConfig`] or [`~trl.RewardConfig`], *optional*):
            Configuration; a `RewardConfig` is taken with the defaults of PAFO.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Defaults to [`DataCollatorForGroupPreference`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`], *optional*):
            Preference pairs as for [`~trl.RewardTrainer`] and, where PAFO is to act, the columns `group` (str) with
            `teachers`, or `teacher_margin` (float, reward units) without; optional `user` (str), `history` (list of past pairs
            with `prompt`, `chosen`, `rejected`, newest first), `has_label` (bool, false on counterfactual rows). The history is
            put into the prompt by the chat template, see [`~trl_pafo.history.render_history`]; with it, each pair is also
            shown under histories of the other groups (`args.counterfactual_share`). Not needed to evaluate and predict.
        eval_dataset (*optional*):
            As for [`~trl.RewardTrainer`]; the evaluation loss is Bradley-Terry. With the columns `group` and `user`, accuracies
            of groups and users are reported ([`~trl_pafo.exact_evaluation.evaluation_metrics`]).
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            As for [`~trl.RewardTrainer`].
        teachers (`dict[str, str | Path | PreTrainedModel | PeftModel]`, *optional*):
            Teacher of each group: the folder or Hub id of a checkpoint or adapter, or a model. Their margins are computed once,
            here, and kept on disk; no teacher stays in memory. Defaults to `args.teachers`.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*):
            As for [`~trl.RewardTrainer`], with one row a pair: `predictions` of shape `(num_pairs, 2)`, the rewards of chosen
            and rejected, and `label_ids`, a dictionary with `"group"` and `"user"`, string arrays of shape `(num_pairs,)`.
        **kwargs:
            All other arguments of [`~trl.RewardTrainer`], `peft_config` among them.

    Raises:
        TrlPafoError: If data, groups and teachers do not fit together; raised before a model is loaded.
    """

    args: PAFOConfig

    _tag_names = ["trl", "reward-trainer", "pafo"]
    _name = "PAFO"
    _paper = {
        "title": "PAFO: Pareto Fairness Optimization for Personalized Reward Modeling",
        "id": "2606.07988",
        "citation": (
            "@article{pafo2026,\n    title        = {{PAFO: Pareto Fairness Optimization for Personalized Reward Modeling}},\n"
            "    author       = {Chunyuan Zheng and Fuli Feng and Haoting Ni and Haoxuan Li and Xiaoyan Zhao and Yang Zhang},\n"
            "    year         = 2026,\n    eprint       = {arXiv:2606.07988}\n}"
        ),
    }

    def __init__(
        self,
        model: Any,
        args: RewardConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *positional: Any,
        teachers: Mapping[str, TeacherSpec] | None = None,
        **kwargs: Any,
    ):
        if args is None:
            # The base class would build a RewardConfig, which knows no alpha.
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = PAFOConfig(f"{model_name.split('/')[-1]}-PAFO")
        args = PAFOConfig.from_reward_config(args)
        args.check()
        self._teachers = as_teachers(args.teachers if teachers is None else teachers)  # type: ignore[arg-type]
        # A dispatched batch is cut by rows, and would tear the chosen responses from the rejected ones.
        args.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        columns = [] if train_dataset is None else get_dataset_column_names(train_dataset)
        self._distils = args.alpha < 1 and train_dataset is not None and bool(self._teachers or "teacher_margin" in columns)
        train_groups = _groups_of(train_dataset)
        eval_datasets = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        self.groups: list[str] = sorted(set(self._teachers).union(train_groups, *map(_groups_of, eval_datasets)))
        self._train_is_prepared = False
        self.dropped_pairs: dict[str, Counter[str]] = {}
        """Pairs dropped because they are longer than `max_length`, by dataset and group."""

        if train_dataset is not None:
            self._check_train_dataset(train_dataset, args)
        if processing_class is None and (self._teachers or "history" in columns):
            processing_class = self._load_tokenizer(model, args)
        if self._distils and processing_class is not None:
            for teacher in self._teachers.values():
                check_teacher(teacher, processing_class)

        _warn_of_a_lost_head(kwargs.get("peft_config", positional[-1] if positional else None))
        given = _NO_PAIRS if train_dataset is None else train_dataset  # the base class demands one
        super().__init__(model, args, data_collator, given, eval_dataset, processing_class, *positional, **kwargs)
        if train_dataset is None:
            self.train_dataset = None
        if data_collator is None:
            base = self.data_collator
            self.data_collator = DataCollatorForGroupPreference(
                pad_token_id=base.pad_token_id,
                pad_to_multiple_of=base.pad_to_multiple_of,
                groups=sorted(train_groups) or self.groups,
            )
        self._sums = PairSums(getattr(self.data_collator, "groups", ()))
        if self._distils and isinstance(self.train_dataset, Dataset):
            self.train_dataset = self._add_teacher_margins(self.train_dataset)
        # Given models would otherwise be kept alive, and be moved and saved by whatever walks over the trainer.
        self._teachers = {}

    @staticmethod
    def _load_tokenizer(model: Any, args: PAFOConfig) -> PreTrainedTokenizerBase:
        """The tokenizer that the base class would load, so that teachers are checked before the model is loaded."""
        init_kwargs: Any = args.model_init_kwargs or {}
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        revision = init_kwargs.get("revision") if isinstance(model, str) else None
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)

    def _check_train_dataset(self, dataset: Dataset | IterableDataset, args: PAFOConfig) -> None:
        what = "The training dataset"
        columns = get_dataset_column_names(dataset)
        uses_teachers = self._distils and "teacher_margin" not in columns
        if not isinstance(dataset, Dataset):
            if uses_teachers and isinstance(dataset, IterableDataset):
                raise DataError(
                    "Teacher margins are computed before training, which needs a dataset with a length, and a streaming one has "
                    "none. Load it without streaming, or add a `teacher_margin` column to the stream."
                )
            return  # the base class raises for other types
        if "history" in columns:
            checks.check_columns(columns, ["prompt"], f"{what} has a `history` column, so it needs an explicit prompt; it")
            if args.num_history != 0:
                checks.check_history(dataset, what)
        if self._distils:
            checks.check_pairs(dataset, what)
            if uses_teachers and args.counterfactual_share > 0 and {"chosen_ids", "history"} <= set(columns):
                raise DataError(
                    f"{what} is tokenized, so its pairs cannot be shown under other histories. Leave out `chosen_ids` and "
                    "`rejected_ids`, or set counterfactual_share=0."
                )
            if uses_teachers:
                checks.check_groups(dataset, self._teachers, what)
            else:
                checks.check_teacher_margins(dataset, what)

    def _prepare_dataset(
        self,
        dataset: Dataset | IterableDataset,
        processing_class: PreTrainedTokenizerBase,
        args: Any,
        dataset_name: str,
    ) -> Dataset | IterableDataset:
        is_train = not self._train_is_prepared  # the base class prepares the training dataset first
        self._train_is_prepared = True
        if dataset is _NO_PAIRS:
            return dataset
        columns = get_dataset_column_names(dataset)
        if is_train and isinstance(dataset, Dataset):
            dataset = self._add_counterfactual_rows(dataset, args)
        elif not is_train and "has_label" in columns:
            dataset = dataset.filter(lambda row: row["has_label"])  # nothing tells whether a model is right about the others
        if "chosen_ids" not in columns and ("history" in columns or "chat_template_kwargs" in columns):
            # A template that knows no `history` would lose it in silence.
            add_history_template(processing_class)
            dataset = self._render_history(dataset, processing_class, args)
        before = count_by_group(dataset) if isinstance(dataset, Dataset) else None
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if before is not None and isinstance(dataset, Dataset):
            self._report_drops(before, dataset, dataset_name, args)
        return dataset

    @staticmethod
    def _render_history(
        dataset: Dataset | IterableDataset, processing_class: PreTrainedTokenizerBase, args: PAFOConfig
    ) -> Dataset | IterableDataset:
        if "history" not in get_dataset_column_names(dataset):
            return dataset
        if not isinstance(dataset, Dataset):
            raise DataError("A streaming dataset cannot have a `history` column; write it into `chat_template_kwargs` first.")
        if is_rendered(dataset) and args.num_history is None and args.history_max_tokens is None:
            remember_rendering(dataset, processing_class)
            return dataset.remove_columns("history")
        cutter = HistoryCutter(processing_class, args.num_history, args.history_max_tokens, args.history_fields)
        cutter.remember()
        return render_history(dataset, cutter, args.dataset_num_proc)

    def _add_counterfactual_rows(self, dataset: Dataset, args: PAFOConfig) -> Dataset:
        if "has_label" in dataset.column_names:
            if not self._distils:  # such rows have no label to learn from
                dataset = dataset.filter(lambda row: row["has_label"], desc="Leaving out counterfactual rows")
            return dataset
        if not (self._distils and self._teachers and "teacher_margin" not in dataset.column_names):
            return dataset
        if args.counterfactual_share == 0 or "history" not in dataset.column_names or args.num_history == 0:
            return dataset
        return counterfactual_rows(dataset, list(self._teachers), args.counterfactual_share, args.seed)

    def _report_drops(self, before: Counter[str], dataset: Dataset, dataset_name: str, args: PAFOConfig) -> None:
        dropped = before - count_by_group(dataset)
        self.dropped_pairs[dataset_name] = dropped
        if dropped:
            parts = [f"{group}: {count} of {before[group]} ({count / before[group]:.1%})" for group, count in dropped.items()]
            logger.warning(
                f"Pairs of the {dataset_name} dataset dropped because they are longer than max_length={args.max_length} tokens, by "
                f"group: {'; '.join(parts)}. Raise `max_length` or lower `history_max_tokens` to keep them."
            )
        if not len(dataset):
            raise ConfigError(
                f"No pair of the {dataset_name} dataset is within max_length={args.max_length} tokens. Raise `max_length`, or lower "
                "`num_history` or `history_max_tokens`."
            )

    def _add_teacher_margins(self, dataset: Dataset) -> Dataset:
        args = self.args
        if "teacher_margin" in dataset.column_names:
            margins = np.asarray(dataset.with_format("numpy")["teacher_margin"][:], dtype=np.float32)
            dataset = dataset.remove_columns("teacher_margin")
        else:
            init_kwargs: Any = args.model_init_kwargs or {}
            init_dtype = init_kwargs.get("dtype") or "float32"
            dtype = init_dtype if isinstance(init_dtype, torch.dtype) else getattr(torch, init_dtype, torch.float32)
            margins = compute_teacher_margins(
                dataset,
                self._teachers,
                self.processing_class,
                self.accelerator,
                batch_size=args.teacher_batch_size or 2 * args.per_device_eval_batch_size,
                cache_dir=args.teacher_margin_cache_dir or f"{args.output_dir}/teacher_margins",
                dtype=dtype,
            )
        if args.teacher_scale == "rms":
            checks.check_columns(dataset.column_names, ["group"], "The training dataset (teacher_scale='rms' needs groups)")
            has_label = dataset["has_label"][:] if "has_label" in dataset.column_names else [True] * len(dataset)
            margins = scale_margins(margins, np.asarray(dataset["group"][:]), np.asarray(has_label))
        if args.teacher_margin_clip is not None:
            margins = margins.clip(-args.teacher_margin_clip, args.teacher_margin_clip)
        return dataset.add_column("teacher_margin", margins.tolist())

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for name in ("teacher_margin", "has_label"):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # The lines from the forward pass to the loss are those of the base class, whose own method gathers four times and waits
        # for the device six times in every step.
        own = {key: inputs.pop(key) for key in _OWN_KEYS if key in inputs}
        is_training = self.model.training
        distils = self._distils and is_training  # evaluation is Bradley-Terry, as in the base class
        if distils and "teacher_margin" not in own:
            raise ConfigError(
                "The data collator drops `teacher_margin`, so nothing could be distilled. Use DataCollatorForGroupPreference, or "
                "leave `data_collator` out."
            )
        outputs = model(**inputs, use_cache=False)
        chosen, rejected = torch.chunk(reward_of(outputs), chunks=2)
        margin, offset = chosen - rejected, own.get("margin", 0.0)
        parts = None
        if distils:
            parts = pafo_loss(
                margin,
                own["teacher_margin"],
                own["has_label"],
                alpha=self.args.alpha,
                distillation_loss=self.args.distillation_loss,
                temperature=self.args.distillation_temperature,
                condition=self.args.condition,
                counterfactual_weight=self.args.counterfactual_weight,
                offset=offset,
            )
            loss = parts.loss
        else:
            loss = bradley_terry(margin, offset).mean()
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * torch.mean((chosen + rejected) ** 2)
        if is_training:
            self._sums.add(
                chosen,
                rejected,
                inputs["attention_mask"].sum(),
                own.get("has_label"),
                own.get("group_id"),
                loss_parts=None if parts is None else (parts.bradley_terry, parts.distillation),
            )
        return (loss, outputs) if return_outputs else loss


def _groups_of(dataset: Any) -> set[str]:
    """Names of the groups of a dataset that is not a stream."""
    if not isinstance(dataset, Dataset) or "group" not in dataset.column_names:
        return set()
    return {str(group) for group in dataset.unique("group")} - {"None", ""}


def _warn_of_a_lost_head(peft_config: Any) -> None:
    """An adapter of another task type is saved without the reward head, and loads with a random one."""
    if (
        not isinstance(peft_config, PeftConfig)
        or str(getattr(peft_config.task_type, "value", peft_config.task_type)) == "SEQ_CLS"
    ):
        return
    if not {"score", "classifier"} & set(getattr(peft_config, "modules_to_save", None) or []):
        logger.warning(
            f"`peft_config` has task_type={peft_config.task_type!r}, so the reward head is neither trained nor saved and would be random "
            "after loading. Use task_type='SEQ_CLS' (on the command line --lora_task_type SEQ_CLS)."
        )
