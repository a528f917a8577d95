"""History from another platform: who was sent what, and what was seen of it, as if it had happened here.

The file goes into a temporary table line by line, everything after that works on whole sets, so memory stays the same
however long the file is. The history becomes visible in one transaction: an import that is cut off leaves nothing
behind but empty campaigns without a number, and can simply be repeated.
"""

import codecs
import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any, BinaryIO

from django.db import DatabaseError, connection, transaction

from campaigns import closing, freezing
from campaigns.models import Campaign, CampaignState, Delivery
from newsletter.mailing import bounces
from newsletter.mailing.bounces import BounceClass
from subscribers import csvfile, engagement, validating
from subscribers.models import List, Suppression
from subscribers.suppressing import Unwanted, suppress_all
from tracking import history_sql as sql
from tracking import retention, verdicts
from tracking.history_lines import BadLine, parse, read_line
from tracking.models import EventKind
from tracking.verdicts import Evidence, Verdict

SLICE = 50_000


@dataclass
class Counts:
    """Every line of the file is in one of these."""

    imported: int = 0
    duplicate: int = 0
    refused: int = 0


class Report:
    """The refused lines, each with its reason, as CSV; the file is made only when there is one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file: IO[str] | None = None
        self._rows: Any = None

    def add(self, line: int, reason: str, *content: str) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", newline="")
            self._rows = csv.writer(self._file)
            self._rows.writerow(["line", "reason", "content"])
        self._rows.writerow([line, reason, csvfile.harmless(" ".join(content))])
        self.count += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def import_history(file: BinaryIO, *, to: List, report: Path, now: datetime) -> Counts:
    """Bring a history in (NDJSON, the lines in any order). Lines that were imported before are counted and left.

    Lines about addresses that are not on the list are refused: bring the subscribers in first.
    """
    refusals = Report(report)
    try:
        with _staging():
            staged = _stage(file, refusals, now=now)
            _find_people(to.pk)
            return _Import(to.pk, refusals).run(staged)
    finally:
        refusals.close()


@contextmanager
def _staging() -> Iterator[None]:
    """The temporary tables, which must not outlive the import in a pooled connection."""
    drop = "DROP TABLE IF EXISTS history_line, history_person, history_fact, history_sign"
    for statement in (drop, sql.STAGE, sql.MAKE_PEOPLE):
        _execute(statement)
    try:
        yield
    except BaseException:
        # Within a transaction that has failed they go with it.
        with suppress(DatabaseError):
            _execute(drop)
        raise
    _execute(drop)


def _stage(file: BinaryIO, refusals: Report, *, now: datetime) -> int:
    """Copy the readable lines into history_line; their number."""
    staged = number = 0
    with connection.cursor() as cursor, cursor.copy(sql.COPY_LINES) as copy:
        while (raw := read_line(file)) is not None:
            number += 1
            if number == 1:
                raw = raw.removeprefix(codecs.BOM_UTF8)
            if not raw.strip():
                continue
            try:
                line = parse(raw, now=now)
            except BadLine as error:
                refusals.add(number, str(error), raw[:200].decode("utf-8", "replace").strip())
            else:
                copy.write_row((number, *line))
                staged += 1
    _execute("ANALYZE history_line")
    return staged


def _find_people(list_id: int) -> None:
    """Whom each address of the file means."""
    _execute(sql.FIND_PLAIN, list=list_id)
    after: str = ""
    while others := [email for (email,) in _rows(sql.OTHERS, after=after, limit=SLICE)]:
        keys = {email: key for email in others if (key := _key(email))}
        _execute(sql.FIND_OTHERS, list=list_id, emails=list(keys), keys=list(keys.values()))
        after = others[-1]
    _execute("ANALYZE history_person")


def _key(email: str) -> str:
    try:
        return validating.normalise(email).key
    except validating.InvalidAddress:
        return ""


@dataclass
class _Import:
    """From the staged lines to ledger, events, figures and bits of one list."""

    list_id: int
    refusals: Report
    older: list[int] = field(default_factory=list)  # campaigns that were there before
    campaigns: list[int] = field(default_factory=list)

    def run(self, staged: int) -> Counts:
        self._make_campaigns()
        with transaction.atomic():
            engagement.hold_numbers(exclusively=True)
            facts = self._choose()
            self._store()
            self._judge()
            self._suppress_dead()
            self._sum_up(self._renumber())
        for campaign_id in {pk // freezing.CAMPAIGNS_A_PARTITION: pk for pk in self.campaigns}.values():
            closing.index_by_person(campaign_id)
        duplicate = staged - facts - (self.refusals.count - self._unreadable)
        return Counts(facts, duplicate, self.refusals.count)

    def _make_campaigns(self) -> None:
        """Campaigns and partitions, in transactions of their own: making partitions locks what others use."""
        self._unreadable = self.refusals.count
        self.older = [pk for (pk,) in _rows(sql.CAMPAIGNS, list=self.list_id)]
        with transaction.atomic():
            # Two imports of one list at once make each campaign once.
            _execute("SELECT pg_advisory_xact_lock(hashtext(%(name)s))", name=f"history of list {self.list_id}")
            known = set(Campaign.objects.filter(list_id=self.list_id).values_list("external_key", flat=True))
            made = [self._campaign(*row) for row in _rows(sql.SENT_CAMPAIGNS) if row[0] not in known]
            Campaign.objects.bulk_create(made)
        self.campaigns = [pk for (pk,) in _rows(sql.CAMPAIGNS, list=self.list_id)]
        for pk in self.campaigns:
            freezing.ensure_partition(pk)
        ((self._first, self._last),) = _rows(sql.SPAN)
        if self._first:
            retention.ensure_partitions(self._first, self._last)

    def _campaign(self, key: str, first: datetime, last: datetime) -> Campaign:
        return Campaign(
            list_id=self.list_id,
            subject=key,
            state=CampaignState.SENT,
            origin=Campaign.Origin.IMPORTED,
            external_key=key,
            started_at=first,
            finished_at=last,
        )

    def _choose(self) -> int:
        """What of the file is new and may be taken; its number."""
        self._execute(sql.FACTS)
        _execute("CREATE INDEX ON history_fact (campaign_id, subscriber_id)")
        _execute("ANALYZE history_fact")
        self._report(sql.REFUSED_BEFORE)
        for statement in sql.DROP_KNOWN if self.older else ():
            self._execute(statement)
        for statement in sql.REFUSE:
            self._execute(statement)
        self._report(sql.REFUSED_FACTS)
        ((count,),) = _rows("SELECT count(*) FROM history_fact WHERE refused IS NULL")
        return int(count)

    def _store(self) -> None:
        for statement in (sql.DELIVERIES, sql.BOUNCES, sql.LINKS, sql.AGES):
            self._execute(statement)

    def _judge(self) -> None:
        """The verdicts, delivery by delivery, into events and into what they come to."""
        _execute(sql.MAKE_SIGNS)
        events: list[tuple[Any, ...]] = []
        signs: list[tuple[Any, ...]] = []
        with connection.chunked_cursor() as cursor:
            cursor.execute(sql.HITS, self._parameters)
            for _delivery, hits in groupby(_hits(cursor), key=lambda hit: hit.delivery):
                _judge_delivery(list(hits), events, signs)
                if len(events) > SLICE or len(signs) > SLICE:
                    _copy_judged(events, signs)
            _copy_judged(events, signs)
        _execute("ANALYZE history_sign")

    def _renumber(self) -> int:
        """Number the list's issues by the time of their sending, and move the bits of older ones along."""
        _execute("SELECT FROM subscribers_list WHERE id = %(list)s FOR NO KEY UPDATE", list=self.list_id)
        self._execute(sql.CAMPAIGN_SPANS)
        order = _rows(sql.ORDER, list=self.list_id, campaigns=self.campaigns)
        _execute(sql.RENUMBER, ids=[pk for pk, _number in order])
        _move_bits(self.list_id, [number for _pk, number in order])
        List.objects.filter(pk=self.list_id).update(issues=len(order))
        return len(order)

    def _suppress_dead(self) -> None:
        """A bounce elsewhere says of an address what one here would, unless it has taken mail since."""
        dead = (
            Unwanted(key, f"history {bounces.enhanced_code(status)}", at)
            for key, status, at in _rows(sql.BOUNCED, list=self.list_id)
            if bounces.classify(bounces.enhanced_code(status), status) is BounceClass.HARD
        )
        suppress_all(dead, reason=Suppression.Reason.BOUNCE)

    def _sum_up(self, width: int) -> None:
        self._execute(sql.LEDGER_SIGNS)
        self._execute(sql.FIGURES)
        for statement in (sql.BITS_DELIVERED, sql.BITS_ENGAGED, sql.BITS_BOUNCED):
            _execute(statement, list=self.list_id, width=width)

    @property
    def _parameters(self) -> dict[str, Any]:
        return {
            "list": self.list_id,
            "campaigns": self.campaigns,
            "older": self.older,
            "first": self._first,
            "last": self._last,
        }

    def _execute(self, statement: str) -> None:
        _execute(statement, **self._parameters)

    def _report(self, statement: str) -> None:
        with connection.chunked_cursor() as cursor:
            cursor.execute(statement, self._parameters)
            for row in cursor:
                self.refusals.add(*row)


@dataclass(slots=True)
class _Hit:
    """One open or click on its way to a verdict."""

    campaign_id: int
    subscriber_id: int
    evidence: Evidence
    consent: str
    ip: str
    is_new: bool

    @property
    def delivery(self) -> tuple[int, int]:
        return self.campaign_id, self.subscriber_id


def _hits(rows: Iterator[tuple[Any, ...]]) -> Iterator[_Hit]:
    for campaign_id, subscriber_id, kind, at, method, agent, client, ip, link, sent_at, consent, is_new in rows:
        evidence = Evidence(
            kind="open" if kind == EventKind.OPEN else "click",
            at=at,
            last_at=at,
            method=method,
            client=verdicts.client_class(agent) if client is None else client,
            network=ip,
            link=link,
            delay_seconds=(at - sent_at).total_seconds() if sent_at else None,
        )
        yield _Hit(campaign_id, subscriber_id, evidence, consent, ip, is_new)


def _judge_delivery(hits: list[_Hit], events: list[tuple[Any, ...]], signs: list[tuple[Any, ...]]) -> None:
    """Judge what came of one delivery together; add its events and what they come to."""
    judged = zip(hits, verdicts.judge_evidence([hit.evidence for hit in hits]), strict=True)
    new = [(hit, judgement) for hit, judgement in judged if hit.is_new]
    human = [hit.evidence for hit, judgement in new if judgement.verdict == Verdict.HUMAN]
    opens = [one.at for one in human if one.kind == "open"]
    clicks = [one.at for one in human if one.kind == "click"]
    kept = [(hit, judgement) for hit, judgement in new if hit.consent == "full"]
    events += [_event(hit, *judgement) for hit, judgement in kept]
    kinds = [hit.evidence.kind for hit, _judgement in kept]
    seen = Delivery.SEEN_OPEN * ("open" in kinds) | Delivery.SEEN_CLICK * ("click" in kinds)
    first = (min(opens, default=None), max(opens, default=None), min(clicks, default=None), max(clicks, default=None))
    signs.append((*hits[0].delivery, seen, *first, kinds.count("open"), kinds.count("click")))


def _event(hit: _Hit, verdict: int, reasons: Sequence[str]) -> tuple[Any, ...]:
    found = hit.evidence
    kind = EventKind.OPEN if found.kind == "open" else EventKind.CLICK
    delay = None if found.delay_seconds is None else round(found.delay_seconds * 1000)
    about = (found.at, found.at, *hit.delivery, delay, kind.value, found.link, int(verdict), True)
    return (*about, found.method, found.client, verdicts.network_class(hit.ip), "history", json.dumps(list(reasons)))


def _copy_judged(events: list[tuple[Any, ...]], signs: list[tuple[Any, ...]]) -> None:
    with connection.cursor() as cursor:
        for statement, rows in ((sql.COPY_EVENTS, events), (sql.COPY_SIGNS, signs)):
            with cursor.copy(statement) as copy:
                for row in rows:
                    copy.write_row(row)
            rows.clear()


def _move_bits(list_id: int, old_numbers: Sequence[int | None]) -> None:
    """Give each bit of a list's people its issue's new place. `old_numbers` holds, for each new number, the old one."""
    width = max((number for number in old_numbers if number), default=0)
    if list(old_numbers[:width]) == list(range(1, width + 1)):
        return
    pieces = {name: _rearranged(f"bits_pad(e.{name}, {width})", old_numbers) for name in ("delivered", "engaged")}
    changes = ", ".join(f"{name} = {piece}" for name, piece in pieces.items())
    _execute(
        f"UPDATE subscribers_engagement e SET {changes} FROM subscribers_subscription u"
        " WHERE u.id = e.subscription_id AND u.list_id = %(list)s",
        list=list_id,
    )


def _rearranged(bits: str, old_numbers: Sequence[int | None]) -> str:
    """SQL that puts a bit string together anew: runs of old bits, and zeros where an issue is new."""
    pieces = []
    start = 0
    while start < len(old_numbers):
        first, end = old_numbers[start], start + 1
        while end < len(old_numbers) and old_numbers[end] == (None if first is None else first + end - start):
            end += 1
        length = end - start
        pieces.append(
            f"repeat('0', {length})::varbit" if first is None else f"substring({bits} from {first} for {length})"
        )
        start = end
    return " || ".join(pieces)


def _execute(statement: str, **parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)


def _rows(statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall())
