"""Campaigns over several servers and with a signature: what the ledger says when a server dies is what happened."""

import os
import signal
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import LazySettings

from campaigns import composing, delivering
from campaigns.models import Batch, Campaign, Delivery, DeliveryState
from newsletter.env import email_url
from newsletter.mailing.transports.smtp import SmtpTransport
from subscribers.models import List, Subscriber
from tests.campaigns.batches import send
from tests.conftest import NOW, MailServer
from tests.newsletter.mailing.test_signing import keys, verifies
from tests.newsletter.mailing.test_smtp_servers import Sink, sink

People = Callable[..., list[Subscriber]]
Drafts = Callable[..., Campaign]
pytestmark = pytest.mark.django_db(transaction=True)
CONNECTIONS = 3


class _Killing(SmtpTransport):
    """The real transport; a server is killed, as by a failing machine, when some have been reported."""

    def __init__(self, *sinks: Sink, after: int) -> None:
        super().__init__(email_url(" ".join(one.url for one in sinks)))
        self._victim, self._after = sinks[0], after

    def deliver(self, *arguments, **named):  # type: ignore[no-untyped-def]
        named["until"] = lambda until=named["until"]: until() + timedelta(days=3650)
        for number, report in enumerate(super().deliver(*arguments, **named), start=1):
            if number == self._after:
                os.kill(self._victim.process.pid, signal.SIGKILL)
            yield report


def test_a_server_that_dies_in_mid_campaign_costs_nobody_but_those_on_the_wire(
    garden: List, subscribe: People, launched: Drafts, tmp_path: Path
) -> None:
    subscribe(garden, 900)
    campaign = launched()
    with (
        sink(tmp_path / "one", connections=CONNECTIONS) as one,
        sink(tmp_path / "two", connections=CONNECTIONS) as two,
    ):
        transport = _Killing(one, two, after=200)
        for batch in Batch.objects.filter(campaign=campaign).order_by("pk"):
            outcome = delivering.send_batch(batch.pk, transport=transport, worker="w", clock=lambda: NOW)
            assert outcome
            assert outcome.is_finished
        transport.close()
        taken = Counter(one.taken + two.taken)
    found = Counter(Delivery.objects.filter(campaign_id=campaign.pk).values_list("state", flat=True))
    assert set(found) <= {DeliveryState.ACCEPTED, DeliveryState.UNKNOWN}
    assert found.total() == 900
    assert found[DeliveryState.UNKNOWN] <= CONNECTIONS
    assert set(taken.values()) == {1}, "nobody twice"
    ids = Delivery.objects.filter(campaign_id=campaign.pk, state=DeliveryState.ACCEPTED).values("subscriber_id")
    accepted = set(Subscriber.objects.filter(pk__in=ids).values_list("email", flat=True))
    assert accepted <= set(taken), "nobody is called accepted who was not"
    assert len(taken) - len(accepted) <= CONNECTIONS
    assert 0 < len(one.taken) < 900


def test_a_campaign_and_its_test_mails_are_signed_at_the_senders_domain(
    garden: List, subscribe: People, launched: Drafts, mail_server: MailServer, settings: LazySettings
) -> None:
    settings.DKIM_KEYS = keys()
    subscribe(garden, 3, name='Ada "the, Green"')
    campaign = launched(subject="Rain for {{ first_name }} 🌧")
    send(Batch.objects.get(campaign=campaign), mail_server)
    composing.send_test(campaign.pk, ["ann@shed.example"])
    assert len(mail_server.contents) == 4
    assert all(verifies(content, settings.DKIM_KEYS) for content in mail_server.contents)
