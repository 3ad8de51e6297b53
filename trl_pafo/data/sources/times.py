"""The order of rows by a column of times."""

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trl_pafo.data.labels import as_label
from trl_pafo.errors import DataError

_OTHERWISE = "or go by the order of the rows: --columns time="
# Greater numbers count from 1970, and of two that count in one unit none is so many times the other.
_SECONDS, _UNIT = 1e8, 100.0
_DAY_AND_MONTH = re.compile(r"^\s*(\d{1,2})([/.-])(\d{1,2})(?=[/.-]\d)")


def order_of_times(times: list[Any], what: str, name: str) -> list[int]:
    """The rows in the order of time, those of one time as they stand. Times are numbers, or dates in any common writing.

    Raises:
        DataError: If a row has no time or none that can be read, or if whether dates such as 01/03/2025 begin with the day decides the
            order and no date of the column tells.
    """
    if (row := next((row for row, time in enumerate(times) if as_label(time) is None), None)) is not None:
        raise DataError(f"{what}, row {row}: has no {name}. Fill it, {_OTHERWISE}")
    try:
        numbers = np.array([float(time) for time in times])
    except (TypeError, ValueError):
        numbers = None
    if numbers is not None:
        dated = np.flatnonzero(numbers > _SECONDS)
        if len(other := dated[np.abs(np.log(numbers[dated] / numbers[dated[:1]])) > np.log(_UNIT)]):
            raise DataError(
                f"{what}, row {other[0]}: {name} is {times[other[0]]}, and {times[dated[0]]} in row {dated[0]}: seconds and milliseconds. Write "
                f"all in one unit, {_OTHERWISE}"
            )
        return _sorted(numbers, times, what, name)
    found = [match for time in times if isinstance(time, str) and (match := _DAY_AND_MONTH.match(time))]
    # The first number of 13/03/2025 must be a day, and then it is one in all rows: pandas alone would read 05/03/2025 as May.
    day_first = all(int(match[3]) <= 12 for match in found)
    month_first = all(int(match[1]) <= 12 for match in found)
    if not (day_first or month_first):
        raise DataError(f"{what}: some dates of {name} begin with the day, others with the month. Write 2025-03-01, {_OTHERWISE}")
    by_day = [_DAY_AND_MONTH.sub(r"\3\2\1", time) if isinstance(time, str) else time for time in times]
    readings = ((times, month_first), (by_day, bool(found) and day_first))
    orders = [_by_date(reading, what, name) for reading, possible in readings if possible]
    if orders[0] != orders[-1]:
        raise DataError(
            f"{what}: whether dates of {name} such as {found[0].string} begin with the day or the month cannot be told. Write 2025-03-01, "
            f"{_OTHERWISE}"
        )
    return orders[0]


def _by_date(times: list[Any], what: str, name: str) -> list[int]:
    moments = pd.to_datetime(times, utc=True, format="mixed", errors="coerce")
    return _sorted(moments.to_numpy("datetime64[us]"), times, what, name)


def _sorted(moments: NDArray[Any], times: list[Any], what: str, name: str) -> list[int]:
    if (unread := pd.isna(moments)).any():
        row = int(unread.argmax())
        raise DataError(f"{what}, row {row}: {name} is {times[row]!r}, which is no time. Correct it, {_OTHERWISE}")
    return [int(row) for row in moments.argsort(kind="stable")]
