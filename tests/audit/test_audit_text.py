"""Verdict, findings, tables, pictures and folder of an audit, from results of which the truth is known."""

import json
import re

import matplotlib.image
import numpy as np
import pytest

from trl_pafo.audit.output import check_output, write_audit
from trl_pafo.audit.pictures import draw_pictures
from trl_pafo.audit.tables import markdown_report, text_report
from trl_pafo.audit.trend import accuracy_against_support
from trl_pafo.audit.verdict import findings, interval, verdict_sentence
from trl_pafo.errors import RunFolderError


def number(value, low=None, high=None):
    return {"value": value, "low": value - 0.02 if low is None else low, "high": value + 0.02 if high is None else high}


def headroom(**gains):
    groups = {
        name: {
            "num_users": 40,
            "num_pairs": 200,
            "no_history": 0.4,
            "shared": 0.5,
            "teacher": 0.5 + gain["value"],
            "gain": gain,
            "gain_of_each_repeat": [gain["value"] - 0.01, gain["value"] + 0.01],
        }
        for name, gain in gains.items()
    }
    return {"groups": groups, "folds": 4, "repeats": 2, "num_pairs": 400, "embedding_model": "minilm"}


def make_result(accuracy=True, **changes):
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(60), 4)
    rate = np.where(user < 12, 0.2, 0.8)
    correct = (rng.random(240) < rate).astype(float)
    trend = accuracy_against_support(correct, user, rate, np.full(240, 0.9), num_resamples=50)
    judged = {
        "judge": "shared probe, cross-validated",
        "overall": number(0.7),
        "groups": {},
        "trend": trend,
        "trend_apart": None,
        "common_pairs": {"pairs": 240, "ceiling": 0.9, "accuracy": 0.7},
    }
    group = {"share_of_users": 0.5, "pairs": 120, "support_rate": {"min": 0.2, "median": 0.2, "max": 0.2}}
    lengths = {"pairs": 100, "dropped": 0, "share": 0.0, "median": 9, "max": 12}
    result = {
        "data": {"source": "files", "data_path": "survey.csv"},
        "counts": {
            "pairs": 240,
            "users": 60,
            "prompts": 30,
            "pairs_a_user": {"min": 4, "median": 4, "max": 4},
            "groups": {"a|b": {**group, "users": 48}, "rare": {**group, "users": 12}},
        },
        "support": {"edges": [0.0, 0.5, 1.0], "users": {"a|b": [0, 48], "rare": [12, 0]}},
        "length": {
            "max_length": 64,
            "tokenizer": "minilm",
            "groups": {"a|b": lengths, "rare": {**lengths, "dropped": 7, "share": 0.07}},
        },
        "noise": {"known": 0.9, "reason": "made"},
        "accuracy": judged if accuracy else None,
        "headroom": headroom(**{"a|b": number(0.0), "rare": number(0.3)}),
        **changes,
    }
    result["verdict"], result["findings"] = verdict_sentence(result, 0.02), findings(result)
    return result


@pytest.mark.parametrize(
    ("gains", "match"),
    [
        (
            {"a": number(0.0), "b": number(0.3)},
            r"PAFO can help: .*for b by \+\.300 \[\+\.280, \+\.320\] \(from \.500 to \.800\); no gain.* a ",
        ),
        ({"a": number(0.0), "b": number(0.01, -0.03, 0.05)}, r"Nothing to distill: .*gains above \.050 are excluded"),
        ({"a": number(0.0), "b": number(0.01, 0.004, 0.016)}, "Nothing to distill"),  # shown, but not worth a teacher
        ({"a": number(0.0), "b": number(0.05, -0.01, 0.11)}, r"Open: .*up to \.110 are not excluded"),
        ({"a": number(0.0), "b": number(-0.02, -0.2, 0.16)}, "Open: .*audit more users"),  # small, but nothing is excluded
    ],
)
def test_the_verdict_says_what_the_intervals_show(gains, match):
    sentence = verdict_sentence({"headroom": headroom(**gains)}, 0.02)
    assert re.match(match, sentence)
    assert sentence.count("\n") == 0


def test_without_probes_nothing_is_claimed():
    assert "not known" in verdict_sentence({"headroom": None}, 0.02)


def test_findings_name_bias_noise_and_length():
    bias, noise, length = make_result()["findings"]
    assert re.match(r"Bias: user accuracy \(shared probe, cross-validated\) rises with support, Spearman \+\.", bias)
    assert noise == "Noise: labels are made by rule, so the ceiling is known: .900."
    assert length == "Length: at 64 tokens, training would drop pairs of rare 7.0 % (7 of 100)."


@pytest.mark.parametrize(
    ("difference", "match"),
    [
        (number(0.2), "share a taste of their own"),
        (number(-0.2), "noisier ones"),
        (number(0.0), "no taste of their own is shown"),
    ],
)
def test_taste_and_noise_in_words(difference, match):
    cells = {
        f"{a}_with_{b}": number(0.7) for a, b in (("minority", "minority"), ("minority", "majority"), ("majority", "majority"))
    }
    noise = {
        "leave_one_out": number(0.75),
        "best_shared_bounds": [0.72, 0.83],
        "votes_a_pair": 4.1,
        "taste_or_noise": {**cells, "shared_taste": difference, "reliability": number(0.15)},
    }
    text = " ".join(make_result(noise=noise)["findings"])
    assert match in text
    assert "can reach between .720 and .830" in text
    assert "hardly a trait" in text
    luck = make_result(noise=noise)
    luck["accuracy"]["trend_apart"] = number(0.0)
    assert "nothing is left that could be told from chance" in findings(luck)[0]


def test_unknown_numbers_are_not_printed_as_numbers():
    assert interval({"value": None, "low": None, "high": None}) == "unknown"
    assert interval(number(float("nan"))) == "unknown"


def test_the_terminal_and_markdown_hold_the_same_numbers():
    result = make_result()
    plain, markdown = text_report(result), markdown_report(result, ["support.png"])
    for text in (plain, markdown):
        for part in ("48", "7 of 100", "+.300 [+.280, +.320]", result["verdict"]):
            assert part in text
    assert "a\\|b" in markdown
    assert "![support](support.png)" in markdown
    widths = {
        len(re.sub(r"\\\|", "", line).split("|"))
        for line in markdown.split("## Headroom")[1].splitlines()
        if line.startswith("|")
    }
    assert len(widths) == 1  # every row of a table has as many cells
    assert "Headroom" not in text_report(make_result(headroom=None, accuracy=False))


def test_pictures_are_drawn_for_what_there_is(tmp_path):
    assert draw_pictures(make_result(accuracy=False, headroom=None), tmp_path) == ["support.png"]
    many = {f"group {n}": number(0.1 * n - 0.2) for n in range(5)}
    names = draw_pictures(make_result(headroom=headroom(**many)), tmp_path)
    assert names == ["support.png", "accuracy_by_support.png", "headroom.png"]
    for name in names:
        image = matplotlib.image.imread(tmp_path / name)
        assert image.shape[1] >= 1200
        assert image[..., :3].std() > 0.05  # something is on it
        assert image[0, :, :3].min() == 1  # nothing is cut off at the top


def test_the_folder_is_written_whole_and_an_earlier_audit_is_replaced(tmp_path):
    out = tmp_path / "deep" / "audit"
    write_audit(make_result(), out)
    written = {path.name for path in out.iterdir()}
    assert written == {"audit.json", "audit.md", "support.png", "accuracy_by_support.png", "headroom.png"}
    write_audit(make_result(accuracy=False, headroom=None), out)
    assert {path.name for path in out.iterdir()} == {"audit.json", "audit.md", "support.png"}
    assert json.loads((out / "audit.json").read_text())["headroom"] is None
    assert [path.name for path in out.parent.iterdir()] == ["audit"]


def test_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"something else than an audit \(thesis.txt\).*nothing is overwritten"):
        write_audit(make_result(), tmp_path)
    with pytest.raises(RunFolderError, match="is a file"):
        check_output(tmp_path / "thesis.txt")
    aside = tmp_path / "new.partial"
    aside.mkdir()
    (aside / "notes").write_text("mine")
    with pytest.raises(RunFolderError, match="notes"):
        check_output(tmp_path / "new")
    (aside / "notes").rename(aside / "audit.md")  # left from an audit that was stopped
    assert write_audit(make_result(), tmp_path / "new").is_dir()
    assert (tmp_path / "thesis.txt").read_text() == "mine"
