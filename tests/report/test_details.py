"""The closer looks at a run, against plain loops and scipy; where parts are missing is tested with the other sections."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from trl_pafo.report import details
from trl_pafo.report.record import Rewards
from trl_pafo.report.sections import number


def test_users_have_a_trend_for_the_reference_and_the_student(record):
    section = details.users(record)
    rewards = record.rewards["pafo"]
    users = sorted(set(rewards.user))
    support = np.array([row["support_rate"] for row in record.pairs])
    of_user = [(rewards.correct[np.array(rewards.user) == u].mean(), support[rewards.user.index(u)]) for u in users]
    trend = spearmanr(*zip(*of_user, strict=True)).statistic
    assert section.tables[0]["rows"][1][1]["text"] == number(float(trend), signed=True)["text"]
    assert [picture.name for picture in section.pictures] == ["support_personalized_bt", "support_pafo"]
    record.pairs[3]["support_rate"] = None
    assert "have no support rate" in details.users(record).missing[0]


@pytest.fixture
def two():
    rng = np.random.default_rng(1)
    user = [f"u{i // 5}" for i in range(200)]
    group = ["x" if i < 100 else "y" for i in range(200)]
    margins = rng.normal(size=(2, 200)).round(1)
    return Rewards(user, group, margins[0]), Rewards(user, group, margins[1])


def test_every_pair_is_of_one_kind(two):
    names = {(1, 1): "both", (-1, 1): "gained", (1, -1): "lost", (-1, -1): "neither"}
    expected = [names.get((np.sign(r), np.sign(m)), "tied") for r, m in zip(*(rewards.margins for rewards in two), strict=True)]
    assert details.kinds_of(*two).tolist() == expected
    assert set(expected) == set(details.KINDS)


def test_cases_are_the_largest_moves_of_different_users_gains_and_losses_alike(record):
    section = details.cases(record)
    reference, student = record.rewards["personalized_bt"], record.rewards["pafo"]
    kinds, moved = details.kinds_of(reference, student), np.abs(student.margins - reference.margins)
    counts = {row[0]: [int(cell["text"]) for cell in row[1:]] for row in section.tables[0]["rows"]}
    assert sum(map(sum, counts.values())) == 68
    expected = []
    for name in ("majority", "minority"):
        for kind in ("gained", "lost"):
            rows = [i for i in range(68) if student.group[i] == name and kinds[i] == kind]
            assert counts[name][list(details.KINDS).index(kind)] == len(rows)
            best_of_user = {student.user[i]: i for i in sorted(rows, key=lambda i: moved[i])}
            best = sorted(best_of_user.values(), key=lambda i: -moved[i])[:2]
            expected += [(name, kind, row) for row in best]
    assert [(case["group"], case["kind"], case["row"]) for case in section.cases] == expected
    assert {kind for _, kind, _ in expected} == {"gained", "lost"}


def test_a_case_shows_what_the_model_saw(record):
    case = details._case(record, 5)
    assert case["history"] == [{"chosen": "chosen of the past of majority-1 1 plain"}]
    assert case["prompt"] == "question 1 of majority-1 plain"
    assert dict(case["margins"])["PAFO"] == f"{record.rewards['pafo'].margins[5]:+.2f}"
    assert dict(case["margins"]).keys() == {record.title(method) for method in record.methods}
    record.pairs[5]["prompt"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record.pairs[5]["chosen"] = [{"role": "assistant", "content": "c" * 1000}]
    record.pairs[5]["chat_template_kwargs"] = None
    case = details._case(record, 5)
    assert case["prompt"] == "user: a\nassistant: b"
    assert case["chosen"] == f"{'c' * 700} … [300 more characters]"
    assert set(case["history"][0]) == {"prompt", "chosen", "rejected"}
