"""Multi-objective decoding: the next-token distributions of d policies mixed by the weights. Sampling from policies."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerBase
from trl.trainer.utils import get_callable_name

from trl_pafo.errors import ConfigError, PortfolioError
from trl_pafo.models.base_models import load_base
from trl_pafo.models.safe_loading import (
    ADAPTER_CONFIG,
    base_folder,
    has_tokenizer,
    identity_of_folder,
    load_saved_tokenizer,
    local_folder,
    read_config,
)
from trl_pafo.palm.core import OracleResult, check_weights
from trl_pafo.palm.oracles.judging import Judged, RewardFunction, call_rewards, check_prompts, digest_rows
from trl_pafo.storage.canonical import canonical

PolicySource = str | Path | torch.nn.Module

# Of the configuration of a model in memory: where it came from, and what the pad id beside it says.
_UNUSED = ("_name_or_path", "transformers_version", "use_cache", "pad_token_id")


@dataclass(frozen=True)
class _Member:
    """A model as one policy: as it is, or under one of its adapters (`None`: under none)."""

    model: Any
    adapter: str | None = None

    def logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: Any = None, last: bool = True) -> torch.Tensor:
        """Logits of the next token, at the last position or at all; with a cache, `ids` are what it does not hold yet."""
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        inputs: dict[str, Any] = {
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :],
        }
        if cache is not None:
            # What the forward pass calls its cache: transformers renamed it in 5.24.
            plain = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
            name = "cache" if "cache" in signature(plain.forward).parameters else "past_key_values"
            inputs |= {name: cache, "use_cache": True}
        if last and self.model._supports_logits_to_keep():
            inputs["logits_to_keep"] = 1
        if self.adapter is not None:
            self.model.set_adapter(self.adapter)
        without = hasattr(self.model, "peft_config") and self.adapter is None
        with self.model.disable_adapter() if without else nullcontext():
            logits = self.model(input_ids=ids, **inputs).logits
        return logits[:, -1:].float() if last else logits.float()


class MixedPolicy:
    """
    Policies whose next-token distributions are mixed: pi_w(token) is proportional to the product of pi_i(token)^{w_i}.

    Source: multi-objective decoding (MOD), Shi et al. 2024, arXiv 2406.18853, for the reverse KL divergence: where each
    pi_i is the best policy for its own reward under the same KL weight and the same reference, the product, taken over
    whole responses, is the best policy for the weighted rewards. Mixing token by token, as is done here, approximates it.

    Policies that are adapters on one base share its weights in memory. A mixture costs a forward pass a token for each
    policy of positive weight, and one for the reference.

    Args:
        policies (`Sequence[str | Path | torch.nn.Module]`):
            Folders (or Hub ids) of models or adapters, or models in memory; all with one tokenizer.
        reference (`str`, `Path` or `torch.nn.Module`, *optional*):
            The policy that the KL divergence is measured from. By default the base that the adapters share.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Needed if no folder holds one.
        chat_template_kwargs (`dict`, *optional*):
            Handed to the chat template of conversational prompts.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where the models stand.
        dtype (`torch.dtype` or `str`, *optional*, defaults to `torch.float32`):
            Dtype in which folders are loaded.
        bf16 (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16 mixed precision. Probabilities are float32 in any case.

    Raises:
        ConfigError: If there is no policy, no tokenizer, or no reference.
        TeacherError: If a policy is not found.
        PortfolioError: If policies have different tokenizers or vocabularies.
    """

    def __init__(
        self,
        policies: Sequence[PolicySource],
        *,
        reference: PolicySource | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | str = torch.float32,
        bf16: bool = False,
    ):
        if not policies:
            raise ConfigError("Give at least one policy to mix.")
        self.device, self.bf16 = torch.device(device), bf16
        self.chat_template_kwargs = chat_template_kwargs or {}
        sources = [
            s if isinstance(s, torch.nn.Module) else str(s) for s in [*policies, *([] if reference is None else [reference])]
        ]
        self._sources, self._dtype = sources, dtype
        self.names = [s if isinstance(s, str) else type(s).__name__ for s in sources[: len(policies)]]
        self.tokenizer = _common_tokenizer([s for s in sources if isinstance(s, str)], tokenizer)
        bases = [_base_of(s) for s in sources[: len(policies)]]
        shared = len(set(bases)) == 1 and bases[0] is not None
        if reference is None and not shared:
            raise ConfigError(
                "Give `reference`, the policy from which the KL divergence is measured: only adapters on one base have it in common."
            )
        if shared:
            self._members, self._reference = _adapters(str(bases[0]), self.names, dtype)
        else:
            loaded = {source: _member(source, dtype) for source in dict.fromkeys(sources)}
            self._members = [loaded[source] for source in sources[: len(policies)]]
        if reference is not None:
            self._reference = _member(sources[-1], dtype) if shared else loaded[sources[-1]]
        for member in (*self._members, self._reference):
            member.model.to(self.device).eval()
        sizes = [m.model.config.get_text_config().vocab_size for m in (*self._members, self._reference)]
        if len(set(sizes)) > 1 or sizes[0] < len(self.tokenizer):
            raise PortfolioError(
                f"The policies have vocabularies of {sizes}, the tokenizer {len(self.tokenizer)} tokens: their distributions "
                "cannot be mixed token by token. Train them on one tokenizer."
            )
        ends = self._members[0].model.generation_config.eos_token_id  # beside the tokenizer's own, as in GRPOTrainer
        ends = [self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])]
        self._ends = torch.tensor(sorted({end for end in ends if end is not None}))

    def identity(self) -> dict[str, Any]:
        """What decides the answers, as JSON values: the weights of the policies and of the reference, and how they compute."""
        return {
            "weights": [_identity_of(source) for source in self._sources],
            "tokenizer": hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16],
            **canonical({"chat_template_kwargs": self.chat_template_kwargs, "dtype": self._dtype, "bf16": self.bf16}),
        }

    @property
    def num_policies(self) -> int:
        """Number of policies that are mixed."""
        return len(self._members)

    @torch.no_grad()
    def log_probs(self, weights: np.ndarray, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Log-probabilities of the next token at every position, `(batch, length, vocabulary)`, of given sequences."""
        weights = check_weights(weights, self.num_policies)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self._mixture(weights, input_ids, mask, [None] * self.num_policies, last=False)

    @torch.no_grad()
    def sample(
        self, weights: np.ndarray, prompt_ids: Sequence[Sequence[int]], uniforms: np.ndarray
    ) -> tuple[list[list[int]], np.ndarray]:
        """Draw a response to each prompt and measure its KL divergence from the reference on the way.

        `uniforms`, of shape `(num_prompts, max_new_tokens)`, are numbers in [0, 1), one a token: equal numbers give equal
        responses, whatever stands in the same batch. The results are the token ids of each response (an end token, if one was
        drawn, included), and for each the sum over its tokens of KL(pi_w(. | before) || pi_ref(. | before)), in nats: its mean over
        responses is an unbiased estimate of the KL divergence a response, never negative, and of less variance than log-ratios of
        the tokens drawn.
        """
        weights = check_weights(weights, self.num_policies)
        number, longest = len(prompt_ids), max(map(len, prompt_ids))
        pad = self.tokenizer.pad_token_id or 0  # which token fills up does not matter: it is masked
        ids = torch.full((number, longest), pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompt_ids):  # on the left, so that all responses begin at one place
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        caches = [DynamicCache(config=member.model.config) for member in self._members]
        reference_cache = DynamicCache(config=self._reference.model.config)
        is_reference = {m for m, w in zip(self._members, weights, strict=True) if w > 0} == {self._reference}
        drawn: list[list[int]] = [[] for _ in range(number)]
        kl = np.zeros(number)
        running = torch.ones(number, dtype=torch.bool)
        for draw in torch.from_numpy(uniforms).T:
            log_p = self._mixture(weights, ids, mask, caches)[:, -1].cpu()
            log_q = log_p
            if not is_reference:
                with self._autocast():
                    log_q = self._reference.logits(ids, mask, reference_cache)[:, -1].log_softmax(dim=-1).cpu()
            p = log_p.exp()
            kl += (torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dim=-1).double() * running).numpy()
            steps = p.double().cumsum(dim=-1)
            # "right": the first token whose sum lies above the number, so that none of probability 0 is ever drawn.
            token = torch.searchsorted(steps, (draw * steps[:, -1])[:, None], right=True)[:, 0].clamp(max=p.shape[-1] - 1)
            for row in running.nonzero()[:, 0].tolist():
                drawn[row].append(int(token[row]))
            running &= ~torch.isin(token, self._ends)
            if not running.any():
                break
            ids = torch.where(running, token, pad)[:, None]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=-1)
        return drawn, kl

    def evaluate(
        self,
        weights: np.ndarray,
        rewards: Sequence[RewardFunction],
        dataset: Dataset,
        *,
        max_new_tokens: int,
        num_samples: int = 1,
        batch_size: int = 16,
        seed: int = 0,
        rows: Sequence[int] | None = None,
    ) -> Judged:
        """Sample responses to prompts and judge them.

        Equal seeds give equal random numbers for each prompt and sample, whatever the batch size, the number of processes and
        the policy: two policies are compared under the same luck.

        Args:
            weights (`np.ndarray` of shape `(num_policies,)`):
                Weights of the mixture.
            rewards (`Sequence[Callable]`):
                Reward functions, as GRPOTrainer takes them, with values in [0, 1].
            dataset ([`~datasets.Dataset`]):
                Rows with `prompt`, a text or messages; further columns go to the reward functions.
            max_new_tokens (`int`):
                Length at which a response is cut.
            num_samples (`int`, *optional*, defaults to `1`):
                Responses a prompt.
            batch_size (`int`, *optional*, defaults to `16`):
                Responses that are drawn together.
            seed (`int`, *optional*, defaults to `0`):
                Seed of the random numbers.
            rows (`Sequence[int]`, *optional*):
                Only these rows of the dataset.

        Raises:
            DataError: If a reward is missing, not finite, or outside [0, 1], or there are no prompts.
        """
        check_prompts(dataset, "The prompts")
        if min(max_new_tokens, num_samples, batch_size) < 1:
            raise ConfigError("`max_new_tokens`, `num_samples` and `batch_size` must be at least 1.")
        rows = range(len(dataset)) if rows is None else rows
        judged = Judged()
        asked = [(row, sample) for row in rows for sample in range(num_samples)]
        for start in range(0, len(asked), batch_size):
            batch = asked[start : start + batch_size]
            examples = [dataset[row] for row, _ in batch]
            uniforms = np.stack([np.random.default_rng([seed, row, sample]).random(max_new_tokens) for row, sample in batch])
            completion_ids, kl = self.sample(weights, [self._prompt_ids(e["prompt"]) for e in examples], uniforms)
            texts = self.tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
            judged.add(batch, texts, call_rewards(rewards, examples, texts, completion_ids), kl)
        return judged

    def _prompt_ids(self, prompt: str | list[dict[str, str]]) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer(prompt)["input_ids"]
        encoded: Any = self.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **self.chat_template_kwargs
        )
        return encoded["input_ids"]

    def _mixture(
        self, weights: np.ndarray, ids: torch.Tensor, mask: torch.Tensor, caches: Sequence[Any], last: bool = True
    ) -> torch.Tensor:
        """Log-probabilities of the mixture. Policies of weight 0 are not asked: their zero probabilities would make NaN."""
        total: Any = None
        with self._autocast():
            for member, weight, cache in zip(self._members, weights, caches, strict=True):
                if weight > 0:
                    part = weight * member.logits(ids, mask, cache, last).log_softmax(dim=-1)
                    total = part if total is None else total + part
        return total.log_softmax(dim=-1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


class DecodingOracle:
    """
    Oracle without training: the mixture of d policies, one for each reward, by the weights; values by sampling.

    Args:
        policy ([`MixedPolicy`]):
            Policy i was trained for reward i alone.
        rewards, dataset, max_new_tokens, num_samples, batch_size, seed:
            As in [`MixedPolicy.evaluate`].

    Raises:
        ConfigError: If there are not as many policies as rewards.
    """

    def __init__(self, policy: MixedPolicy, rewards: Sequence[RewardFunction], dataset: Dataset, **options: Any):
        if policy.num_policies != len(rewards):
            raise ConfigError(
                f"{policy.num_policies} policies for {len(rewards)} rewards: give one policy per reward, in its order."
            )
        self.mixture, self.rewards, self.dataset, self.options = policy, list(rewards), dataset, options

    @property
    def problem(self) -> dict[str, Any]:
        """What decides the answers, as JSON values."""
        rewards = [get_callable_name(reward) for reward in self.rewards]
        return {
            "oracle": "decoding",
            "policies": self.mixture.names,
            "mixture": self.mixture.identity(),
            "rewards": rewards,
            "prompts": digest_rows(self.dataset),
            "options": self.options,
        }

    def __call__(self, weights: np.ndarray) -> OracleResult:
        """The mixture for `weights`; as `policy` the names of the policies and their weights, a JSON value."""
        weights = check_weights(weights, len(self.rewards))
        judged = self.mixture.evaluate(weights, self.rewards, self.dataset, **self.options)
        return judged.result({"mixture": self.mixture.names, "weights": weights.tolist()})


def _member(source: str | torch.nn.Module, dtype: torch.dtype | str) -> _Member:
    if not isinstance(source, str):
        model: Any = source
        return _Member(model, model.active_adapter if hasattr(model, "peft_config") else None)
    if (base := _base_of(source)) is not None:
        return _adapters(base, [source], dtype)[0][0]
    return _Member(load_base(AutoModelForCausalLM, str(local_folder(source)), dtype=dtype))


def _adapters(base: str, sources: Sequence[str], dtype: torch.dtype | str) -> tuple[list[_Member], _Member]:
    """Adapters on one base, and the base without them."""
    from peft import PeftModel

    model: Any = load_base(AutoModelForCausalLM, str(local_folder(base)), dtype=dtype)
    names = [f"policy_{number}" for number in range(len(sources))]
    for name, source in zip(names, sources, strict=True):
        if name == names[0]:
            model = PeftModel.from_pretrained(model, local_folder(source), adapter_name=name)
        else:
            model.load_adapter(local_folder(source), adapter_name=name)
    return [_Member(model, name) for name in names], _Member(model)


def _base_of(source: str | torch.nn.Module) -> str | None:
    """The base of a saved adapter; `None` for what is none."""
    config = None if isinstance(source, torch.nn.Module) else local_folder(source) / ADAPTER_CONFIG
    return str(base_folder(read_config(config))) if config is not None and config.exists() else None


def _common_tokenizer(sources: Sequence[str], given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    common, owner = given, "the tokenizer that was given"
    for source in sources:
        folder = local_folder(source)
        if not has_tokenizer(folder):
            continue
        own = load_saved_tokenizer(folder)
        if common is None:
            common, owner = own, source
        elif own.get_vocab() != common.get_vocab() or own.eos_token_id != common.eos_token_id:
            raise PortfolioError(
                f"{source} has another tokenizer than {owner}: their distributions cannot be mixed token by token. Train all "
                "policies on one tokenizer."
            )
    if common is None:
        raise ConfigError("No policy was saved with its tokenizer: give `tokenizer`.")
    return common


def _identity_of(source: str | torch.nn.Module) -> str:
    """Digest of all that decides the answers of a policy, on disk or in memory."""
    if isinstance(source, str):
        return identity_of_folder(local_folder(source))
    digest = hashlib.sha256()
    for name, tensor in source.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    # Equal weights answer otherwise under another configuration: that of the model, and those of its adapters.
    config: dict[str, Any] = source.config.to_dict()  # type: ignore[operator, union-attr]
    about = [{name: value for name, value in config.items() if name not in _UNUSED}]
    if hasattr(source, "peft_config"):
        about.append({name: adapter.to_dict() for name, adapter in source.peft_config.items()})  # type: ignore[operator, union-attr]
        active = source.active_adapters
        about.append({"active": active() if callable(active) else active})
    digest.update(json.dumps(canonical(about), sort_keys=True).encode())
    return digest.hexdigest()
