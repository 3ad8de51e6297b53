"""The three sentences of every kind of run, word for word."""

import numpy as np
import pytest

from trl_pafo.metrics import compare, fairness_summary
from trl_pafo.report.plain_words import plain_sentences

USUAL = "With a model trained the usual way (personalized BT), "
OF_SIZES = {"majority": 40, "minority": 20}


def results_of(accuracies, sizes=OF_SIZES, units=False, **more):
    """Results of methods, each with the accuracies of the groups on ten pairs a user: every user has the group's, as far as tenths allow."""
    user = [f"{name}-{u}" for name, number in sizes.items() for u in range(number) for _ in range(10)]
    group = [name for name, number in sizes.items() for _ in range(10 * number)]
    unit = [f"{name}, {i // 5}" for i, name in enumerate(user)] if units else None
    correct = {}
    for method, of_groups in accuracies.items():
        right = []
        for (_, number), accuracy in zip(sizes.items(), of_groups, strict=True):
            total = round(10 * number * accuracy)
            of_user = np.full(number, total // number) + (np.arange(number) < total % number)
            right += [float(pair < share) for share in of_user for pair in range(10)]
        correct[method] = right
    summaries = {m: fairness_summary(c, user, group, unit=unit, num_resamples=200) for m, c in correct.items()}
    reference = "personalized_bt" if "personalized_bt" in accuracies else next(iter(accuracies))
    verdicts = {}
    for method in accuracies.keys() - {reference}:
        margins = [np.array(correct[m]) - 0.5 for m in (method, reference)]
        two = (correct[method], correct[reference], user, group)
        verdicts[method] = vars(compare(*two, margins=margins[0], reference_margins=margins[1], unit=unit))
    return {"methods": summaries, "reference": reference, "verdicts": verdicts, "front": None, **more}


def test_an_improvement():
    assert plain_sentences(results_of({"personalized_bt": (0.97, 0.74), "pafo": (0.975, 0.96)})) == [
        f"{USUAL}the minority is served worse: 74 of 100 test pairs are judged right, against 97 for the majority; so large a gap is "
        "hardly chance.",
        "With PAFO, 96 of 100 pairs are judged right for the minority (before 74) and 98 for the majority (before 97).",
        "The test shows a gain for the minority (very likely between 20 and 24 more of 100); no loss was measured for others. It rests on 60 "
        "people (40 majority, 20 minority) whom no training has seen.",
    ]


def test_what_cannot_be_told_on_few_people():
    few = results_of({"personalized_bt": (0.8, 0.7), "pafo": (0.8, 0.9)}, sizes={"majority": 8, "minority": 4})
    assert plain_sentences(few) == [
        f"{USUAL}the minority is served worse: 70 of 100 test pairs are judged right, against 80 for the majority; whether that is more "
        "than chance cannot be told.",
        "With PAFO, 90 of 100 pairs are judged right for the minority (before 70) and 80 for the majority (as before).",
        "The test cannot tell whether this is more than chance. It rests on 12 people (8 majority, 4 minority) whom no training has seen.",
    ]


def test_a_loss_for_a_group():
    assert plain_sentences(results_of({"personalized_bt": (0.9, 0.9), "pafo": (0.9, 0.7)})) == [
        f"{USUAL}90 of 100 test pairs are judged right for every group: none is served worse.",
        "With PAFO, 70 of 100 pairs are judged right for the minority (before 90) and 90 for the majority (as before).",
        "The test shows a loss for the minority (very likely about 20 fewer of 100), and no gain. It rests on 60 people (40 "
        "majority, 20 minority) whom no training has seen.",
    ]


def test_one_group_pays_for_another():
    mixed = plain_sentences(results_of({"personalized_bt": (0.9, 0.7), "pafo": (0.8, 0.8)}))
    assert mixed[2].startswith(
        "The test shows a gain for the minority (very likely about 10 more of 100), and a loss for the majority (very likely about 10 "
        "fewer of 100): some pay for others. It rests on 60 people"
    )


def test_a_gain_whose_price_is_open():
    results = results_of({"personalized_bt": (0.9, 0.7), "pafo": (0.8975, 0.8)})
    assert results["verdicts"]["pafo"]["verdict"] == "cannot tell"
    sentences = plain_sentences(results)
    assert "90 for the majority (about as before)." in sentences[1]
    assert sentences[2].startswith(
        "The test shows a gain for the minority (very likely about 10 more of 100), but cannot tell whether the majority then loses. "
    )


@pytest.mark.parametrize("front", [{"points": {}}, {"students": []}])
def test_a_reference_that_is_kept(front):
    kept = results_of({"personalized_bt": (0.9, 0.7), "pafo": (0.9, 0.7)}, front=front)
    assert plain_sentences(kept)[1:] == [
        "PAFO was not trained, since held-out pairs did not show that anything can be gained: nothing changes for anybody.",
        "So there is no change to be shown; the numbers rest on 60 people (40 majority, 20 minority) whom no training has seen.",
    ]
    kept["front"]["students"] = ["PAFO"]
    assert plain_sentences(kept)[1] == "PAFO judges every pair as before: nothing changes for anybody."


def test_a_reference_without_past_choices_and_alone():
    sentences = plain_sentences(results_of({"bradley_terry": (0.9, 0.5), "pafo": (0.9, 0.8)}))
    assert sentences[0].startswith(
        "With a model trained the usual way, without past choices (Bradley-Terry), the minority is served"
    )
    assert "others; what past choices alone would bring was not measured. It rests" in sentences[2]
    assert plain_sentences(results_of({"bradley_terry": (0.9, 0.5)}))[1:] == [
        "There is no other model to compare it with, so nothing changes for anybody.",
        "These numbers rest on 60 people (40 majority, 20 minority) whom no training has seen.",
    ]


def test_groups_that_nobody_knows():
    sentences = plain_sentences(results_of({"personalized_bt": (0.7,), "pafo": (0.8,)}, sizes={"all": 30}))
    assert sentences == [
        f"{USUAL}70 of 100 test pairs are judged right, and 70 for the tenth of people whom it serves worst, chance included; no groups are "
        "compared.",
        "With PAFO, 80 of 100 pairs are judged right (before 70).",
        "The test shows a gain (very likely about 10 more of 100). It rests on 30 people whom no training has seen.",
    ]


def test_three_groups_and_one_without_test_pairs():
    sizes = {"road": 30, "rail": 20, "air": 10}
    results = results_of({"personalized_bt": (0.9, 0.8, 0.6), "pafo": (0.9, 0.9, 0.7)}, sizes, not_evaluated=["sea"])
    for summary in results["methods"].values():
        summary |= {"accuracy/sea": {"value": None, "low": None, "high": None}, "num_users/sea": 0}
    assert plain_sentences(results) == [
        f"{USUAL}the group air is served worst of 3 groups: 60 of 100 test pairs are judged right, against 90 for the group road and 80 for "
        "the group rail; so large a gap is hardly chance.",
        "With PAFO, 70 of 100 pairs are judged right for the group air (before 60), 90 for the group rail (before 80) and 90 for the group "
        "road (as before).",
        "The test shows a gain for the group air (very likely about 10 more of 100) and for the group rail (very likely about 10 "
        "more of 100); no loss was measured for others. It rests on 60 people (30 road, 20 rail, 10 air) whom no training has seen; nothing "
        "is known of sea, without test pairs.",
    ]


def test_many_groups_are_not_all_listed():
    sizes = {f"g{i}": 7 for i in range(8)}
    before, after = [0.9, 0.8, *[0.7] * 6], [0.9, 0.8, *(0.7 + 0.05 * i for i in range(6))]
    sentences = plain_sentences(results_of({"personalized_bt": before, "pafo": after}, sizes))
    assert (
        "the group g2 is served worst of 8 groups: 70 of 100 test pairs are judged right, against 90 for the group g0; "
        in sentences[0]
    )
    assert sentences[1].startswith(
        "With PAFO, 94 of 100 pairs are judged right for the group g7 (before 70), 90 for the group g6 (before 70),"
    )
    assert sentences[1].endswith("; of 8 groups, these change most.")
    assert sentences[2].endswith("It rests on 56 people whom no training has seen.")


def test_new_pairs_of_known_people():
    known = results_of({"personalized_bt": (0.9, 0.7), "pafo": (0.9, 0.8)}, units=True)
    assert plain_sentences(known)[2].endswith(
        "It rests on 120 held-out prompts of 60 people (40 majority, 20 minority) whose other choices are in training."
    )


def test_nearly_all_is_not_all():
    nearly = plain_sentences(results_of({"personalized_bt": (0.9975, 0.7), "pafo": (1.0, 0.7)}))
    assert "against 99.8 for the majority" in nearly[0]
    assert "100 for the majority (before 99.8)" in nearly[1]
