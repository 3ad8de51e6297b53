"""Encoders without padding: all sequences of a batch one after the other in one row, and the last layer only where the reward is read.

An encoder reads the reward at the first token of a sequence, so its last layer needs no other: of three layers that alone is a quarter
of the work. As with shared rows, only the model's own `forward` and modules are called, which hooks, adapters and wrappers rely on. A
mask makes attention go sequence by sequence, and hooks on the last layer leave out what nobody reads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.attention import PiecewiseMask
from trl_pafo.prefix_sharing.forward import is_compiled


class PackedMask(PiecewiseMask):
    """Mask of sequences that stand one after the other in one row, each of which sees itself: a call of a kernel each."""

    lengths: list[int]
    starts: torch.Tensor
    """Where the sequences begin, of shape `(num_sequences,)`."""
    first_only = False
    """Whether only the first token of each sequence looks; the others get zeros."""

    @classmethod
    def of(cls, lengths: Sequence[int], first_only: bool = False) -> "PackedMask":
        """The mask of sequences of these lengths."""
        mask = cls.standing_for((1, 1, sum(lengths), sum(lengths)), lambda: _block_diagonal(lengths))
        ends = torch.tensor(lengths).cumsum(0)
        mask.lengths, mask.starts, mask.first_only = list(lengths), ends - torch.tensor(lengths), first_only
        return mask

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        looking = query[:, :, self.starts].split(1, 2) if self.first_only else query.split(self.lengths, 2)
        parts = zip(looking, key.split(self.lengths, 2), value.split(self.lengths, 2), strict=True)
        # In the order in memory that models want next.
        seen = torch.cat([scaled_dot_product_attention(*part, **options).transpose(1, 2) for part in parts], 1).transpose(1, 2)
        return seen.new_zeros(query.shape).index_copy(2, self.starts, seen) if self.first_only else seen


def _block_diagonal(lengths: Sequence[int]) -> torch.Tensor:
    number = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return (number[:, None] == number)[None, None]


def encoder_model(model: torch.nn.Module) -> Any:
    """The sequence classification model inside of wrappers and adapters, `None` if its layers are not built as BERT's or DistilBERT's."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and hasattr(module, "classifier"):
            return module if _last_layer(module) else None
    return None


def _last_layer(model: Any) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module] | None:
    """Of the last layer: its attention, its query, and the module after the attention, from which on each token is on its own."""
    inner = getattr(model, model.base_model_prefix, None)
    layers = getattr(getattr(inner, "encoder", getattr(inner, "transformer", None)), "layer", None)
    if not isinstance(layers, torch.nn.ModuleList) or not hasattr(inner, "embeddings"):
        return None
    attention: Any = getattr(layers[-1], "attention", None)
    query = getattr(attention, "q_lin", None) or getattr(getattr(attention, "self", None), "query", None)
    after = getattr(layers[-1], "sa_layer_norm", None) or getattr(attention, "output", None)
    return None if query is None or after is None else (attention, query, after)


class FirstTokens:
    """Hooks of a last layer that leave out all but the first tokens while a packed batch is at work, and do nothing otherwise."""

    mask: PackedMask | None = None

    @classmethod
    def put_on(cls, model: Any) -> None:
        """Put the hooks on the last layer, if they are not there yet."""
        attention, query, after = _last_layer(model)  # type: ignore[misc]
        if any(isinstance(getattr(hook, "__self__", None), cls) for hook in attention._forward_pre_hooks.values()):
            return
        hooks = cls()
        attention.register_forward_pre_hook(hooks.enter, with_kwargs=True)
        query.register_forward_pre_hook(hooks.take)
        query.register_forward_hook(hooks.give_back)
        after.register_forward_pre_hook(hooks.leave)

    def enter(self, module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        # The mask is an argument, so a layer that checkpointing computes again finds that of its own batch.
        self.mask = next((each for each in (*args, *kwargs.values()) if isinstance(each, PackedMask)), None)
        if self.mask is None:
            return None
        last = PackedMask.of(self.mask.lengths, first_only=True)
        args = tuple(last if each is self.mask else each for each in args)
        return args, {name: last if each is self.mask else each for name, each in kwargs.items()}

    def take(self, module: torch.nn.Module, args: Any) -> Any:
        return None if self.mask is None else (args[0][:, self.mask.starts],)

    def give_back(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self.mask is None:
            return None
        of_all = output.new_zeros(1, sum(self.mask.lengths), output.shape[-1])
        return of_all.index_copy(1, self.mask.starts, output)

    def leave(self, module: torch.nn.Module, args: Any) -> Any:
        mask, self.mask = self.mask, None
        return None if mask is None else tuple(each[0, mask.starts, None] for each in args)


def forward_packed(model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, **model_kwargs: Any) -> Any:
    """Forward pass of an encoder that computes no padding, and in the last layer only what the reward is read from.

    The model, however wrapped, must be one that [`why_not_packed`] has no reason against; sequences are padded on the right. On an
    accelerator, which would have to be waited for, and of a compiled model, it is the model's own forward pass.

    Raises:
        ConfigError: If the last layer computed all tokens nevertheless.
    """
    if input_ids.device.type != "cpu" or is_compiled(model):
        return model(input_ids=input_ids, attention_mask=attention_mask, **model_kwargs)
    owner = encoder_model(model)
    FirstTokens.put_on(owner)
    is_real = attention_mask.bool()
    embeddings = getattr(owner, owner.base_model_prefix).embeddings
    if hasattr(embeddings, "create_position_ids_from_input_ids"):  # RoBERTa's begin after its pad id
        positions = embeddings.create_position_ids_from_input_ids(input_ids, embeddings.padding_idx)
    else:
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    lengths, packed = is_real.sum(1).tolist(), {"input_ids": input_ids[is_real], "position_ids": positions[is_real]}
    if fill := _tokens_to_fill_up(sum(lengths)):  # one more sequence, which nobody reads
        lengths.append(fill)
        packed = {name: torch.cat([values, values[:1].expand(fill)]) for name, values in packed.items()}
    in_one_row = {name: values[None] for name, values in packed.items()}
    outputs = model(**in_one_row, attention_mask=PackedMask.of(lengths), **model_kwargs)
    if len(outputs.logits) != len(lengths):
        raise ConfigError("The forward pass went past the hooks on the last layer. Set padding_free='off'.")
    outputs.logits = outputs.logits[: len(input_ids)]
    return outputs


def _tokens_to_fill_up(num_tokens: int) -> int:
    """How many tokens more a batch gets, so that few numbers of tokens occur: 32 from each power of two to the next.

    oneDNN, which computes half precision, compiles its kernels anew for each number of rows of a matrix, and keeps a thousand of them
    with their buffers: for batches of ever new lengths a third of a product's time, and gigabytes. In float32 it costs 1 %; whether
    autocast will be on is not known before the model's own forward.
    """
    return -num_tokens % (1 << max(0, num_tokens.bit_length() - 6))
