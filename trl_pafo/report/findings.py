"""What a report says in numbers beside the results: support, teachers, use of the history, flipped pairs. All ours."""

from typing import Any

import numpy as np

from trl_pafo.data.messages import content_text
from trl_pafo.metrics import Verdict, compare, fairness_summary, pair_correctness
from trl_pafo.metrics.accuracy import FloatArray, IntArray
from trl_pafo.report.records import Record, Rewards, same_pairs

_MOST_SUPPORTS = 6
_LONGEST_TEXT = 700
_LONGEST_HISTORY = 260

Interval = dict[str, float]


def interval_of(values: FloatArray, user: list[str], group: list[str], name: str) -> Interval:
    """Mean of `values`, in [0, 1] and one a pair, in one group, with its 95 % bootstrap interval over users."""
    mine = [i for i, g in enumerate(group) if g == name]
    return fairness_summary(values[mine], [user[i] for i in mine], None)["overall"]


def support_of_pairs(record: Record) -> FloatArray | None:
    """Support rate of the user of each test pair, of shape `(num_pairs,)`; `None` where the data have none."""
    if not record.pairs or "support_rate" not in record.pairs[0]:
        return None
    rates = np.array([row["support_rate"] for row in record.pairs], dtype=np.float64)
    return None if np.isnan(rates).any() else rates


def support_means(rewards: Rewards, support: FloatArray) -> tuple[list[tuple[float, Interval]], Interval]:
    """Accuracy at each of few support rates, else in each fifth of the users; and its rank correlation with support."""
    of_user = dict(zip(rewards.user, support.tolist(), strict=True))
    rates = np.array(list(of_user.values()))
    values, codes = np.unique(np.round(rates, 6), return_inverse=True)
    if len(values) > _MOST_SUPPORTS:
        codes = np.searchsorted(np.unique(np.quantile(rates, [0.2, 0.4, 0.6, 0.8])), rates, side="left")
    bin_of = {user: f"{code:03d}" for user, code in zip(of_user, codes.tolist(), strict=True)}
    summary = fairness_summary(rewards.correct, rewards.user, [bin_of[user] for user in rewards.user], support=support)
    bins = sorted(set(bin_of.values()))
    means = [(float(rates[codes == int(name)].mean()), summary[f"accuracy/{name}"]) for name in bins]
    return means, summary["support_spearman"]


def agreement(teacher: FloatArray, margins: FloatArray) -> FloatArray:
    """1 where both prefer the same answer, 0 where not, 0.5 where one has no preference."""
    return pair_correctness(margins * np.sign(teacher))


def teacher_margins(record: Record) -> tuple[IntArray, FloatArray] | None:
    """Rows of test pairs, and the margins of the teacher of each pair's own group on them."""
    if "group_routed" in record.rewards:
        margins = record.rewards["group_routed"].margins
        return np.arange(len(margins)), margins
    seen = record.inspection
    if seen is None or "rewards/teacher" not in seen:
        return None
    own = (seen["shown"] == seen["group"]) | (seen["shown"] == "")
    margins = np.subtract(*seen["rewards/teacher"].astype(np.float64).T)
    kept = own & ~np.isnan(margins)
    return (seen["row"][kept].astype(np.int64), margins[kept]) if kept.any() else None


def history_use(record: Record, method: str) -> dict[str, dict[str, Any]] | None:
    """For each group, what a borrowed history does to a model on the pairs of the inspection.

    Returns:
        `dict` of the groups, or `None` where nothing was borrowed. `higher`: on what share of pairs the margin is higher under
        the history of the pair's own user than under that of a user of another group (a model that ignores the history: .5);
        `follows`: on what share of pairs under a borrowed history it prefers what the teacher of *that* group prefers; `pairs`.
    """
    seen = record.inspection
    if seen is None or f"rewards/{method}" not in seen or not record.pairs:
        return None
    margins = np.subtract(*seen[f"rewards/{method}"].astype(np.float64).T)
    borrowed = np.flatnonzero((seen["shown"] != seen["group"]) & (seen["shown"] != ""))
    if not len(borrowed):
        return None
    own = {row: margin for row, margin, b in zip(seen["row"], margins, seen["shown"] == seen["group"], strict=True) if b}
    borrowed = np.array([i for i in borrowed if seen["row"][i] in own], dtype=np.int64)
    user = [str(record.pairs[row]["user"]) for row in seen["row"][borrowed]]
    group = seen["group"][borrowed].tolist()
    higher = pair_correctness(np.array([own[seen["row"][i]] - margins[i] for i in borrowed]))
    found = {}
    for name in dict.fromkeys(group):
        found[name] = {"higher": interval_of(higher, user, group, name), "pairs": group.count(name)}
        if "rewards/teacher" in seen:
            teacher = np.subtract(*seen["rewards/teacher"].astype(np.float64).T)[borrowed]
            if not np.isnan(teacher).any():
                same = agreement(teacher, margins[borrowed])
                found[name]["follows"] = interval_of(same, user, group, name)
    return found


def count_flips(reference: Rewards, model: Rewards) -> dict[str, dict[str, int]]:
    """Test pairs of each group by who is right: `both`, `gained` and `lost` by the model, `neither`, and `tied` under either."""
    ours, theirs = model.correct, reference.correct
    kinds = {
        "both": (ours == 1) & (theirs == 1),
        "gained": (ours == 1) & (theirs == 0),
        "lost": (ours == 0) & (theirs == 1),
        "neither": (ours == 0) & (theirs == 0),
        "tied": (ours == 0.5) | (theirs == 0.5),
    }
    group = np.asarray(model.group)
    return {str(name): {kind: int((of & (group == name)).sum()) for kind, of in kinds.items()} for name in np.unique(group)}


def choose_cases(reference: Rewards, model: Rewards, groups: list[str], per_kind: int) -> list[tuple[str, str, int]]:
    """Pairs that flipped: of each group, gains and losses alike, those whose margin moved most, one a user.

    Args:
        reference, model ([`Rewards`]):
            Over the same pairs.
        groups (`list[str]`):
            The groups, in order.
        per_kind (`int`):
            Most gains, and most losses, of a group.

    Returns:
        `list` of group, `"gained"` or `"lost"`, and row.
    """
    moved = model.margins - reference.margins
    ours, theirs = model.correct, reference.correct
    cases = []
    for name in groups:
        mine = np.asarray(model.group) == name
        for kind, flipped in (("gained", (ours == 1) & (theirs == 0)), ("lost", (ours == 0) & (theirs == 1))):
            rows = np.flatnonzero(mine & flipped)
            seen: dict[str, int] = {}
            for row in rows[np.argsort(-np.abs(moved[rows]), kind="stable")]:
                seen.setdefault(model.user[row], int(row))
            cases += [(name, kind, row) for row in list(seen.values())[:per_kind]]
    return cases


def describe_case(record: Record, row: int) -> dict[str, Any]:
    """Texts of a test pair, as the model saw its history, and the margin of every method on it."""
    assert record.pairs is not None
    pair = record.pairs[row]
    shown = (pair.get("chat_template_kwargs") or {}).get("history")
    history = pair.get("history") if shown is None else shown
    return {
        "user": str(pair["user"]),
        "row": row,
        **{name: clip(_text(pair.get(name)), _LONGEST_TEXT) for name in ("prompt", "chosen", "rejected")},
        "history": [
            {name: clip(_text(value), _LONGEST_HISTORY) for name, value in entry.items() if value} for entry in history or []
        ],
        "margins": {record.title(m): float(r.margins[row]) for m, r in record.rewards.items()},
    }


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and len(value) > 1:
        return "\n".join(f"{message['role']}: {message['content']}" for message in value)
    return content_text(value)


def clip(text: str, longest: int) -> str:
    """The beginning of a text that is much too long, and how much is left out."""
    return text if len(text) <= 1.2 * longest else f"{text[:longest].rstrip()} … [{len(text) - longest:,} more characters]"


def headroom(record: Record) -> str | None:
    """What the group-routed teachers say about whether there was anything to distill."""
    verdict = record.results.get("verdicts", {}).get("group_routed")
    if verdict is None:
        return None
    better = [name for name, d in verdict["differences"].items() if d["low"] > 0]
    reference = record.title(record.reference or "")
    teachers = "the teachers, each on the pairs of its own group,"
    if better:
        return f"There is something to distill: {teachers} are shown to beat {reference} for {', '.join(better)}."
    return (
        f"There may be nothing to distill: {teachers} are not shown to beat {reference} for any group. Then a distilled model has "
        "nothing to gain from them, and may lose."
    )


def compare_runs(first: Record, other: Record) -> Verdict | None:
    """The student of one run against that of another, pair by pair; `None` where the pairs are others, or not kept."""
    rewards, base = other.rewards.get(other.student or ""), first.rewards.get(first.student or "")
    if rewards is None or base is None or not same_pairs(first, other):
        return None
    who = (base.user, base.group)
    return compare(rewards.correct, base.correct, *who, margins=rewards.margins, reference_margins=base.margins)
