"""One process of benchmarks.send's limit: a constant message, the transport's own code, no database."""

import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from newsletter.env import email_url
from newsletter.mailing.personalizing import Message, Recipient
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports.base import Result
from newsletter.mailing.transports.smtp import SmtpTransport


class Constant:
    """Stands where the personaliser would: the same bytes for everybody."""

    def __init__(self, content: bytes) -> None:
        self._message = Message(DeliveryKey(1, 1), "ann@shed.example", "p@mail.example", content)

    def message(self, recipient: Recipient) -> Message:
        return self._message


def main() -> None:
    import django

    django.setup()
    from campaigns import composing
    from subscribers.models import Subscriber

    campaign_id, count = int(sys.argv[1]), int(sys.argv[2])
    person = Subscriber.objects.order_by("pk").first()
    assert person
    real = composing.revision(campaign_id).message(composing.recipient_of(person, campaign_id))
    recipient = composing.recipient_of(person, campaign_id)

    def people() -> Iterator[Recipient]:
        for _ in range(count):
            yield recipient

    forever = datetime.now(UTC) + timedelta(days=1)
    transport = SmtpTransport(email_url(os.environ["EMAIL_URL"]))
    reports = transport.deliver(Constant(real.content), people(), until=lambda: forever)  # type: ignore[arg-type]
    taken = sum(report.result is Result.ACCEPTED for report in reports)
    transport.close()
    sys.exit(0 if taken == count else 1)


if __name__ == "__main__":
    main()
