"""Groups in the rows of a run: from training pairs alone, and test users by what is not evaluated."""

import numpy as np
import pytest
from datasets import Dataset
from helpers.parts import make_pairs

from trl_pafo.errors import ConfigError
from trl_pafo.evaluation import inferred_groups, tastes
from trl_pafo.evaluation.inferred_groups import infer_groups


@pytest.fixture(autouse=True, scope="module")
def quick():
    found = {}

    def remembered(differences, user, prompt, **how):
        """Most tests have the same training pairs, in which the same is found."""
        key = differences.tobytes(), tuple(user), tuple(prompt)
        return found.get(key) or found.setdefault(key, tastes.find_tastes(differences, user, prompt, **how))

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"DIRECTIONS": (8,), "PENALTIES": (0.1,), "FOLDS": 2}.items():
            patch.setattr(tastes, name, value)
        patch.setattr(inferred_groups, "find_tastes", remembered)
        yield


def rows_of(name, num_users, num_minority, seed, hidden="all"):
    """Pairs of people who like polite or silly answers; `hidden` names everybody's group, `None` leaves the true ones."""
    rows = make_pairs(num_users, pairs_per_user=4, num_minority=num_minority, seed=seed).to_list()
    changes = {} if hidden is None else {"group": hidden}
    return Dataset.from_list([{**row, "user": f"{name}-{row['user']}", "support_rate": 0.5, **changes} for row in rows])


@pytest.fixture(scope="module")
def train():
    return rows_of("train", 40, 10, seed=0)


def groups(rows):
    return dict(zip(rows["user"][:], rows["group"][:], strict=True))


def in_minority(found):
    return {user for user, group in found.items() if group == "minority"}


def test_groups_of_training_users_do_not_depend_on_test_or_validation_pairs(train, encoder):
    seen = []
    for seed in (1, 2):
        validation = train.select(range(0, len(train), 7))
        splits = {"train": train, "validation": validation, "test": rows_of("test", 8, 3, seed=seed)}
        built, found, named, posterior = infer_groups(splits, encoder)
        assert not named
        assert set(found.names) == {"majority", "minority"}
        assert groups(built["validation"]).items() <= groups(built["train"]).items()
        assert built["train"].num_rows == len(train)
        seen.append(built["train"])
        assert set(posterior) == {*groups(built["train"]), *groups(built["test"])}
        assert all(0.5 <= q <= 1 for q in posterior.values())
    assert seen[0].to_list() == seen[1].to_list()
    assert in_minority(groups(seen[0])) == {f"train-user-{number}" for number in range(10)}
    shares = dict(zip(seen[0]["group"][:], seen[0]["support_rate"][:], strict=True))
    assert shares == {"majority": 0.75, "minority": 0.25}


def test_test_users_follow_from_the_history_of_their_first_row(train, encoder):
    test = rows_of("test", 8, 3, seed=1)
    built, _, _, _ = infer_groups({"train": train, "test": test}, encoder)
    assert in_minority(groups(built["test"])) == {f"test-user-{number}" for number in range(3)}
    # So do new users in validation, whatever the data name.
    named = rows_of("test", 8, 6, seed=1, hidden=None)
    new = rows_of("test", 8, 3, seed=1).remove_columns("group").add_column("group", named["group"][:])
    late = rows_of("late", 4, 1, seed=2)
    found, _, _, _ = infer_groups({"train": train, "validation": new, "test": late}, encoder)
    assert in_minority(groups(found["validation"])) == {f"test-user-{number}" for number in range(3)}
    # Neither evaluated labels nor later histories count; the first history does.
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in test]
    again, _, _, _ = infer_groups({"train": train, "test": Dataset.from_list(swapped)}, encoder)
    assert groups(again["test"]) == groups(built["test"])
    swap = lambda past: [{**entry, "chosen": entry["rejected"], "rejected": entry["chosen"]} for entry in past]  # noqa: E731
    for first, changed in ((False, False), (True, True)):
        rows = [
            {**row, "history": swap(row["history"]) if (place % 4 == 0) == first else row["history"]}
            for place, row in enumerate(test)
        ]
        other, _, _, _ = infer_groups({"train": train, "test": Dataset.from_list(rows)}, encoder)
        assert (groups(other["test"]) != groups(built["test"])) == changed


def test_groups_that_the_data_name_alike_stay_for_test_users_alone(train, encoder):
    test = rows_of("test", 8, 3, seed=1, hidden=None)
    odd = test.remove_columns("group").add_column("group", np.where(np.arange(32) < 16, "minority", "majority"))
    built, _, named, posterior = infer_groups({"train": train, "test": odd}, encoder)
    assert named
    assert set(posterior) == set(groups(built["train"]))  # those of test users are named
    assert groups(built["test"]) == groups(odd)
    upside_down = [{**row, "group": "minority" if number > 60 else "majority"} for number, row in enumerate(train)]
    again, _, _, _ = infer_groups({"train": Dataset.from_list(upside_down), "test": odd}, encoder)
    assert again["train"]["group"][:] == built["train"]["group"][:]


def test_no_groups_are_one_and_a_user_who_shows_no_past_pair_cannot_be_told(train, encoder):
    alike = rows_of("train", 30, 0, seed=0)
    built, found, named, posterior = infer_groups({"train": alike, "test": rows_of("test", 6, 0, seed=1, hidden=None)}, encoder)
    assert found.names == ["all"]
    assert not named
    assert set(built["train"]["group"]) == set(built["test"]["group"]) == {"all"}
    assert set(built["test"]["support_rate"]) == {1.0}
    assert set(posterior.values()) == {1.0}
    bare = rows_of("test", 6, 2, seed=1).remove_columns("history")
    with pytest.raises(ConfigError, match="`num_history=0` shows none"):
        infer_groups({"train": train, "test": bare}, encoder)
