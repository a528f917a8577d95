"""Lists, people and histories for the tests of hygiene, built through the domain's own functions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from subscribers import engagement
from subscribers.engagement import Sign
from subscribers.hygiene.opportunities import Issue
from subscribers.models import List, SenderIdentity, Subscriber, Subscription, TrackingConsent

START = datetime(2025, 1, 6, 9, tzinfo=UTC)
WEEK = timedelta(weeks=1)


def make_list(slug: str = "weekly", *, issues: int = 0) -> List:
    sender = SenderIdentity.objects.create(name="Ann", email="ann@example.org", postal_address="1 Lane")
    return List.objects.create(slug=slug, name=slug.title(), sender=sender, issues=issues)


def subscribe(
    to: List, *names: str, consent: str = TrackingConsent.FULL, protected: bool = False, since: datetime = START
) -> list[Subscription]:
    """Active subscriptions, one a name."""
    made = []
    for name in names:
        email = f"{name}@example.org"
        person, _ = Subscriber.objects.get_or_create(
            email_key=email, defaults={"email": email, "tracking_consent": consent, "is_protected": protected}
        )
        made.append(
            Subscription.objects.create(
                list=to,
                subscriber=person,
                state=Subscription.State.ACTIVE,
                created_at=since - WEEK,
                state_since=since - WEEK,
            )
        )
    return made


@dataclass
class Letters:
    """A weekly list with a past: issue 1 went out at START, and so on; people read what `read` says."""

    known: ClassVar[dict[int, list[Issue]]] = {}  # what the registry answers with

    to: List
    issues: list[Issue] = field(default_factory=list)

    @classmethod
    def weekly(cls, to: List, count: int, *, start: datetime = START) -> "Letters":
        to.issues = count
        to.save(update_fields=["issues"])
        made = cls(to, [Issue(number=n, sent_at=start + WEEK * (n - 1), tracked=True) for n in range(1, count + 1)])
        cls.known[to.pk] = made.issues
        return made

    def sent_at(self, number: int) -> datetime:
        return self.issues[number - 1].sent_at

    @property
    def end(self) -> datetime:
        """A moment when the last issue has had its time to be read."""
        return self.issues[-1].sent_at + timedelta(days=4)

    def deliver(self, people: Sequence[Subscription], numbers: Sequence[int] | None = None) -> None:
        for number in numbers or [issue.number for issue in self.issues]:
            engagement.record_delivered(self.to.pk, number, [person.subscriber_id for person in people])

    def read(self, person: Subscription, *numbers: int) -> None:
        later = timedelta(hours=2)
        engagement.record_signs(
            [Sign(self.to.pk, n, person.subscriber_id, "open", self.sent_at(n) + later) for n in numbers]
        )
