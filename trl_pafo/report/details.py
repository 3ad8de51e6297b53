"""The sections that look closer at one run: users, flipped pairs, the history, teachers, trainings.

Each says what is missing, and why, where the run does not keep what it takes.
"""

from typing import Any

import numpy as np

from trl_pafo.report import findings, pictures
from trl_pafo.report.records import ALL_PAIRS, Record
from trl_pafo.report.sections import Picture, Section, group_title, noted, number


def users(record: Record) -> Section:
    """User accuracy against support, for the reference and the student."""
    section = Section("users", "Users and the support of their preferences")
    section.text.append(
        "The support rate says how common a user's preferences are. If accuracy falls with it, those with rare preferences are served "
        "worse: the bias that PAFO is about."
    )
    support = findings.support_of_pairs(record)
    compared = [m for m in (record.reference, record.student) if m in record.rewards]
    if support is None or not compared:
        why = record.missing.get("pairs", "the test pairs have no support rates")
        section.missing.append(f"User accuracy against support: {why if support is None else 'no rewards were kept'}.")
        return section
    rows = []
    for method in compared:
        rewards = record.rewards[method]
        means, trend = findings.support_means(rewards, support)
        rows.append([record.title(method), number(trend, signed=True)])
        figure = pictures.draw_user_support(rewards.correct, rewards.user, support, means, record.series(method))
        section.pictures.append(Picture(f"support_{method}", record.title(method), "", figure))
    section.text.append(
        "In the pictures, a disc stands for the users of equal support and accuracy, its area for their number; diamonds are mean "
        "accuracies at a rate, or in a fifth of the users, with 95 % intervals over users."
    )
    note = "Spearman's rank correlation of users' accuracy with their support, with 95 % intervals; 0: no trend."
    section.tables.append({"header": ["method", "trend"], "rows": rows, "note": noted(note, rows)})
    return section


def cases(record: Record) -> Section:
    """How many pairs flipped, and some of them by a fixed rule."""
    section = Section("cases", "Pairs that flipped")
    reference, student = record.rewards.get(record.reference or ""), record.rewards.get(record.student or "")
    if reference is None or student is None:
        section.missing.append("Flipped pairs: it takes the rewards of a reference and of a model that is compared with it.")
        return section
    assert record.reference is not None
    assert record.student is not None
    names = record.title(record.student), record.title(record.reference)
    counts = findings.count_flips(reference, student)
    groups = record.groups or [ALL_PAIRS]
    rows = [
        [group_title(record, g), *(number(counts[g][kind]) for kind in ("both", "gained", "lost", "neither", "tied"))]
        for g in groups
        if g in counts
    ]
    header = ["test pairs of", "both right", f"gained by {names[0]}", f"lost by {names[0]}", "neither right", "tied under either"]
    section.tables.append({"header": header, "rows": rows, "note": ""})
    if record.pairs is None:
        section.missing.append(f"The texts: {record.missing['pairs']}.")
        return section
    per_kind = 2 if len(record.groups) <= 3 else 1
    section.text.append(
        f"Gained: {names[0]} is right and {names[1]} is wrong; lost: the other way round. Shown are, for each group, up to {per_kind} gained "
        f"and up to {per_kind} lost pairs, always those whose margin moved most, one a user. They are the extremes, not typical pairs. "
        "The history is what the model was shown of it; long texts are cut."
    )
    for group, kind, row in findings.choose_cases(reference, student, groups, per_kind):
        case = findings.describe_case(record, row)
        margins = [(name, f"{margin:+.2f}") for name, margin in case["margins"].items()]
        section.cases.append({**case, "group": group, "kind": kind, "margins": margins})
    return section


def history(record: Record) -> Section:
    """What the models do with a history, and their hidden states."""
    section = Section("history", "What the history does")
    seen = record.inspection
    if seen is None:
        section.missing.append(f"Hidden states and the use of the history: {record.missing.get('inspection', 'not computed')}.")
        return section
    methods = [m for m in record.methods if f"states/{m}" in seen]
    pairs, groups = len(set(seen["row"].tolist())), len(record.groups)
    use = {m: findings.history_use(record, m) for m in methods}
    if any(use.values()):
        section.text.append(
            f"{pairs} test pairs, up to the same number from each of {groups} groups, drawn by a fixed seed. Each is shown to the models "
            "under the history of its own user and under that of a user of every other group: same prompt, same answers. A model that "
            "serves both judges them differently."
        )
        rows = [
            [f"{record.title(m)}, pairs of {name}", number(of_group[name]["higher"]), number(of_group[name].get("follows"))]
            for m, of_group in use.items()
            if of_group is not None
            for name in record.groups
            if name in of_group
        ]
        header = ["model", "own history helps", "follows that history's teacher"]
        note = (
            "Own history helps: share of pairs whose margin is higher under the own history than under a borrowed one (.500: the history "
            "has no effect). Follows: share of pairs under a borrowed history on which the model prefers what the teacher of that "
            "history's group prefers. 95 % intervals over users."
        )
        section.tables.append({"header": header, "rows": rows, "note": noted(note, rows)})
    for method in methods:
        figure = pictures.draw_hidden_states(
            seen[f"states/{method}"], seen["group"].tolist(), seen["shown"].tolist(), record.groups
        )
        section.pictures.append(Picture(f"hidden_{method}", record.title(method), "", figure))
    section.text.append(
        "The pictures show the last hidden state of the chosen answer at the pooled token, in the two principal components of each model's "
        "own. Where the colors lie apart, the model tells the groups' histories apart; two components are only part of what it knows."
    )
    return section


def teachers(record: Record) -> Section:
    """Margins of the teachers against those of the reference and the student."""
    section = Section("teachers", "Teachers and what was distilled")
    found = findings.teacher_margins(record)
    compared = [m for m in (record.reference, record.student) if m in record.rewards]
    if found is None or not compared:
        why = (
            "no teachers' margins on test pairs are kept (method `group_routed`, or an inspection of a run that trained teachers)"
            if found is None
            else "no rewards of the test pairs are kept"
        )
        section.missing.append(f"Margins of teacher against student: {why}.")
        return section
    rows, teacher = found
    which = "all test pairs" if len(rows) == len(record.rewards[compared[0]].margins) else "a sample of the test pairs"
    section.text.append(
        f"Each pair of {which} under the teacher of its own group, against a model that is told no group. Corners: shares of pairs; in "
        "the upper right both are right, in the lower right only the teacher is. Margins are raw: two models have no common scale, only "
        "0 means the same. At most 300 points are drawn."
    )
    table: list[list[Any]] = []
    for method in compared:
        rewards = record.rewards[method]
        group = [rewards.group[row] for row in rows]
        same = findings.agreement(teacher, rewards.margins[rows])
        owner = [rewards.user[row] for row in rows]
        present = [name for name in record.groups if name in group]
        table.append([record.title(method), *(number(findings.interval_of(same, owner, group, name)) for name in present)])
    header = ["prefers what the teacher prefers", *(group_title(record, name) for name in present)]
    note = noted("Share of pairs, with 95 % intervals over users.", table)
    section.tables.append({"header": header, "rows": table, "note": note})
    for i, name in enumerate(present):
        mine = np.array([g == name for g in group])
        for method in compared:
            margins = record.rewards[method].margins[rows]
            figure = pictures.draw_margins(teacher[mine], margins[mine], record.series(method), record.title(method))
            section.pictures.append(Picture(f"margins_{i}_{method}", f"{record.title(method)}, pairs of {name}", "", figure))
    return section


def training(record: Record) -> Section:
    """A curve a model."""
    section = Section("training", "Training")
    for i, (title, history) in enumerate(record.trainings.items()):
        if not any("loss" in row for row in history):
            section.missing.append(f"Curves of {title}: its trainer logged no loss; set logging_steps below the number of steps.")
            continue
        section.pictures.append(
            Picture(f"training_{i}", title[:1].upper() + title[1:], "", pictures.draw_training(history, record.groups))
        )
    if section.pictures:
        section.text.append("Loss and accuracy on training batches, of the rows that have a label (a tie is half right).")
    if any("distillation_loss" in row for rows in record.trainings.values() for row in rows):
        section.text.append(
            "The Bradley-Terry part is the mean over the rows that have a label, the distillation part over those distilled."
        )
    gone = [key.removeprefix("training/") for key in record.missing if key.startswith("training/")]
    if gone:
        section.missing.append(f"No curves of {', '.join(gone)}: no trainer_state.json is kept in its folder.")
    return section
