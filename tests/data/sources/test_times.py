"""The order of rows by times in any writing, and what is said where it cannot be told."""

import pandas as pd
import pytest

from trl_pafo.data.sources.times import order_of_times
from trl_pafo.errors import DataError


@pytest.mark.parametrize(
    ("times", "order"),
    [
        ((3, 1.5, "2"), [1, 2, 0]),
        ((1, 0, 1, 0), [1, 3, 0, 2]),
        ((1.7e9, 0, 3.1e8, 20240301), [1, 3, 2, 0]),
        (("2024-03-01", "2023-01-01 12:00", "2023-02-01T00:00:00Z"), [1, 2, 0]),
        (("2024-01-02", "2024-02-01", "13/03/2024"), [0, 1, 2]),  # a date that begins with the year is read as ever
        (tuple(pd.to_datetime(["2024-03-01", "2023-01-01"])), [1, 0]),
        (("05/02/2025", "01/03/2025", "13/03/2025"), [0, 1, 2]),  # days come first, as in the last row
        (("5.2.2025 10:00", "1.3.2025 9:00", "13.3.2025 8:00"), [0, 1, 2]),
        (("02/05/2025", "03/01/2025", "03/13/2025"), [0, 1, 2]),  # months come first
        (("01/01/2025 10:00", "01/01/2025 9:00"), [1, 0]),  # the same order, whichever comes first
    ],
)
def test_the_order(times, order):
    assert order_of_times(list(times), "survey.csv", "Timestamp") == order


@pytest.mark.parametrize(
    ("times", "match"),
    [
        (("2024-03-01", ""), r"^survey\.csv, row 1: has no Timestamp\. Fill it, "),
        ((3, None), "row 1: has no Timestamp"),
        (
            (5, 1.7e9, 1.6e9, 1.7e12),
            r"row 3: Timestamp is 1700000000000\.0, and 1700000000\.0 in row 1: seconds and milliseconds\. ",
        ),
        ((3, "nan"), "row 1: Timestamp is 'nan', which is no time"),
        (("2024-03-01", "soon"), r"^survey\.csv, row 1: Timestamp is 'soon', which is no time\. Correct it, "),
        (("05/02/2025", "01/03/2025"), r"such as 05/02/2025 begin with the day or the month cannot be told\. Write 2025-03-01, "),
        (("13/02/2025", "01/13/2025"), r"some dates of Timestamp begin with the day, others with the month\. Write 2025-03-01, "),
    ],
)
def test_what_cannot_be_told(times, match):
    with pytest.raises(DataError, match=match) as caught:
        order_of_times(list(times), "survey.csv", "Timestamp")
    assert str(caught.value).endswith("or go by the order of the rows: --columns time=")
