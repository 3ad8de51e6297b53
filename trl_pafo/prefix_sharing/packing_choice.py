"""Whether a run computes an encoder's sequences without padding: what the option asks for, and what the model can."""

from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.packing import encoder_model, forward_packed
from trl_pafo.prefix_sharing.support import compare_on_twin, has_virtual_tokens, problem_of_twin

TESTED_ENCODERS = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Model types whose rewards and gradients our tests compare: only these are packed without being asked to."""

WHY_NOT_THERE = "an accelerator would have to be waited for, to know the lengths of the sequences"

_DIFFERENCES: WeakKeyDictionary[torch.nn.Module, float] = WeakKeyDictionary()  # a model is asked at each scoring


class PackingChoice(NamedTuple):
    """Whether sequences are packed, and why."""

    pack: bool
    reason: str


def choose_packing(mode: str, model: torch.nn.Module, reason: str | None = None) -> PackingChoice:
    """Decide whether the sequences of a run are packed. (Not from the paper.)

    The mode is `"off"`; `"on"`; or `"auto"`, which packs where the model's family is among the tested ones. The reason is why the
    caller cannot have packed sequences.

    Raises:
        ConfigError: With `"on"`, if packed sequences would not give the rewards of padded ones.
    """
    if mode == "off":
        return PackingChoice(False, "padding_free='off'")
    inner = encoder_model(model)
    if mode == "auto" and reason is None and inner is not None and inner.config.model_type not in TESTED_ENCODERS:
        return PackingChoice(
            False,
            f"models of type {inner.config.model_type!r} are not among those whose gradients are compared in our tests; "
            "padding_free='on' packs if a small model of the type gives equal rewards",
        )
    reason = reason or why_not_packed(model)
    if reason is not None and mode == "on":
        raise ConfigError(
            f"padding_free='on' cannot give the rewards of padded sequences: {reason}. Set padding_free='auto' or 'off'."
        )
    return PackingChoice(reason is None, reason or "the model is an encoder that gives the rewards of padded sequences")


def why_not_packed(model: torch.nn.Module) -> str | None:
    """Why sequences of a model of any size, with or without adapter, cannot be packed, as a clause; `None` if they can.

    It is only looked at; it may be sharded.
    """
    inner = encoder_model(model)
    if inner is None:
        return "the model is not an encoder whose `classifier` reads the first token"
    if has_virtual_tokens(model):
        return "the adapter puts tokens of its own in front of each row"
    if inner.config._attn_implementation != "sdpa":
        return f"attn_implementation={inner.config._attn_implementation!r} cannot attend sequence by sequence; 'sdpa' can"
    if inner.device.type != "cpu":
        return WHY_NOT_THERE
    return problem_of_twin(inner, _difference, "packed sequences", "for")


def _difference(model: PreTrainedModel) -> float:
    if model not in _DIFFERENCES:
        _DIFFERENCES[model] = compare_on_twin(model, _padded_and_packed)
    return _DIFFERENCES[model]


def _padded_and_packed(twin: PreTrainedModel) -> list[torch.Tensor]:
    lengths = torch.tensor([9, 1, 14, 5, 14])
    mask = (torch.arange(14) < lengths[:, None]).long()
    batch = {"input_ids": torch.randint(3, 64, mask.shape) * mask, "attention_mask": mask}
    return [twin(**batch).logits, forward_packed(twin, **batch).logits]
