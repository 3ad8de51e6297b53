"""RewardTrainer with numbers that are right to the last pair: each pair of an evaluation counted once, one exchange a log.

What RewardTrainer reports is off on an uneven last batch and on several processes: it averages means of batches, and counts the
rows that fill up the last one. Here the rewards of each pair are kept, gathered once, and counted by the pair's number.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, denumpify_detensorize
from trl import RewardTrainer

from trl_pafo.data.groups import group_names
from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.errors import ConfigError
from trl_pafo.models.batches import reward_of
from trl_pafo.models.ranks import replaced
from trl_pafo.prefix_sharing.forward import forward_shared
from trl_pafo.prefix_sharing.packing import forward_packed
from trl_pafo.prefix_sharing.rows import two_rows
from trl_pafo.trainer.collator import NUMBER_COLUMN, DataCollatorForGroupPreference, NumberedCollator, PairBatch, number_rows
from trl_pafo.trainer.config import PAFOConfig, is_better_when_lower
from trl_pafo.trainer.losses import bradley_terry
from trl_pafo.trainer.pair_metrics import Columns, ScoredPairs, each_once, evaluation_metrics, pair_losses, training_metrics
from trl_pafo.trainer.samplers import is_tokenized, longest_first, row_lengths

# Stands in for the training set where there is none: the base class demands one.
NO_PAIRS = Dataset.from_dict({"chosen_ids": [], "rejected_ids": []})


class ExactRewardTrainer(RewardTrainer):
    """
    [`~trl.RewardTrainer`] whose `evaluate`, `predict` and logs equal a plain loop over the pairs, on any number of processes,
    with accuracies of groups and users. The losses of a training are those of [`~trl.RewardTrainer`], bit for bit.

    Args:
        model, args, data_collator, train_dataset, eval_dataset and all others:
            As for [`~trl.RewardTrainer`]; no training set is needed to evaluate. With the columns `group` and `user` (str), accuracies
            of groups and users are reported ([`~trl_pafo.trainer.pair_metrics.evaluation_metrics`]).
        groups (`Iterable[str]`, *optional*):
            Groups that are always reported, beside those of the datasets.
    """

    # What the base class leaves open, or types more loosely.
    args: Any
    model: Any
    data_collator: Any
    processing_class: Any
    compute_metrics: Any
    preprocess_logits_for_metrics: Any
    _signature_columns: Any

    groups: list[str]
    """Groups of the training and evaluation sets, and those that were named; those of a stream are not known in advance."""
    _packs = False
    """Whether batches of an encoder are computed without padding."""
    _scored: ScoredPairs | None = None
    """Pairs of the evaluation that is under way."""

    def __init__(
        self,
        model: Any,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Dataset | IterableDataset | None = None,
        eval_dataset: Any = None,
        *positional: Any,
        groups: Iterable[str] = (),
        **kwargs: Any,
    ):
        if args is not None:  # a dispatched batch is cut by rows, and would tear the chosen responses from the rejected ones
            args.accelerator_config.dispatch_batches = False
            if not isinstance(args, PAFOConfig) and is_better_when_lower(args.metric_for_best_model):
                args.greater_is_better = False
        given = NO_PAIRS if train_dataset is None else train_dataset
        super().__init__(model, args, data_collator, given, eval_dataset, *positional, **kwargs)
        if train_dataset is None:
            self.train_dataset = None
        evaluated = self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        trained = group_names(self.train_dataset)
        self.groups = sorted(trained.union(groups, *map(group_names, evaluated)))
        if data_collator is None:
            self.data_collator = DataCollatorForGroupPreference(
                pad_token_id=self.data_collator.pad_token_id,
                pad_to_multiple_of=self.data_collator.pad_to_multiple_of,
                groups=sorted(trained) or self.groups,
            )
        self._steps = ScoredPairs()  # those of the training since the last log

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if dataset is NO_PAIRS:
            return dataset
        dataset = normalize_columns(dataset, f"The {dataset_name} dataset")
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns += [n for n in ("group", "user", NUMBER_COLUMN) if n not in self._signature_columns]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # The lines from the forward pass to the loss are those of the base class, whose own method gathers four times and waits
        # for the device six times in every step.
        batch = PairBatch.pop_from(inputs)
        if batch.pair_lengths is None:
            forward = partial(forward_packed, model) if self._packs else model
            outputs = forward(**inputs, use_cache=False)
            num_tokens = inputs["attention_mask"].sum()
        else:
            outputs = forward_shared(model, inputs["input_ids"], batch.pair_lengths, use_cache=False)
            num_tokens = (
                batch.pair_lengths.sum() + batch.pair_lengths[:, 0].sum()
            )  # of both sequences, as RewardTrainer counts them
        chosen, rejected = torch.chunk(reward_of(outputs), chunks=2)
        loss, parts = self.pair_loss(chosen - rejected, batch)
        if self.args.center_rewards_coefficient is not None:
            loss = loss + self.args.center_rewards_coefficient * torch.mean((chosen + rejected) ** 2)
        if self.model.training:
            rewards = torch.stack([chosen, rejected], dim=1).detach()
            sums = {name: (part.detach() * len(rewards))[None] for name, part in parts.items()}
            labels = {"has_label": batch.has_label, "group_id": batch.group_id}
            self._steps.add(rewards=rewards, num_tokens=num_tokens[None], **labels, **sums)
        return (loss, outputs) if return_outputs else loss

    def pair_loss(self, difference: torch.Tensor, batch: PairBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of a batch; a method of its own overrides this.

        Args:
            difference (`torch.Tensor` of shape `(num_pairs,)`):
                Reward of the chosen minus reward of the rejected response.
            batch ([`~trl_pafo.trainer.collator.PairBatch`]):
                What else is known of the pairs.

        Returns:
            The loss, a scalar, and by name the parts of it that are logged, scalars, means over the pairs of the batch
            ([`~trl_pafo.trainer.pair_metrics.training_metrics`]).
        """
        return bradley_terry(difference, 0.0 if batch.margin is None else batch.margin).mean(), {}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The base class makes these two logs on every process. Others may come from a callback on one of them, which must not
        # wait for the rest.
        if len(self._steps) and ("loss" in logs or "train_loss" in logs):
            pairs = self._steps.gather()
            self._total_train_tokens += int(pairs["num_tokens"].sum()) // self._tp_size
            metrics = training_metrics(pairs, getattr(self.data_collator, "groups", ()))
            logs.update({"num_tokens": self._total_train_tokens, **metrics})
        super().log(logs, start_time)

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        if is_training:
            return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        rows = self._remove_unused_columns(dataset, description) if isinstance(dataset, Dataset) else dataset
        sampler = sampler_fn and sampler_fn(dataset)
        # The base class reads both of these from the trainer. Evaluation drops no last batch: each pair counts.
        collator = NumberedCollator(self.data_collator)
        with replaced(self, data_collator=collator), replaced(self.args, dataloader_drop_last=False):
            numbered = number_rows(rows)
            return super()._get_dataloader(numbered, description, batch_size, lambda _: sampler, dataloader_key=dataloader_key)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # Rewards come back by the number of their pair, so any order will do; this one computes least on padding.
        if is_tokenized(eval_dataset):
            return longest_first(row_lengths(eval_dataset, self.data_collator))
        return super()._get_eval_sampler(eval_dataset)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        scored = self._scored
        if scored is None:  # called by hand
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        batch = PairBatch.pop_from(dict(inputs))
        _, outputs, _ = super().prediction_step(model, inputs, False, ignore_keys)
        logits: Any = outputs[0] if isinstance(outputs, tuple) else outputs
        rewards = torch.stack(torch.chunk(logits.squeeze(-1), chunks=2), dim=1)
        if batch.pair_number is None:  # a data loader that somebody else has made
            if self.accelerator.num_processes > 1:
                raise ConfigError(
                    "The rows of this evaluation data loader have no number, so copies of a pair on several processes would count "
                    "twice. Leave `get_eval_dataloader` as it is, or evaluate on one process."
                )
            batch.pair_number = range(len(scored), len(scored) + len(rewards))
        process = None if prediction_loss_only else self.preprocess_logits_for_metrics
        token_ids = None  # those of both sequences of each pair, of shape (num_pairs, 2, num_tokens)
        if self._keeps_inputs and batch.pair_lengths is None:
            token_ids = torch.stack(torch.chunk(inputs["input_ids"], chunks=2), dim=1)
        elif self._keeps_inputs:
            token_ids = two_rows(inputs["input_ids"], batch.pair_lengths, self.data_collator.pad_token_id)
        scored.add(
            pair_number=batch.pair_number,
            pair_group=batch.pair_group or [""] * len(rewards),
            pair_user=batch.pair_user or [""] * len(rewards),
            rewards=rewards,
            margin=batch.margin,
            predictions=process and process(rewards, None),
            inputs=token_ids,
        )
        return None, None, None  # nothing for the base class to gather

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        args = self.args
        loss_only = args.prediction_loss_only if prediction_loss_only is None else prediction_loss_only
        # The base class drives the loop. It must not gather inputs: it would give two rows a pair, and wait for processes
        # that have no such batch.
        self._keeps_inputs = self.compute_metrics is not None and not loss_only and "inputs" in args.include_for_metrics
        scored = ScoredPairs()
        with replaced(args, include_for_metrics=[]), replaced(self, _scored=scored):
            output = super().evaluation_loop(dataloader, description, loss_only, ignore_keys, metric_key_prefix)
        scored.add(num_tokens=[self._steps.total("num_tokens")])  # since the last log
        pairs = scored.gather()
        num_tokens = int(pairs.pop("num_tokens").sum()) // self._tp_size
        pairs = each_once(pairs)
        metrics: dict[str, Any] = {"num_tokens": self._total_train_tokens + num_tokens}
        metrics |= evaluation_metrics(pairs, self.groups, args.center_rewards_coefficient)
        predicted = None if loss_only else self._as_prediction(pairs)
        if self.compute_metrics is not None and predicted is not None:
            once = {"compute_result": True} if args.batch_eval_metrics else {}  # all pairs are one batch
            metrics |= denumpify_detensorize(self.compute_metrics(predicted, **once))
        prefix = f"{metric_key_prefix}_"
        metrics = {key if key.startswith(prefix) else prefix + key: value for key, value in metrics.items()}
        return EvalLoopOutput(
            predictions=predicted and predicted.predictions,  # type: ignore[arg-type]
            label_ids=predicted and predicted.label_ids,  # type: ignore[arg-type]
            metrics=output.metrics | metrics,  # type: ignore[operator]
            num_samples=len(pairs["pair_number"]),
        )

    def _as_prediction(self, pairs: Columns) -> EvalPrediction:
        """One row a pair, with the names of group and user in the place of labels."""
        with_loss = "loss" in self.args.include_for_metrics
        return EvalPrediction(
            predictions=pairs.get("predictions", pairs["rewards"]),
            label_ids={"group": pairs["pair_group"], "user": pairs["pair_user"]},  # type: ignore[arg-type]
            inputs=pairs.get("inputs"),
            losses=pair_losses(pairs, self.args.center_rewards_coefficient) if with_loss else None,
        )

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        # As `evaluate` of the base class does; tokenized rows are left as they are.
        if isinstance(test_dataset, Dataset | IterableDataset):
            test_dataset = self._prepare_dataset(test_dataset, self.processing_class, self.args, metric_key_prefix)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)
