"""From a campaign to a compiled mail, a preview of it, and a test copy."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.contrib.auth.models import User
from django.db import connection

from campaigns import retargeting
from campaigns.errors import Busy, CampaignError
from campaigns.models import Campaign, CompiledRevision, Link, MailTemplate
from newsletter.mailing import compiling, sandbox
from newsletter.mailing.bounds import bounded
from newsletter.mailing.compiling import Compiled, CompileError
from newsletter.mailing.headers import HeaderError, address_domain, list_id, one_line, wire_address
from newsletter.mailing.keys import keyring, signer
from newsletter.mailing.personalizing import Addresses, Personalizer, Recipient
from newsletter.mailing.sandbox import BusyError, RunawayError
from newsletter.mailing.slots import PersonalizeError
from newsletter.mailing.tokens import DeliveryKey
from newsletter.mailing.transports import transport
from newsletter.mailing.transports.base import Result, TransportError
from subscribers.models import List, Subscriber, TrackingConsent

DEFAULT_LAYOUT = "letter"
LAYOUTS = Path(settings.BASE_DIR) / "templates" / "mail"
LINE_LIMIT = 250  # characters of a subject or preheader, as the model keeps them
SAMPLE_FIELDS = 1_000  # subscribers whose attribute names are looked at

# The attribute names that people of a list have, from a sample: a warning needs no exact answer.
FIELD_NAMES = """
SELECT DISTINCT jsonb_object_keys(attributes) FROM (
    SELECT attributes FROM subscribers_subscriber AS subscriber
    JOIN subscribers_subscription AS subscription ON subscription.subscriber_id = subscriber.id
    WHERE subscription.list_id = %s LIMIT %s
) AS sample
"""


@dataclass(frozen=True)
class Preview:
    """A mail as one recipient would see it. Links lead where they lead, untracked; nothing counts."""

    subject: str
    preheader: str
    html: str
    text: str
    warnings: list[str]


def create(
    *,
    list: List,
    subject: str,
    body: str,
    preheader: str = "",
    layout: MailTemplate | None = None,
    format: str = Campaign.Format.MARKDOWN,
    created_by: User | None = None,
) -> Campaign:
    """A new draft. Raises CampaignError when subject or text cannot be kept."""
    subject, preheader = one_line(subject), one_line(preheader)
    for what, text in (("subject", subject), ("preheader", preheader)):
        if len(text) > LINE_LIMIT:
            raise CampaignError(f"The {what} is longer than {LINE_LIMIT} characters.")
    if "\0" in body:
        raise CampaignError("The text holds a NUL character, so it is no text.")
    return Campaign.objects.create(
        list=list,
        subject=subject,
        body=body,
        preheader=preheader,
        layout=layout or default_layout(),
        format=format,
        created_by=created_by,
    )


def default_layout() -> MailTemplate:
    """The layout that comes with the product, as an editor may have changed it."""
    layout, _ = MailTemplate.objects.get_or_create(
        slug=DEFAULT_LAYOUT,
        defaults={"name": "Letter", "mjml": (LAYOUTS / f"{DEFAULT_LAYOUT}.mjml").read_text(encoding="utf-8")},
    )
    return layout


def compile_campaign(campaign: Campaign, *, layout_mjml: str | None = None, now: datetime | None = None) -> Compiled:
    """Compile a campaign as it stands (saved or not). Raises CampaignError with a sentence for the editor."""
    sender, of_list = campaign.from_identity, campaign.list
    if layout_mjml is None:
        layout_mjml = (campaign.layout or default_layout()).mjml
    source = compiling.Source(
        subject=campaign.subject,
        preheader=campaign.preheader,
        body=campaign.body,
        layout=layout_mjml,
        constants={
            "list_name": of_list.name,
            "sender_name": sender.name,
            "postal_address": sender.postal_address,
            "language": of_list.language,
        },
        fields=field_names(of_list.pk),
        format=campaign.format,
    )
    try:
        headers = {
            "sender_name": sender.name,
            "sender_email": wire_address(sender.email),
            "reply_to": wire_address(sender.reply_to) if sender.reply_to else "",
            "list_id": list_id(of_list.name, of_list.slug, sender.domain).decode("ascii"),
            "feedback_id": f"{campaign.pk or 0}:{of_list.slug}:issue:{sender.pk or 0}",
            "verp": "1" if settings.BOUNCE_ADDRESS else "",
            # A key that is rotated in mid-campaign must not give a retry another Message-ID.
            "key": str(keyring().current[0]),
        }
        return sandbox.compile_source(source, headers=headers, date=now)
    except BusyError as error:
        raise Busy(str(error)) from error
    except (CompileError, RunawayError, HeaderError) as error:
        raise CampaignError(str(error)) from error


def field_names(list_id: int) -> frozenset[str]:
    """The attribute names that subscribers of this list have."""
    with connection.cursor() as cursor:
        cursor.execute(FIELD_NAMES, [list_id, SAMPLE_FIELDS])
        return frozenset(name for (name,) in cursor.fetchall())


def personalizer(compiled: Compiled, campaign_id: int) -> Personalizer:
    """A compiled mail with this installation's keys and addresses."""
    return Personalizer(
        compiled,
        keyring=keyring().led_by(compiled.headers.get("key", "")),
        addresses=Addresses(settings.SITE_URL, settings.EDGE_URL),
        mail_from=settings.BOUNCE_ADDRESS or compiled.headers["sender_email"],
        boundary=f"=_nl-{campaign_id}",
        sign=signer(address_domain(compiled.headers["sender_email"])),
    )


def revision(campaign_id: int) -> Personalizer:
    """The frozen mail of a campaign, kept by this process, with its links as they lead now.

    Raises CampaignError when it was never frozen.
    """
    return frozen(campaign_id, retargeting.version(campaign_id))


@functools.lru_cache(maxsize=16)
def frozen(campaign_id: int, _links_version: int) -> Personalizer:
    """What `revision` keeps, anew for each change of a link. Raises CampaignError."""
    stored = CompiledRevision.objects.filter(campaign_id=campaign_id).order_by("pk").last()
    if stored is None:
        raise CampaignError("This campaign has not been sent yet.")
    compiled = Compiled.from_json(stored.content)
    for index, url in Link.objects.filter(campaign_id=campaign_id).values_list("index", "url"):
        compiled.links[index] = url
    return personalizer(compiled, campaign_id)


def sample_recipient(campaign_id: int, subscriber: Subscriber | None) -> Recipient:
    """A person to show a mail to; a made-up one where none is named."""
    if subscriber is None:
        return Recipient(DeliveryKey(campaign_id, 0), "reader@example.org", "Robin Reader", "en", {}, is_tracked=False)
    return Recipient(
        DeliveryKey(campaign_id, subscriber.pk),
        subscriber.email,
        subscriber.name,
        subscriber.language,
        bounded(subscriber.attributes),
        is_tracked=False,
    )


def recipient_of(subscriber: Subscriber, campaign_id: int) -> Recipient:
    """A subscriber as a recipient, tracked as they agreed to."""
    return Recipient(
        DeliveryKey(campaign_id, subscriber.pk),
        subscriber.email,
        subscriber.name,
        subscriber.language,
        bounded(subscriber.attributes),
        is_tracked=subscriber.tracking_consent != TrackingConsent.NONE,
    )


def preview(campaign: Campaign, *, subscriber_id: int | None = None, layout_mjml: str | None = None) -> Preview:
    """What a subscriber (or a made-up reader) would see or was sent. Raises CampaignError with a sentence."""
    compiled = _as_sent(campaign) or compile_campaign(campaign, layout_mjml=layout_mjml)
    subscriber = Subscriber.objects.filter(pk=subscriber_id).first() if subscriber_id else None
    return preview_of(compiled, campaign, subscriber)


def _as_sent(campaign: Campaign) -> Compiled | None:
    """What a campaign that has left is sent by; None while it can still be changed."""
    if campaign.pk is None or campaign.started_at is None:
        return None
    try:
        return revision(campaign.pk).compiled
    except CampaignError:  # brought from another platform
        return None


def preview_of(compiled: Compiled, campaign: Campaign, subscriber: Subscriber | None) -> Preview:
    """A compiled mail as a person would see it. Raises CampaignError with a sentence for the editor."""
    shown = _shown(compiled, [sample_recipient(campaign.pk or 0, subscriber)])[0]
    return Preview(shown.subject, shown.preheader, shown.html, shown.text, [*compiled.warnings, *compiled.notes])


def check_for_a_stranger(compiled: Compiled, campaign: Campaign) -> None:
    """Fill a mail in for somebody of whom nothing but the address is known. Raises CampaignError if that fails."""
    stranger = Recipient(DeliveryKey(campaign.pk or 0, 0), "reader@example.org", is_tracked=False)
    try:
        _shown(compiled, [stranger])
    except Busy:
        raise
    except CampaignError as error:
        raise CampaignError(f"For a reader of whom only the address is known: {error}") from error


def _shown(compiled: Compiled, recipients: Sequence[Recipient]) -> list[sandbox.Shown]:
    """A mail filled in for some people by a child process. Raises CampaignError."""
    try:
        return sandbox.render(compiled, recipients, addresses=Addresses(settings.SITE_URL, settings.EDGE_URL))
    except BusyError as error:
        raise Busy(str(error)) from error
    except (CompileError, PersonalizeError, RunawayError) as error:
        raise CampaignError(str(error)) from error


def send_test(campaign_id: int, addresses: Sequence[str]) -> None:
    """Send the campaign as it stands to a few addresses, marked as a test and counted nowhere. Raises CampaignError."""
    campaign = Campaign.objects.select_related("list__sender", "layout", "sender").get(pk=campaign_id)
    compiled = compile_campaign(campaign)
    compiled.subject.insert(0, "[Test] ")
    known = {person.email_key: person for person in Subscriber.objects.filter(email_key__in=map(str.lower, addresses))}
    people = [known.get(address.lower()) or Subscriber(pk=0, email=address, language="") for address in addresses]
    recipients = [sample_recipient(0, person) for person in people]
    _shown(compiled, recipients)  # what runs away does so in a child, before it is sent from here
    until = datetime.now(UTC) + timedelta(seconds=30)
    try:
        reports = [*transport().deliver(personalizer(compiled, 0), recipients, until=lambda: until)]
    except TransportError as error:
        raise CampaignError(str(error)) from error
    refused = [report for report in reports if report.result is not Result.ACCEPTED]
    if refused:
        raise CampaignError(f"{len(refused)} of {len(reports)} test mails were not accepted: {refused[0].text}")
