"""Bodies of requests to token sequences, and rewards to answers: what `trl-pafo score` refuses is refused, by number of the item."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from trl_pafo.data.sources.reading import decode, parse_json
from trl_pafo.data.user_histories import UserHistories
from trl_pafo.errors import DataError, TrlPafoError
from trl_pafo.evaluation.score_file import REWARD_KEYS
from trl_pafo.evaluation.score_lines import tokens_alone
from trl_pafo.models.scoring import RewardScorer

# What the classification endpoint of vLLM takes and is understood here; `model`, `request_id` and `priority` change nothing.
_CLASSIFY = {"model", "request_id", "priority", "user", "messages", "input", "chat_template_kwargs", "use_activation"}

_Row = dict[Any, list[int]]
"""Token ids of all that the model reads of a row."""


class RefusedError(Exception):
    """A request that is not answered with rewards: the HTTP status, and an error for each item that is wrong."""

    def __init__(self, status: int, *errors: str | dict[str, Any]):
        self.status = status
        self.detail = [{"error": error} if isinstance(error, str) else error for error in errors]


class Asked(NamedTuple):
    """The token sequences of a request, the number of the item that each is of, and the answer that their rewards make."""

    sequences: list[list[int]]
    items: list[int]
    answer: Callable[[list[float]], Any]


class RequestReader:
    """
    Reads requests, one at a time.

    Args:
        scorer ([`~trl_pafo.models.RewardScorer`]):
            The model.
        users ([`~trl_pafo.data.user_histories.UserHistories`], *optional*):
            Past pairs, which items then name the `user` of.
        name (`str`):
            The name of the model in answers.
        max_items, max_tokens (`int`):
            Items of a request, and tokens of a response with its prompt, at most.
    """

    def __init__(self, scorer: RewardScorer, users: UserHistories | None, name: str, max_items: int, max_tokens: int):
        self.scorer, self.users, self.name = scorer, users, name
        self.max_items, self.max_tokens = max_items, max_tokens

    def score(self, body: bytes) -> Asked:
        """A line of `trl-pafo score`, or a list of them; the answer has the rewards alone, of one or in a list. An item may have `responses`,
        a list, as a request of [`~trl_pafo.models.FairRewardModel.score_batch`] does; its answer has `rewards`.

        Raises:
            RefusedError: If something cannot be scored.
        """
        given = _parse(body)
        rows = given if isinstance(given, list) else [given]
        tokens = self._tokens(rows, self._tokens_of_row)

        def answer(found: list[dict[str, float]]) -> Any:
            left = iter(found)
            answers: list[dict[str, Any]] = [
                {"rewards": [next(left)["response"] for _ in own]}
                if _several(asked)
                else {REWARD_KEYS[side]: reward for side, reward in next(left).items()}
                for asked, own in zip(rows, tokens, strict=True)
            ]
            return answers if isinstance(given, list) else answers[0]

        return self._asked(tokens, answer)

    def classify(self, body: bytes) -> Asked:
        """A request to vLLM's classification endpoint: `messages` of one conversation, or `input`, a text or several.

        Raises:
            RefusedError: If something cannot be scored.
        """
        given = _parse(body)
        if not isinstance(given, dict):
            raise RefusedError(422, "The body must be a JSON object.")
        if unknown := [name for name, value in given.items() if name not in _CLASSIFY and value is not None]:
            raise RefusedError(422, f"{', '.join(unknown)[:200]} is not known here. Give {', '.join(sorted(_CLASSIFY))}.")
        if given.get("use_activation") is not False:
            raise RefusedError(422, "`use_activation` must be false: rewards are raw, and no sigmoid is applied to them.")
        if (given.get("messages") is None) == (given.get("input") is None):
            raise RefusedError(422, "Give either `messages`, the prompt and the response, or `input`, texts.")
        if given.get("messages") is not None:
            tokens = self._tokens([_conversation(given)], self._tokens_of_row)
        elif self.users is not None or given.get("chat_template_kwargs") is not None:
            raise RefusedError(
                422, "`input` is a text without a history. Give `messages`, to which the history of the user is added."
            )
        else:
            texts = given["input"] if isinstance(given["input"], list) else [given["input"]]
            tokens = self._tokens([{"response": text} for text in texts], self._tokens_of_text)
        num_tokens = sum(len(ids) for own in tokens for row in own for ids in row.values())
        return self._asked(tokens, lambda found: self._classified([row["response"] for row in found], num_tokens))

    def _asked(self, tokens: list[list[_Row]], answer: Callable[[list[dict[str, float]]], Any]) -> Asked:
        """The sequences of items, each of which has one row or several; `answer` makes the answer of the rewards of all rows."""
        rows = [row for own in tokens for row in own]
        items = [number for number, own in enumerate(tokens) for row in own for _ in row]

        def of_rows(given: list[float]) -> Any:
            left = iter(given)
            return answer(self.scorer.combine([{key: next(left) for key in row} for row in rows]))

        return Asked([ids for row in rows for ids in row.values()], items, of_rows)

    def _tokens(self, rows: list[Any], read: Callable[[Any, str], list[_Row]]) -> list[list[_Row]]:
        """Token ids of all rows of all items, or all that is wrong with them."""
        if not rows:
            raise RefusedError(422, "The list holds no items.")
        num_items = sum(len(_several(row) or [row]) for row in rows)
        if num_items > self.max_items:
            raise RefusedError(
                413, f"{num_items} items are more than the {self.max_items} of a request (--max_items). Send fewer at once."
            )
        if self.users is not None:
            try:
                self.users.read_on()
            except TrlPafoError as error:  # it may hold the text of another user
                raise RefusedError(
                    503, "The past pairs of --users cannot be read: a line is wrong. `trl-pafo score - --users FILE` names it."
                ) from error
        tokens, errors = [], []
        for number, row in enumerate(rows):
            place = f"item {number}"
            try:
                if not isinstance(row, dict):
                    raise DataError(f"{place}: expected a JSON object, got {type(row).__name__}.")
                tokens.append(read(row, place))
                if (longest := max(len(ids) for one in tokens[-1] for ids in one.values())) > self.max_tokens:
                    raise DataError(
                        f"{place} has {longest} tokens, more than {self.max_tokens} (--max_tokens). Cut the response."
                    )
            except TrlPafoError as error:
                errors.append({"item": number, "error": str(error)})
        if errors:
            raise RefusedError(422, *errors)
        return tokens

    def _tokens_of_row(self, row: dict[str, Any], place: str) -> list[_Row]:
        """Token ids of a row, or of one for each of its `responses`."""
        if "responses" not in row:
            return [tokens_alone(self.scorer, self.users, row, place)[1]]
        shared = {name: value for name, value in row.items() if name != "responses"}
        if not _several(row) or {*REWARD_KEYS} & set(shared):
            raise DataError(f"{place}: `responses` must be a list of responses, without {', '.join(REWARD_KEYS)} beside it.")
        rows = ({**shared, "response": response} for response in row["responses"])
        return [tokens_alone(self.scorer, self.users, one, f"{place}, response {n}")[1] for n, one in enumerate(rows)]

    def _tokens_of_text(self, row: dict[str, Any], place: str) -> list[_Row]:
        if not isinstance(row["response"], str) or not row["response"].strip():
            raise DataError(
                f"{place}: `input` must be a text that is not empty, or a list of them, got {row['response']!r:.200}."
            )
        return self.scorer.tokenize([row], lambda _: place, allow_no_history=True)

    def _classified(self, rewards: list[float], num_tokens: int) -> dict[str, Any]:
        label = self.scorer.model.config.get_text_config().id2label[0]
        data = [{"index": index, "label": label, "probs": [reward], "num_classes": 1} for index, reward in enumerate(rewards)]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens, "completion_tokens": 0}
        made = {"id": f"classify-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": self.name}
        return {**made, "data": data, "usage": usage}


def _several(row: Any) -> list[Any]:
    """The `responses` of an item; none where it has another form."""
    responses = row.get("responses") if isinstance(row, dict) else None
    return responses if isinstance(responses, list) else []


def _parse(body: bytes) -> Any:
    try:
        return parse_json(decode(body, "The body"))
    except TrlPafoError as error:
        raise RefusedError(422, str(error)) from error
    except ValueError as error:
        reason = f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else error
        raise RefusedError(422, f"The body is not JSON ({reason}).") from error


def _conversation(given: dict[str, Any]) -> dict[str, Any]:
    """The row of a conversation: its last message is the response."""
    messages = given["messages"]
    several = isinstance(messages, list) and len(messages) > 1
    row = {"prompt": messages[:-1], "response": messages[-1:]} if several else {"response": messages}
    return row | {name: given[name] for name in ("user", "chat_template_kwargs") if given.get(name) is not None}
