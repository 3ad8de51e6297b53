"""Domain Specific Preference (DSP): prompts answered once in the manner of each of five domains.

Source of the data: Cheng et al. 2023, "Everyone Deserves A Reward: Learning Customized Human Preferences", CC BY-NC
4.0. Nothing of it is shipped; the file is read from where you keep it. A user of domain d prefers the answer of domain
d, by construction. Which domains make the majority and the minority is our choice, not the paper's.
"""

import logging
import re
from pathlib import Path

from datasets import DatasetDict

from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import read_records, text_of
from trl_pafo.data.sources.typed_users import AnsweredPrompt, make_splits
from trl_pafo.errors import DataError

logger = logging.getLogger(__name__)

# A full stop, question or exclamation mark with what may close behind it. The number of a list item ("1.") ends
# nothing.
_SENTENCE_END = re.compile(r"(?<!^\d)(?<!\s\d)(?<!\s\d\d)[.!?…][\"'\u201d\u2019)\]]*(?=\s|$)")


def load(data: DataArguments) -> DatasetDict:
    """The pairs of users who prefer the answers of one domain: `academy` the majority, `entertainment` the minority by default."""
    return make_splits(load_dsp(str(data.data_path), data.max_words), data, majority="academy", minority="entertainment")


def load_dsp(path: str | Path, max_words: int | None = None) -> list[AnsweredPrompt]:
    """Read a DSP file: JSON Lines or a JSON list, plain or gzipped, of `{"query": ..., "responses": {domain: text}}`.

    Left out, and counted in the log, are later entries with a query that was there before, and prompts of which two answers are the
    same or one is empty, since such answers tell no domains apart. With `max_words`, each answer is cut after the last sentence
    that ends within this many words; after the last line, or else the last word, where no sentence does. (In the median an answer
    has about 110.)

    Raises:
        DataError: If the file cannot be read, an entry has another form, or no prompt is left. The message names file and line.
    """
    prompts: dict[str, AnsweredPrompt] = {}
    domains: list[str] = []
    num_entries = 0
    for place, record in read_records(path):
        num_entries += 1
        query, responses = text_of(record, "query", place), record.get("responses")
        if not isinstance(responses, dict) or len(responses) < 2 or not all(isinstance(text, str) for text in responses.values()):
            raise DataError(f"{place}: the field `responses` must map two or more domains to texts, got {responses!r:.200}.")
        domains = domains or list(responses)
        if set(responses) != set(domains):
            raise DataError(
                f"{place}: the answers are of the domains {', '.join(responses)}, those before it of {', '.join(domains)}. Every "
                "query needs one answer of each domain."
            )
        answers = {domain: cut_at_sentence(responses[domain], max_words) for domain in domains}
        prompts.setdefault(query, AnsweredPrompt(query, answers))
    usable = [p for p in prompts.values() if all(p.responses.values()) and len(set(p.responses.values())) == len(domains)]
    if len(usable) < num_entries:
        logger.warning(
            "%s: %d of %d entries were dropped: they repeat a query, or have an empty answer or two identical ones.",
            path,
            num_entries - len(usable),
            num_entries,
        )
    if not usable:
        raise DataError(f"{path} holds no prompt that can be used: give a file of the DSP dataset.")
    return usable


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
