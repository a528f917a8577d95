"""The same hour everywhere: when "9:00 where they are" is in each time zone of an audience."""

from collections.abc import Iterable
from datetime import UTC, datetime, time
from zoneinfo import ZoneInfo


def turns(zones: Iterable[str], *, start: datetime, hour: time, home: str, now: datetime) -> dict[str, datetime]:
    """When people of each zone get a mail: at `hour` by their clocks, on the day that `start` is at home.

    Whoever's hour has passed by `now` gets it now. Zones that nobody knows, "" among them, go by the home's. An hour
    that a clock jumps over (a summer time begins) is as long after midnight as it would have been; one that it shows
    twice is the first of the two.
    """
    day = start.astimezone(ZoneInfo(home)).date()
    found: dict[str, datetime] = {}
    for zone in zones:
        moment = datetime.combine(day, hour, tzinfo=known(zone) or ZoneInfo(home))
        found[zone] = max(moment.astimezone(UTC), now)
    return found


def known(zone: str) -> ZoneInfo | None:
    """A time zone by its IANA name ("Europe/Berlin"); None for what is none."""
    try:
        return ZoneInfo(zone)
    except (ValueError, OSError, KeyError):  # no such name; a folder of them; ZoneInfoNotFoundError is a KeyError
        return None
