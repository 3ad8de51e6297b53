"""PAFORewardTrainer: wires pairs, margins and batches into the hooks of TRL's RewardTrainer; it holds no formula."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import DataCollator, PreTrainedTokenizerBase
from trl import RewardConfig
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import get_config_model_id

from trl_pafo.data.groups import ONE_GROUP
from trl_pafo.data.showings import EveryGroup
from trl_pafo.data.tokenization import sequence_lengths
from trl_pafo.errors import ConfigError
from trl_pafo.models.adapters import keep_head_in_format, keep_reward_head
from trl_pafo.models.card import Card
from trl_pafo.models.loading import as_dtype, table_positions
from trl_pafo.models.ranks import replaced
from trl_pafo.models.safe_loading import read_tokenizer, safe_init_kwargs
from trl_pafo.models.weights import check_loaded_model, check_student
from trl_pafo.prefix_sharing.choice import SharingChoice, choose_sharing
from trl_pafo.prefix_sharing.forward import PairHead
from trl_pafo.prefix_sharing.packing_choice import WHY_NOT_THERE, PackingChoice, choose_packing
from trl_pafo.trainer.agreement import Agreement, agreement
from trl_pafo.trainer.best_checkpoint import choose_checkpoint
from trl_pafo.trainer.collator import PairBatch
from trl_pafo.trainer.config import PAFOConfig, check_visible_gpus
from trl_pafo.trainer.evaluation import NO_PAIRS, ExactRewardTrainer
from trl_pafo.trainer.hub_mixin import HubMixin
from trl_pafo.trainer.losses import pafo_loss
from trl_pafo.trainer.margins import TeacherMargins
from trl_pafo.trainer.model_card import card_of_training
from trl_pafo.trainer.pairs import PairPreparer
from trl_pafo.trainer.samplers import DrawnOrder, EpochOfSampler, is_tokenized, row_lengths
from trl_pafo.trainer.showings import ShowingSampler, ShownPairs, shown_pairs
from trl_pafo.trainer.targets import targets_from_columns, targets_from_teachers
from trl_pafo.trainer.teacher import QuantizedBase, Teacher, TeacherSpec, as_teachers

logger = get_logger(__name__)


class PAFORewardTrainer(HubMixin, ExactRewardTrainer):  # type: ignore[misc]  # TRL's `create_model_card` is not transformers'
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
            Preference pairs as for [`~trl.RewardTrainer`] and, where PAFO is to act, the columns `group` (str) and `history` (list of past
            pairs with `prompt`, `chosen`, `rejected`, newest first), with `teachers` or the column `teacher_margins` (a dict with the
            margin of each group's teacher for the pair, in reward units); optional `user` (str). The history is put into the prompt by
            the chat template, see [`~trl_pafo.data.history.render_history`]. Each showing of a pair draws a history anew, as
            `args.conditioning` and `args.tau` say. In place of all that, a column `teacher_margin` (float) says what each pair is to
            learn under its own history. Not needed to evaluate and predict.
        eval_dataset (*optional*):
            As for [`~trl.RewardTrainer`]; the evaluation loss is Bradley-Terry. With the columns `group` and `user`, accuracies
            of groups and users are reported ([`~trl_pafo.trainer.pair_metrics.evaluation_metrics`]).
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            As for [`~trl.RewardTrainer`].
        teachers (`dict[str, str | Path]`, *optional*):
            Teacher of each group: the folder or Hub id of a checkpoint or adapter. Each scores every pair once, here, as its own
            training read pairs; margins are kept on disk, and no teacher stays in memory. Defaults to `args.teachers`.
        compute_metrics (`Callable[[EvalPrediction], dict]`, *optional*):
            As for [`~trl.RewardTrainer`], with one row a pair: `predictions` of shape `(num_pairs, 2)`, the rewards of chosen
            and rejected, and `label_ids`, a dictionary with `"group"` and `"user"`, string arrays of shape `(num_pairs,)`.
        **kwargs:
            All other arguments of [`~trl.RewardTrainer`], `peft_config` among them.

    Raises:
        TrlPafoError: If data, groups and teachers do not fit together; raised before a model is loaded, but where a pair has more
            tokens than the model has positions.
    """

    args: PAFOConfig

    how_trained: str | None = None
    """A sentence for the card, of a method of its own."""

    _tag_names = ["trl", "reward-trainer", "pafo"]
    _name = "PAFO"
    train_dataset: Any

    _shown: ShownPairs | None = None
    """The training pairs where their histories are drawn; `None` where each keeps its own."""

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
        name = model if isinstance(model, str) else get_config_model_id(model.config)
        args = PAFOConfig.from_reward_config(PAFOConfig(f"{name.split('/')[-1]}-PAFO") if args is None else args)
        args.check()
        check_visible_gpus(args, model)
        of_group = as_teachers(args.teachers if teachers is None else teachers)  # type: ignore[arg-type]
        self._pairs = PairPreparer(args, of_group)
        train_dataset, eval_dataset = self._pairs.check(train_dataset, eval_dataset)
        choose_checkpoint(args, train_dataset, eval_dataset)
        peft_config = kwargs.get("peft_config", positional[-1] if positional else None)
        revision = check_model(model, args, peft_config, trains=train_dataset is not None)
        if processing_class is None:  # as the base class loads it, but before the model, so that teachers are checked first
            code = args.trust_remote_code
            processing_class = read_tokenizer(name, revision=revision, trust_remote_code=code)
        self._pairs.check_teachers(processing_class)
        self.dropped_pairs = self._pairs.dropped
        """Pairs dropped because they are longer than `max_length`, by dataset and group."""

        given = (model, args, data_collator, train_dataset, eval_dataset, processing_class, *positional)
        super().__init__(*given, groups=of_group, **kwargs)
        keep_head_in_format(self.model)
        self._positions = self._check_lengths() if data_collator is None else None  # a collator of one's own may cut
        self.prefix_sharing = self._choose_prefix_sharing(own_collator=data_collator is None)
        """Whether pairs share rows, and why."""
        self.padding_free = self._choose_packing(own_collator=data_collator is None)
        """Whether batches of an encoder are computed without padding, and why."""
        self.add_callback(EpochOfSampler())
        self.teacher_agreement: list[Agreement] = []
        """How far the teacher of each group agrees with the labels of its training pairs. Empty where nothing is distilled."""
        self._add_targets(of_group)

    def _check_lengths(self) -> int | None:
        """Raise [`ConfigError`] where a pair would end the training for want of positions; how many tokens there are positions for,
        `None` where they are computed.
        """
        positions = table_positions(self.model)
        if positions is None:
            return None
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        for rows in filter(is_tokenized, [self.train_dataset, *evaluated]):
            lengths = sequence_lengths(rows)
            if rows is self.train_dataset:
                lengths += self._pairs.left_for_names(rows, self.processing_class)
            if number := int((lengths > positions).any(axis=1).sum()):
                raise ConfigError(
                    f"{number} of {len(rows)} pairs are longer than the {positions} positions of the model. Set max_length={positions}, which "
                    "drops them, or lower `num_history` or `history_max_tokens`."
                )
        return positions

    def _add_targets(self, teachers: Mapping[str, Teacher]) -> None:
        """Give the training pairs what the student is to learn, and the histories that they are shown under."""
        pairs, rows, args = self._pairs, self._pairs.rows, self.args
        pairs.rows = None  # so that it is let go
        targets = None
        if pairs.distills and "teacher_margin" in get_dataset_column_names(self.train_dataset):
            if isinstance(self.train_dataset, Dataset):
                given = np.asarray(self.train_dataset["teacher_margin"][:])
                self.teacher_agreement = agreement(given, len(given) * [ONE_GROUP])  # whose teachers they are is not known
        elif pairs.distills:
            tau = args.tau if pairs.draws_donors and args.conditioning == "posterior" else None
            if rows is not None and teachers:
                group = self.train_dataset["group"][:]
                scorer, tokenizer = self._teacher_scorer(), self.processing_class
                own = not (pairs.draws_donors or pairs.names_groups)
                targets = targets_from_teachers(scorer, teachers, rows.given, group, tokenizer, own=own, tau=tau)
            else:
                targets = targets_from_columns(self.train_dataset, sorted(pairs.groups), tau=tau)
            own_margins = targets.own()
            self.teacher_agreement = agreement(own_margins, self.train_dataset["group"][:])
            self.train_dataset = self.train_dataset.add_column("teacher_margin", own_margins)
        if rows is not None and pairs.names_groups:
            every = EveryGroup(self.train_dataset["group"][:])
            self._shown = ShownPairs(self.train_dataset, rows.messages, self.processing_class, every, targets)
        elif rows is not None and (pairs.draws_donors or args.min_num_history is not None):
            self._shown = shown_pairs(
                self.train_dataset,
                rows.given,
                rows.messages,
                self.processing_class,
                targets,
                seed=self._data_seed,
                tau=args.tau if pairs.draws_donors else None,
                min_history=args.min_num_history,
                max_length=min(filter(None, (args.max_length, self._positions)), default=None),
            )

    def _teacher_scorer(self) -> TeacherMargins:
        args = self.args
        init_kwargs: Any = args.model_init_kwargs or {}
        return TeacherMargins(
            self.processing_class,
            self.accelerator,
            batch_size=args.teacher_batch_size or 2 * args.per_device_eval_batch_size,
            cache_dir=args.teacher_margin_cache_dir or f"{args.output_dir}/teacher_margins",
            dtype=as_dtype(init_kwargs.get("dtype")),  # teachers on disk are loaded in the dtype of the student
            quantized=QuantizedBase.of(self.model),
            prefix_sharing="off" if args.prefix_sharing == "off" else "auto",  # a teacher may be of another family
        )

    def _choose_prefix_sharing(self, own_collator: bool) -> SharingChoice:
        args, collator = self.args, self.data_collator
        mode, asked = args.prefix_sharing, getattr(collator, "share_prefix", False)
        if not own_collator and asked:
            mode = "on"
        reason = self._why_two_rows(own_collator or asked)
        dataset = self.eval_dataset if self.train_dataset is None else self.train_dataset
        if isinstance(dataset, dict):
            dataset = next(iter(dataset.values()), None)
        multiple = getattr(collator, "pad_to_multiple_of", None)
        choice = choose_sharing(mode, self.model, dataset, args.train_batch_size, pad_to_multiple_of=multiple, reason=reason)
        if choice.share:
            PairHead.of(self.model)
            collator.share_prefix = True
        logger.info(f"Prefixes are {'shared' if choice.share else 'not shared'}: {choice.reason}.")
        return choice

    def _why_two_rows(self, own_collator: bool) -> str | None:
        if max(self.get_tp_size(), self.get_cp_size(), self.get_sp_size()) > 1:
            return "tensor, context and sequence parallelism split what the reward head reads"
        if self.is_model_parallel:
            return "the layers are on several devices, and what a kernel is told of who sees whom is on the first"
        if self.args.neftune_noise_alpha is not None:  # its size is by the tokens of a row, and a shared prefix would get it once
            return "the noise of `neftune_noise_alpha` is for sequences in rows of their own"
        return None if own_collator else "the data collator is not the trainer's own"

    def _choose_packing(self, own_collator: bool) -> PackingChoice:
        # A model that will be sharded is still on the CPU.
        reason = self._why_two_rows(own_collator) or (None if self.args.device.type == "cpu" else WHY_NOT_THERE)
        choice = choose_packing(self.args.padding_free, self.model, reason)
        self._packs = choice.pack
        if choice.pack:
            logger.info(f"Batches are computed without padding: {choice.reason}.")
        return choice

    def model_card(self) -> Card:
        return card_of_training(self, self.dropped_pairs.get("train", {}), self._pairs.distills)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if dataset is NO_PAIRS:
            return dataset
        return self._pairs.prepare(dataset, processing_class, dataset_name, super()._prepare_dataset)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [n for n in ("teacher_margin", "has_label") if n not in self._signature_columns]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        if self.args.best_checkpoint and self.state.best_model_checkpoint is None:
            logger.warning(
                f"best_checkpoint={self.args.best_checkpoint!r} had no checkpoint to choose: none was evaluated, or all gave NaN. "
                "The weights are those of the last step."
            )
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_loss" in logs:
            found = {key: value for each in self.teacher_agreement for key, value in each.logs().items()}
            if not any(found.items() <= entry.items() for entry in self.state.log_history):  # once, also after a checkpoint
                logs.update(found)
        super().log(logs, start_time)

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        given = self.train_dataset if train_dataset is None else train_dataset
        dataset = given.tokens if isinstance(given, ShownPairs) else given
        if self.args.train_sampling_strategy == "group_by_length" and is_tokenized(dataset):
            times = given.draw.times if isinstance(given, ShownPairs) else 1
            pairs_a_step = self._train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps // times or 1
            lengths = row_lengths(dataset, self.data_collator)
            sampler: Any = DrawnOrder(len(dataset), self._data_seed, lengths, pairs_a_step)
        elif isinstance(given, ShownPairs) and self.args.train_sampling_strategy == "random":
            sampler = DrawnOrder(len(dataset), self._data_seed)  # the Trainer's own does not tell its epoch
        else:
            sampler = super()._get_train_sampler(dataset)  # of the rows: those of `ShownPairs` count each of their showings
        return ShowingSampler(sampler, given.draw.times) if isinstance(given, ShownPairs) else sampler

    def get_train_dataloader(self) -> Any:
        with replaced(self, train_dataset=self._shown or self.train_dataset):
            return super().get_train_dataloader()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        if self.state.global_step >= self.state.max_steps:
            return [], None  # going on from the last checkpoint of all: the Trainer would take one more step
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def pair_loss(self, difference: torch.Tensor, batch: PairBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if not self._pairs.distills or not self.model.training:  # evaluation is Bradley-Terry, as in the base class
            return super().pair_loss(difference, batch)
        if dropped := [name for name in ("teacher_margin", "has_label") if getattr(batch, name) is None]:
            raise ConfigError(
                f"The data collator drops `{dropped[0]}`, without which nothing can be distilled. Use DataCollatorForGroupPreference, or leave "
                "`data_collator` out."
            )
        args = self.args
        loss = pafo_loss(
            difference,
            batch.teacher_margin,
            batch.has_label,
            alpha=args.alpha,
            distillation_loss=args.distillation_loss,
            temperature=args.distillation_temperature,
            offset=0.0 if batch.margin is None else batch.margin,
        )
        return loss.loss, {"bradley_terry": loss.bradley_terry, "distillation": loss.distillation}


def check_model(model: Any, args: PAFOConfig, peft_config: Any, trains: bool) -> str | None:
    """Raise where a model would get random weights or is no reward model; the revision of one that is given by its name."""
    if not isinstance(model, str):
        check_loaded_model(model, "`model`")
        keep_reward_head(model, peft_config)
        return None
    options = args.model_init_kwargs = safe_init_kwargs(model, args.model_init_kwargs)  # type: ignore[arg-type]
    check_student(model, options, trains=trains)
    keep_reward_head(model, peft_config, options.get("revision"))
    return options.get("revision")
