"""What trl_pafo relies on in trl, transformers, peft and accelerate: names, signatures, and the very lines.

A failure here names the file of ours that has to be looked at. The lines are compared as syntax, so comments, quotes and line
breaks of the other library do not matter.
"""

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from trl import RewardTrainer

import trl_pafo

ROOT = Path(trl_pafo.__file__).parent
LIBRARIES = ("trl", "transformers", "peft", "accelerate")


# A function with its parameters in order (`...` where they do not matter), which file of ours relies on it and what to look at there,
# and the statements or expressions that it has to hold; ` _` stands for the body of a statement, a final `...` for the rest of a line.
TEXT = r"""
RewardTrainer.__init__(self, model, args, data_collator, train_dataset, eval_dataset, processing_class, compute_metrics, callbacks, optimizers, optimizer_cls_and_kwargs, preprocess_logits_for_metrics, quantization_config, peft_config)
  # trl_pafo/trainer/trainer.py and evaluation.py, __init__: arguments are handed on by place, and the last one is taken for peft_config; datasets are prepared there, the training set first; what compute_loss and log use is set there
  args = RewardConfig(f'{model_name}-Reward')
  model_init_kwargs = dict(args.model_init_kwargs or {})
  model_init_kwargs.setdefault('trust_remote_code', args.trust_remote_code)
  model = create_model_from_path(model, AutoModelForSequenceClassification, **model_init_kwargs)
  AutoTokenizer.from_pretrained(get_config_model_id(model.config), revision=model_revision, trust_remote_code=args.trust_remote_code)
  data_collator = DataCollatorForPreference(pad_token_id=processing_class.pad_token_id, pad_to_multiple_of=args.pad_to_multiple_of)
  train_dataset = self._prepare_dataset(train_dataset, processing_class, args, 'train')
  eval_dataset = self._prepare_dataset(eval_dataset, processing_class, args, 'eval')
  model.config.get_text_config().pad_token_id = processing_class.pad_token_id
  self.can_return_loss = True
  self.label_names = []
  self._total_train_tokens = 0
  self._tp_size = self.accelerator.parallelism_config.tp_size
  self.model.add_model_tags(self._tag_names)
RewardTrainer._prepare_dataset(self, dataset, processing_class, args, dataset_name)
  # trl_pafo/trainer/pairs.py, prepare (history, counterfactual rows, count of drops) and trl_pafo/data/tokenization.py, tokenize_row, which makes the same tokens
  is_processed = 'chosen_ids' in column_names and 'rejected_ids' in column_names
  example['chosen'] = example['chosen'] + eos_token
  apply_chat_template_kwargs = {'tools': tools, **example.get('chat_template_kwargs', {})}
  example['chosen'] = example['prompt'] + example['chosen']
  example['rejected'] = example['prompt'] + example['rejected']
  output = {'chosen_ids': chosen_ids, 'rejected_ids': rejected_ids}
  len(example['chosen_ids']) <= args.max_length and len(example['rejected_ids']) <= args.max_length
RewardTrainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)
  # trl_pafo/trainer/evaluation.py, compute_loss, which repeats these lines and does not call super()
  inputs['use_cache'] = False
  outputs = model(**inputs)
  rewards_chosen, rewards_rejected = torch.chunk(outputs.logits.squeeze(-1), chunks=2)
  loss = -nn.functional.logsigmoid(rewards_chosen - rewards_rejected - inputs['margin']).mean()
  loss = -nn.functional.logsigmoid(rewards_chosen - rewards_rejected).mean()
  loss += self.args.center_rewards_coefficient * torch.mean((rewards_chosen + rewards_rejected) ** 2)
  self._total_train_tokens += num_tokens_in_batch // self._tp_size
  return (loss, outputs) if return_outputs else loss
RewardTrainer._set_signature_columns_if_needed(self)
  # trl_pafo/trainer/evaluation.py and trl_pafo/trainer/trainer.py, _set_signature_columns_if_needed, which add columns to the list
  self._signature_columns = ['chosen_ids', 'rejected_ids', 'margin']
RewardTrainer.log(self, logs, start_time)
  # trl_pafo/trainer/evaluation.py, log, which puts its own numbers in before
  metrics = {key: sum(val) / len(val) for key, val in self._metrics[mode].items()}
  logs.update(metrics)
RewardTrainer.evaluate(self, eval_dataset, ignore_keys, metric_key_prefix)
  # trl_pafo/trainer/evaluation.py, predict, which prepares rows in the same way
  eval_dataset = self._prepare_dataset(eval_dataset, self.processing_class, self.args, 'eval')
trl.trainer.reward_trainer:DataCollatorForPreference.torch_call(self, examples)
  # trl_pafo/trainer/collator.py, torch_call, which adds to what it returns; chosen rows stand before rejected ones
  margins = torch.tensor([example['margin'] for example in examples], dtype=torch.float)
  input_ids = chosen_ids + rejected_ids
  output['attention_mask'] = pad(attention_mask, padding_value=0, padding_side='right', pad_to_multiple_of=self.pad_to_multiple_of)
  output['margin'] = margins
Trainer._get_dataloader(self, dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
  # trl_pafo/trainer/evaluation.py, _get_dataloader, which sets data_collator and dataloader_drop_last meanwhile
  data_collator = self.data_collator
  data_collator = self._get_collator_with_removed_columns(self.data_collator, description=description)
  sampler_fn(dataset)
  dataloader_params['drop_last'] = self.args.dataloader_drop_last
Trainer.get_train_dataloader(self)
  # trl_pafo/trainer/trainer.py, get_train_dataloader, which sets data_collator meanwhile
  return self._get_dataloader(dataset=self.train_dataset, ...
Trainer._get_collator_with_removed_columns(self, data_collator, description)
  # trl_pafo/trainer/collator.py, NumberedCollator: pair_number, group and user have to reach it through the signature columns
  self._set_signature_columns_if_needed()
Trainer._remove_unused_columns(self, dataset, description)
  # trl_pafo/trainer/evaluation.py, _get_dataloader
Trainer.prediction_step(self, model, inputs, prediction_loss_only, ignore_keys)
  # trl_pafo/trainer/evaluation.py, prediction_step: the logits come as a tuple or alone, in the order chosen, rejected
  return_loss = self.can_return_loss
  logits = tuple((v for k, v in outputs.items() if k not in ignore_keys + ['loss']))
  logits = logits[0]
  return (loss, logits, labels)
Trainer.evaluation_loop(self, dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
  # trl_pafo/trainer/evaluation.py, evaluation_loop: the base drives the loop, gathers nothing where a step returns nothing, and gathers inputs only if include_for_metrics names them
  for step, inputs in enumerate(dataloader): _
  if losses is not None: _
  if logits is not None: _
  if labels is not None: _
  'inputs' in args.include_for_metrics
  self.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
Trainer.save_model(self, output_dir, _internal_call)
  # trl_pafo/trainer/hub_mixin.py, save_model, which writes the card when a user asks for the model
  if self.args.push_to_hub and (not _internal_call): _
  self.push_to_hub(commit_message='Model save'...
Trainer._save(self, output_dir, state_dict)
  # trl_pafo/trainer/hub_mixin.py, _save, which removes an adapter that a full model was saved beside
  output_dir = output_dir if output_dir is not None else self.args.output_dir
Trainer.init_hf_repo(...)
  # trl_pafo/trainer/hub_mixin.py, init_hf_repo, which sets what pushing needs
  self.hub_model_id = repo_url.repo_id
  self.push_in_progress = None
Trainer.push_to_hub(...)
  # trl_pafo/trainer/hub_mixin.py, push_to_hub, which pushes chosen files and does not call super()
  self.callback_handler.on_push_begin(self.args, self.state, self.control)
  self.save_model(_internal_call=True)
  self._finish_current_push()
Trainer._push_from_checkpoint(self, checkpoint_folder)
  # trl_pafo/trainer/hub_mixin.py, _push_from_checkpoint, which pushes chosen files and does not call super()
  if not self.args.hub_always_push and self.push_in_progress is not None and (not self.push_in_progress.is_done()): _
  self.push_in_progress.jobs.extend(push_jobs)
Trainer._finish_current_push(self)
  # trl_pafo/trainer/hub_mixin.py, push_to_hub, which waits for what is being pushed
  self.push_in_progress.wait_until_done()
trl.trainer.base_trainer:_BaseTrainer.create_model_card(self, model_name, dataset_name, tags)
  # trl_pafo/trainer/hub_mixin.py, create_model_card, which writes a card of its own to the same file
  model_card.save(os.path.join(self.args.output_dir, 'README.md'))
Trainer.train(...)
  # trl_pafo/trainer/trainer.py, train, which frees the teachers of a stream at its end and tells of a missing best checkpoint
Trainer._determine_best_metric(self, metrics, trial)
  # trl_pafo/trainer/best_checkpoint.py: the name of the metric, and that of equal checkpoints the earlier one is kept
  metric_to_check = f'eval_{metric_to_check}'
  operator = np.greater if self.args.greater_is_better else np.less
  if operator(metric_value, self.state.best_metric): _
  self.state.best_global_step = self.state.global_step
Trainer._save_checkpoint(self, model, trial)
  # trl_pafo/trainer/best_checkpoint.py, fill_in: the best checkpoint is that of the step of the best evaluation, if there is one
  best_checkpoint_folder = f'{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}'
  if os.path.exists(best_checkpoint_dir): _
  self.state.best_model_checkpoint = best_checkpoint_dir
Trainer.get_batch_samples(self, epoch_iterator, num_batches, device)
  # trl_pafo/trainer/trainer.py, get_batch_samples, which counts pairs in the place of items
  batch_samples.append(next(epoch_iterator))
Trainer._get_train_sampler(self, train_dataset)
  # trl_pafo/trainer/trainer.py, _get_train_sampler, which takes the place of group_by_length alone
  if self.args.train_sampling_strategy == 'group_by_length': _
Trainer._get_eval_sampler(self, eval_dataset)
  # trl_pafo/trainer/evaluation.py, _get_eval_sampler: evaluation takes no copies of pairs but to fill up its last batch
Trainer.predict(self, test_dataset, ignore_keys, metric_key_prefix)
  # trl_pafo/trainer/evaluation.py, predict
Trainer.log(self, logs, start_time)
  # trl_pafo/trainer/evaluation.py, log: the state's history and the callbacks
  self.state.log_history.append(output)
trl.trainer.grpo_trainer:GRPOTrainer._calculate_rewards(...)
  # trl_pafo/palm/oracles/judging.py, call_rewards and grpo.py, _Checked: how a reward function is called
  reward_func(prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs)
peft.auto:_BaseAutoPeftModel.from_pretrained(...)
  # trl_pafo/models/scoring.py, load_reward_model: keyword arguments reach the base, so that it comes from safetensors
  base_model = target_class.from_pretrained(base_model_path, revision=base_model_revision, **kwargs)
peft.utils.save_and_load:load_peft_weights(...)
  # trl_pafo/models/safe_loading.py: adapter_model.safetensors goes before adapter_model.bin
  if os.path.exists(os.path.join(path, SAFETENSORS_WEIGHTS_NAME)): _
  elif os.path.exists(os.path.join(path, WEIGHTS_NAME)): _
Trainer._load_rng_state(...)
  # docs/security.md: what a checkpoint to resume from may hold
  torch.load(rng_file, weights_only=True)
"""
CLASSES = {"Trainer": "transformers.trainer:Trainer", "RewardTrainer": "trl.trainer.reward_trainer:RewardTrainer"}


@dataclass
class Contract:
    """What we take for granted of one function."""

    function: str  # `module:name` or `module:Class.method`
    parameters: str
    ours: str
    lines: list[str]

    @classmethod
    def read(cls, text: str) -> "Contract":
        head, ours, *lines = (line.strip() for line in text.strip().splitlines())
        name, parameters = head.removesuffix(")").split("(")
        owner, _, method = name.partition(".")
        return cls(f"{CLASSES[owner]}.{method}" if owner in CLASSES else name, parameters, ours.removeprefix("# "), lines)

    def find(self) -> Callable[..., Any]:
        module, name = self.function.split(":")
        return inspect.unwrap(attrgetter(name)(importlib.import_module(module)))


CONTRACTS = [Contract.read(text) for text in re.split(r"\n(?=\S)", TEXT.strip())]


def normal(source: str) -> str:
    """The syntax of a text, one line a statement, without documentation and layout."""
    tree = ast.parse(textwrap.dedent(source))
    return "\n".join(line.strip() for line in ast.unparse(tree).splitlines())


def wanted(line: str) -> str:
    """A line as [`normal`] shows it."""
    if line.endswith("..."):
        return line.removesuffix("...")
    if line.endswith(": _"):
        return line.removesuffix(" _") if line.startswith("elif") else normal(line).splitlines()[0]
    return normal(line)


def complaint(contract: Contract) -> str | None:
    """What of a contract does not hold, and where to look; `None` if all does."""
    try:
        found = contract.find()
    except (ImportError, AttributeError) as error:
        return f"{contract.function} is not there ({error}). Look at {contract.ours}."
    problems = []
    names = ", ".join(inspect.signature(found).parameters)
    if contract.parameters not in ("...", names):
        problems.append(f"its parameters are now ({names})")
    source = normal(inspect.getsource(found))
    problems += [f"it does not hold any more: {line}" for line in contract.lines if wanted(line) not in source]
    if not problems:
        return None
    versions = ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in LIBRARIES)
    return (
        f"{contract.function} has changed ({versions}): {'; '.join(problems)}. Look at {contract.ours}. Where ours still does the right "
        "thing, change the contract in tests/trainer/test_trl_contract.py."
    )


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.function.split(":")[1])
def test_what_we_rely_on_is_as_it_was(contract):
    found = complaint(contract)
    assert found is None, found
    for file in re.findall(r"(?:trl_pafo|docs|tests)/[\w/]+\.\w+", contract.ours):
        assert (ROOT.parent / file).exists(), f"{file} is named in a contract and is not there"


def overridden() -> set[str]:
    """Methods of ours that take the place of one of RewardTrainer's."""
    from trl_pafo.trainer.trainer import PAFORewardTrainer

    classes = PAFORewardTrainer.__mro__
    return {
        name
        for cls in classes[: classes.index(RewardTrainer)]
        for name, member in vars(cls).items()
        if inspect.isfunction(member) and hasattr(RewardTrainer, name)
    }


def test_every_overridden_method_has_a_contract():
    covered = {contract.function.split(".")[-1] for contract in CONTRACTS}
    assert overridden() <= covered, "Write a contract for each method that takes the place of a base method."
