"""Notations of dates that are not ISO 8601 in full: they are recognised, and the ISO date they may mean is shown."""

from __future__ import annotations

import contextlib
import datetime
import re

from xlstm.data.table import is_number

# 1958, 1958-03, 1958-03-29, 1958-03-29T06, 1958-03-29 06:00, 1958-03-29T06:00:00.5Z
ISO_DATE = re.compile(r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}([T ][0-9]{2}(:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?)?)?)?)?Z?")
HEADERS = {"", "date", "datetime", "time", "timestamp", "year", "month", "week", "day", "hour", "ds", "index"}
CLOCKS = {"date", "datetime", "time", "timestamp", "ds"}  # headers under which a large number is a date, too

WEEKDAY = "(mon|tue|wed|thu|fri|sat|sun)[a-z]*[., ]+"
MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
# Groups of digits between signs, names of months, quarters, weeks and days of a year, times of day, and all that begins
# as an ISO date does; a day of the week may stand before them.
OTHER_DATE = re.compile(
    rf"({WEEKDAY})?("
    rf"[0-9]{{1,4}}[-/. ][0-9]{{1,2}}[-/. ][0-9]{{1,4}}\b.*"
    rf"|[0-9]{{1,4}}[-/][0-9]{{1,2}}([-/][0-9]{{1,4}})?|[0-9]{{1,2}}[-/.][0-9]{{4}}"
    rf"|([0-9]{{1,4}}(st|nd|rd|th)?[-/. ]*)?({MONTHS})[a-z]*[-/., ]*[0-9].*"
    rf"|[0-9]{{4}}[-/ ]?[qwhs][0-9]{{1,2}}.*|[qwh][0-9]{{1,2}}[-/ ]?[0-9]{{4}}|[1-4]q[-/ ]?[0-9]{{2,4}}"
    rf"|[0-9]{{4}}-[0-9]{{3}}|[0-9]{{1,2}}:[0-9]{{2}}(:[0-9.]+)?( ?[ap]m)?"
    rf"|[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}.+|[0-9]{{8}}[T ][0-9]+.*|[0-9]{{4}}\u5e74.*)",
    re.IGNORECASE,
)
# Numbers that are dates under the headers of dates: days and months without signs, fractions of years, months before
# years; and under those of points in time the days of spreadsheets, and seconds, or parts of them, since 1970.
YEAR = "(1[5-9]|2[0-9])[0-9]{2}"
YEAR_MONTH = re.compile(rf"{YEAR}(0[1-9]|1[0-2])")
COMPACT = re.compile(rf"{YEAR_MONTH.pattern}(0[1-9]|[12][0-9]|3[01])")
NUMBERS = re.compile(rf"{COMPACT.pattern}|{YEAR_MONTH.pattern}|{YEAR}\.[0-9]+|(0?[1-9]|1[0-2])\.{YEAR}")
SERIAL = re.compile(r"[2-7][0-9]{4}(\.[0-9]+)?")
EPOCH = re.compile(r"[0-9]{9,19}(\.[0-9]+)?")
QUARTER = re.compile(r"([0-9]{4})[-/ ]?q([1-4])|(?=.*q)q?([1-4])q?[-/ ]?([0-9]{4})", re.IGNORECASE)
# Notations that mean one ISO date each, once other signs and names are brought into this form.
FORMS = ("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d/%m/%y", "%m/%d/%y", "%d/%b/%Y", "%b/%d/%Y", "%b/%Y", "%Y/%b", "%m/%Y")


def is_other_date(header: str, cell: str) -> bool:
    """Return whether a cell, under a header in lower case, looks like a date that is not in ISO 8601."""
    if ISO_DATE.fullmatch(cell):
        return False
    if is_number(cell):
        point_in_time = header in CLOCKS and (SERIAL.fullmatch(cell) or EPOCH.fullmatch(cell))
        return bool(point_in_time or (header in HEADERS and NUMBERS.fullmatch(cell)))
    return OTHER_DATE.fullmatch(cell) is not None


def first_month(quarter: re.Match[str]) -> str:
    """Return the first month of a quarter in ISO 8601."""
    return f"{quarter[1] or quarter[4]}-{3 * int(quarter[2] or quarter[3]) - 2:02d}"


def as_iso(cell: str) -> list[str]:
    """Return the ISO dates that a cell in another notation may mean."""
    if EPOCH.fullmatch(cell) and not COMPACT.fullmatch(cell):
        seconds = float(cell) / 1000.0 ** max(0, (len(cell.partition(".")[0]) - 8) // 3)
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return [f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%S}"]
    if SERIAL.fullmatch(cell):
        return [str(datetime.date(1899, 12, 30) + datetime.timedelta(int(float(cell))))]
    if YEAR_MONTH.fullmatch(cell):
        return [f"{cell[:4]}-{cell[4:]}"]
    if quarter := QUARTER.fullmatch(cell):
        return [first_month(quarter)]
    with contextlib.suppress(ValueError, OverflowError):  # zones, weeks, days without signs between
        moment = datetime.datetime.fromisoformat(cell)
        if moment.tzinfo is not None:
            moment = moment.astimezone(datetime.UTC)
        midnight = (moment.hour, moment.minute, moment.second) == (0, 0, 0)
        return [
            f"{moment:%Y-%m-%d}" if midnight and "T" not in cell and ":" not in cell else f"{moment:%Y-%m-%dT%H:%M:%S}"
        ]
    plain = re.sub(f"^{WEEKDAY}", "", cell, flags=re.IGNORECASE)
    plain = re.sub(rf"([0-9])(st|nd|rd|th)\b|({MONTHS})[a-z]*", r"\1\3", plain, flags=re.IGNORECASE)
    plain = re.sub(r"[-/., ]+", "/", plain)
    found: dict[str, None] = {}
    for form in FORMS:
        with contextlib.suppress(ValueError):
            date = datetime.datetime.strptime(plain, form)
            found[f"{date:%Y-%m-%d}" if "%d" in form else f"{date:%Y-%m}"] = None
    return list(found)
