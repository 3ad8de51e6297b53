"""One forward pass of a wrapped model over shared rows, and the two rewards of each.

Only the model's own `forward` may be called: hooks of DistributedDataParallel, FSDP and DeepSpeed hang on it, and gather
the weights there. It pools one position of a row. So a hook on the reward head, the module `score` between the last layer and the
pooling, puts both rewards at every position: whichever is pooled, both come out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from trl_pafo.errors import ConfigError
from trl_pafo.prefix_sharing.attention import attention_mask, layer_windows
from trl_pafo.prefix_sharing.rows import reward_places, row_layout


def reward_model(model: torch.nn.Module) -> Any:
    """The sequence classification model inside of wrappers and adapters, `None` if there is none with a `score` head."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and isinstance(getattr(module, "score", None), torch.nn.Module):
            return module
    return None


class PairHead:
    """Forward hook of a reward head: two rewards at every position while a shared batch is at work, nothing otherwise.

    It stays on the module, and is put there before anything wraps or compiles the model: hooks that come later are not seen
    by `torch.compile`.
    """

    def __init__(self) -> None:
        self.places: torch.Tensor | None = None

    @classmethod
    def of(cls, model: torch.nn.Module) -> "PairHead":
        """The hook on the reward head of a model, put there if it is not yet.

        Raises:
            ConfigError: If the model has no head `score`.
        """
        owner = reward_model(model)
        if owner is None:
            raise ConfigError(
                f"{type(model).__name__} has no reward head `score` that reads every token, so a pair cannot share a row. Use a "
                "decoder of transformers, or set prefix_sharing='off'."
            )
        # With an adapter that trains the head, `score` is peft's wrapper of it, whose output is what gets pooled.
        for hook in owner.score._forward_hooks.values():
            if isinstance(hook, cls):
                return hook
        head = cls()
        owner.score.register_forward_hook(head)
        return head

    @contextmanager
    def reading(self, places: torch.Tensor) -> Iterator[None]:
        """While it lasts, the head gives the rewards at `places`, of shape `(num_pairs, 2)`."""
        self.places = places
        try:
            yield
        finally:
            self.places = None

    def __call__(self, module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self.places is None:
            return None
        rewards = output.squeeze(-1).gather(1, self.places.to(output.device))
        return rewards[:, None].expand(-1, output.shape[1], -1)


def is_compiled(model: torch.nn.Module) -> bool:
    """Whether a model or a module of it is compiled."""
    return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules())


def forward_shared(
    model: torch.nn.Module, input_ids: torch.Tensor, lengths: torch.Tensor, *, by_rows: bool = True, **model_kwargs: Any
) -> Any:
    """Forward pass over shared rows. The output is that of two rows a pair: all chosen responses, then all rejected ones.

    The model, however wrapped, must be one that [`why_not_shared`] has no reason against, the rows those of [`collate_pairs`]. With
    `by_rows`, `sdpa` on a CPU attends row by row ([`RowMask`]); without, it gets a dense mask there too. The logits have the shape
    `(2 * num_pairs, 1)`.

    Raises:
        ConfigError: If the model has no head to read two rewards from.
    """
    owner, head = reward_model(model), PairHead.of(model)
    layout = row_layout(lengths, input_ids.shape[1])
    implementation, windows = owner.config._attn_implementation, layer_windows(owner.config)
    # The lengths are numbers of Python then, which an accelerator would have to be waited for, and which compiled code cannot take.
    by_row = lengths if by_rows and lengths.device.type == "cpu" and not is_compiled(model) else None
    masks = {
        name: attention_mask(layout, window, implementation, owner.dtype, by_row)
        for name, window in (windows.items() if isinstance(windows, dict) else [("all", windows)])
    }
    with head.reading(reward_places(input_ids, lengths, owner.config.get_text_config().pad_token_id)):
        outputs = model(
            input_ids=input_ids,
            position_ids=layout.position,
            attention_mask=masks if isinstance(windows, dict) else masks["all"],
            **model_kwargs,
        )
    if outputs.logits.shape[-1] != 2:
        raise ConfigError(
            "The forward pass went past the reward head that two rewards were to be read from. Set prefix_sharing='off'."
        )
    outputs.logits = outputs.logits.T.reshape(-1, 1)
    return outputs
