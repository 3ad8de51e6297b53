"""Whether the rewards of shared rows are those of two rows, for the architecture at hand.

A configuration does not tell: biases by distance, attention in both directions and masks of a model's own are in its code. So a small
twin of the model, of the same class and configuration but narrow, shallow and with random weights, scores pairs in both ways. It works
before anything is wrapped or sharded, takes a fraction of a second on the CPU, computes in float32, and says the same on every process.
"""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.attention import ATTENTION, layer_windows
from trl_pafo.prefix_sharing.forward import forward_shared, reward_model
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, collate_pairs

TESTED_FAMILIES = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)
"""Model types whose rewards and gradients our tests compare: only these share rows without being asked to."""

_VOCABULARY = 64
_WINDOW = 4  # of the twin; shorter than its rows, so that a window that is not heeded shows
_PAD = 0

# Options of a configuration that decide how far a token sees: they must bite in the short rows of the twin.
_REACH = re.compile(r"window|chunk_size|block_size|local_attention|index_topk")


def why_not_shared(model: torch.nn.Module) -> str | None:
    """Why pairs of a model of any size, with or without adapter, cannot share rows, as a clause; `None` if they can. (Not from the
    paper.)

    It is only looked at; it may be sharded.
    """
    inner = reward_model(model)
    if inner is None:
        return "the model has no reward head `score` that reads every token, as encoders have none"
    config = inner.config
    if has_virtual_tokens(model):
        return "the adapter puts tokens of its own in front of each row"
    if config.is_encoder_decoder or config.get_text_config() is not config:
        return f"{type(inner).__name__} is more than one decoder"
    if config._attn_implementation not in ATTENTION:
        return (
            f"attn_implementation={config._attn_implementation!r} cannot be told who sees whom; "
            f"{', '.join(map(repr, ATTENTION))} can"
        )
    try:
        layer_windows(config)
    except ConfigError as error:
        return str(error)
    return problem_of_twin(inner, twin_difference, "shared rows", "in")


def problem_of_twin(model: PreTrainedModel, difference: Callable[[PreTrainedModel], float], what: str, where: str) -> str | None:
    """What a small twin of a model shows against computing `what`, or `None`; `where` is the preposition of that in a sentence."""
    kind = type(model).__name__
    try:
        found = difference(model)
    except Exception as error:  # whatever a forward of another architecture does with what it was not made for
        return f"a small {kind} cannot compute {what} ({type(error).__name__}: {str(error)[:200]})"
    if not found <= 1e-4:  # NaN fails too
        return f"a small {kind} gives other rewards {where} {what} (difference {found:.1g} of their spread)"
    return None


def has_virtual_tokens(model: Any) -> bool:
    """Whether an adapter puts tokens of its own in front of each row."""
    return any(getattr(adapter, "is_prompt_learning", False) for adapter in getattr(model, "peft_config", {}).values())


def twin_difference(model: PreTrainedModel) -> float:
    """Largest difference between the rewards of shared rows and of two rows under a small twin, over the rewards' spread."""

    def rewards(twin: PreTrainedModel) -> list[torch.Tensor]:
        pairs = _pairs()
        batch = collate_pairs(pairs, _PAD)
        # In both ways of `sdpa`: row by row, as on a CPU, and with the mask that an accelerator gets.
        shared = [
            forward_shared(twin, batch["input_ids"], batch[PAIR_LENGTHS], by_rows=by_rows, use_cache=False).logits
            for by_rows in (True, False)
        ]
        return [torch.cat([_alone(twin, pair[side]) for side in ("chosen_ids", "rejected_ids") for pair in pairs]), *shared]

    return compare_on_twin(model, rewards)


def compare_on_twin(model: PreTrainedModel, rewards: Callable[[PreTrainedModel], list[torch.Tensor]]) -> float:
    """Largest difference between the first of the rewards that a function gets from a small twin and the others, over their spread."""
    # Neither the seed nor the dtype of the run may leak in or out, and DeepSpeed must not shard the twin.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), set_zero3_state():
        torch.default_generator.manual_seed(0)  # of the CPU alone: those of accelerators are not put back
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            twin = _twin(model)
        finally:
            torch.set_default_dtype(default)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            expected, *found = rewards(twin)
    return float(max((each - expected).abs().max() for each in found) / expected.std())


def _alone(model: Any, ids: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), use_cache=False).logits


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class, two heads wide and a few layers deep, whose weights make rewards depend on every token."""
    twin = type(model)(_twin_config(model.config)).float().eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.dim() > 1:  # of the size that keeps activations at theirs; fresh weights are far smaller
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)
    return twin


def _twin_config(config: Any) -> Any:
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # flex_attention would be compiled; what it is told is the same, and is tested against the dense mask.
    config._attn_implementation = "sdpa" if config._attn_implementation == "sdpa" else "eager"
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_layers = config.num_hidden_layers
    kept = _layers_kept(config)
    # As many as there were where all heads had keys of their own, else one for both.
    keys = 2 if getattr(config, "num_key_value_heads", None) == config.num_attention_heads else 1
    small = {
        "vocab_size": _VOCABULARY,
        "num_hidden_layers": kept,
        "hidden_size": 2 * head_size,
        "num_attention_heads": 2,
        "num_key_value_heads": keys,
        "intermediate_size": 32,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "num_labels": 1,
        "pad_token_id": _PAD,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == num_layers > kept:
            setattr(config, name, value[:kept])
        elif _REACH.search(name) and isinstance(value, int) and not isinstance(value, bool):
            setattr(config, name, min(value, _WINDOW))
    for name, value in small.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return config


def _layers_kept(config: Any) -> int:
    """The first layers until every type of layer has occurred, and four at least: some families differ in every fourth."""
    types = getattr(config, "layer_types", None) or []
    return min(config.num_hidden_layers, max([4, *(types.index(name) + 1 for name in set(types))]))


def _pairs() -> list[dict[str, list[int]]]:
    """Pairs with a long prefix, a short one and none, and rests of unequal length."""
    draw = lambda number: torch.randint(3, _VOCABULARY, (number,)).tolist()  # noqa: E731
    pairs = []
    for prefix, chosen, rejected in [(13, 5, 9), (9, 11, 2), (3, 1, 4), (0, 6, 3), (12, 7, 7)]:
        shared = draw(prefix)
        pairs.append({"chosen_ids": [*shared, 1, *draw(chosen)], "rejected_ids": [*shared, 2, *draw(rejected)]})
    return pairs
