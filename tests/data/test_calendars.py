"""Calendars: dates that follow others as pandas goes on with them, features of dates, and
holidays.
"""

import itertools
from shlex import split

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import DATA
from xlstm.cli.app import app
from xlstm.data import calendars
from xlstm.data.panels import Panel
from xlstm.data.series import read_csv
from xlstm.data.time_series import Covariates
from xlstm.estimators import Forecaster, ZeroShotForecaster

pd = pytest.importorskip("pandas")

TIREX = DATA / "tirex1" / "a"

AHEAD = 12
FREQUENCIES = split(
    "D 2D B 2B 3B 4B W 2W W-MON W-TUE W-WED W-THU W-FRI W-SAT MS 2MS ME 2ME 3ME SMS SME SMS-10"
    " SME-10 BME BQE WOM-3FRI QS QS-FEB QS-MAR QE QE-JAN QE-FEB 2QE YS YS-MAR 2YS YE YE-FEB YE-JUN"
    " h 2h 6h 12h min 5min 15min s 30s ms bh"
)
DAILY = split("D 2D B 2B W MS ME 3ME SMS SME QS-FEB QE-FEB YS YE-FEB")
HOURLY = ["h", "2h", "6h", "12h", "15min"]


def went_on(dates, zone=None):
    """Check that a calendar of all but the last dates goes on with these."""
    utc = dates if zone is None else dates.tz_convert("UTC").tz_localize(None)
    calendar = calendars.calendar_of("it", utc.values[:-AHEAD], zone)
    np.testing.assert_array_equal(calendars.in_utc(calendar.following(AHEAD)), utc.values[-AHEAD:])
    np.testing.assert_array_equal(calendars.in_utc(calendar.dates), utc.values[:-AHEAD])
    np.testing.assert_array_equal(calendar.place, np.arange(len(dates) - AHEAD))


@pytest.mark.parametrize("start", ["2000-01-31", "2023-11-17", "2019-02-28 08:30"])
@pytest.mark.parametrize("freq", FREQUENCIES)
def test_every_frequency_goes_on_as_in_pandas(freq, start):
    for rows in (12, 40, 100):
        went_on(pd.date_range(start, periods=rows + AHEAD, freq=freq))


@pytest.mark.parametrize(
    "zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC", "UTC+02:00"]
)
@pytest.mark.parametrize("freq", DAILY + HOURLY)
def test_days_keep_the_clocks_of_their_zone_and_hours_do_not(freq, zone):
    """Clocks change in the middle of the dates, and in the middle of those that follow."""
    for start in ("2020-03-01 04:00", "2020-03-17", "2020-10-20"):
        for rows in (12, 40):  # before 2037, where the zones of older pandas end
            went_on(pd.date_range(start, periods=rows + AHEAD, freq=freq, tz=zone), zone)


def test_steps_of_24_hours_over_a_change_of_clocks_are_no_days():
    went_on(
        pd.date_range("2020-03-17", periods=40, freq="24h", tz="Europe/Berlin"), "Europe/Berlin"
    )


@pytest.mark.parametrize("day", [2, 15, 28, 29, 30])
@pytest.mark.parametrize("first", [1, 2, 4, 12])
def test_a_day_of_the_month_stays_or_is_the_last_one(first, day):
    months = pd.period_range(f"2023-{first:02d}", periods=6 + AHEAD, freq="M")
    days = [month.start_time.replace(day=min(day, month.days_in_month)) for month in months]
    went_on(pd.DatetimeIndex(days))


@pytest.mark.parametrize(
    ("freq", "kept"),
    [
        ("ME", [0, 1, 3, 4, 5, 9, 10]),
        ("B", [0, 1, 2, 5, 6, 9, 10, 11, 12]),
        ("2B", [0, 1, 2, 4, 5]),
    ],
)
def test_missing_rows_do_not_hide_the_calendar(freq, kept):
    dates = pd.date_range("2024-01-31", periods=20, freq=freq).values.astype("datetime64[D]")
    calendar = calendars.calendar_of("it", dates[kept])
    np.testing.assert_array_equal(calendar.place, kept)
    np.testing.assert_array_equal(calendar.dates, dates[: kept[-1] + 1])
    np.testing.assert_array_equal(calendar.following(5), dates[kept[-1] + 1 :][:5])


def test_business_month_ends_may_come_before_a_holiday():
    dates = pd.date_range("2023-01-31", periods=20, freq="BME").values.astype("datetime64[D]")
    dates[14] -= np.timedelta64(1, "D")  # 29 March 2024 is Good Friday
    calendar = calendars.calendar_of("it", np.delete(dates, 5))
    np.testing.assert_array_equal(calendar.place, np.delete(np.arange(20), 5))
    assert calendar.following(2).astype(str).tolist() == ["2024-09-30", "2024-10-31"]


def test_business_hours_are_those_of_the_dates():
    hours = pd.offsets.BusinessHour(start="08:30", end="16:30")
    went_on(pd.date_range("2024-01-02 08:30", periods=64 + AHEAD, freq=hours))


@pytest.mark.parametrize(
    ("freq", "shift", "words"),
    [
        ("W", "1D", "2020-02-24, which follows 2020-02-16; expected 2020-02-23, or"),
        (
            "D",
            "12h",
            "2020-01-08T12:00, which follows 2020-01-07T00:00; expected 2020-01-08T00:00, or",
        ),
    ],
)
def test_the_row_of_an_irregular_date_is_named(freq, shift, words, tmp_path):
    """In tables and files; gaps of a regular frequency are none."""
    dates = pd.date_range("2020-01-01", periods=20, freq=freq).to_series().reset_index(drop=True)
    calendars.calendar_of("it", dates.drop([7, 8, 12]).values)
    dates[7] += pd.Timedelta(shift)
    frame = pd.DataFrame({"day": dates, "v": np.arange(20.0)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for call, where in (
        (lambda: Forecaster().fit(frame), r"Forecaster: dates\[7\]"),
        (lambda: read_csv(tmp_path / "t.csv"), "t.csv: line 9"),
    ):
        with pytest.raises(ValueError, match=f"{where} is {words}"):
            call()


@pytest.mark.parametrize(
    ("first", "step", "columns"),
    [
        ("2020", "Y", 0),
        ("2020-01", "M", 4),
        ("2020-01-06", "W", 4),
        ("2020-01-06", "D", 6),
        ("2020-01-06T00", "h", 8),
    ],
)
def test_features_are_those_that_the_step_can_tell_apart(first, step, columns):
    dates = (np.datetime64(first) + np.arange(60) * np.timedelta64(1, step)).astype(
        f"datetime64[{step}]"
    )
    calendar = calendars.calendar_of("it", dates)
    found = calendars.features(calendar)
    assert found.shape == (60, columns)
    assert np.all(np.abs(found) <= 1)
    if step == "D":
        # the day of the week comes again
        np.testing.assert_allclose(found[:-7, 2], found[7:, 2], atol=1e-12)
        assert np.ptp(found[:7, 2]) > 1
    if step == "h":  # in a time zone they are those of its clocks
        zoned = calendars.calendar_of("it", dates + np.timedelta64(5, "h"), "America/New_York")
        panel = Panel.from_arrays("it", np.zeros((60, 1)), Covariates(dates=zoned))
        np.testing.assert_array_equal(panel.read("it", look=True)[0].future, found)


@pytest.mark.parametrize(
    ("freq", "start", "country", "shares"),
    [
        ("D", "2024-01-05", "DE-BY", [0, 1, 0, 0]),
        ("12h", "2024-04-30 12:00", "DE", [0, 1, 1, 0]),
        ("2B", "2024-04-26", "DE", [0, 1 / 2, 0, 0, 1 / 2, 0]),
        ("W", "2024-04-21", "DE", [0, 1 / 7, 1 / 7, 0]),
        ("MS", "2024-03-01", "DE", [1 / 31, 1 / 30, 3 / 31, 0]),
        ("ME", "2024-03-31", "DE", [1 / 31, 1 / 30, 3 / 31, 0]),
    ],
)
def test_shares_of_holidays(freq, start, country, shares):
    """Christmas, Easter and others of 2024; a month end stands for its month."""
    pytest.importorskip("holidays")
    dates = pd.date_range(start, periods=len(shares), freq=freq).values
    calendar = calendars.calendar_of("it", dates)
    np.testing.assert_allclose(calendars.holiday_shares("it", country, calendar)[:, 0], shares)


def test_holidays_are_known_in_advance(tmp_path):
    """A series that jumps on them is forecast, from tables, arrays and a file."""
    pytest.importorskip("holidays")
    settings = {"window": 4, "horizon": 3, "hidden_size": 2, "epochs": 1, "backend": "numpy"}
    dates = np.arange("2020-01-01", "2024-05-01", dtype="datetime64[D]").astype("datetime64[us]")
    whole = calendars.calendar_of("it", dates)
    jumps = 10 * calendars.holiday_shares("it", "DE", whole)[:, 0]
    values = jumps + 0.1 * np.random.default_rng(0).normal(size=len(dates))
    given = pd.DataFrame({"day": dates, "v": values})
    forecaster = Forecaster(**settings, holidays="DE", calendar=False).fit(given)
    found = forecaster.predict(given)["v"]
    np.testing.assert_allclose(found, [10, 0, 0], atol=1)  # the first of May, and the next two days
    forecaster.save(tmp_path / "f")
    loaded = Forecaster.load(tmp_path / "f", "numpy")
    assert loaded.holidays == "DE"
    np.testing.assert_array_equal(loaded.predict(values, dates=dates), found)
    with pytest.raises(ValueError, match="holidays='DE' needs dates"):
        Forecaster(**settings, holidays="DE").fit(values)
    for code, series in itertools.product(("X" * 5000, "DE-" + "\n" * 5000), (given, values)):
        with pytest.raises(ValueError, match="Forecaster: holidays") as refused:
            Forecaster(**settings, holidays=code).fit(series)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("freq", ["D", "ME", "h"])
def test_tables_of_a_time_zone_go_on(freq):
    """Those of zones that narwhals does not know do so, too, and so do periods."""
    pl = pytest.importorskip("polars")
    predict = ZeroShotForecaster(TIREX, "numpy").predict
    dates = pd.date_range("2020-03-01", periods=24 + AHEAD, freq=freq, tz="Europe/Berlin")
    given = pd.DataFrame({"v": np.sin(np.arange(24.0))}, index=dates[:24])
    assert list(predict(given, AHEAD).index) == list(dates[24:])
    months = pd.period_range("2020-03", periods=24 + AHEAD, freq="M")
    for days in (
        pd.date_range("2020-03-01", periods=24 + AHEAD, freq=freq, tz="America/New_York"),
        months,
    ):
        numbered = pd.DataFrame(
            {"day": days[:24], "v": given["v"].to_numpy()}, index=np.arange(24) % 5
        )
        found = predict(numbered, AHEAD)
        assert (list(found.columns), list(found["day"])) == (["day", "v"], list(days[24:]))
    pa = pytest.importorskip("pyarrow")
    kind = pd.ArrowDtype(pa.timestamp("us", "Europe/Berlin"))  # whose index has no time zone
    found = predict(
        pd.DataFrame({"v": given["v"].to_numpy()}, index=dates[:24].astype(kind)), AHEAD
    )
    assert [str(day) for day in found.index] == [str(day) for day in dates[24:]]
    for known in (dates, dates.to_series(), pl.Series(dates)):
        assert str(calendars.calendar_of("it", known).dates.tz) == "Europe/Berlin"
    utc = dates.tz_convert("UTC").tz_localize(None).values.astype("datetime64[us]")
    day = pl.Series(utc[:24]).dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    found = predict(pl.DataFrame({"day": day, "v": given["v"].to_numpy()}), AHEAD)
    assert found["day"].to_list() == list(dates[24:])
    assert found["day"].dtype == day.dtype


@pytest.mark.parametrize(
    ("freq", "notation", "zone"),
    [
        ("ME", "%Y-%m-%d", None),
        ("ME", "%Y-%m-%d", "Europe/Berlin"),
        ("MS", "%Y-%m", None),
        ("YE", "%Y-%m-%d", None),
        ("YS", "%Y", None),
        ("h", "%Y-%m-%dT%H:%M", None),
        ("h", "%Y-%m-%dT%H:%M:%S%z", "America/New_York"),
        ("D", "%Y-%m-%dT%H:%M:%S%z", "Asia/Kolkata"),
    ],
)
def test_a_command_keeps_the_notation(freq, notation, zone, tmp_path):
    """A column of months stays one, full dates stay full, and times their zone."""
    dates = pd.date_range("2000-01-31", periods=36 + AHEAD, freq=freq, tz=zone)
    path = tmp_path / "t.csv"
    pd.DataFrame({"day": dates[:36].strftime(notation), "v": np.sin(np.arange(36.0))}).to_csv(
        path, index=False
    )
    command = ["forecast", str(TIREX), str(path), "--horizon", str(AHEAD), "--backend", "numpy"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    header, *times = [line.split(",")[0] for line in result.stdout.splitlines()]
    assert header == "day"
    if "z" in notation:
        assert times == [day.isoformat() for day in dates[36:]]
    else:
        assert [time[: len(notation) + 2] if zone else time for time in times] == list(
            dates[36:].strftime(notation)
        )
