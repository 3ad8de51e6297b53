import json

import numpy as np
import pytest
from helpers.fake_runs import make_run, write_inspection
from scipy.stats import spearmanr

from trl_pafo.metrics import compare
from trl_pafo.report import findings
from trl_pafo.report.records import Rewards, read_record


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    write_inspection(folder)
    return folder


@pytest.fixture
def record(folder):
    return read_record(folder)


def test_interval_of_one_group():
    found = findings.interval_of(np.array([1, 0, 1, 1.0]), ["a", "a", "b", "c"], ["x", "x", "x", "y"], "x")
    assert found["value"] == pytest.approx(2 / 3)
    assert np.isnan([found["low"], found["high"]]).all()  # two users
    user = [f"u{i}" for i in range(8)]
    found = findings.interval_of(np.array([1, 0, 1, 1, 1, 0, 1, 1.0]), user, ["x"] * 8, "x")
    assert 0 <= found["low"] < found["value"] < found["high"] <= 1


def test_support_means_at_few_rates_and_in_fifths(record):
    rewards = record.rewards["pafo"]
    support = findings.support_of_pairs(record)
    means, trend = findings.support_means(rewards, support)
    assert [rate for rate, _ in means] == pytest.approx([0.2, 0.8])
    assert means[0][1]["value"] == pytest.approx(rewards.correct[support == 0.2].mean())
    users = sorted(set(rewards.user))
    of_user = [(rewards.correct[np.array(rewards.user) == u].mean(), support[rewards.user.index(u)]) for u in users]
    assert trend["value"] == pytest.approx(spearmanr(*zip(*of_user, strict=True)).statistic)

    many = np.repeat(np.linspace(0, 1, 17), 4)  # every user its own rate
    means, _ = findings.support_means(rewards, many)
    assert len(means) == 5
    assert [rate for rate, _ in means] == sorted(rate for rate, _ in means)
    counts = [(np.searchsorted(np.quantile(np.linspace(0, 1, 17), [0.2, 0.4, 0.6, 0.8]), many) == i).sum() for i in range(5)]
    values = [mean["value"] * n for (_, mean), n in zip(means, counts, strict=True)]
    assert sum(values) == pytest.approx(rewards.correct.sum())


def test_support_needs_a_rate_for_every_user(record):
    record.pairs[3]["support_rate"] = None
    assert findings.support_of_pairs(record) is None
    record.pairs = None
    assert findings.support_of_pairs(record) is None


def test_agreement():
    teacher, model = np.array([1.0, 2, -1, 0, 3]), np.array([0.5, -1, -9, 1, 0])
    assert findings.agreement(teacher, model).tolist() == [1, 0, 1, 0.5, 0.5]


def test_teacher_margins_from_the_oracle_else_from_the_sample(record):
    rows, margins = findings.teacher_margins(record)
    assert rows.tolist() == list(range(68))
    assert margins == pytest.approx(record.rewards["group_routed"].margins)
    del record.rewards["group_routed"]
    rows, margins = findings.teacher_margins(record)
    seen = record.inspection
    own = [i for i in range(len(seen["row"])) if seen["shown"][i] == seen["group"][i]]
    assert rows.tolist() == [int(seen["row"][i]) for i in own]
    assert margins == pytest.approx([seen["rewards/teacher"][i][0] - seen["rewards/teacher"][i][1] for i in own])
    del record.inspection["rewards/teacher"]
    assert findings.teacher_margins(record) is None


def test_history_use_against_a_plain_loop(record):
    seen = record.inspection
    found = findings.history_use(record, "pafo")
    for name in ("majority", "minority"):
        higher, follows = [], []
        for i, row in enumerate(seen["row"]):
            if seen["group"][i] != name or seen["shown"][i] == name:
                continue
            (mine,) = [j for j in range(len(seen["row"])) if seen["row"][j] == row and seen["shown"][j] == name]
            margin = {j: float(np.subtract(*seen["rewards/pafo"][j].astype(float))) for j in (i, mine)}
            higher.append(margin[mine] > margin[i])
            follows.append((margin[i] > 0) == (seen["rewards/teacher"][i][0] > seen["rewards/teacher"][i][1]))
        assert found[name]["higher"]["value"] == pytest.approx(np.mean(higher))
        assert found[name]["follows"]["value"] == pytest.approx(np.mean(follows))
        assert found[name]["pairs"] == 6


def test_history_use_without_borrowed_histories(record):
    record.inspection["shown"][:] = ""
    assert findings.history_use(record, "pafo") is None
    assert findings.history_use(record, "group_routed") is None


@pytest.fixture
def two():
    rng = np.random.default_rng(1)
    user = [f"u{i // 5}" for i in range(200)]
    group = ["x" if i < 100 else "y" for i in range(200)]
    margins = rng.normal(size=(2, 200)).round(1)
    return Rewards(user, group, margins[0]), Rewards(user, group, margins[1])


def test_flips_are_counted_once(two):
    reference, model = two
    counts = findings.count_flips(reference, model)
    assert {name: sum(of.values()) for name, of in counts.items()} == {"x": 100, "y": 100}
    assert counts["x"]["gained"] == sum(r < 0 < m for r, m in zip(reference.margins[:100], model.margins[:100], strict=True))
    assert counts["y"]["tied"] == sum(r == 0 or m == 0 for r, m in zip(reference.margins[100:], model.margins[100:], strict=True))


def test_cases_are_the_largest_moves_of_different_users_gains_and_losses_alike(two):
    reference, model = two
    cases = findings.choose_cases(reference, model, ["x", "y"], 3)
    assert [(group, kind) for group, kind, _ in cases] == [(g, k) for g in "xy" for k in ("gained", "lost") for _ in range(3)]
    moved = np.abs(model.margins - reference.margins)
    for name in "xy":
        for kind, sign in (("gained", 1), ("lost", -1)):
            fitting = [
                i for i in range(200) if model.group[i] == name and sign * model.margins[i] > 0 > sign * reference.margins[i]
            ]
            best_of_user = {}
            for i in fitting:
                best_of_user[model.user[i]] = max(best_of_user.get(model.user[i], 0), moved[i])
            rows = [row for g, k, row in cases if (g, k) == (name, kind)]
            assert set(rows) <= set(fitting)
            assert [moved[row] for row in rows] == sorted(best_of_user.values(), reverse=True)[:3]


def test_cases_of_equal_models(two):
    assert findings.choose_cases(two[0], two[0], ["x", "y"], 2) == []


def test_a_case_shows_what_the_model_saw(record):
    case = findings.describe_case(record, 5)
    assert case["history"] == [{"chosen": "chosen of the past of majority-1 1 plain"}]
    assert case["prompt"] == "question 1 of majority-1 plain"
    assert case["margins"]["PAFO"] == record.rewards["pafo"].margins[5]
    record.pairs[5]["prompt"] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    record.pairs[5]["chat_template_kwargs"] = None
    case = findings.describe_case(record, 5)
    assert case["prompt"] == "user: a\nassistant: b"
    assert set(case["history"][0]) == {"prompt", "chosen", "rejected"}


def test_clip():
    assert findings.clip("abc", 2) == "ab … [1 more characters]"
    assert findings.clip("a" * 12, 10) == "a" * 12  # not worth a cut
    assert findings.clip("", 10) == ""


def test_headroom_follows_the_oracle(record):
    record.results["verdicts"]["group_routed"] = {"differences": {"a": {"low": 0.1}, "b": {"low": -0.1}}}
    assert findings.headroom(record).endswith("beat personalized BT for a.")
    record.results["verdicts"]["group_routed"] = {"differences": {"a": {"low": 0.0}}}
    assert findings.headroom(record).startswith("There may be nothing to distill")
    del record.results["verdicts"]["group_routed"]
    assert findings.headroom(record) is None


def test_runs_are_compared_on_the_same_pairs_only(folder, record, tmp_path):
    other = read_record(make_run(tmp_path / "same", seed=9))
    verdict = findings.compare_runs(record, other)
    ours, theirs = other.rewards["pafo"], record.rewards["pafo"]
    assert verdict == compare(ours.correct, theirs.correct, ours.user, ours.group)
    assert findings.compare_runs(record, read_record(make_run(tmp_path / "other", text="x"))) is None
    (tmp_path / "same/results/pafo.jsonl").unlink()
    assert findings.compare_runs(record, read_record(tmp_path / "same")) is None
    assert json.loads((folder / "results/results.json").read_text(encoding="utf-8"))["reference"] == "personalized_bt"
