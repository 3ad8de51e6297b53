"""RewardTrainer with numbers that are right to the last pair: each pair of an evaluation counted once, one reduction a log.

What RewardTrainer reports is off on an uneven last batch and on several processes: it averages means of batches, and counts the
rows that fill up the last one. Here the rewards of each pair are kept, gathered once, and counted by the pair's number.
"""

from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, denumpify_detensorize
from trl import RewardTrainer

from trl_pafo.data.label_columns import normalize_columns
from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, two_rows
from trl_pafo.trainer.collator import NUMBER_COLUMN, PAIR_KEYS, NumberedCollator, number_rows
from trl_pafo.trainer.pair_metrics import PairCollector, PairSums, ScoredPairs, evaluation_metrics, merge_pairs, pair_losses
from trl_pafo.trainer.samplers import (
    LongestFirstSampler,
    TokenBudgetBatchSampler,
    batched_loader,
    is_tokenized,
    row_lengths,
    rows_a_pair,
)


class ExactRewardTrainer(RewardTrainer):
    """
    [`~trl.RewardTrainer`] whose `evaluate`, `predict` and logs equal a plain loop over the pairs, on any number of processes.

    A subclass sets `groups`, the names of the groups that are always reported, and adds the pairs of each training step to `_sums`.
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
    """Groups of the training and evaluation sets and of the teachers; those of a stream are not known in advance."""
    _sums: PairSums
    _collector: PairCollector | None = None

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        for name in ("group", "user", NUMBER_COLUMN):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The base class makes these two logs on every process. Others may come from a callback on one of them, which must not
        # wait for the rest.
        if self._sums and ("loss" in logs or "train_loss" in logs):
            num_tokens, metrics = self._sums.reduce(self.accelerator.gather)
            self._total_train_tokens += num_tokens // self._tp_size
            logs.update({"num_tokens": self._total_train_tokens, **metrics})
        super().log(logs, start_time)

    def _training_collator(self) -> Any:
        """For a subclass: what makes the batches of training, where that is not `data_collator` alone."""
        return self.data_collator

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> Any:
        batches = self._token_budget_batches(dataset, batch_size, is_training)
        if is_training:
            if batches is not None:
                rows = self._remove_unused_columns(dataset, description)
                loader = batched_loader(rows, batches, self._training_collator(), self.args, is_training=True)
                return self._prepared(loader)
            collator, self.data_collator = self.data_collator, self._training_collator()
            try:
                return super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
            finally:
                self.data_collator = collator
        rows = self._remove_unused_columns(dataset, description) if isinstance(dataset, Dataset) else dataset
        if batches is not None:
            loader = batched_loader(
                number_rows(rows), batches, NumberedCollator(self.data_collator), self.args, is_training=False
            )
            return self._prepared(loader)
        sampler = sampler_fn and sampler_fn(dataset)
        # The base class reads both of these from the trainer. Evaluation drops no last batch: each pair counts.
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = NumberedCollator(collator), False
        try:
            return super()._get_dataloader(
                number_rows(rows), description, batch_size, lambda numbered: sampler, dataloader_key=dataloader_key
            )
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last

    def _prepared(self, loader: Any) -> Any:
        # All processes have equally many batches already, of sizes of their own, which accelerate 1.10 refuses to even out.
        accelerator = self.accelerator
        before, accelerator.even_batches = accelerator.even_batches, False
        try:
            return accelerator.prepare(loader)
        finally:
            accelerator.even_batches = before

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # Rewards come back by the number of their pair, so any order will do; this one computes least on padding.
        if is_tokenized(eval_dataset):
            return LongestFirstSampler(row_lengths(eval_dataset, self.data_collator))
        return super()._get_eval_sampler(eval_dataset)

    def _token_budget_batches(self, dataset: Any, most_pairs: int, is_training: bool) -> TokenBudgetBatchSampler | None:
        args = self.args
        budget = getattr(args, "max_tokens_per_batch", None)
        if not is_training:
            budget = getattr(args, "max_tokens_per_eval_batch", None) or budget
        if budget is None or not is_tokenized(dataset):
            return None
        return TokenBudgetBatchSampler(
            row_lengths(dataset, self.data_collator),
            budget,
            rows_a_pair=rows_a_pair(self.data_collator),
            max_pairs=most_pairs if is_training else None,
            num_processes=self.accelerator.num_processes // self.get_tp_size() // self.get_cp_size() // self.get_sp_size(),
            seed=self._data_seed() if is_training else None,
        )

    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        collector = self._collector
        if collector is None:  # called by hand
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = dict(inputs)
        number, group, user = (inputs.pop(key, None) for key in PAIR_KEYS)
        _, outputs, _ = super().prediction_step(model, inputs, False, ignore_keys)
        logits: Any = outputs[0] if isinstance(outputs, tuple) else outputs
        rewards = torch.stack(torch.chunk(logits.squeeze(-1), chunks=2), dim=1)
        if number is None:  # a data loader that somebody else has made
            if self.accelerator.num_processes > 1:
                raise ConfigError(
                    "The rows of this evaluation data loader have no number, so copies of a pair on several processes would count "
                    "twice. Leave `get_eval_dataloader` as it is, or evaluate on one process."
                )
            number = range(collector.num_pairs, collector.num_pairs + len(rewards))
        predictions = None
        if self.preprocess_logits_for_metrics is not None and not prediction_loss_only:
            predictions = self.preprocess_logits_for_metrics(rewards, None)
        tokens = self._token_ids(inputs) if collector.keeps_inputs else None
        collector.add(number, rewards, inputs.get("margin"), group, user, predictions, tokens)
        if self.args.batch_eval_metrics and self.compute_metrics is not None and not prediction_loss_only:
            pairs = collector.unseen(merge_pairs(gather_object(collector.to_host()[-1:])))
            is_last = self.accelerator.gradient_state.end_of_dataloader
            self._batch_metrics = self.compute_metrics(self._as_prediction(pairs), compute_result=is_last)
        elif self.args.eval_accumulation_steps and collector.num_batches % self.args.eval_accumulation_steps == 0:
            collector.to_host()
        return None, None, None  # nothing for the base class to gather

    def _token_ids(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Those of both sequences of each pair, of shape `(num_pairs, 2, num_tokens)`."""
        if PAIR_LENGTHS in inputs:
            return two_rows(inputs["input_ids"], inputs[PAIR_LENGTHS], self.data_collator.pad_token_id)
        return torch.stack(torch.chunk(inputs["input_ids"], chunks=2), dim=1)

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
        asked = self.compute_metrics is not None and not loss_only
        # The base class drives the loop. It must not gather inputs: it would give two rows a pair, and wait for processes
        # that have no such batch.
        include, args.include_for_metrics = args.include_for_metrics, []
        collector = self._collector = PairCollector(keeps_inputs=asked and "inputs" in include)
        try:
            output = super().evaluation_loop(dataloader, description, loss_only, ignore_keys, metric_key_prefix)
        finally:
            args.include_for_metrics, self._collector = include, None
        gathered = gather_object([(collector.to_host(), self._sums.num_tokens())])
        pairs = merge_pairs(part for parts, _ in gathered for part in parts)
        pending = sum(num_tokens for _, num_tokens in gathered) // self._tp_size
        metrics: dict[str, Any] = {"num_tokens": self._total_train_tokens + pending}
        metrics |= evaluation_metrics(pairs, self.groups, args.center_rewards_coefficient)
        if asked:
            own = self._batch_metrics if args.batch_eval_metrics else self.compute_metrics(self._as_prediction(pairs))
            metrics |= denumpify_detensorize(own)
        prefix = f"{metric_key_prefix}_"
        metrics = {key if key.startswith(prefix) else prefix + key: value for key, value in metrics.items()}
        predicted = None if loss_only else self._as_prediction(pairs)
        return EvalLoopOutput(
            predictions=predicted and predicted.predictions,  # type: ignore[arg-type]
            label_ids=predicted and predicted.label_ids,  # type: ignore[arg-type]
            metrics=output.metrics | metrics,  # type: ignore[operator]
            num_samples=len(pairs.number),
        )

    def _as_prediction(self, pairs: ScoredPairs) -> EvalPrediction:
        """One row a pair, with the names of group and user in the place of labels."""
        with_loss = "loss" in self.args.include_for_metrics
        return EvalPrediction(
            predictions=pairs.rewards if pairs.predictions is None else pairs.predictions,
            label_ids={"group": pairs.group, "user": pairs.user},  # type: ignore[arg-type]
            inputs=pairs.inputs,
            losses=pair_losses(pairs, self.args.center_rewards_coefficient) if with_loss else None,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        # Several datasets come back here one by one.
        eval_dataset = normalize_columns(eval_dataset, "The evaluation dataset")
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        test_dataset = normalize_columns(test_dataset, "The test dataset")
        # As `evaluate` of the base class does; tokenized rows are left as they are.
        if isinstance(test_dataset, Dataset | IterableDataset):
            test_dataset = self._prepare_dataset(test_dataset, self.processing_class, self.args, metric_key_prefix)
        return super().predict(test_dataset, ignore_keys, metric_key_prefix)
