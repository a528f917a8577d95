"""What a person may change about themselves with the link of any mail they got: name, language, tracking, lists.

A mail may be forwarded, so the page shows the address masked and offers nothing that reveals more.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings
from django.db import transaction
from django.utils.translation import get_language_info
from django.utils.translation import gettext_lazy as _

from subscribers import engagement, unsubscribing, validating
from subscribers.models import ConsentRecord, List, Subscriber, Subscription, TrackingConsent

TOLD_TRACKING = {
    TrackingConsent.FULL: _("Which issues you open and which links you follow, so that we see what is worth writing."),
    TrackingConsent.HYGIENE: _(
        "Kept so that we stop mailing addresses nobody reads; each open replaces the one before."
    ),
    TrackingConsent.NONE: _("No invisible pictures in the mails, and links lead straight to their target."),
}


class UnknownSubscriber(LookupError):
    """The person behind a token is gone."""


@dataclass(frozen=True)
class Preferences:
    """A person's choices, as the page shows them."""

    subscriber: Subscriber
    email: str  # masked
    lists: list[List]  # that may be chosen
    chosen: frozenset[int]  # ids of the active ones


@dataclass(frozen=True)
class Choice:
    """What a person asked for."""

    name: str
    language: str
    tracking_consent: str
    lists: Collection[int]


@dataclass(frozen=True)
class Origin:
    """Through what a change came: kept as proof."""

    source: str
    campaign_id: int | None = None
    network: str = ""


def load(subscriber_id: int) -> Preferences:
    """The choices of a person. Raises UnknownSubscriber."""
    subscriber = Subscriber.objects.filter(pk=subscriber_id).first()
    if subscriber is None:
        raise UnknownSubscriber
    states = dict(subscriber.subscriptions.values_list("list_id", "state"))
    lists = [each for each in List.objects.all() if each.is_public or each.pk in states]
    return Preferences(
        subscriber=subscriber,
        email=validating.masked(subscriber.email),
        lists=lists,
        chosen=frozenset(pk for pk, state in states.items() if state == Subscription.State.ACTIVE),
    )


def change(subscriber_id: int, choice: Choice, *, origin: Origin, now: datetime) -> bool:
    """Carry a choice out and keep proof of each part. True if anything changed. Raises UnknownSubscriber."""
    with transaction.atomic():
        subscriber = Subscriber.objects.select_for_update().filter(pk=subscriber_id).first()
        if subscriber is None:
            raise UnknownSubscriber
        allowed = {each.pk for each in load(subscriber_id).lists}
        changed = _change_person(subscriber, choice, origin, now)
        for list_id in allowed:
            if list_id in choice.lists:
                changed |= _join(subscriber, list_id, origin, now)
            else:
                changed |= _leave(subscriber, list_id, origin, now)
        if changed:
            for pk in subscriber.subscriptions.values_list("pk", flat=True):
                engagement.record_action(pk, now)
    return changed


def languages(subscriber: Subscriber) -> list[tuple[str, str]]:
    """Languages to choose from: those of the site and of its lists, each in its own name."""
    codes: Iterable[str] = {code for code, _name in settings.LANGUAGES}
    codes = {*codes, *List.objects.values_list("language", flat=True), subscriber.language} - {""}
    return sorted((code, _language_name(code)) for code in codes)


def _language_name(code: str) -> str:
    try:
        return str(get_language_info(code)["name_local"]).capitalize()
    except KeyError:
        return code


def _change_person(subscriber: Subscriber, choice: Choice, origin: Origin, now: datetime) -> bool:
    wanted = {"name": choice.name, "language": choice.language, "tracking_consent": choice.tracking_consent}
    different = {field: value for field, value in wanted.items() if getattr(subscriber, field) != value}
    if not different:
        return False
    Subscriber.objects.filter(pk=subscriber.pk).update(**different)
    if "tracking_consent" in different:
        consent = TrackingConsent(choice.tracking_consent)
        told = f"{consent.label}: {TOLD_TRACKING[consent]}"
        _record(ConsentRecord.Kind.TRACKING, told, subscriber=subscriber, newsletter=None, origin=origin, now=now)
        engagement.forget(subscriber.pk, consent=choice.tracking_consent)
    return True


def _join(subscriber: Subscriber, list_id: int, origin: Origin, now: datetime) -> bool:
    """The link came to the person's own mailbox, so no second confirmation is asked for."""
    _made, is_new = Subscription.objects.get_or_create(
        list_id=list_id,
        subscriber=subscriber,
        defaults={"state": Subscription.State.ACTIVE, "state_since": now, "source": origin.source, "created_at": now},
    )
    moved = (
        Subscription.objects.filter(list_id=list_id, subscriber=subscriber)
        .exclude(state=Subscription.State.ACTIVE)
        .update(state=Subscription.State.ACTIVE, state_since=now, requested_at=None, unsubscribed_by=None)
    )
    if not (is_new or moved):
        return False
    newsletter = List.objects.get(pk=list_id)
    told = newsletter.consent_text
    _record(ConsentRecord.Kind.CONFIRMED, told, subscriber=subscriber, newsletter=newsletter, origin=origin, now=now)
    return True


def _leave(subscriber: Subscriber, list_id: int, origin: Origin, now: datetime) -> bool:
    if not Subscription.objects.filter(
        list_id=list_id, subscriber=subscriber, state=Subscription.State.ACTIVE
    ).exists():
        return False
    return unsubscribing.unsubscribe(
        list_id=list_id,
        subscriber_id=subscriber.pk,
        # Only the list that the mail came from is this campaign's loss.
        campaign_id=origin.campaign_id if _is_list_of(origin.campaign_id, list_id) else None,
        source=origin.source,
        network=origin.network,
        now=now,
    )


def _is_list_of(campaign_id: int | None, list_id: int) -> bool:
    return campaign_id is not None and unsubscribing.list_of_campaign(campaign_id) == list_id


def _record(
    kind: str, told: str, *, subscriber: Subscriber, newsletter: List | None, origin: Origin, now: datetime
) -> None:
    ConsentRecord.objects.create(
        subscriber=subscriber,
        list=newsletter,
        kind=kind,
        text=told,
        source=origin.source,
        network=origin.network,
        at=now,
    )
