"""How long events stay, and where: a partition a month, made ahead, and on demand when one is missing."""

from datetime import UTC, date, datetime, timedelta

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

MONTHS_AHEAD = 3
NETWORK_DAYS = 30
REPORT_DAYS = 60
WRITER_DAYS = 60

# Attaching takes a weaker lock on the parent than CREATE … PARTITION OF, so that ingest goes on meanwhile.
_CREATE = (
    "CREATE TABLE {name} (LIKE tracking_event INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
    "ALTER TABLE tracking_event ATTACH PARTITION {name} FOR VALUES FROM ('{first}') TO ('{next}')",
)
_LOCK = "SELECT pg_advisory_xact_lock(hashtext('tracking_event partitions'))"
_EXISTING = "SELECT relid::regclass::text FROM pg_partition_tree('tracking_event') WHERE isleaf"


def _months(first: date, last: date) -> list[date]:
    months = []
    month = first.replace(day=1)
    while month <= last:
        months.append(month)
        month = _next(month)
    return months


def _next(month: date) -> date:
    return (month.replace(day=1) + timedelta(days=32)).replace(day=1)


def ensure_partitions(first: datetime, last: datetime) -> int:
    """Make the monthly partitions of events from `first` to `last` (aware; months are UTC's); how many were new."""
    wanted = {
        f"tracking_event_{month:%Y_%m}": month
        for month in _months(first.astimezone(UTC).date(), last.astimezone(UTC).date())
    }
    with connection.cursor() as cursor:
        if not _missing(cursor, wanted):
            return 0
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_LOCK)
        missing = _missing(cursor, wanted)
        for name in missing:
            month = wanted[name]
            for statement in _CREATE:
                cursor.execute(
                    statement.format(name=name, first=f"{month} 00:00:00+00", next=f"{_next(month)} 00:00:00+00")
                )
        return len(missing)


def _missing(cursor: CursorWrapper, wanted: dict[str, date]) -> list[str]:
    cursor.execute(_EXISTING)
    existing = {row[0] for row in cursor.fetchall()}
    return [name for name in wanted if name not in existing]


def make_partitions(*, now: datetime) -> int:
    """Partitions for this month and the next three."""
    return ensure_partitions(now, now + timedelta(days=31 * MONTHS_AHEAD))


# What proves nothing any more: the (salted) hash of an address, keys of webhooks, positions of writers long gone.
_FORGET_NETWORKS = """
UPDATE tracking_event SET network_hash = NULL WHERE at < %(networks)s AND network_hash IS NOT NULL
"""
_FORGET_REPORTS = "DELETE FROM tracking_receivedreport WHERE at < %(reports)s"
_FORGET_WRITERS = "DELETE FROM tracking_streamwriter WHERE updated_at < %(writers)s"


def forget(*, now: datetime) -> None:
    """Remove what is no longer needed to judge or to recognise a repetition."""
    limits = {
        "networks": now - timedelta(days=NETWORK_DAYS),
        "reports": now - timedelta(days=REPORT_DAYS),
        "writers": now - timedelta(days=WRITER_DAYS),
    }
    with connection.cursor() as cursor:
        for statement in (_FORGET_NETWORKS, _FORGET_REPORTS, _FORGET_WRITERS):
            cursor.execute(statement, limits)
