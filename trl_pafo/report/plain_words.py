"""Three sentences about a run, in plain words: how groups were served before, what changed, and whether that is shown. (Not from the paper.)"""

from collections.abc import Iterable, Mapping
from typing import Any

from trl_pafo.evaluation.methods import OF_TEACHERS, STUDENTS, TITLES
from trl_pafo.metrics.verdict import is_known
from trl_pafo.report.tables import MOST_GROUPS, group_names

_KINDS = {
    "personalized_bt": "a model trained the usual way",
    "bradley_terry": "a model trained the usual way, without past choices",
}


def student_of(results: Mapping[str, Any]) -> str | None:
    """The method that a run is about: PAFO's, or what there is beside the reference; `None` where there is nothing."""
    others = (
        m for m in (*STUDENTS, *results["methods"]) if m in results["methods"] and m not in (results["reference"], *OF_TEACHERS)
    )
    return next(others, None)


def plain_sentences(results: Mapping[str, Any]) -> list[str]:
    """How the reference serves each group, what the student changes, in pairs of 100, and whether that is shown, on how many people.

    Args:
        results (`Mapping`):
            `results.json` of a run.
    """
    before, student = results["methods"][results["reference"]], student_of(results)
    groups = [name for name in group_names(before) if is_known(before[f"accuracy/{name}"]["value"])]
    verdict = results["verdicts"].get(student)
    return [
        _before(results, before, groups),
        _change(results, before, groups, student, verdict),
        _shown(results, before, verdict),
    ]


def _before(results: Mapping[str, Any], before: Mapping[str, Any], groups: list[str]) -> str:
    reference = results["reference"]
    title = TITLES.get(reference, reference)
    model = f"{_KINDS[reference]} ({title})" if reference in _KINDS else title
    if len(groups) < 2:
        tenth = before.get("user_worst_decile")
        tail = f", and {_of_100(tenth)} for the tenth of people whom it serves worst, chance included" if tenth else ""
        return f"With {model}, {_of_100(before['overall'])} of 100 test pairs are judged right{tail}; no groups are compared."
    worst, *others = sorted(groups, key=lambda name: before[f"accuracy/{name}"]["value"])
    best = others[-1]
    low, high = (before[f"accuracy/{name}"] for name in (worst, best))
    if low["value"] == high["value"]:
        return f"With {model}, {_of_100(low)} of 100 test pairs are judged right for every group: none is served worse."
    shown = others[::-1] if len(groups) <= MOST_GROUPS else [best]
    against = _listed(f"{_of_100(before[f'accuracy/{name}'])} for {_name(name)}" for name in shown)
    sure = is_known(low["high"]) and is_known(high["low"]) and low["high"] < high["low"]
    return (
        f"With {model}, {_name(worst)} is served {f'worst of {len(groups)} groups' if len(groups) > 2 else 'worse'}: {_of_100(low)} of 100 test pairs "
        f"are judged right, against {against}; "
        + ("so large a gap is hardly chance." if sure else "whether that is more than chance cannot be told.")
    )


def _change(
    results: Mapping[str, Any],
    before: Mapping[str, Any],
    groups: list[str],
    student: str | None,
    verdict: Mapping[str, Any] | None,
) -> str:
    if student is None or verdict is None:
        return "There is no other model to compare it with, so nothing changes for anybody."
    title, front = TITLES.get(student, student), results.get("front")
    if verdict["verdict"] == "same":
        if student in STUDENTS and front and not front.get("students"):
            return f"{title} was not trained, since held-out pairs did not show that anything can be gained: nothing changes for anybody."
        return f"{title} judges every pair as before: nothing changes for anybody."
    after = results["methods"][student]
    keys = {f"accuracy/{name}": f" for {_name(name)}" for name in groups}
    if len(groups) < 2:
        keys = {"overall": ""}
    elif len(groups) > MOST_GROUPS:
        keys = dict(sorted(keys.items(), key=lambda item: abs(after[item[0]]["value"] - before[item[0]]["value"]))[-MOST_GROUPS:])
    right = " of 100 pairs are judged right"
    parts = [
        f"{_of_100(after[key])}{'' if place else right}{of} ({_formerly(before[key], after[key])})"
        for place, (key, of) in enumerate(reversed(keys.items()))
    ]
    some = f"; of {len(groups)} groups, these change most" if len(groups) > MOST_GROUPS else ""
    return f"With {title}, {_listed(parts)}{some}."


def _shown(results: Mapping[str, Any], before: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> str:
    basis = _basis(results, before)
    if verdict is None:
        return f"These numbers rest on {basis}."
    if verdict["verdict"] == "same":
        return f"So there is no change to be shown; the numbers rest on {basis}."
    differences = verdict["differences"]
    gains = [
        f"{_for(name)}(very likely {_between(d['low'], d['high'])} more of 100)"
        for name, d in differences.items()
        if d["low"] > 0
    ]
    losses = [
        f"{_for(name)}(very likely {_between(-d['high'], -d['low'])} fewer of 100)"
        for name, d in differences.items()
        if d["high"] < 0
    ]
    open_to_loss = [_name(name) for name, d in differences.items() if d["low"] <= 0 <= d["high"] and d["value"] < 0]
    gain, loss = f"a gain {_listed(gains)}", f"a loss {_listed(losses)}"
    said = {
        "improves": f"The test shows {gain}{'; no loss was measured for others' if len(gains) < len(differences) else ''}",
        "degrades": f"The test shows {loss}, and no gain",
        "mixed": f"The test shows {gain}, and {loss}: some pay for others",
        "cannot tell": f"The test shows {gain}, but cannot tell whether {_listed(open_to_loss)} then loses"
        if gains
        else "The test cannot tell whether this is more than chance",
    }[verdict["verdict"]]
    alone = ""
    if results["reference"] == "bradley_terry" and "personalized_bt" not in results["methods"]:
        alone = "; what past choices alone would bring was not measured"
    return f"{said}{alone}. It rests on {basis}."


def _basis(results: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    names = [name for name in group_names(before) if before.get(f"num_users/{name}")]
    of_groups = ", ".join(f"{before[f'num_users/{name}']:,} {name}" for name in names)
    counts = f" ({of_groups})" if 1 < len(names) <= MOST_GROUPS else ""
    if "num_units" in before:
        text = f"{before['num_units']:,} held-out prompts of {before['num_users']:,} people{counts} whose other choices are in training"
    else:
        text = f"{before['num_users']:,} people{counts} whom no training has seen"
    untested = results.get("not_evaluated") or []
    return text + (f"; nothing is known of {', '.join(untested)}, without test pairs" if untested else "")


def _of_100(entry: Mapping[str, float]) -> str:
    """`74`; `99.6` where the whole number would say all, or none, though it is not so."""
    value = 100 * entry["value"]
    return f"{value:.1f}" if round(value) in (0, 100) and value not in (0, 100) else f"{value:.0f}"


def _formerly(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    if before["value"] == after["value"]:
        return "as before"
    former = _of_100(before)
    return "about as before" if former == _of_100(after) else f"before {former}"


def _between(low: float, high: float) -> str:
    ends = [f"{100 * end:.0f}" if 100 * end >= 0.95 else f"{100 * end:.1g}" for end in (low, high)]
    return f"about {ends[0]}" if ends[0] == ends[1] else f"between {ends[0]} and {ends[1]}"


def _name(group: str) -> str:
    return f"the {group}" if group in ("majority", "minority") else f"the group {group}"


def _for(group: str) -> str:
    return "" if group in ("overall", "all") else f"for {_name(group)} "


def _listed(parts: Iterable[str]) -> str:
    *first, last = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last
