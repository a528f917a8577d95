"""The compiled revision: what was frozen is what every worker, retry, preview and web version uses."""

import re
from collections.abc import Callable
from datetime import timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from campaigns import archive, composing, preflight, scheduling
from campaigns.errors import Busy
from campaigns.models import Campaign, CampaignState, CompiledRevision, MailTemplate
from newsletter.mailing import sandbox
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, delivery_tokens
from subscribers.models import List, Subscriber
from tests.conftest import NOW

pytestmark = pytest.mark.django_db


@pytest.fixture
def ada(garden: List, subscribe: Callable[..., list[Subscriber]]) -> Subscriber:
    return subscribe(garden, 1, name="Ada Green")[0]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    composing.frozen.cache_clear()


def test_each_attempt_by_any_worker_is_the_same_bytes(ada: Subscriber, launched: Callable[..., Campaign]) -> None:
    campaign = launched()
    recipient = composing.recipient_of(ada, campaign.pk)
    first = composing.revision(campaign.pk).message(recipient)
    composing.frozen.cache_clear()  # another worker
    again = composing.revision(campaign.pk).message(recipient)
    assert first == again
    mail = message_from_bytes(first.content, policy=policy.SMTP)
    assert mail["Date"] == NOW.strftime("%a, %d %b %Y %H:%M:%S +0000")
    message_id = delivery_tokens(keyring(), DeliveryKey(campaign.pk, ada.pk)).message_id
    assert str(mail["Message-ID"]).startswith(f"<{message_id}@")


def test_a_key_that_is_rotated_in_mid_campaign_changes_no_retry(
    ada: Subscriber, launched: Callable[..., Campaign], settings: Any
) -> None:
    campaign = launched()
    recipient = composing.recipient_of(ada, campaign.pk)
    first = composing.revision(campaign.pk).message(recipient)
    settings.TOKEN_KEYS = ["77:a-newer-secret", *settings.TOKEN_KEYS]
    keyring.cache_clear()
    composing.frozen.cache_clear()
    try:
        assert keyring().current[0] == 77
        assert composing.revision(campaign.pk).message(recipient) == first
    finally:
        keyring.cache_clear()


def test_what_is_edited_after_the_freeze_reaches_nobody(
    ada: Subscriber, launched: Callable[..., Campaign], admin_client: Client
) -> None:
    campaign = launched()
    before = composing.revision(campaign.pk).message(composing.recipient_of(ada, campaign.pk))
    composing.frozen.cache_clear()
    Campaign.objects.filter(pk=campaign.pk).update(body="Something else", subject="Another")
    MailTemplate.objects.update(mjml="<mjml></mjml>")
    campaign.refresh_from_db()

    after = composing.revision(campaign.pk).message(composing.recipient_of(ada, campaign.pk))
    token = delivery_tokens(keyring(), DeliveryKey(campaign.pk, ada.pk)).control
    web, preview = archive.web_version(token), composing.preview(campaign, subscriber_id=ada.pk)

    assert before == after
    assert web.subject == preview.subject == "Rain at last"
    for page in (web.html, preview.html):
        assert "Hello Ada" in page
        assert "Something else" not in page
    shown = admin_client.get(reverse("admin:campaigns_campaign_mail", args=[campaign.pk])).content.decode()
    assert "Hello Robin" in shown
    # A person's values are as they are when a mail is made.
    Subscriber.objects.filter(pk=ada.pk).update(name="Ada Lovelace")
    ada.refresh_from_db()
    assert b"Ada Lovelace" in composing.revision(campaign.pk).message(composing.recipient_of(ada, campaign.pk)).content


def test_a_page_that_may_be_forwarded_lets_nobody_unsubscribe_the_reader(
    ada: Subscriber, launched: Callable[..., Campaign]
) -> None:
    body = "{% if name %}[Leave]({{ unsubscribe_url }}), [settings]({{ preferences_url }}){% endif %}"
    campaign = launched(body=body)
    token = delivery_tokens(keyring(), DeliveryKey(campaign.pk, ada.pk)).control
    web = archive.web_version(token)
    assert "Leave" in web.html
    assert token not in web.html
    assert token not in web.text
    sent = composing.revision(campaign.pk).rendered(composing.recipient_of(ada, campaign.pk))
    assert sent.html.count(f"/u/{token}") == 2, "in the mail it leads there, in the text and in the footer"


def test_there_is_one_revision_with_the_links_that_readers_are_sent(
    ada: Subscriber, launched: Callable[..., Campaign]
) -> None:
    campaign = launched()
    revision = CompiledRevision.objects.get(campaign=campaign)
    assert revision.content["links"] == list(campaign.links.order_by("index").values_list("url", flat=True))
    message = composing.revision(campaign.pk).message(composing.recipient_of(ada, campaign.pk))
    part = message_from_bytes(message.content, policy=policy.SMTP).get_body(("html",))
    assert part
    page = part.get_content()
    assert {int(index) for index in re.findall(r"/c/[\w-]{28}/(\d+)\"", page)} == {0, 1}


def test_a_campaign_that_only_some_can_be_sent_is_refused_before(
    draft: Callable[..., Campaign], ada: Subscriber
) -> None:
    campaign = draft(body="{{ 1 | divided_by: share }} {{ unsubscribe_url }}")
    sentences = preflight.blockers(preflight.check(campaign))
    assert any("A merge tag cannot be filled in: divided_by" in sentence for sentence in sentences)
    for_strangers = draft(body="{% if name == '' %}{{ 1 | divided_by: 0 }}{% endif %} {{ unsubscribe_url }}")
    sentences = preflight.blockers(preflight.check(for_strangers))
    assert any("For a reader of whom only the address is known" in sentence for sentence in sentences)


def test_a_machine_that_is_too_busy_to_look_leaves_the_campaign_scheduled(
    draft: Callable[..., Campaign], ada: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = draft()
    scheduling.schedule(campaign.pk, NOW, now=NOW)
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "WALL_SECONDS", 0.0)  # no answer comes so soon
        with pytest.raises(Busy, match="too busy"):
            composing.compile_campaign(campaign)
        assert not scheduling.launch(campaign.pk, now=NOW)
    campaign.refresh_from_db()
    assert campaign.state == CampaignState.SCHEDULED
    assert scheduling.launch(campaign.pk, now=NOW + timedelta(minutes=1))
