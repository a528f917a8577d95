"""What the subscribers' tests share: people with a mail in their hands, and the public pages as a client sees them."""

from dataclasses import dataclass
from email.message import Message
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import pytest
from django.test import Client

from campaigns.models import Campaign
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, delivery_tokens
from subscribers.models import List, Subscriber, Subscription


@dataclass(frozen=True)
class Reader:
    """A person on a list who got a campaign's mail; `token` is the one of its unsubscribe link."""

    subscriber: Subscriber
    subscription: Subscription
    campaign: Campaign
    token: str

    @property
    def state(self) -> str:
        self.subscription.refresh_from_db()
        return self.subscription.state

    @property
    def proofs(self) -> list[str]:
        """The kinds of what was written down about this person, in order."""
        return [record.kind for record in self.subscriber.consents.all()]


@pytest.fixture
def reader(garden: List) -> Reader:
    """Ann, active on the garden list, with an issue of it in her mailbox."""
    ann = Subscriber.objects.create(email="ann@mail.example", email_key="ann@mail.example", name="Ann")
    subscription = Subscription.objects.create(list=garden, subscriber=ann, state=Subscription.State.ACTIVE)
    campaign = Campaign.objects.create(list=garden, subject="Rain at last", body="It rains.")
    return Reader(ann, subscription, campaign, control_token(campaign.pk, ann.pk))


def control_token(campaign_id: int, subscriber_id: int) -> str:
    return delivery_tokens(keyring(), DeliveryKey(campaign_id, subscriber_id)).control


@pytest.fixture
def browser_client() -> Client:
    """A client that checks CSRF as a browser would meet it, and that lets errors of the server through as a 500."""
    return Client(enforce_csrf_checks=True, raise_request_exception=False)


@dataclass(frozen=True)
class Answer:
    """What a server said over the wire."""

    status: int
    headers: Message
    text: str


class _NoRedirect(HTTPRedirectHandler):
    def redirect_request(self, *args: object, **kwargs: object) -> None:
        """A redirect is an answer to look at, like any other."""


def fetch(url: str, *, body: bytes | None = None, content_type: str = "application/x-www-form-urlencoded") -> Answer:
    """One real HTTP request, without cookies; a POST if there is a body. Redirects are not followed."""
    request = Request(url, data=body, headers={"Content-Type": content_type} if body is not None else {})
    try:
        with build_opener(_NoRedirect).open(request, timeout=10) as response:
            return Answer(response.status, response.headers, response.read().decode())
    except HTTPError as error:
        return Answer(error.code, error.headers, error.read().decode())
