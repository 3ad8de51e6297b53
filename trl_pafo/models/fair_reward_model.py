"""A prompt, responses and the user's past pairs in, a reward for each response out: what a program that serves users calls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trl_pafo.data.checks import check_responses
from trl_pafo.errors import DataError
from trl_pafo.models.batches import BATCHES_AT_ONCE, check_batch_size
from trl_pafo.models.scoring import RewardScorer

_FIELDS = {"prompt", "responses", "history", "tools", "chat_template_kwargs"}


class FairRewardModel:
    """
    A saved reward model, or an adapter on its base, that says how much a user would like each response to a prompt.

    Texts and histories are read as in the model's training, which its folder remembers, and rewards are those of `trl-pafo score`.

    Args:
        scorer ([`~trl_pafo.models.RewardScorer`]):
            The model; [`FairRewardModel.from_pretrained`] loads it.

    Example:

    ```python
    >>> from trl_pafo import FairRewardModel

    >>> model = FairRewardModel.from_pretrained("fair-reward-model")
    >>> past = [{"prompt": "What is rain?", "chosen": "Sky soup.", "rejected": "Condensed water vapour."}]
    >>> model.score("Can I freeze bread?", ["Yes, slice it first.", "Chill it, dear."], history=past)
    [-0.5, 1.25]
    ```
    """

    def __init__(self, scorer: RewardScorer):
        self.scorer = scorer

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None, **options: Any) -> "FairRewardModel":
        """Load the model of a folder or Hub id.

        Args:
            source (`str` or `Path`):
                Folder or Hub id of a reward model or adapter, with its tokenizer.
            revision (`str`, *optional*):
                Branch, tag or commit of a Hub id.
            options:
                Those of [`~trl_pafo.models.RewardScorer`]: `device`, `dtype`, `bf16`, and `num_history`, `history_max_tokens` and
                `history_fields` in place of what the folder remembers.

        Raises:
            TeacherError: If there is no such folder and no such repository.
            ConfigError: If it could not give rewards, or an option cannot be used.
        """
        scorer = RewardScorer.from_pretrained(source, revision=revision, **options)
        scorer.model  # noqa: B018  # loaded now, not at the first request
        return cls(scorer)

    @property
    def num_history(self) -> int | None:
        """At most this many past pairs are shown, the newest, as in training; `0` for none, `None` for all. More are cut."""
        return self.scorer.renderer.cutter.num_history

    def score(
        self,
        prompt: Any,
        responses: Sequence[Any],
        history: Sequence[Mapping[str, Any]] | None = None,
        *,
        batch_size: int = 32,
        **fields: Any,
    ) -> list[float]:
        """Raw rewards (no sigmoid) of responses to one prompt, for the user whose history is given.

        Only differences under one prompt and one history mean something.

        Args:
            prompt (`str` or `list[dict]`):
                A text, or messages; `None` where the responses begin with it.
            responses (`Sequence`):
                Texts, or lists of messages, as the prompt.
            history (`list[dict]`, *optional*):
                The user's past pairs with `prompt`, `chosen`, `rejected`, texts or messages, the **newest first**. They are cut as in
                training. `[]` is a user who has none yet.
            batch_size (`int`, *optional*, defaults to `32`):
                Responses in a forward pass.
            fields:
                `tools` and `chat_template_kwargs`, as in TRL.

        Returns:
            `list[float]`: The reward of each response.

        Raises:
            DataError: If something cannot be read as in the training, or is longer than the model's positions; or if `history` is not
                given, and the model was trained with histories.
            TeacherError: If a reward is not finite.
        """
        request = {"prompt": prompt, "responses": responses, "history": history, **fields}
        return self._score([request], batch_size, lambda _, response: f"response {response}")[0]

    def score_batch(self, requests: Sequence[Mapping[str, Any]], *, batch_size: int = 32) -> list[list[float]]:
        """The same for many users at once, which is faster.

        Args:
            requests (`Sequence[Mapping]`):
                The arguments of [`~FairRewardModel.score`] by name: `prompt`, `responses`, optional `history`, `tools` and
                `chat_template_kwargs`.
            batch_size (`int`, *optional*, defaults to `32`):
                Responses in a forward pass.

        Returns:
            `list[list[float]]`: For each request, the reward of each response.

        Raises:
            DataError, TeacherError: As [`~FairRewardModel.score`], for the first request that cannot be scored. None is then.
        """
        return self._score(requests, batch_size, lambda request, response: f"request {request}, response {response}")

    def _score(self, requests: Sequence[Mapping[str, Any]], batch_size: int, name: Any) -> list[list[float]]:
        check_batch_size(batch_size)
        given = list(requests)  # a generator can be read once
        if isinstance(requests, Mapping) or not all(isinstance(request, Mapping) for request in given):
            raise DataError("`requests` must be a list of dicts with `prompt`, `responses` and `history`.")
        rows, places = [], []
        for number, request in enumerate(given):
            if unknown := sorted(set(request) - _FIELDS):
                raise DataError(f"{name(number, 0)}: {', '.join(unknown)} is unknown. Give {', '.join(sorted(_FIELDS))}.")
            responses = request.get("responses")
            if isinstance(responses, str | Mapping) or not isinstance(responses, Sequence):
                raise DataError(f"{name(number, 0)}: `responses` must be a list of responses, got {responses!r:.200}.")
            shared = {key: value for key, value in request.items() if key != "responses" and value is not None}
            for place, response in enumerate(responses):
                row = {"response": response, **shared}
                check_responses(row, name(number, place))
                self.scorer.renderer.check_told(row, name(number, place))
                rows.append(row)
                places.append(name(number, place))
        sequences = self.scorer.tokenize(rows, places.__getitem__, allow_no_history=True)
        rewards: list[float] = []
        for start in range(0, len(rows), size := BATCHES_AT_ONCE * batch_size):
            scored = self.scorer.score_tokens(sequences[start : start + size], batch_size=batch_size)
            rewards += [row["response"] for row in scored]
        found = iter(rewards)
        return [[next(found) for _ in request["responses"]] for request in given]
