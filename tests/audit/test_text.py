"""Verdict, findings, tables and folder of an audit, from results of which the truth is known."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from helpers.fake_runs import make_front
from helpers.parts import full_after

from trl_pafo.audit import write_audit
from trl_pafo.audit.audit import check_output
from trl_pafo.audit.text import findings, markdown_report, verdict_sentence
from trl_pafo.errors import RunFolderError


def number(value, low=None, high=None):
    return {"value": value, "low": value - 0.02 if low is None else low, "high": value + 0.02 if high is None else high}


def make_result(**changes):
    """Groups `a|b` of 48 users and `rare` of 12, who are served worse and whom a teacher of their own would serve better."""
    judged = {"users": 48, "pairs": 120, "accuracy": number(0.8), "common_pairs": 0}
    group = {"share_of_users": 0.5, "pairs": 120}
    result = {
        "data": {"source": "files", "data_path": "survey.csv"},
        "counts": {
            "pairs": 240,
            "users": 60,
            "prompts": 30,
            "pairs_a_user": {"min": 4, "median": 4, "max": 4},
            "groups": {
                "a|b": {**group, "users": 48, "support_rates": [0.8] * 48},
                "rare": {**group, "users": 12, "support_rates": [0.1, *[0.2] * 11]},
            },
        },
        "noise": {"known": 0.9},
        "models": {},
        "accuracy": {
            "overall": number(0.7),
            "groups": {"a|b": judged, "rare": judged | {"users": 12, "accuracy": number(0.4)}},
            "support_spearman": number(0.5),
            "support_is_agreement": False,
        },
        "front": make_front(("a|b", "rare"), shared="shared probe")
        | {"folds": 4, "repeats": 2, "num_pairs": 400, "embedding_model": "minilm"},
        "tastes": None,
        "groups_from": "agreement",
        "groups": ["So the groups were made.", "So sure they are."],
        "people": pd.DataFrame(
            {
                "user": [f"user {number}" for number in range(60)],
                "group": ["a|b"] * 48 + ["rare"] * 12,
                "posterior": np.nan,
                "support_rate": [0.8] * 48 + [0.1] + [0.2] * 11,
                "pairs": 4,
                "split": "train",
            }
        ),
        **changes,
    }
    result["verdict"], result["findings"] = verdict_sentence(result), findings(result)
    return result


def test_the_verdict_is_what_the_front_says_and_findings_name_bias_and_noise():
    result = make_result()
    assert result["verdict"] == "Worth distilling: so it is."
    assert result["findings"] == [
        "Bias: user accuracy rises with support, Spearman +.500 [+.480, +.520].",
        "Noise: labels are made by rule, so the ceiling is known: .900.",
    ]
    assert "not known" in verdict_sentence({"front": None, "tastes": None})  # without probes


@pytest.mark.parametrize(
    ("trend", "agreement", "match"),
    [
        (number(-0.5), False, "falls with support"),
        (number(0.0), False, "shows no trend with support"),
        (number(0.5), True, r"rises with support, .*; but support is agreement on these pairs"),
        (number(0.5, None, None) | {"low": None, "high": None}, False, r"too few users.*\[unknown\]"),
        ({"value": None, "low": None, "high": None}, False, "does not vary over users"),
    ],
)
def test_bias_is_claimed_only_where_it_is_shown(trend, agreement, match):
    accuracy = make_result()["accuracy"] | {"support_spearman": trend, "support_is_agreement": agreement}
    assert re.search(match, make_result(accuracy=accuracy)["findings"][0])


TRIED = [
    {"groups": 1, "log_likelihood": -0.6},
    {"groups": 2, "log_likelihood": -0.5, "gain": 0.1, "standard_error": 0.02},
    {"groups": 3, "log_likelihood": -0.51, "gain": -0.01, "standard_error": 0.02},
]


def own_head(gain, shared=0.8):
    return {"pairs": 50, "shared": shared, "own": shared + gain["value"], "gain": gain}


def test_groups_that_were_found_in_words():
    gains = {"majority": own_head(number(0.01)), "minority": own_head(number(0.3), 0.5)}
    tastes = {"users": {"majority": 40, "minority": 8}, "tried": TRIED, "gains": gains, "given": {}, "adjusted_rand": 0.9}
    result = make_result(tastes=tastes)
    text = " ".join(result["findings"])
    assert "2 groups found in the pairs alone, majority 40 users, minority 8 users: 2 groups change" in text
    assert "by +0.1000 (standard error 0.0200) a pair over 1" in text
    assert "minority +.300 [+.280, +.320]" in text
    assert "those of agreement agree by .900 (adjusted Rand index); `--infer_groups MODEL` takes those that were found." in text
    named = " ".join(make_result(tastes=tastes, groups_from="data")["findings"])
    assert "those that are given agree by .900" in named
    assert "--infer_groups" not in named
    assert make_result(tastes=tastes, front=None)["verdict"].startswith("Open: no groups are given, but the pairs show 2")


def test_no_groups_in_words():
    tastes = {
        "users": {"all": 48},
        "tried": [TRIED[0], TRIED[2] | {"groups": 2}],
        "gains": {},
        "given": {},
        "adjusted_rand": None,
    }
    result = make_result(tastes=tastes, front=None)
    assert result["verdict"] == "Nothing to distill: no groups are given, and the pairs show none."
    text = " ".join(result["findings"])
    assert "no groups. The users of this data have no tastes of their own that their pairs show: 2 groups change" in text
    assert "by -0.0100 (standard error 0.0200) a pair over 1" in text
    alone = tastes | {"tried": TRIED[:1]}
    assert "too few users" in " ".join(make_result(tastes=alone)["findings"])


@pytest.mark.parametrize(
    ("gain", "shared", "match"),
    [
        (number(0.2), 0.5, "rare: a taste of its own: .* gains \\+.200 .*from .500 to .700"),
        (number(0.0), 0.7, "rare: no taste of its own: noise"),
        (number(0.0), 0.8, "rare: no taste of its own, and served as well as the largest group"),
        (number(0.0, -0.2, 0.2), 0.7, "rare: whether it has a taste of its own is open"),
    ],
)
def test_a_taste_of_a_given_group_in_words(gain, shared, match):
    given = {"many": own_head(number(0.0)), "rare": own_head(gain, shared)}
    tastes = {"users": {"all": 48}, "tried": TRIED[:1], "gains": {}, "given": given, "adjusted_rand": None}
    found = make_result(tastes=tastes)["findings"]
    assert [text for text in found if re.search(match, text)]
    assert not any(text.startswith("many:") for text in found)


def test_the_report_holds_all_numbers_in_aligned_tables():
    result = make_result()
    text = markdown_report(result)
    for part in (
        "48",
        ".200 (.100 to .200)",
        ".450 [.430, .470]",
        "-.600 [-.620, -.580]",
        result["verdict"],
        "a\\|b",
        "users, pairs",
        "\n\nSo the groups were made. So sure they are.\n\n",
    ):
        assert part in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({len(line) for line in table}) == 1
        assert len({len(re.sub(r"\\\|", "", line).split("|")) for line in table}) == 1
    assert "front" not in markdown_report(make_result(front=None, accuracy=None))
    assert "noise ceiling" not in text
    result["accuracy"]["groups"]["rare"] |= {"common_pairs": 30, "accuracy_there": 0.41, "ceiling": number(0.55)}
    assert re.search(r"rare .* 30 \| +\.410 \| +\.550 \[\.530, \.570\]", markdown_report(result))


def test_an_earlier_audit_is_replaced(tmp_path):
    out = tmp_path / "deep" / "audit"
    write_audit(make_result(), out)
    assert {path.name for path in out.iterdir()} == {"audit.json", "audit.md", "front.png", "groups.csv", "groups.png"}
    assert "![front](front.png)\n\n![groups](groups.png)" in (out / "audit.md").read_text()
    before, people = (out / "audit.json").read_text(), (out / "groups.csv").read_text()
    with full_after(100), pytest.raises(OSError, match="File too large"):
        write_audit(make_result(front=None, groups_from="data"), out)
    assert ((out / "audit.json").read_text(), (out / "groups.csv").read_text()) == (before, people)
    write_audit(make_result(front=None, groups_from="data"), out)
    assert {path.name for path in out.iterdir()} == {"audit.json", "audit.md", "groups.csv"}
    assert json.loads((out / "audit.json").read_text())["front"] is None


def test_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(RunFolderError, match=r"files that are not of an audit \(thesis.txt\).*nothing is overwritten"):
            write_audit(make_result(), folder)
        with pytest.raises(RunFolderError, match="not of an audit"):
            check_output(folder)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
