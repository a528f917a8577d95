"""The staging table of an import, and the merge out of it. Everything here is one statement for many rows."""

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from django.db import connection, transaction
from django.utils.translation import gettext as _

from subscribers import suppressing, validating
from subscribers.csvfile import CsvFile, Row, harmless
from subscribers.models import ImportRun, List

SLICE = 20_000  # rows of one transaction
BEAT_EVERY = 50_000  # rows read between two signs of life
_TRIES = 5
_LIMITS = {"name": 200, "language": 12}
_OWN_COLUMNS = {"email", "name", "language", "tags"}

# A temporary table belongs to this connection and is never written to the log that replicas follow.
_STAGE = """
CREATE TEMPORARY TABLE import_stage (
    line bigint, email text, key text, hint text, digest bytea, name text, language text, attributes jsonb,
    tags text[], problem text)
"""
_COPY = "COPY import_stage (line, email, key, hint, digest, name, language, attributes, tags, problem) FROM STDIN"

# The first row of an address counts, the others are said to repeat it.
_REFUSE_REPEATED = """
UPDATE import_stage t SET problem = replace(%(text)s, '{line}', first_line::text)
  FROM (SELECT key, min(line) AS first_line FROM import_stage WHERE problem IS NULL GROUP BY key HAVING count(*) > 1) d
 WHERE t.problem IS NULL AND t.key = d.key AND t.line > d.first_line
"""
_REFUSE_SUPPRESSED = """
UPDATE import_stage t SET problem = %(text)s
  FROM subscribers_suppression s
 WHERE t.problem IS NULL AND t.line > %(after)s AND s.address_hash = t.digest
"""

# One slice, merged by set. Blank cells erase nothing; attributes are added to those that are there. Rows that would
# not change are not written.
_MERGE = """
WITH slice AS (
    SELECT * FROM import_stage WHERE problem IS NULL AND line > %(after)s AND line <= %(upto)s
), people AS (
    INSERT INTO subscribers_subscriber AS s (email, email_key, duplicate_hint, name, language, attributes, created_at)
    SELECT email, key, hint, name, language, attributes, %(now)s FROM slice ORDER BY key
    ON CONFLICT (email_key) DO UPDATE
       SET name = coalesce(nullif(excluded.name, ''), s.name),
           language = coalesce(nullif(excluded.language, ''), s.language),
           attributes = s.attributes || excluded.attributes
     WHERE (excluded.name <> '' AND excluded.name <> s.name)
        OR (excluded.language <> '' AND excluded.language <> s.language)
        OR NOT s.attributes @> excluded.attributes
    RETURNING id, email_key
), everybody AS (
    SELECT id, email_key, true AS changed FROM people
    UNION ALL
    SELECT s.id, s.email_key, false FROM slice JOIN subscribers_subscriber s ON s.email_key = slice.key
     WHERE NOT EXISTS (SELECT 1 FROM people p WHERE p.email_key = slice.key)
), subscriptions AS (
    INSERT INTO subscribers_subscription AS x (list_id, subscriber_id, state, state_since, requested_at, source,
                                               created_at)
    SELECT %(list)s, id, %(state)s, %(now)s, %(requested)s::timestamptz, %(source)s, %(now)s FROM everybody ORDER BY id
    ON CONFLICT ON CONSTRAINT subscription_once_per_list DO UPDATE
       SET state = excluded.state, requested_at = excluded.requested_at, confirmation_sent_at = NULL,
           state_since = CASE WHEN x.state = excluded.state THEN x.state_since ELSE excluded.state_since END
     WHERE x.state = 'pending'
       AND (excluded.state = 'active' OR (excluded.requested_at IS NOT NULL AND x.requested_at IS NULL))
    RETURNING subscriber_id, (xmax = 0) AS is_new
), proof AS (
    INSERT INTO subscribers_consentrecord (subscriber_id, list_id, kind, text, source, network, at)
    SELECT subscriber_id, %(list)s, 'imported', %(told)s, %(source)s, '', %(now)s FROM subscriptions
), tagged AS (
    INSERT INTO subscribers_subscriber_tags (subscriber_id, tag_id)
    SELECT e.id, t.id FROM slice CROSS JOIN unnest(slice.tags) AS wanted
      JOIN subscribers_tag t ON t.name = wanted JOIN everybody e ON e.email_key = slice.key
    ON CONFLICT DO NOTHING
    RETURNING subscriber_id
)
SELECT count(*) FILTER (WHERE x.is_new),
       count(*) FILTER (WHERE NOT coalesce(x.is_new, false)
                          AND (e.changed OR x.subscriber_id IS NOT NULL
                               OR e.id IN (SELECT subscriber_id FROM tagged))),
       count(*),
       (SELECT count(*) FROM slice)
  FROM everybody e LEFT JOIN subscriptions x ON x.subscriber_id = e.id
"""
_MAKE_TAGS = """
INSERT INTO subscribers_tag (name)
SELECT DISTINCT wanted FROM import_stage CROSS JOIN unnest(tags) AS wanted WHERE problem IS NULL
ON CONFLICT DO NOTHING
"""
_TOLD = {
    ImportRun.Welcome.CONFIRMED: "Imported as confirmed by an editor who holds proof of consent.",
    ImportRun.Welcome.PENDING: "Imported without confirmation; nothing is sent.",
    ImportRun.Welcome.ASK: "Imported and asked by mail to confirm.",
}


@dataclass(frozen=True)
class Plan:
    """What shall become of a file's people."""

    list: List
    welcome: str  # of ImportRun.Welcome
    source: str
    now: datetime


@dataclass
class Counts:
    """How many rows ended in which way; together they are all rows of the file."""

    imported: int = 0
    updated: int = 0
    unchanged: int = 0
    refused: int = 0
    note: str = ""
    line: int = field(default=0, repr=False)  # merged up to here


@contextmanager
def staging() -> Iterator[None]:
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS pg_temp.import_stage")
        cursor.execute(_STAGE)
    try:
        yield
    finally:
        if connection.is_usable():
            with connection.cursor() as cursor:
                cursor.execute("DROP TABLE IF EXISTS pg_temp.import_stage")


def stage(rows: CsvFile, beat: Callable[[], None]) -> int:
    """COPY every row, good or bad, into the staging table. Returns the last line's number."""
    line, number = 0, 0
    with connection.cursor() as cursor:
        with cursor.copy(_COPY) as copy:  # psycopg's, which Django wraps
            for number, row in enumerate(rows, start=1):
                line = row.line
                copy.write_row(_staged(row, rows.columns))
                if number % BEAT_EVERY == 0:
                    beat()
        cursor.execute("CREATE INDEX ON import_stage (line)")
        cursor.execute("ANALYZE import_stage")
    return line


def _staged(row: Row, columns: list[str]) -> tuple[Any, ...]:
    if row.problem:
        return _refused(row.line, row.cells[0] if row.cells else "", row.problem)
    values = dict(zip(columns, row.cells, strict=True))
    email = values["email"]
    try:
        address = validating.normalise(email)
    except validating.InvalidAddress as error:
        return _refused(row.line, email, str(error))
    problem = _problem(values)
    if problem:
        return _refused(row.line, email, problem)
    attributes = {name: cell for name, cell in values.items() if cell and name and name not in _OWN_COLUMNS}
    return (
        row.line,
        address.email,
        address.key,
        address.duplicate_hint,
        suppressing.address_hash(address.key),
        values.get("name", "").strip(),
        values.get("language", "").strip(),
        json.dumps(attributes, ensure_ascii=False),
        _tags(values.get("tags", "")),
        None,
    )


def _refused(line: int, shown: str, problem: str) -> tuple[Any, ...]:
    return (line, shown[:200].replace("\0", "\ufffd"), None, None, None, None, None, None, None, problem)


def _problem(values: dict[str, str]) -> str:
    """Why a row with a good address cannot be taken; "" if it can."""
    for name, cell in values.items():
        if "\0" in cell:
            return _("The field “%(name)s” holds a zero byte.") % {"name": name}
    for name, limit in _LIMITS.items():
        if len(values.get(name, "").strip()) > limit:
            return _("The field “%(name)s” is longer than %(limit)d characters.") % {"name": name, "limit": limit}
    if problem := validating.attributes_problem(values):
        return problem
    if any(character in values.get("name", "") for character in "\r\n"):
        return _("The name holds a line break.")
    if any(len(tag) > 60 for tag in _tags(values.get("tags", ""))):
        return _("A tag is longer than %(limit)d characters.") % {"limit": 60}
    return ""


def _tags(cell: str) -> list[str]:
    return [tag.strip() for tag in cell.replace(";", ",").split(",") if tag.strip()]


def judge(*, with_tags: bool) -> None:
    """Refuse what only the whole file or the database can tell: repeated and suppressed addresses. Makes new tags."""
    with connection.cursor() as cursor:
        cursor.execute(_REFUSE_REPEATED, {"text": _("The same address stands in line {line} already.")})
        cursor.execute(_REFUSE_SUPPRESSED, {"text": _suppressed_text(), "after": 0})
        if with_tags:
            cursor.execute(_MAKE_TAGS)


def _suppressed_text() -> str:
    return _("This address is suppressed: it bounced, complained or asked never to be mailed.")


def slice_end(after: int, last_line: int) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT line FROM import_stage WHERE line > %s ORDER BY line LIMIT 1 OFFSET %s", [after, SLICE - 1]
        )
        row = cursor.fetchone()
    return row[0] if row else last_line


def merge(plan: Plan, counts: Counts, *, upto: int, progress: Callable[[Counts], None]) -> None:
    """Merge one slice; again if somebody signed up with one of its addresses at this very moment."""
    for attempt in range(_TRIES):
        try:
            with transaction.atomic():
                merged = _merge_once(plan, counts, upto)
                progress(merged)
        except _Raced:
            if attempt == _TRIES - 1:
                raise
            continue
        counts.imported, counts.updated, counts.unchanged = merged.imported, merged.updated, merged.unchanged
        counts.line = merged.line
        return


class _Raced(Exception):
    """An address of the slice was added by somebody else since the statement began, so the statement missed it."""


def _merge_once(plan: Plan, counts: Counts, upto: int) -> Counts:
    welcome = ImportRun.Welcome(plan.welcome)
    parameters = {
        "list": plan.list.pk,
        "state": "active" if welcome is ImportRun.Welcome.CONFIRMED else "pending",
        "requested": plan.now if welcome is ImportRun.Welcome.ASK else None,
        "source": plan.source[:40],
        "told": _TOLD[welcome],
        "now": plan.now,
        "after": counts.line,
        "upto": upto,
    }
    with connection.cursor() as cursor:
        # Whoever was suppressed since the file was read is refused too.
        cursor.execute(_REFUSE_SUPPRESSED, {"text": _suppressed_text(), "after": counts.line})
        cursor.execute(_MERGE, parameters)
        imported, updated, merged, wanted = cursor.fetchone()
    if merged != wanted:
        raise _Raced
    return Counts(
        imported=counts.imported + imported,
        updated=counts.updated + updated,
        unchanged=counts.unchanged + merged - imported - updated,
        line=upto,
    )


def write_report(path: Path) -> int:
    """Write the refused rows as CSV. Returns their number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["line", "email", "reason"])
        for line, shown, problem in _refused_rows():
            writer.writerow([line, harmless(shown), problem])
            number += 1
    path.chmod(0o640)
    return number


def _refused_rows() -> Iterator[tuple[int, str, str]]:
    """By the place in the file, fetched in pieces."""
    after = 0
    while True:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT line, email, problem FROM import_stage WHERE problem IS NOT NULL AND line > %s"
                " ORDER BY line LIMIT 5000",
                [after],
            )
            rows = cursor.fetchall()
        if not rows:
            return
        yield from rows
        after = rows[-1][0]
