"""Event rows of opens and clicks: read for whole deliveries, merged by the minute, written back by set."""

import hmac
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import connection

from tracking import retention, verdicts
from tracking.models import EventKind
from tracking.stream import Sighting
from tracking.verdicts import Evidence, Verdict

# Past so many rows a delivery only counts: somebody who fetches a pixel ten thousand times costs twenty rows.
ROWS_A_DELIVERY = 20

Key = tuple[int, int]  # campaign, subscriber


class Known(NamedTuple):
    """A delivery of the ledger and what decides over its events."""

    campaign_id: int
    subscriber_id: int
    sent_at: datetime | None
    list_id: int
    number: int | None
    consent: str | None  # None: the person was erased


@dataclass(slots=True)
class Row:
    """One row of `Event`; `id` is None until it is stored."""

    id: int | None
    at: datetime
    campaign_id: int
    subscriber_id: int
    last_at: datetime
    network_hash: bytes | None
    delay_ms: int | None
    hits: int
    kind: int
    link: int | None
    verdict: int
    is_final: bool
    method: str
    client: str
    network: str
    source: str
    flags: str
    reasons: list[str]
    is_changed: bool = field(default=False)

    @property
    def key(self) -> Key:
        return self.campaign_id, self.subscriber_id

    @property
    def is_human(self) -> bool:
        return self.verdict == Verdict.HUMAN

    def evidence(self) -> Evidence:
        """The facts that the rules judge."""
        return Evidence(
            kind="open" if self.kind == EventKind.OPEN else "click",
            at=self.at,
            last_at=self.last_at,
            method=self.method,
            client=self.client,
            network=self.network_hash.hex() if self.network_hash else "",
            link=self.link,
            delay_seconds=None if self.delay_ms is None else self.delay_ms / 1000,
            flags=frozenset(self.flags.split()),
        )


def from_sighting(sighting: Sighting, sent_at: datetime | None) -> Row:
    """A row of one hit, not judged yet."""
    at = datetime.fromtimestamp(sighting.at_ms // 1000, UTC) + timedelta(milliseconds=sighting.at_ms % 1000)
    return Row(
        id=None,
        at=at,
        campaign_id=sighting.campaign_id,
        subscriber_id=sighting.subscriber_id,
        last_at=at,
        network_hash=network_hash(sighting.ip, at),
        delay_ms=None if sent_at is None else int((at - sent_at).total_seconds() * 1000),
        hits=1,
        kind=sighting.kind,
        link=sighting.link,
        verdict=Verdict.UNKNOWN,
        is_final=False,
        method=sighting.method.upper()[:8],
        client=verdicts.client_at(sighting.user_agent, sighting.ip),
        network=verdicts.network_class(sighting.ip),
        source=sighting.source[:16],
        flags=" ".join(sorted(sighting.flags))[:64],
        reasons=[],
        is_changed=True,
    )


def network_hash(ip: str, at: datetime) -> bytes | None:
    """Eight bytes that are equal for equal addresses of one day and tell nobody the address."""
    if not ip:
        return None
    salt = hmac.digest(settings.SECRET_KEY.encode(), f"network {at:%Y-%m-%d}".encode(), "sha256")
    return hmac.digest(salt, ip.encode(), "sha256")[:8]


def merge(rows: list[Row], new: Row) -> None:
    """Count a hit in the row of its minute, or add a row, or past the limit count it in the row most like it."""
    for row in rows:
        if _same_minute(row, new):
            return _count(row, new)
    if len(rows) < ROWS_A_DELIVERY:
        rows.append(new)
        return None
    alike = [row for row in rows if (row.kind, row.link) == (new.kind, new.link)]
    alike = alike or [row for row in rows if row.kind == new.kind] or rows
    return _count(alike[-1], new)


def _same_minute(row: Row, new: Row) -> bool:
    return (row.kind, row.link, row.client, row.method, row.flags) == (
        new.kind, new.link, new.client, new.method, new.flags,
    ) and row.at.replace(second=0, microsecond=0) == new.at.replace(second=0, microsecond=0)  # fmt: skip


def _count(row: Row, new: Row) -> None:
    row.hits += new.hits
    row.last_at = max(row.last_at, new.last_at)
    row.is_changed = True


def judge(rows: Sequence[Row], *, final_before: datetime) -> None:
    """Judge all rows of one delivery by today's rules; what is older than the settling time is final."""
    for row, judgement in zip(rows, verdicts.judge_evidence([row.evidence() for row in rows]), strict=True):
        is_final = row.is_final or row.at < final_before
        found = (int(judgement.verdict), judgement.reasons, is_final)
        if found != (row.verdict, row.reasons, row.is_final):
            row.verdict, row.reasons, row.is_final = found
            row.is_changed = True


# Reading and writing ---------------------------------------------------------------------------------------------

_KNOWN = """
SELECT d.campaign_id, d.subscriber_id, d.sent_at, c.list_id, c.number, s.tracking_consent
  FROM unnest(%(campaign)s::bigint[], %(subscriber)s::bigint[]) AS w (campaign_id, subscriber_id)
  JOIN campaigns_delivery d ON d.campaign_id = w.campaign_id AND d.subscriber_id = w.subscriber_id
  JOIN campaigns_campaign c ON c.id = d.campaign_id
  LEFT JOIN subscribers_subscriber s ON s.id = d.subscriber_id
 WHERE d.campaign_id = ANY(%(campaigns)s)
"""

_COLUMNS = (
    "id, at, campaign_id, subscriber_id, last_at, network_hash, delay_ms, hits, kind, link, verdict, is_final, method, "
    "client, network, source, flags, reasons"
)
# Events of a delivery cannot be older than it, which spares the partitions before.
_LOAD = f"""
SELECT {", ".join(f"e.{column.strip()}" for column in _COLUMNS.split(","))}
  FROM unnest(%(campaign)s::bigint[], %(subscriber)s::bigint[]) AS w (campaign_id, subscriber_id)
  JOIN tracking_event e ON e.campaign_id = w.campaign_id AND e.subscriber_id = w.subscriber_id
 WHERE e.kind IN (1, 2) AND e.at >= %(since)s
 ORDER BY e.at, e.id
"""

_STORED_COLUMNS = _COLUMNS.removeprefix("id, ")
_COPY = f"COPY tracking_event ({_STORED_COLUMNS}) FROM STDIN"

_UPDATE = """
UPDATE tracking_event e
   SET last_at = u.last_at, hits = u.hits, verdict = u.verdict, is_final = u.is_final, reasons = u.reasons::jsonb
  FROM unnest(%s::timestamptz[], %s::bigint[], %s::timestamptz[], %s::integer[], %s::smallint[], %s::boolean[], %s::text[])
       AS u (at, id, last_at, hits, verdict, is_final, reasons)
 WHERE e.at = u.at AND e.id = u.id AND e.at BETWEEN %s AND %s
"""  # noqa: E501


def known(keys: Iterable[Key]) -> dict[Key, Known]:
    """Those of these deliveries that the ledger holds."""
    campaigns, subscribers = _columns(keys)
    with connection.cursor() as cursor:
        cursor.execute(_KNOWN, {"campaign": campaigns, "subscriber": subscribers, "campaigns": sorted(set(campaigns))})
        return {(row[0], row[1]): Known(*row) for row in cursor.fetchall()}


def load(deliveries: Sequence[Known]) -> dict[Key, list[Row]]:
    """All stored opens and clicks of these deliveries, in the order of time."""
    found: dict[Key, list[Row]] = {(one.campaign_id, one.subscriber_id): [] for one in deliveries}
    if not found:
        return found
    campaigns, subscribers = _columns(found)
    sent = [one.sent_at for one in deliveries if one.sent_at]
    since = min(sent) - timedelta(days=1) if len(sent) == len(deliveries) else datetime(2000, 1, 1, tzinfo=UTC)
    with connection.cursor() as cursor:
        cursor.execute(_LOAD, {"campaign": campaigns, "subscriber": subscribers, "since": since})
        for values in cursor.fetchall():
            row = Row(*values)
            row.network_hash = bytes(row.network_hash) if row.network_hash else None
            row.reasons = json.loads(values[-1])
            found[row.key].append(row)
    return found


def store(rows: Iterable[Row]) -> None:
    """Write what is new or changed."""
    changed = [row for row in rows if row.is_changed]
    new = [row for row in changed if row.id is None]
    old = [row for row in changed if row.id is not None]
    with connection.cursor() as cursor:
        if new:
            retention.ensure_partitions(min(row.at for row in new), max(row.at for row in new))
            with cursor.copy(_COPY) as copy:
                for row in new:
                    copy.write_row(_stored(row))
        if old:
            ats = [row.at for row in old]
            columns = zip(*(_updated(row) for row in old), strict=True)
            cursor.execute(_UPDATE, [*(list(column) for column in columns), min(ats), max(ats)])


def _stored(row: Row) -> tuple[object, ...]:
    return (
        row.at, row.campaign_id, row.subscriber_id, row.last_at, row.network_hash, row.delay_ms, row.hits, row.kind,
        row.link, row.verdict, row.is_final, row.method, row.client, row.network, row.source, row.flags,
        json.dumps(row.reasons),
    )  # fmt: skip


def _updated(row: Row) -> tuple[object, ...]:
    return row.at, row.id, row.last_at, row.hits, row.verdict, row.is_final, json.dumps(row.reasons)


def _columns(keys: Iterable[Key]) -> tuple[list[int], list[int]]:
    pairs = list(keys)
    return [campaign for campaign, _ in pairs], [subscriber for _, subscriber in pairs]
