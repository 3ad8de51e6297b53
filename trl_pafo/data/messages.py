"""The text of a message, a prompt or a response, whether it is a text, text parts or a tool call."""

import json
from typing import Any

from trl_pafo.errors import DataError


def message_text(message: dict[str, Any]) -> str:
    """The content of a message, text parts joined, and its tool calls as JSON, one a line.

    Raises:
        DataError: If it is no message, or holds something else than text.
    """
    content = message.get("content") if isinstance(message, dict) else message
    if not isinstance(message, dict) or not isinstance(content, str | list | None):
        raise DataError(f"a message must have role and content, got {message!r:.200}")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise DataError(f"a part of a message is not text: {content!r:.200}")
        content = "".join(parts)  # type: ignore[arg-type]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(f"`tool_calls` of a message must be a list of calls, got {calls!r:.200}")
    texts = [json.dumps(without_nones(call.get("function") or call), ensure_ascii=False) for call in calls]
    return "\n".join([content, *texts] if content else texts)


def is_message(value: Any) -> bool:
    """Whether a value is a message with a role, and with a text, text parts or tool calls."""
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        return False
    try:
        return bool(message_text(value)) or isinstance(value.get("content"), str)
    except DataError:
        return False


def without_nones(value: Any) -> Any:
    """The same without keys whose value is `None`: a column of Arrow has every key that any of its rows has."""
    if isinstance(value, dict):
        return {k: without_nones(v) for k, v in value.items() if v is not None}
    return [without_nones(item) for item in value] if isinstance(value, list) else value


def content_text(value: str | list[dict[str, Any]]) -> str:
    """A standard text as it is; the texts of messages, joined, see [`message_text`]."""
    return value if isinstance(value, str) else "\n".join(map(message_text, value))


def content_key(value: str | list[dict[str, Any]]) -> str:
    """A prompt as something that can be compared: text, or messages as text. A text and its one message are the same."""
    if isinstance(value, str):
        return value
    texts = [(message["role"], message_text(message)) for message in value]
    return texts[0][1] if len(texts) == 1 else repr(texts)


def as_messages(value: str | list[dict[str, Any]], role: str) -> list[dict[str, Any]]:
    """A standard text as one message; messages as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value
