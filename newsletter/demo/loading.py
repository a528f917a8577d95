"""The demo's lists, people and year, written into the real tables once."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db import connection, transaction

from campaigns import composing
from newsletter.demo import history, recording, texts
from newsletter.demo.people import WEEKS, Person, people
from subscribers import suppressing, validating
from subscribers.models import (
    ConsentRecord,
    HygienePolicy,
    List,
    SenderIdentity,
    Subscriber,
    Subscription,
    Suppression,
    Tag,
)

SLUG, JAPANESE_SLUG = "leafmould", "engawa"
PEOPLE = 2_000
SEED = 1881  # the year of Darwin's book on worms
JAPANESE_WEEKS = 2
CONSENT = "Send me The Leafmould Letter every Thursday. I can unsubscribe at any time."
JAPANESE_CONSENT = "「縁側だより」を毎週木曜に受け取ります。いつでも解除できます。"
IMPORTED = "Card file of the Hathersley seed swap; people signed on paper."


class DemoRefused(Exception):
    """The text is a sentence for whoever asked for the demo."""


@dataclass(frozen=True)
class Loaded:
    """What there is now, and whether this call made it."""

    is_new: bool
    subscribers: int
    campaigns: int
    deliveries: int
    events: int


def load(*, now: datetime, count: int = PEOPLE, seed: int = SEED) -> Loaded:
    """Make the demo unless it is there. The same seed gives the same people and habits; `now` ends the year.

    Raises DemoRefused outside the demo.
    """
    if not settings.DEMO:
        raise DemoRefused("The demo is only loaded where DEMO=1; this installation is a real one.")
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(hashtext('newsletter demo'))")
        if is_loaded():
            return _counted(is_new=False)
        _load(now, count, seed)
    return _counted(is_new=True)


def is_loaded() -> bool:
    """Whether the demo's newsletter is there."""
    return List.objects.filter(slug=SLUG).exists()


def _counted(*, is_new: bool) -> Loaded:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT (SELECT count(*) FROM subscribers_subscriber), (SELECT count(*) FROM campaigns_campaign),"
            " (SELECT count(*) FROM campaigns_delivery), (SELECT count(*) FROM tracking_event)"
        )
        return Loaded(is_new, *cursor.fetchone())


def _load(now: datetime, count: int, seed: int) -> None:
    weekly, japanese = _lists()
    times = history.sending_times(now, weeks=WEEKS)
    everybody = people(count, seed=seed)
    ids = _subscribers(everybody, times, now)
    letters = [texts.letter_of_week(at) for at in times]
    campaigns = recording.sent_campaigns(weekly, letters, times)
    recorded = recording.record_year(weekly, campaigns, everybody, ids, seed=seed, now=now)
    _subscriptions(weekly, everybody, ids, times, recorded)
    recording.close_year(weekly, campaigns, recorded, now=now)
    _japanese_year(japanese, everybody, ids, times, seed=seed, now=now)
    _suppress(everybody, recorded, now)
    next_week = texts.letter_of_week(times[-1] + timedelta(weeks=1))
    composing.create(list=weekly, subject=next_week.subject, preheader=next_week.preheader, body=next_week.body)


def _lists() -> tuple[List, List]:
    sender = SenderIdentity.objects.create(
        name="The Leafmould Letter",
        email="ines@leafmould.example",
        postal_address="The Leafmould Letter, Hather End, 12 Mill Lane, Hathersley HX9 4QT, United Kingdom",
    )
    weekly = List.objects.create(
        slug=SLUG,
        name="The Leafmould Letter",
        description="A short letter from a walled garden, every Thursday morning. What to sow, what to leave alone, "
        "and what the robin thinks of it.",
        sender=sender,
        consent_text=CONSENT,
    )
    japanese = List.objects.create(
        slug=JAPANESE_SLUG,
        name="縁側だより",
        description="小さな庭の便りを、毎週木曜の朝に。お茶を一杯飲むあいだに読み終わる長さで。",
        sender=sender,
        language="ja",
        consent_text=JAPANESE_CONSENT,
    )
    for each in (weekly, japanese):
        HygienePolicy.objects.get_or_create(list=each)
    return weekly, japanese


def _joined_at(person: Person, times: list[datetime], now: datetime) -> datetime:
    """Some days before the first issue that they got."""
    hours = 5 + person.place * 7 % 150
    if person.is_pending:
        return now - timedelta(hours=hours)
    if person.joined < 0:
        return times[0] + timedelta(weeks=person.joined) - timedelta(hours=hours)
    return times[person.joined] - timedelta(hours=hours)


def _subscribers(everybody: list[Person], times: list[datetime], now: datetime) -> dict[int, int]:
    """Subscriber ids by the person's place."""
    rows = []
    for person in everybody:
        address = validating.normalise(person.email)
        rows.append(
            Subscriber(
                email=address.email,
                email_key=address.key,
                duplicate_hint=address.duplicate_hint,
                name=person.name,
                attributes=person.attributes,
                language=person.language,
                time_zone=person.time_zone,
                tracking_consent=person.consent,
                is_protected=person.is_protected,
                created_at=_joined_at(person, times, now),
            )
        )
    made = Subscriber.objects.bulk_create(rows, batch_size=1_000)
    tags = {name: Tag.objects.get_or_create(name=name)[0] for name in sorted({t for p in everybody for t in p.tags})}
    through = Subscriber.tags.through
    through.objects.bulk_create(
        through(subscriber_id=row.pk, tag_id=tags[name].pk)
        for person, row in zip(everybody, made, strict=True)
        for name in person.tags
    )
    return {person.place: row.pk for person, row in zip(everybody, made, strict=True)}


def _subscriptions(
    weekly: List, everybody: list[Person], ids: dict[int, int], times: list[datetime], recorded: recording.Recorded
) -> None:
    """Each person's relation to the weekly list, with proof of all that they agreed to and withdrew."""
    subscriptions, consents = [], []
    for person in everybody:
        joined = _joined_at(person, times, recorded.now)
        source = "import" if person.joined < -90 else "sign-up page"
        subscription = Subscription(
            subscriber_id=ids[person.place],
            list=weekly,
            state=Subscription.State.PENDING if person.is_pending else Subscription.State.ACTIVE,
            state_since=joined,
            requested_at=joined if person.is_pending else None,
            confirmation_sent_at=None if source == "import" else joined,
            source=source,
            created_at=joined,
        )
        left = recorded.unsubscribed.get(person.place)
        if left is not None:
            subscription.state = Subscription.State.UNSUBSCRIBED
            subscription.state_since, subscription.unsubscribed_by = left.at, left.campaign_id
        subscriptions.append(subscription)
        consents += _consents(weekly, person, ids[person.place], joined, source)
        if left is not None:
            consents.append(
                ConsentRecord(
                    subscriber_id=ids[person.place], list=weekly, kind=ConsentRecord.Kind.UNSUBSCRIBED,
                    source=left.source, at=left.at,
                )
            )  # fmt: skip
    Subscription.objects.bulk_create(subscriptions, batch_size=1_000)
    ConsentRecord.objects.bulk_create(consents, batch_size=1_000)


def _consents(of_list: List, person: Person, subscriber_id: int, at: datetime, source: str) -> list[ConsentRecord]:
    kind = ConsentRecord.Kind
    texts_of = {kind.IMPORTED: IMPORTED} if source == "import" else {kind.REQUESTED: of_list.consent_text}
    if source != "import" and not person.is_pending:
        texts_of[kind.CONFIRMED] = of_list.consent_text
    if person.consent != "full":
        texts_of[kind.TRACKING] = person.consent
    return [
        ConsentRecord(
            subscriber_id=subscriber_id,
            list=of_list,
            kind=each,
            text=text,
            source=source,
            at=at + timedelta(minutes=3 * place),
        )
        for place, (each, text) in enumerate(texts_of.items())
    ]


def _japanese_year(
    japanese: List, everybody: list[Person], ids: dict[int, int], times: list[datetime], *, seed: int, now: datetime
) -> None:
    """The small list: two issues so far, to everybody whose language it is."""
    readers = [person for person in everybody if person.language == "ja" and not person.is_pending]
    first = WEEKS - JAPANESE_WEEKS
    readers = [person for person in readers if person.leaves >= WEEKS and person.joined <= first]
    joined = times[first] - timedelta(days=2)
    Subscription.objects.bulk_create(
        Subscription(
            subscriber_id=ids[person.place], list=japanese, state=Subscription.State.ACTIVE, state_since=joined,
            confirmation_sent_at=joined, source="sign-up page", created_at=joined,
        )
        for person in readers
    )  # fmt: skip
    ConsentRecord.objects.bulk_create(
        record
        for person in readers
        for record in _consents(japanese, person, ids[person.place], joined, "sign-up page")
        if record.kind != ConsentRecord.Kind.TRACKING
    )
    campaigns = recording.sent_campaigns(japanese, texts.japanese_letters(), times[first:], first_place=first)
    recorded = recording.record_year(japanese, campaigns, readers, ids, seed=seed + 1, now=now)
    recording.close_year(japanese, campaigns, recorded, now=now)


def _suppress(everybody: list[Person], recorded: recording.Recorded, now: datetime) -> None:
    reasons = ((recorded.bounced, Suppression.Reason.BOUNCE), (recorded.complained, Suppression.Reason.COMPLAINT))
    for gone, reason in reasons:
        unwanted = [
            suppressing.Unwanted(validating.normalise(everybody[place].email).key, "delivery report", min(at, now))
            for place, at in gone.items()
        ]
        suppressing.suppress_all(unwanted, reason=reason)
