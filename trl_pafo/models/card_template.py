"""Text that anybody may have written into Markdown: escaped by default, so that it stays text."""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2


def one_line(text: str) -> str:
    """A name as one line without characters that cannot be seen."""
    return "".join(c for c in " ".join(str(text).split()) if c.isprintable())


class Raw(str):
    """Text that is put into the card as it is."""


def escaped(value: Any) -> str:
    """Text that no reader of Markdown takes for markup, a link, a table cell or a heading."""
    if isinstance(value, Raw):
        return value
    # Values never begin a line, so that the marks of headings and lists need no care.
    text = re.sub(r"([\\`*_{}\[\]()!|~$@])", r"\\\1", one_line(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", text.replace("://", r"\://"))


def as_code(value: Any) -> Raw:
    """Strings, numbers, lists and dictionaries of them as Python."""
    return Raw(json.dumps(value, ensure_ascii=False))


def as_url(value: str) -> Raw:
    """An address that cannot end the link it stands in."""
    return Raw(re.sub(r"[\s()<>]", "", one_line(value)))


@lru_cache(maxsize=1)
def card_environment() -> jinja2.Environment:
    """Templates of this package, in which every value is escaped unless a filter says otherwise."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": as_code, "raw": Raw, "url": as_url}
    return environment
