"""The sections that look closer at one run: users, and flipped pairs. (Not from the paper.)"""

from typing import Any

import numpy as np

from trl_pafo.data.messages import content_text
from trl_pafo.report import pictures
from trl_pafo.report.record import Record, Rewards, series_of
from trl_pafo.report.sections import Picture, Section, number

_LONGEST = {"prompt": 700, "chosen": 700, "rejected": 700, "history": 260}
KINDS = {"both": "both right", "gained": "gained", "lost": "lost", "neither": "neither right", "tied": "tied under either"}


def users(record: Record) -> Section:
    """User accuracy against support, for the reference and the student."""
    section = Section("users", "Users and the support of their preferences")
    section.text.append(
        "The support rate says how common a user's preferences are. If accuracy falls with it, those with rare preferences are served "
        "worse: the bias that PAFO is about."
    )
    rates = np.array([row["support_rate"] for row in record.pairs], dtype=np.float64)
    if np.isnan(rates).any():
        section.missing.append("User accuracy against support: some test pairs have no support rate.")
        return section
    for method in record.compared:
        rewards = record.rewards[method]
        figure = pictures.draw_user_support(rewards.correct, rewards.user, rates, series_of(method))
        section.pictures.append(Picture(f"support_{method}", record.title(method), "", figure))
    section.text.append("In the pictures, a disc stands for the users of equal support and accuracy, its area for their number.")
    rows = [[record.title(m), number(record.methods[m]["support_spearman"], signed=True)] for m in record.compared]
    known = "num_units" in record.methods[record.reference]
    note = "Spearman's rank correlation of users' accuracy with their support; 0: no trend. "
    note += "No intervals: no new users were held out." if known else "In brackets: 95 % intervals over users."
    section.add_table(["method", "trend"], rows, note)
    return section


def cases(record: Record) -> Section:
    """How many pairs flipped, and some of them by a fixed rule."""
    section = Section("cases", "Pairs that flipped")
    if len(record.compared) < 2:
        section.missing.append("Flipped pairs: there is no method beside the reference.")
        return section
    reference, student = (record.rewards[method] for method in record.compared)
    names = [record.title(method) for method in record.compared]
    kinds, group = kinds_of(reference, student), np.asarray(student.group)
    rows: list[list[Any]] = [
        [record.group_title(name), *(number(int(((group == name) & (kinds == kind)).sum())) for kind in KINDS)]
        for name in record.groups
        if (group == name).any()
    ]
    titles = [f"{title} by {names[1]}" if kind in ("gained", "lost") else title for kind, title in KINDS.items()]
    section.add_table(["test pairs of", *titles], rows)
    per_kind = 2 if len(record.groups) <= 3 else 1
    section.text.append(
        f"Gained: {names[1]} is right and {names[0]} is wrong; lost: the other way round. Shown are, for each group, up to {per_kind} gained "
        f"and up to {per_kind} lost pairs, always those whose margin moved most, one a user. They are the extremes, not typical pairs. "
        "The history is what the model was shown of it; long texts are cut."
    )
    moved = np.abs(student.margins - reference.margins)
    for name in record.groups:
        for kind in ("gained", "lost"):
            found = np.flatnonzero((group == name) & (kinds == kind))
            of_user: dict[str, int] = {}
            for row in found[np.argsort(-moved[found], kind="stable")]:
                of_user.setdefault(student.user[row], int(row))
            section.cases += [_case(record, row) | {"group": name, "kind": kind} for row in list(of_user.values())[:per_kind]]
    return section


def kinds_of(reference: Rewards, model: Rewards) -> Any:
    """Of each test pair, who is right: `both`, `gained` or `lost` by the model, `neither`, or `tied` under either."""
    ours, theirs = model.correct, reference.correct
    tied = (ours == 0.5) | (theirs == 0.5)
    return np.select([tied, (ours == 1) & (theirs == 1), ours == 1, theirs == 1], ["tied", "both", "gained", "lost"], "neither")


def _case(record: Record, row: int) -> dict[str, Any]:
    """Texts of a test pair, with the history as the model saw it, and the margin of every method on it."""
    pair = record.pairs[row]
    shown = (pair.get("chat_template_kwargs") or {}).get("history")
    history = pair.get("history") if shown is None else shown
    return {
        "user": str(pair["user"]),
        "row": row,
        **{name: text_of(pair.get(name), _LONGEST[name]) for name in ("prompt", "chosen", "rejected")},
        "history": [
            {name: text_of(value, _LONGEST["history"]) for name, value in entry.items() if value} for entry in history or ()
        ],
        "margins": [(record.title(method), f"{rewards.margins[row]:+.2f}") for method, rewards in record.rewards.items()],
    }


def text_of(value: Any, longest: int) -> str:
    """A text, or messages with their roles; of one that is much too long the beginning, and how much is left out."""
    text = content_text(value or "")
    if isinstance(value, list) and len(value) > 1:
        text = "\n".join(f"{message['role']}: {message['content']}" for message in value)
    return text if len(text) <= 1.2 * longest else f"{text[:longest].rstrip()} … [{len(text) - longest:,} more characters]"
