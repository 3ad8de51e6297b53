import pytest
from helpers.sources import check_splits, load, write_lines

from trl_pafo.errors import ConfigError, DataError


def turn(number, prompt, *answers):
    """A user's message and the models' answers: (text, score, chosen)."""
    said = {"turn": number, "role": "user", "content": prompt, "score": None, "if_chosen": None, "within_turn_id": None}
    return [said] + [
        {"turn": number, "role": "model", "content": text, "score": score, "if_chosen": chosen, "within_turn_id": place}
        for place, (text, score, chosen) in enumerate(answers)
    ]


def conversation(user, number, **more):
    first = turn(
        0,
        f"{user} asks {number}",
        ("low", 10, False),
        (f"best of {number}", 90, True),
        ("as good", 90, False),
        ("lower", 40, False),
    )
    second = turn(1, f"{user} goes on with {number}", ("refused", 20, False), ("liked", 60, True))
    return {
        **{"conversation_id": f"c-{user}-{number}", "user_id": user, "conversation_history": first + second},
        **{"generated_datetime": f"2023-12-0{9 - number} 10:00:00", **more},
    }


def survey(users, religion=lambda number: "Rare" if number < 3 else "Common"):
    return [
        {"user_id": user, "age": "18-24", "religion": {"self_described": "x", "simplified": religion(number)}}
        for number, user in enumerate(users)
    ]


def write(folder, conversations, people):
    write_lines(folder / "conversations.jsonl", conversations)
    write_lines(folder / "survey.jsonl", people)
    return folder


USERS = [f"user{number}" for number in range(12)]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "prism", [conversation(user, n) for user in USERS for n in (1, 2)], survey(USERS))


def test_no_survey_is_needed_where_groups_are_to_be_found(folder):
    (folder / "survey.jsonl").unlink()
    splits = load("prism", folder, infer_groups="minilm")
    check_splits(splits)
    assert len({user for rows in splits.values() for user in rows["user"]}) == len(USERS)
    assert set(splits["train"]["group"]) == {"all"}


class TestPairs:
    def test_a_conversation_turn_by_turn(self, folder):
        splits = load("prism", folder, group_by="religion.simplified")
        check_splits(splits)
        assert len(set(splits["test"]["user"])) == 4
        assert {row["rejected"][0]["content"] for row in splits["train"] if len(row["prompt"]) == 1} == {"low", "lower"}
        own = [row for split in splits.values() for row in split if row["user"] == "user0"]
        # The second conversation took place before the first.
        assert [row["prompt"][-1]["content"] for row in own] == [
            "user0 asks 2",
            "user0 goes on with 2",
            "user0 asks 1",
            "user0 goes on with 1",
        ]
        first, second = own[:2]
        assert first["chosen"] == [{"role": "assistant", "content": "best of 2"}]
        assert first["rejected"][0]["content"] in ("low", "lower")
        assert second["prompt"] == [*first["prompt"], *first["chosen"], {"role": "user", "content": "user0 goes on with 2"}]
        assert second["chosen"][0]["content"] == "liked"
        assert second["rejected"][0]["content"] == "refused"

    @pytest.mark.parametrize(
        ("first", "last"),
        [
            ([("same", 50, True), ("other", 50, False)], ["first", "same", "second"]),  # no lower answer: left out but remembered
            ([("a", 50, False), ("b", 40, False)], None),  # no chosen answer: the conversation ends
        ],
    )
    def test_turns_that_are_no_pair(self, tmp_path, first, last):
        history = turn(0, "first", *first) + turn(1, "second", ("a", 9, True), ("b", 1, False))
        talks = [conversation(user, n) for user in USERS for n in (1, 2)]
        talks[0] = {**talks[0], "conversation_history": history}
        splits = load("prism", write(tmp_path / "prism", talks, survey(USERS)), group_by="age")
        said = [[message["content"] for message in row["prompt"]] for split in splits.values() for row in split]
        assert [prompt for prompt in said if "asks" not in prompt[0]] == ([last] if last else [])


class TestSplits:
    def test_shared_prompts_leave_the_test_and_people_without_an_answer_both(self, tmp_path):
        talks = [conversation(user, n) for user in USERS for n in (1, 2)]
        for talk in talks[::2]:
            talk["conversation_history"][0]["content"] = "Hello"
        people = survey(USERS, religion=lambda number: None if number == 5 else "x")
        splits = load("prism", write(tmp_path / "prism", talks, people), group_by="religion.simplified")
        assert {user for split in splits.values() for user in split["user"]} == set(USERS) - {"user5"}
        assert [{"role": "user", "content": "Hello"}] in splits["train"]["prompt"][:]
        assert [{"role": "user", "content": "Hello"}] not in splits["test"]["prompt"][:]

    def test_groups_are_values_or_minority_and_majority(self, folder):
        rare = {"user0", "user1", "user2"}
        for minority, names in ((None, ("Rare", "Common")), (["Rare"], ("minority", "majority"))):
            splits = load("prism", folder, group_by="religion.simplified", minority=minority)
            for split in splits.values():
                for row in split:
                    assert row["group"] == names[0 if row["user"] in rare else 1]
                    # 8 training people, of whom 2 are rare.
                    assert row["support_rate"] == (0.25 if row["user"] in rare else 0.75)


class TestErrors:
    def test_missing_files(self, tmp_path):
        with pytest.raises(DataError, match=r"survey\.jsonl' cannot be read: .*No such file"):
            load("prism", tmp_path, group_by="age")

    @pytest.mark.parametrize(
        ("group_by", "message"),
        [
            ("country", "has no field 'country'; at 'country' it has user_id, age, religion"),
            ("religion.other", "at 'other' it has self_described, simplified"),
            ("religion", "has parts; name one, such as religion.self_described"),
        ],
    )
    def test_fields_that_the_survey_does_not_have(self, folder, group_by, message):
        with pytest.raises(DataError, match=message):
            load("prism", folder, group_by=group_by)

    @pytest.mark.parametrize(
        ("history", "message"),
        [
            ([{"role": "user", "text": "hi"}], "line 1: `conversation_history` must hold messages"),
            ([], "no conversation has a chosen answer"),
        ],
    )
    def test_conversations_that_cannot_be_used(self, tmp_path, history, message):
        talk = {**conversation("user0", 1), "conversation_history": history}
        with pytest.raises(DataError, match=message):
            load("prism", write(tmp_path / "prism", [talk], survey(USERS)), group_by="age")

    def test_values_that_do_not_occur(self, folder):
        with pytest.raises(ConfigError, match=r"the values of religion\.simplified are \['Common', 'Rare'\]"):
            load("prism", folder, group_by="religion.simplified", minority=["None"])
