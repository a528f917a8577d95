"""The providers' words, which stop here: their webhooks, their events, what they say of the client."""

from collections.abc import Mapping
from typing import Any

from anymail.signals import AnymailTrackingEvent, EventType
from django.urls import URLPattern, path
from django.utils.module_loading import import_string

from tracking import verdicts
from tracking.models import EventKind

# A provider's URL exists only where the secret that authenticates it is set: its own, or Anymail's shared password.
SHARED = "WEBHOOK_SECRET"
WEBHOOKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "amazon_ses": ("amazon_ses.AmazonSESTrackingWebhookView", (SHARED,)),
    "brevo": ("brevo.BrevoTrackingWebhookView", (SHARED,)),
    "mailersend": ("mailersend.MailerSendTrackingWebhookView", ("MAILERSEND_SIGNING_SECRET",)),
    "mailgun": ("mailgun.MailgunTrackingWebhookView", ("MAILGUN_WEBHOOK_SIGNING_KEY",)),
    "mailjet": ("mailjet.MailjetTrackingWebhookView", (SHARED,)),
    "mailtrap": ("mailtrap.MailtrapTrackingWebhookView", ("MAILTRAP_TRACKING_SECRET", SHARED)),
    "mandrill": ("mandrill.MandrillCombinedWebhookView", ("MANDRILL_WEBHOOK_KEY",)),
    "postal": ("postal.PostalTrackingWebhookView", ("POSTAL_WEBHOOK_KEY",)),
    "postmark": ("postmark.PostmarkTrackingWebhookView", (SHARED,)),
    "resend": ("resend.ResendTrackingWebhookView", ("RESEND_SIGNING_SECRET", SHARED)),
    "sendgrid": ("sendgrid.SendGridTrackingWebhookView", ("SENDGRID_TRACKING_WEBHOOK_VERIFICATION_KEY", SHARED)),
    "sparkpost": ("sparkpost.SparkPostTrackingWebhookView", (SHARED,)),
    "unisender_go": ("unisender_go.UnisenderGoTrackingWebhookView", ("UNISENDER_GO_API_KEY",)),
}

# Provider words stop here. What is not in the map is of no concern (queued, sent, subscribed, …).
KINDS: dict[str, EventKind] = {
    EventType.DELIVERED: EventKind.DELIVERED,
    EventType.DEFERRED: EventKind.DEFERRED,
    EventType.BOUNCED: EventKind.BOUNCE,
    EventType.REJECTED: EventKind.BOUNCE,
    EventType.FAILED: EventKind.BOUNCE,
    EventType.COMPLAINED: EventKind.COMPLAINT,
    EventType.UNSUBSCRIBED: EventKind.UNSUBSCRIBE,
    EventType.OPENED: EventKind.OPEN,
    EventType.CLICKED: EventKind.CLICK,
}


def webhook_patterns(anymail: Mapping[str, Any]) -> list[URLPattern]:
    """The webhook URLs of the providers that can prove who they are, under these ANYMAIL settings."""
    return [
        path(f"webhooks/{name}/tracking/", import_string(f"anymail.webhooks.{view}").as_view(), name=f"webhook-{name}")
        for name, (view, secrets) in WEBHOOKS.items()
        if any(anymail.get(secret) for secret in secrets)
    ]


# Brevo reports what Apple and Gmail's proxies prefetched under names of its own, which Anymail folds into "opened".
_BREVO_PROXY_OPENS = frozenset({"proxy_open", "unique_proxy_open"})
_MAILGUN_BOTS = {"apple": verdicts.FLAG_APPLE, "gmail": verdicts.FLAG_IMAGE_PROXY, "generic": verdicts.FLAG_MACHINE}


def machine_flags(raw: Any) -> list[str]:
    """What a provider says about the client, in our words; Anymail has no field for it."""
    if not isinstance(raw, Mapping):
        return []
    client = _inside(raw, "event-data", "client-info")
    found = set()
    if isinstance(client, Mapping) and client.get("bot"):
        found.add(_MAILGUN_BOTS.get(str(client["bot"]), verdicts.FLAG_MACHINE))
    if raw.get("sg_machine_open") in (True, "true"):
        found.add(verdicts.FLAG_APPLE)
    if raw.get("event") in _BREVO_PROXY_OPENS:
        found.add(verdicts.FLAG_MACHINE)
    if _inside(raw, "msys", "track_event", "user_agent_parsed", "is_prefetched") is True:
        found.add(verdicts.FLAG_MACHINE)
    return sorted(found)


def status_of(event: AnymailTrackingEvent) -> str:
    """The enhanced code where a provider gives it apart (Mailgun)."""
    return str(_inside(event.esp_event, "event-data", "delivery-status", "enhanced-code") or "")


def _inside(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
