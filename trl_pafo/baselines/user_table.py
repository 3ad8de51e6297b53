"""Users as soft tokens: a table of their embeddings that trains, and plain tokens of the vocabulary, which is what is saved."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AddedToken, PreTrainedTokenizerBase

from trl_pafo.data.template import add_history_template
from trl_pafo.errors import ConfigError

FORMS = ("individual", "cluster")
"""How the tokens of users are made of what trains: an offset for each user, or weights of clusters."""

# The tokens of the user named by the variable `user`, of an unknown one those of number 0, behind the token that begins a text. What
# `+` and the cut last newline are for: the text of the template inside must not change.
_TEMPLATE = """{%- set pafo_text +%}INSIDE{%+ endset -%}
{%- set pafo_user = USERS.get(user, 0) if user is defined else 0 -%}
{%- set pafo_start = bos_token or cls_token or '' -%}
{%- set pafo_start = pafo_start if pafo_text.startswith(pafo_start) else '' -%}
{{- pafo_start -}}
{%- for token in range(TOKENS) -%}{{- '<|user-' ~ pafo_user ~ '-' ~ token ~ '|>' -}}{%- endfor -%}
{{- pafo_text[pafo_start | length:] -}}"""


def add_user_tokens(tokenizer: PreTrainedTokenizerBase, users: Sequence[str], num_tokens: int) -> int:
    """Give a tokenizer tokens for a generic user, number 0, and for each of `users`, and let its chat template write those of the
    variable `user` at the start of a text; return the id of the first, which all others follow.

    Raises:
        ConfigError: If the tokenizer has such tokens already.
    """
    add_history_template(tokenizer)
    first = len(tokenizer)
    names = [f"<|user-{number}-{token}|>" for number in range(len(users) + 1) for token in range(num_tokens)]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in names], special_tokens=True)
    if tokenizer.convert_tokens_to_ids(names) != list(range(first, first + len(names))):
        raise ConfigError("The tokenizer has tokens of users already. Start from a model that was not trained with them.")
    numbers = {user: number for number, user in enumerate(users, 1)}
    parts = {"USERS": json.dumps(numbers, ensure_ascii=False), "TOKENS": str(num_tokens)}
    template = _TEMPLATE
    for name, value in {**parts, "INSIDE": str(tokenizer.chat_template).removesuffix("\n")}.items():
        template = template.replace(name, value, 1)
    tokenizer.chat_template = template
    return first


class UserTable(nn.Module):
    """
    The embeddings of users' tokens, made of what trains: with the form `"individual"` an offset for each user, `e_u = e_0 + o_u`,
    with `"cluster"` weights of clusters that all users share, `e_u = softmax(w_u) C` (P-RLHF, Li et al., arXiv 2402.05133, Examples 2
    and 3).

    `e_0`, `o_u` and `C` begin as rows of the vocabulary drawn at random, `w_u` standard normal.

    Args:
        form (`str`):
            One of [`FORMS`].
        vocabulary (`torch.Tensor` of shape `(num_words, dim)`):
            Embeddings to begin with.
        first (`int`):
            Id of the first token; those of a user follow each other, and so do users, from the generic one, number 0, on.
        num_users, num_tokens, num_clusters (`int`):
            Known users, tokens of each, and clusters.
        seed (`int`):
            Of the draws.
    """

    def __init__(
        self, form: str, vocabulary: torch.Tensor, first: int, num_users: int, num_tokens: int, num_clusters: int, seed: int
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.form, self.first = form, first
        blocks = num_users + 1 if form == "individual" else num_clusters
        needed, known = blocks * num_tokens, len(vocabulary)
        # Different rows, as long as there are some.
        drawn = torch.cat([torch.randperm(known, generator=generator) for _ in range(-(-needed // known))])[:needed]
        rows = vocabulary.detach()[drawn.to(vocabulary.device)].float()
        self.tokens = nn.Parameter(rows.reshape(blocks, num_tokens, -1).clone())
        if form == "cluster":
            weights = torch.randn(num_users + 1, num_clusters, generator=generator)
            self.weights = nn.Parameter(weights.to(vocabulary.device))

    def forward(self) -> torch.Tensor:
        """Embeddings of shape `(num_users + 1, num_tokens, dim)`, float32."""
        if self.form == "cluster":
            return torch.einsum("uk,ktd->utd", self.weights.softmax(dim=1), self.tokens)
        return torch.cat([self.tokens[:1], self.tokens[:1] + self.tokens[1:]])

    def put_on(self, model: Any) -> None:
        """From now on the embeddings of users' tokens are those of this table, which trains with the model, and has no part of its
        own in what is saved: there they are rows of the vocabulary."""
        embedding = model.get_input_embeddings()
        embedding.user_table = self.to(next(embedding.parameters()).device)
        embedding.register_forward_hook(self._put)
        embedding.register_state_dict_post_hook(partial(type(self)._save, self))  # torch sets an attribute, which no method takes

    def _put(self, embedding: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        rows = self().flatten(0, 1).to(output.dtype)
        place = args[0] - self.first
        is_user = (place >= 0) & (place < len(rows))
        return torch.where(is_user[..., None], F.embedding(place * is_user, rows), output)

    @torch.no_grad()
    def _save(self, embedding: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
        rows = self().flatten(0, 1)
        for name in [name for name in state if name.startswith(prefix)]:
            if name.startswith(f"{prefix}user_table."):
                del state[name]
            elif name.endswith("weight"):
                state[name] = state[name].detach().clone()
                state[name][self.first : self.first + len(rows)] = rows.to(state[name])
            elif "trainable_tokens_delta" in name:
                state[name] = rows.to(state[name])


def generic_ids(ids: Sequence[int], first: int, num_tokens: int, num_users: int) -> list[int]:
    """The token ids of a text with the tokens of the generic user in the place of those of a known one."""
    last = first + (num_users + 1) * num_tokens
    return [first + (token - first) % num_tokens if first <= token < last else token for token in ids]
