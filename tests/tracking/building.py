"""A list, an issue of it, and its deliveries, for the tests of tracking."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from django.conf import settings

from campaigns import freezing
from campaigns.models import Campaign, CampaignState, Delivery, DeliveryState, Link
from subscribers.models import List, SenderIdentity, Subscriber, Subscription, TrackingConsent
from tracking import ingesting, stream
from tracking.stream import Sighting, Writer

SENT = datetime(2025, 3, 5, 9, 0, tzinfo=UTC)
CHROME = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36"


@dataclass(frozen=True)
class Issue:
    """A campaign that went out to some people."""

    campaign: Campaign
    people: list[Subscriber]

    @property
    def list(self) -> List:
        return self.campaign.list

    def delivery(self, person: int = 0) -> Delivery:
        return Delivery.objects.get(campaign_id=self.campaign.pk, subscriber_id=self.people[person].pk)


def send_issue(*, people: int = 1, links: int = 3, consent: str = TrackingConsent.FULL, slug: str = "weekly") -> Issue:
    """An issue that every one of `people` was sent at SENT."""
    sender = SenderIdentity.objects.create(name="Ann", email="ann@example.org", postal_address="1 Lane")
    to = List.objects.create(slug=slug, name=slug.title(), sender=sender)
    readers = [
        Subscriber.objects.create(email=email, email_key=email, tracking_consent=consent)
        for email in (f"reader{number}@{slug}.example" for number in range(people))
    ]
    for reader in readers:
        Subscription.objects.create(list=to, subscriber=reader, state=Subscription.State.ACTIVE)
    return next_issue(to, readers, links=links)


def next_issue(to: List, readers: list[Subscriber], *, links: int = 3) -> Issue:
    """One more issue of a list."""
    campaign = Campaign.objects.create(
        list=to,
        number=freezing.next_number(to.pk),
        subject="Seeds",
        body="…",
        state=CampaignState.SENT,
        started_at=SENT,
        finished_at=SENT,
        audience=len(readers),
    )
    Link.objects.bulk_create(
        Link(campaign=campaign, index=index, url=f"https://example.org/{index}") for index in range(links)
    )
    freezing.ensure_partition(campaign.pk)
    Delivery.objects.bulk_create(
        Delivery(
            campaign_id=campaign.pk,
            subscriber_id=reader.pk,
            batch_id=1,
            state=DeliveryState.ACCEPTED.value,
            sent_at=SENT,
            attempts=1,
            outcome=0,
            seen=0,
            variant=0,
        )
        for reader in readers
    )
    return Issue(campaign, readers)


def sighting(
    issue: Issue,
    kind: int = stream.OPEN,
    *,
    person: int = 0,
    after: float = 60,
    link: int | None = None,
    user_agent: str | None = CHROME,
    ip: str = "192.0.2.1",
    method: str = "GET",
) -> Sighting:
    """What the edge would have seen, `after` seconds from the sending."""
    at = SENT + timedelta(seconds=after)
    return Sighting(
        kind, issue.campaign.pk, issue.people[person].pk, link, int(at.timestamp() * 1000), method, ip, user_agent,
        [], stream.EDGE,
    )  # fmt: skip


def click(issue: Issue, link: int = 0, **more: object) -> Sighting:
    return sighting(issue, stream.CLICK, link=link, **more)  # type: ignore[arg-type]


def append(*sightings: Sighting, writer: Writer | None = None) -> None:
    """Put sightings into the streams, as one commit of one writer."""
    groups = (writer or Writer()).groups(
        (stream.stream_of(one.campaign_id, one.subscriber_id), one.encode()) for one in sightings
    )
    with stream.connect(settings.STREAM_URL) as client:
        stream.append(client, groups)


def ingest(*sightings: Sighting, after: float = 120) -> None:
    """Put sightings into the streams and take them out again, at `after` seconds from the sending."""
    append(*sightings)
    drain(after=after)


def drain(*, after: float = 120) -> None:
    while ingesting.ingest_once(SENT + timedelta(seconds=after)):
        pass
