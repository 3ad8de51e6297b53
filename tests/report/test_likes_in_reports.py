"""What each group likes, as a section and in the sentences of a card."""

import pytest

from trl_pafo.evaluation.likes import find_likes
from trl_pafo.report.likes import likes, likes_sentences

WORD = {
    "sign": "with the word “snow”",
    "is_word": True,
    "pairs": 30,
    "users": 12,
    "chosen": 28,
    "other_pairs": 1000,
    "other_chosen": 90,
}
STYLE = {"sign": "shorter", "is_word": False, "pairs": 1200, "users": 90, "chosen": 900, "other_pairs": 40, "other_chosen": 10}
HOW = "Signs were sought in pairs of 60 people; 70 were checked on those of 50 others, so that chance alone names any in at most one of twenty such searches."


@pytest.fixture
def found():
    groups = {"minority": {"signs": [WORD, STYLE], "examples": [50, 60]}, "majority": {"signs": [], "examples": []}}
    return {"found_in": 60, "checked_on": 50, "tried": 70, "groups": groups}


def test_a_table_and_examples(record, found):
    record.likes = found
    section = likes(record)
    cells = [[cell if isinstance(cell, str) else cell["text"] for cell in row] for row in section.tables[0]["rows"]]
    assert cells == [
        ["minority", "with the word “snow”", "28 of 30", "12", "90 of 1,000"],
        ["minority", "shorter", "900 of 1,200", "90", "10 of 40"],
    ]
    assert section.tables[0]["note"] == HOW
    assert section.text[-1].startswith("majority: no word or style that people who were held out support.")
    assert [(case["group"], case["row"], case["user"]) for case in section.cases] == [("minority", 50, ""), ("minority", 60, "")]
    assert section.cases[0]["chosen"] == record.pairs[50]["chosen"][0]["content"]


def test_it_is_found_in_the_texts_of_the_run(record, monkeypatch):
    given = []
    monkeypatch.setattr("trl_pafo.report.record.find_likes", lambda *pairs: given.extend(pairs) or find_likes(*pairs))
    assert record.likes["checked_on"] == 17
    train, test = given
    assert test.chosen == [row["chosen"][0]["content"] for row in record.pairs]
    assert (train.user[0], test.user[0], train.group[-1]) == ("old-majority-0", "majority-0", "minority")
    section = likes(record)
    assert not section.tables
    assert section.text[-1].startswith("majority, minority: no word")


def test_where_nothing_can_be_told(record, found):
    record.likes = found | {"groups": {}}
    assert "no two groups" in likes(record).missing[0]
    del record.likes
    for source, rate in (("agreement", "agreement with others"), ("support", "support rate")):
        record.data["groups"] = source
        assert record.likes is None
        assert f"the groups are cut at a threshold of the {rate}." in likes(record).missing[0]
        del record.likes
    assert likes_sentences(record.likes, True) == []


def test_sentences_of_a_card(found):
    style = "shorter (900 of 1,200 pairs; others 10 of 40)."
    words = "More than the others, minority chose the response with the word “snow” (28 of 30 pairs; others 90 of 1,000), "
    assert likes_sentences(found, with_words=True) == [words + style, HOW]
    assert likes_sentences(found, with_words=False) == ["More than the others, minority chose the response " + style, HOW]
    found["groups"]["minority"]["signs"] = [WORD]
    assert likes_sentences(found, with_words=False) == []
