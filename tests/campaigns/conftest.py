"""Fixtures of the campaigns' tests."""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

import pytest
from django.db import connection

from campaigns import composing, scheduling
from campaigns.models import Campaign
from newsletter.mailing.personalizing import Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Report, Transport
from subscribers.models import List
from tests.conftest import NOW

BODY = """# Hello {{ first_name | default: "gardener" }}

It rains. [The forecast](https://weather.example/?a=1&b=2), or [the almanac](https://almanac.example/).
"""


@pytest.fixture
def draft(garden: List) -> Callable[..., Campaign]:
    """Make a draft of the garden list."""

    def make(*, subject: str = "Rain at last", body: str = BODY, **fields: str) -> Campaign:
        return composing.create(list=garden, subject=subject, body=body, **fields)  # type: ignore[arg-type]

    return make


@pytest.fixture
def launched(draft: Callable[..., Campaign]) -> Callable[..., Campaign]:
    """Make a draft and launch it at NOW, as the worker's task would."""

    def make(**fields: str) -> Campaign:
        campaign = draft(**fields)
        scheduling.schedule(campaign.pk, NOW, now=NOW)
        assert scheduling.launch(campaign.pk, now=NOW)
        campaign.refresh_from_db()
        return campaign

    return make


@pytest.fixture
def seen_moves() -> Iterator[Callable[[], set[tuple[int, int]]]]:
    """Every change of a delivery's state from now on, as a trigger of the database sees it."""
    with connection.cursor() as cursor:
        cursor.execute(
            """CREATE TABLE seen_move (was smallint, now smallint);
            CREATE FUNCTION see_move() RETURNS trigger LANGUAGE plpgsql AS
              $$ BEGIN INSERT INTO seen_move VALUES (OLD.state, NEW.state); RETURN NULL; END $$;
            CREATE TRIGGER see_move AFTER UPDATE ON campaigns_delivery
              FOR EACH ROW WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION see_move()"""
        )

    def moves() -> set[tuple[int, int]]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT DISTINCT was, now FROM seen_move")
            return set(cursor.fetchall())

    yield moves
    with connection.cursor() as cursor:
        cursor.execute("DROP FUNCTION see_move() CASCADE; DROP TABLE seen_move")


class Patient:
    """The real transport, told a time limit of the real clock: the tests' own clock stands still elsewhere."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def deliver(
        self,
        personalizer: Personalizer,
        recipients: Iterable[Recipient],
        *,
        until: Callable[[], datetime],
        begins: Callable[[DeliveryKey], None] = lambda key: None,
    ) -> Iterator[Report]:
        later = timedelta(days=3650)
        return self._transport.deliver(personalizer, recipients, until=lambda: until() + later, begins=begins)

    def close(self) -> None:
        self._transport.close()
