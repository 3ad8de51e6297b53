"""PAFORewardTrainer: wires margins, teachers and history into the hooks of TRL's RewardTrainer; it holds no formula."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, DataCollator, PreTrainedTokenizerBase
from trl import RewardConfig
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from trl_pafo.data import checks
from trl_pafo.data.history import remembered
from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.errors import ConfigError
from trl_pafo.models.adapters import active_adapter_alone, keep_head_in_format, keep_reward_head
from trl_pafo.models.safe_loading import safe_init_kwargs
from trl_pafo.models.scoring import as_dtype, reward_of
from trl_pafo.models.weights import check_loaded_model, check_student
from trl_pafo.prefix_sharing.choice import SharingChoice, choose_sharing
from trl_pafo.prefix_sharing.forward import PairHead, forward_shared
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS
from trl_pafo.teachers.agreement import Agreement, TeacherAgreement
from trl_pafo.teachers.margins import compute_teacher_margins, scale_margins
from trl_pafo.teachers.online import TEACHER_ROWS, OnlineTeachers, TeacherRowsCollator
from trl_pafo.teachers.teacher import QuantizedBase, TeacherSpec, as_teachers, check_inputs, check_teacher
from trl_pafo.trainer.collator import PAIR_KEYS, DataCollatorForGroupPreference
from trl_pafo.trainer.config import PAFOConfig
from trl_pafo.trainer.losses import bradley_terry, pafo_loss
from trl_pafo.trainer.pair_metrics import PairSums
from trl_pafo.trainer.pairs import NO_PAIRS, PairsRewardTrainer
from trl_pafo.trainer.samplers import (
    EpochOfSampler,
    LengthGroupedSampler,
    check_budget,
    is_tokenized,
    num_pairs,
    row_lengths,
    rows_a_pair,
)

logger = get_logger(__name__)

# Keys of a batch that no model takes: models swallow unknown keyword arguments in silence.
_OWN_KEYS = ("margin", "teacher_margin", "has_label", "group_id", TEACHER_ROWS, PAIR_LENGTHS, *PAIR_KEYS)


class PAFORewardTrainer(PairsRewardTrainer):
    """
    [`~trl.RewardTrainer`] with Pareto Fairness Optimization: the margins of one teacher a preference group are distilled,
    conditionally on the group, into one reward model that needs no group label at inference.

    Without teachers and without a `teacher_margin` column, or with `alpha=1`, it is [`~trl.RewardTrainer`], to the last
    digit of its losses (to rounding where prefixes are shared). What it saves is a plain sequence classification model or
    adapter, with the tokenizer.

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
            put into the prompt by the chat template, see [`~trl_pafo.data.history.render_history`]; with it, each pair is also
            shown under histories of the other groups (`args.counterfactual_share`). Not needed to evaluate and predict.
        eval_dataset (*optional*):
            As for [`~trl.RewardTrainer`]; the evaluation loss is Bradley-Terry. With the columns `group` and `user`, accuracies
            of groups and users are reported ([`~trl_pafo.trainer.pair_metrics.evaluation_metrics`]).
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            As for [`~trl.RewardTrainer`].
        teachers (`dict[str, str | Path | PreTrainedModel | PeftModel]`, *optional*):
            Teacher of each group: the folder or Hub id of a checkpoint or adapter, or a model. Their margins are computed once,
            here, and kept on disk; no teacher stays in memory. Those of a stream score each batch of the training instead.
            Defaults to `args.teachers`.
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

    _online: OnlineTeachers | None = None
    """Teachers of a stream, which score the rows of each batch."""

    _agreement: TeacherAgreement | None = None
    """How far the teachers agree with the labels; `None` where nothing is distilled."""

    _agreement_is_logged = False

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
        model = os.fspath(model) if isinstance(model, os.PathLike) else model
        if args is None:
            # The base class would build a RewardConfig, which knows no alpha.
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = PAFOConfig(f"{model_name.split('/')[-1]}-PAFO")
        args = PAFOConfig.from_reward_config(args)
        args.check()
        if isinstance(model, str):
            args.model_init_kwargs = safe_init_kwargs(model, args.model_init_kwargs)  # type: ignore[arg-type]
        if args.activation_offloading and torch.accelerator.current_accelerator() is None:
            raise ConfigError(
                "activation_offloading=True moves activations from the accelerator to the host, and this machine has no accelerator. "
                "Leave it out; gradient_checkpointing=True saves memory here."
            )
        self._teachers = as_teachers(args.teachers if teachers is None else teachers)  # type: ignore[arg-type]
        # A dispatched batch is cut by rows, and would tear the chosen responses from the rejected ones.
        args.accelerator_config.dispatch_batches = False  # type: ignore[union-attr]
        self._check_datasets(train_dataset, eval_dataset)
        columns = [] if train_dataset is None else get_dataset_column_names(train_dataset)
        self._distills = args.alpha < 1 and train_dataset is not None and bool(self._teachers or "teacher_margin" in columns)
        needs_groups = self._distills and ("teacher_margin" not in columns or args.teacher_scale == "rms")
        train_dataset = normalize_columns(train_dataset, "The training dataset", ["group"] if needs_groups else [])
        if isinstance(eval_dataset, dict):
            eval_dataset = {
                name: normalize_columns(rows, f"The evaluation dataset {name}") for name, rows in eval_dataset.items()
            }
        else:
            eval_dataset = normalize_columns(eval_dataset, "The evaluation dataset")
        train_groups = _groups_of(train_dataset)
        eval_datasets = list(eval_dataset.values()) if isinstance(eval_dataset, dict) else [eval_dataset]
        self.groups: list[str] = sorted(set(self._teachers).union(train_groups, *map(_groups_of, eval_datasets)))
        self.dropped_pairs = {}
        if train_dataset is not None:
            self._check_train_dataset(train_dataset, args)
        init_kwargs: Any = args.model_init_kwargs if isinstance(model, str) else {}
        if isinstance(model, str):
            check_student(model, init_kwargs, trains=train_dataset is not None)
        else:
            check_loaded_model(model, "`model`")
        peft_config = kwargs.get("peft_config", positional[-1] if positional else None)
        keep_reward_head(model, peft_config, init_kwargs.get("revision"))
        if processing_class is None and (self._teachers or "history" in columns):
            processing_class = self._load_tokenizer(model, args)
        if self._distills and processing_class is not None:
            for teacher in self._teachers.values():
                check_teacher(teacher, processing_class)
            if isinstance(train_dataset, Dataset) and not {"chosen_ids", "chosen_input_ids"} & set(columns):
                self._remember(train_dataset, processing_class, args)
                for teacher in self._teachers.values():
                    check_inputs(teacher, remembered(processing_class), as_found=self._is_cut(train_dataset, args))

        given = NO_PAIRS if train_dataset is None else train_dataset  # the base class demands one
        super().__init__(model, args, data_collator, given, eval_dataset, processing_class, *positional, **kwargs)
        keep_head_in_format(self.model)
        if train_dataset is None:
            self.train_dataset = None
        if data_collator is None:
            base = self.data_collator
            self.data_collator = DataCollatorForGroupPreference(
                pad_token_id=base.pad_token_id,
                pad_to_multiple_of=base.pad_to_multiple_of,
                groups=sorted(train_groups) or self.groups,
            )
        self.prefix_sharing = self._choose_prefix_sharing(own_collator=data_collator is None)
        """Whether pairs share rows, and why."""
        if self.args.max_tokens_per_batch is not None and is_tokenized(self.train_dataset):
            lengths = row_lengths(self.train_dataset, self.data_collator)  # type: ignore[arg-type]
            check_budget(lengths, rows_a_pair(self.data_collator), self.args.max_tokens_per_batch)
        self.add_callback(EpochOfSampler())
        self._sums = PairSums(getattr(self.data_collator, "groups", ()))
        if self._distills:
            known = getattr(self.data_collator, "groups", ()) if "group" in columns else ()  # of a stream with margins
            self._agreement = TeacherAgreement(self._teachers or sorted(train_groups) or known)
        if self._distills and isinstance(self.train_dataset, Dataset):
            self.train_dataset = self._add_teacher_margins(self.train_dataset)
        elif self._distills and "teacher_margin" not in columns:
            found = None if "chosen_ids" in columns else remembered(self.processing_class)
            # Where the first row is of messages and has no history, later ones may have some.
            if found is not None and (found["inputs"] == "text" or found["num_history"] != 0):
                for teacher in self._teachers.values():
                    check_inputs(teacher, found, as_found=True)
            self._online = OnlineTeachers(
                self._teachers,
                self.processing_class,
                self.accelerator,
                self._teacher_dtype(),
                self.args.teacher_margin_clip,
                QuantizedBase.of(self.model),
            )
            self.add_callback(self._online)
        # Given models would otherwise be kept alive, and be moved and saved by whatever walks over the trainer.
        self._teachers = {}

    def _choose_prefix_sharing(self, own_collator: bool) -> SharingChoice:
        args, collator = self.args, self.data_collator
        mode, reason = args.prefix_sharing, None
        if not own_collator:
            reason = "the data collator is not the trainer's own"
            if getattr(collator, "share_prefix", False):  # whoever gives such a collator asks for it
                mode, reason = "on", None
        if max(self.get_tp_size(), self.get_cp_size(), self.get_sp_size()) > 1:
            reason = "tensor, context and sequence parallelism split what the reward head reads"
        dataset = self.eval_dataset if self.train_dataset is None else self.train_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()), None)
        choice = choose_sharing(
            mode,
            self.model,
            dataset,
            args.train_batch_size,
            pad_to_multiple_of=getattr(collator, "pad_to_multiple_of", None),
            reason=reason,
        )
        if choice.share:
            PairHead.of(self.model)
            collator.share_prefix = True
        logger.info(f"Prefixes are {'shared' if choice.share else 'not shared'}: {choice.reason}.")
        return choice

    @staticmethod
    def _load_tokenizer(model: Any, args: PAFOConfig) -> PreTrainedTokenizerBase:
        """The tokenizer that the base class would load, so that teachers are checked before the model is loaded."""
        init_kwargs: Any = args.model_init_kwargs or {}
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        revision = init_kwargs.get("revision") if isinstance(model, str) else None
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)

    def _teacher_dtype(self) -> torch.dtype:
        """Teachers on disk are loaded in the dtype of the student."""
        init_kwargs: Any = self.args.model_init_kwargs or {}
        return as_dtype(init_kwargs.get("dtype"))

    def _add_teacher_margins(self, dataset: Dataset) -> Dataset:
        args = self.args
        if "teacher_margin" in dataset.column_names:
            margins = np.asarray(dataset.with_format("numpy")["teacher_margin"][:], dtype=np.float32)
            dataset = dataset.remove_columns("teacher_margin")
        else:
            margins = compute_teacher_margins(
                dataset,
                self._teachers,
                self.processing_class,
                self.accelerator,
                batch_size=args.teacher_batch_size or 2 * args.per_device_eval_batch_size,
                cache_dir=args.teacher_margin_cache_dir or f"{args.output_dir}/teacher_margins",
                dtype=self._teacher_dtype(),
                quantized=QuantizedBase.of(self.model),
                prefix_sharing="off" if args.prefix_sharing == "off" else "auto",  # a teacher may be of another family
            )
        self._count_agreement(dataset, margins)
        if args.teacher_scale == "rms":
            checks.check_columns(dataset.column_names, ["group"], "The training dataset (teacher_scale='rms' needs groups)")
            has_label = dataset["has_label"][:] if "has_label" in dataset.column_names else [True] * len(dataset)
            margins = scale_margins(margins, np.asarray(dataset["group"][:]), np.asarray(has_label))
        if args.teacher_margin_clip is not None:
            margins = margins.clip(-args.teacher_margin_clip, args.teacher_margin_clip)
        return dataset.add_column("teacher_margin", margins)  # type: ignore[arg-type]

    def _count_agreement(self, dataset: Dataset, margins: np.ndarray) -> None:
        """Of all training rows, which every process has."""
        agreement = self._agreement
        assert agreement is not None
        places = {name: place for place, name in enumerate(agreement.groups)}
        columns = dataset.column_names
        ids = torch.tensor([places.get(group, -1) for group in dataset["group"][:]]) if "group" in columns else None
        has_label = torch.tensor(dataset["has_label"][:]) if "has_label" in columns else None
        agreement.add(torch.from_numpy(margins), has_label, ids)
        agreement.reduce()

    def _count_batch(self, own: dict[str, Any]) -> None:
        """Of the rows of a stream, as they come."""
        agreement, rows = self._agreement, own.get(TEACHER_ROWS)
        assert agreement is not None
        margins = own["teacher_margin"]
        ids = own.get("group_id") if rows is None else rows.ids(agreement.groups).to(margins.device)
        agreement.add(margins, own.get("has_label"), ids)

    @property
    def teacher_agreement(self) -> list[Agreement]:
        """How far the teacher of each group agrees with the labels of the group's own pairs: of all training pairs, or of those of a
        stream that were scored until the last log. Empty where nothing is distilled."""
        return [] if self._agreement is None else self._agreement.found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._agreement is not None and ("loss" in logs or "train_loss" in logs):
            if not isinstance(self.train_dataset, Dataset):
                logs.update(self._agreement.reduce(self.accelerator.gather))
            elif not self._agreement_is_logged:  # it does not change, but a checkpoint may be of other teachers
                self._agreement_is_logged = True
                found = self._agreement.reduce()
                before = {key: entry[key] for entry in self.state.log_history for key in found.keys() & entry.keys()}
                if any(str(before.get(key)) != str(value) for key, value in found.items()):  # as texts, for NaN is not NaN
                    logs.update(found)
        super().log(logs, start_time)

    def _training_collator(self) -> Any:
        return self.data_collator if self._online is None else TeacherRowsCollator(self.data_collator)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with active_adapter_alone(self.accelerator.unwrap_model(self.model, keep_torch_compile=False)):
            super()._save(output_dir, state_dict)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for name in ("teacher_margin", "has_label"):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy == "group_by_length" and is_tokenized(dataset):
            lengths = row_lengths(dataset, self.data_collator)
            return LengthGroupedSampler(
                lengths, self._train_batch_size * self.args.gradient_accumulation_steps, self._data_seed()
            )
        return super()._get_train_sampler(train_dataset)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        if self.state.global_step >= self.state.max_steps:
            return [], None  # going on from the last checkpoint of all: the Trainer would take one more step
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.args.max_tokens_per_batch is None or not batches:
            return batches, num_items
        total = sum(map(num_pairs, batches))
        if self.accelerator.num_processes == 1:
            return batches, total
        # Filled where it is, and left there: nothing waits for the device.
        return batches, self.accelerator.gather(torch.full((1,), total, device=device)).sum()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # The lines from the forward pass to the loss are those of the base class, whose own method gathers four times and waits
        # for the device six times in every step.
        own = {key: inputs.pop(key) for key in _OWN_KEYS if key in inputs}
        is_training = self.model.training
        distills = self._distills and is_training  # evaluation is Bradley-Terry, as in the base class
        if distills and TEACHER_ROWS in own:
            own["teacher_margin"] = self._online.margins(own[TEACHER_ROWS])  # type: ignore[union-attr]
        if distills and "teacher_margin" not in own:
            raise ConfigError(
                "The data collator drops `teacher_margin`, so nothing could be distilled. Use DataCollatorForGroupPreference, or "
                "leave `data_collator` out."
            )
        if distills and not isinstance(self.train_dataset, Dataset):
            self._count_batch(own)
        lengths = own.get(PAIR_LENGTHS)
        if lengths is None:
            outputs = model(**inputs, use_cache=False)
            num_tokens = inputs["attention_mask"].sum()
        else:
            outputs = forward_shared(model, inputs["input_ids"], lengths, use_cache=False)
            num_tokens = lengths.sum() + lengths[:, 0].sum()  # those of both sequences, as RewardTrainer counts them
        chosen, rejected = torch.chunk(reward_of(outputs), chunks=2)
        margin, offset = chosen - rejected, own.get("margin", 0.0)
        parts = None
        if distills:
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
                num_tokens,
                own.get("has_label"),
                own.get("group_id"),
                loss_parts=None if parts is None else parts[1:],
            )
        if is_training and self.args.max_tokens_per_batch is not None and num_items_in_batch is not None:
            # The Trainer takes the mean over batches and processes; the mean over the pairs of the step is wanted.
            num_batches = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            loss = loss * (len(chosen) * num_batches / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


def _groups_of(dataset: Any) -> set[str]:
    """Names of the groups of a dataset that is not a stream."""
    if not isinstance(dataset, Dataset) or "group" not in dataset.column_names:
        return set()
    return set(dataset.unique("group")) - {None}
