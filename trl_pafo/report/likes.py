"""What each group likes: the section of a report, and the sentences of a card. (Not from the paper.)"""

from collections.abc import Mapping
from typing import Any

from trl_pafo.data.people import RATES
from trl_pafo.report.details import text_of
from trl_pafo.report.record import Record
from trl_pafo.report.sections import Section

_LONGEST = 400
_NOT_TOLD = "What each group likes is not told: "


def likes(record: Record) -> Section:
    """Words and styles by which a group's choices differ from those of the others, and pairs that show them."""
    section, found = Section("likes", "What each group likes"), record.likes
    if found is None:
        section.missing.append(
            f"{_NOT_TOLD}the groups are cut at a threshold of the {RATES[record.data['groups']]}. Where that comes from these very pairs, their words "
            "differ by that alone."
        )
        return section
    if not found["groups"]:
        section.missing.append(f"{_NOT_TOLD}there are no two groups to tell apart.")
        return section
    names = [name for name in record.groups if name in found["groups"]]
    rows: list[list[Any]] = []
    for name in names:
        for sign in found["groups"][name]["signs"]:
            numbers = [_share(sign, ""), f"{sign['users']:,}", _share(sign, "other_")]
            rows.append([record.group_title(name), sign["sign"], *({"text": text, "interval": ""} for text in numbers)])
        section.cases += [_example(record, name, row) for row in found["groups"][name]["examples"]]
    if rows:
        section.text.append(
            "Where just one of two responses has a sign, or one has more of it, the group chose the response with it more often than not, and "
            "more often than the others did."
        )
        section.add_table(["group", "chose the response", "in its pairs", "of people", "in others' pairs"], rows, _how(found))
        section.text.append(
            "Below the table: pairs with the most of these signs. They are extremes, not typical pairs; long texts are cut."
        )
    if silent := [record.group_title(name) for name in names if not found["groups"][name]["signs"]]:
        section.text.append(
            f"{', '.join(silent)}: no word or style that people who were held out support. There are too few of them, or the taste does not show "
            "in words."
        )
    return section


def likes_sentences(found: Mapping[str, Any] | None, with_words: bool) -> list[str]:
    """The same in sentences, a group each, and how it was found; none where nothing was.

    Args:
        found (`Mapping`, *optional*):
            Output of [`~trl_pafo.evaluation.likes.find_likes`].
        with_words (`bool`):
            Whether words of the data may be named; else only styles are.
    """
    said = []
    for name, of_group in (found["groups"] if found else {}).items():
        signs = [
            f"{sign['sign']} ({_share(sign, '')} pairs; others {_share(sign, 'other_')})"
            for sign in of_group["signs"]
            if with_words or not sign["is_word"]
        ]
        if signs:
            said.append(f"More than the others, {name} chose the response {', '.join(signs)}.")
    return [*said, _how(found)] if said and found else []


def _how(found: Mapping[str, Any]) -> str:
    return (
        f"Signs were sought in pairs of {found['found_in']:,} people; {found['tried']} were checked on those of {found['checked_on']:,} others, so that "
        "chance alone names any in at most one of twenty such searches."
    )


def _share(sign: Mapping[str, Any], of: str) -> str:
    return f"{sign[f'{of}chosen']:,} of {sign[f'{of}pairs']:,}"


def _example(record: Record, group: str, row: int) -> dict[str, Any]:
    pair = record.pairs[row]
    texts = {name: text_of(pair[name], _LONGEST) for name in ("prompt", "chosen", "rejected")}
    return {"group": record.group_title(group), "row": row, "kind": "", "user": "", "history": [], "margins": [], **texts}
