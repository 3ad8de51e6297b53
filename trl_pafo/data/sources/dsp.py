"""Domain Specific Preference (DSP): prompts answered once in the manner of each of five domains.

Source of the data: Cheng et al. 2023, "Everyone Deserves A Reward: Learning Customized Human Preferences", CC BY-NC
4.0. Nothing of it is shipped; the file is read from where you keep it. A user of domain d prefers the answer of domain
d, by construction. Which domains make the majority and the minority is our choice, not the paper's.
"""

import logging
import re
from pathlib import Path
from typing import Any

from trl_pafo.data.sources.reading import read_records, text_of
from trl_pafo.data.sources.typed_users import AnsweredPrompt, Population
from trl_pafo.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

# A full stop, question or exclamation mark with what may close behind it. The number of a list item ("1.") ends
# nothing.
_SENTENCE_END = re.compile(r"(?<!^\d)(?<!\s\d)(?<!\s\d\d)[.!?…][\"'\u201d\u2019)\]]*(?=\s|$)")


def dsp_population(**options: Any) -> Population:
    """[`~trl_pafo.data.sources.typed_users.Population`] with `academy` as majority and `entertainment` as minority, unless
    `options` say otherwise."""
    return Population(**{"majority": ("academy",), "minority": ("entertainment",), **options})


def load_dsp(path: str | Path, max_words: int | None = None) -> list[AnsweredPrompt]:
    """Read a DSP file: JSON Lines or a JSON list, plain or gzipped, of `{"query": ..., "responses": {domain: text}}`.

    Left out and counted in the log are: later entries with a query that was there before, and prompts of which two
    answers are the same or one is empty, since such answers tell no domains apart.

    Args:
        path (`str` or `Path`):
            The file.
        max_words (`int`, *optional*):
            Cut each answer after the last sentence that ends within this many words; after the last line, or else the
            last word, where no sentence does. `None` leaves the answers whole (about 110 words in the median).

    Returns:
        `list[AnsweredPrompt]`: For [`~trl_pafo.data.sources.typed_users.make_splits`].

    Raises:
        ConfigError: If `max_words` is below 1.
        DataError: If the file cannot be read, an entry has another form, or no prompt is left. The message names file
        and
            line.
    """
    if max_words is not None and max_words < 1:
        raise ConfigError(f"`max_words` must be at least 1, or None to leave answers whole; got {max_words}.")
    prompts: dict[str, AnsweredPrompt] = {}
    seen: set[str] = set()
    domains: list[str] = []
    num_repeated = num_alike = 0
    for place, record in read_records(path):
        query = text_of(record, "query", place)
        responses = record.get("responses")
        if not isinstance(responses, dict) or len(responses) < 2:
            raise DataError(f"{place}: the field `responses` must map two or more domains to texts, got {responses!r}.")
        domains = domains or list(responses)
        if set(responses) != set(domains):
            raise DataError(
                f"{place}: the answers are of the domains {', '.join(map(str, responses))}, those before it of "
                f"{', '.join(domains)}. Every query needs one answer of each domain."
            )
        for domain, answer in responses.items():
            if not isinstance(answer, str):
                raise DataError(f"{place}: the answer of the domain {domain!r} must be a text, got {answer!r}.")
        if query in seen:
            num_repeated += 1
            continue
        seen.add(query)
        answers = {domain: cut_at_sentence(responses[domain], max_words) for domain in domains}
        if not all(answers.values()) or len(set(answers.values())) < len(answers):
            num_alike += 1
            continue
        prompts[query] = AnsweredPrompt(query, answers)
    if num_repeated or num_alike:
        logger.warning(
            "%s: %d entries repeat an earlier query and %d have an empty answer or two that are the same; they are left "
            "out, %d prompts remain.",
            path,
            num_repeated,
            num_alike,
            len(prompts),
        )
    if not prompts:
        raise DataError(f"{path} holds no prompt that can be used: give a file of the DSP dataset.")
    return list(prompts.values())


def cut_at_sentence(text: str, max_words: int | None) -> str:
    """`text` up to the last sentence that ends within `max_words` words; up to the last line, or word, if none does."""
    text = text.strip()
    words = list(re.finditer(r"\S+", text))
    if max_words is None or len(words) <= max_words:
        return text
    kept = text[: words[max_words - 1].end()]
    ends = [match.end() for match in _SENTENCE_END.finditer(kept)]
    if not ends:
        ends = [match.start() for match in re.finditer(r"\n", kept)]
    return kept[: ends[-1]].rstrip() if ends else kept
