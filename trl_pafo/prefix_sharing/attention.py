"""Attention of shared rows: sliding windows, who sees whom, and on a CPU row by row in two calls of a kernel each.

A dense mask costs every token of a row on every other one, padding included. A row is two things that kernels know: a sequence
of prefix and chosen response, which is causal, and the rejected response, which looks at the prefix and at itself. On an
accelerator the lengths would have to be waited for; flex_attention serves there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._pytree import tree_map_only

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.rows import RowLayout, dense_mask

# What code asks of a mask before it uses it; all else is asked of the dense mask.
_ABOUT = (
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad")),
    *(torch.Tensor.dim, torch.Tensor.size, torch.Tensor.is_floating_point, torch.is_floating_point),
)


ATTENTION = ("sdpa", "eager", "flex_attention")
"""Implementations of attention that can be told who sees whom; flash attention cannot."""


class PiecewiseMask(torch.Tensor):
    """
    Mask that `scaled_dot_product_attention` need not look at: given one, it attends piece by piece, as `_attend` says.

    It has the shape and type of the dense mask and turns into it wherever anything else is done with it: whatever a model does, it
    sees the right mask.
    """

    _make_dense: Callable[[], torch.Tensor]
    _dense: torch.Tensor | None

    @classmethod
    def standing_for(cls, shape: tuple[int, ...], make_dense: Callable[[], torch.Tensor]) -> Any:
        """The mask in the place of the dense one, which `make_dense` makes."""
        mask = torch.ones((1, 1, 1, 1), dtype=torch.bool).expand(shape).as_subclass(cls)  # takes no memory
        mask._make_dense, mask._dense = make_dense, None
        return mask

    def dense(self) -> torch.Tensor:
        """The dense mask; it is made when it is first asked for."""
        if self._dense is None:
            self._dense = self._make_dense()
        return self._dense

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        with torch._C.DisableTorchFunctionSubclass():
            if func is scaled_dot_product_attention and isinstance(kwargs.get("attn_mask"), cls) and len(args) == 3:
                return attend_in_float32(kwargs.pop("attn_mask")._attend, *args, **kwargs)
            if func in _ABOUT:
                return func(*args, **kwargs)
            if func is torch.Tensor.detach:  # done by reentrant checkpointing, and by DeepSpeed to all that a module is given
                # Not the mask itself: an autograd function that returns what it was given gets a plain tensor instead.
                alias = func(*args).as_subclass(type(args[0]))
                alias.__dict__.update(args[0].__dict__)
                return alias
            args, kwargs = tree_map_only(cls, cls.dense, (tuple(args), kwargs))
            return func(*args, **kwargs)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        raise NotImplementedError


def attend_in_float32(attend: Callable[..., torch.Tensor], *tensors: torch.Tensor, **options: Any) -> torch.Tensor:
    """Attention of tensors in bfloat16 in float32: on a CPU the backward pass of its kernel takes three to six times as long in bfloat16."""
    if all(tensor.dtype != torch.bfloat16 for tensor in tensors):
        return attend(*tensors, **options)
    with torch.autocast("cpu", enabled=False):
        return attend(*(tensor.float() for tensor in tensors), **options).to(tensors[-1].dtype)


class RowMask(PiecewiseMask):
    """Mask of shared rows, of shape `(num_pairs, 1, num_tokens, num_tokens)`, with which attention goes row by row."""

    _lengths: list[list[int]]
    _of_rejected: list[torch.Tensor]

    @classmethod
    def of(cls, lengths: torch.Tensor, num_tokens: int, make_dense: Callable[[], torch.Tensor]) -> "RowMask":
        """The mask of rows of these lengths, of shape `(num_pairs, 3)` on the CPU; `make_dense` makes the dense one."""
        mask = cls.standing_for((len(lengths), 1, num_tokens, num_tokens), make_dense)
        mask._lengths = lengths.tolist()
        mask._of_rejected = [
            torch.ones(rejected, prefix + rejected, dtype=torch.bool).tril(prefix) for prefix, _, rejected in mask._lengths
        ]
        return mask

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        """Attention of shape `(num_pairs, num_heads, num_tokens, head_size)`; 0 on padding."""
        options["is_causal"] = False
        rows = []
        # The gradient of a split is one concatenation; that of a slice would be a tensor as large as the whole.
        tensors = (tensor.split(1) for tensor in (query, key, value))
        for lengths, of_rejected, q, k, v in zip(self._lengths, self._of_rejected, *tensors, strict=True):
            prefix, chosen, rejected = lengths
            padding = query.shape[2] - sum(lengths)
            of_first, of_second, _ = q.split([prefix + chosen, rejected, padding], 2)
            (k_prefix, k_chosen, k_rejected, _), (v_prefix, v_chosen, v_rejected, _) = (
                tensor.split([*lengths, padding], 2) for tensor in (k, v)
            )
            first = scaled_dot_product_attention(
                of_first,
                torch.cat([k_prefix, k_chosen], 2),
                torch.cat([v_prefix, v_chosen], 2),
                **options | {"is_causal": True},
            )
            second = scaled_dot_product_attention(
                of_second,
                torch.cat([k_prefix, k_rejected], 2),
                torch.cat([v_prefix, v_rejected], 2),
                attn_mask=of_rejected,
                **options,
            )
            rows.append(torch.cat([first, second, first.new_zeros(*first.shape[:2], padding, first.shape[3])], 2))
        return torch.cat(rows)


def layer_windows(config: Any) -> dict[str, int | None] | int | None:
    """Sliding windows of a model: one for all layers (`None` without), or one for each type of layer where types differ.

    Raises:
        ConfigError: If a type of layer does not attend by a mask alone.
    """
    types = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if other := types - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"layers of type {', '.join(sorted(other))} process tokens in their own order")
    if not types:
        return window
    return {"full_attention": None, "sliding_attention": window} if "sliding_attention" in types else None


def attention_mask(
    layout: RowLayout, window: int | None, implementation: str, dtype: torch.dtype, lengths: torch.Tensor | None = None
) -> Any:
    """Who sees whom, as one of the implementations of [`ATTENTION`] wants to be told; the window is a sliding one.

    `"sdpa"`: a bool tensor of shape `(num_pairs, 1, num_tokens, num_tokens)`, with `lengths` ([`PAIR_LENGTHS`], on the CPU) a
    [`RowMask`] that stands for it, unless a window bites; `"eager"`: the same, to be added to the scores; `"flex_attention"`: a
    `BlockMask`, whose empty blocks are not computed.
    """
    num_tokens = layout.part.shape[1]
    by_row = lengths is not None and implementation == "sdpa"
    if by_row and (window is None or int((lengths[:, 0] + lengths[:, 1:].amax(1)).max()) <= window):  # type: ignore[index]
        return RowMask.of(lengths, num_tokens, lambda: dense_mask(layout))  # type: ignore[arg-type]
    if implementation == "flex_attention":
        from trl_pafo.prefix_sharing.block_mask import block_mask  # which loads much of torch

        return block_mask(layout, window)
    sees = dense_mask(layout, window)
    if implementation == "sdpa":
        return sees
    return torch.zeros_like(sees, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
