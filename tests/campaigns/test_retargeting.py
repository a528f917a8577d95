"""A link's target changed after sending: validated, kept with its history, followed by what has not left yet."""

from collections.abc import Callable

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client

from campaigns import archive, composing, retargeting
from campaigns.errors import CampaignError
from campaigns.models import Batch, Campaign, FormerTarget, Link
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import DeliveryKey, delivery_tokens
from subscribers.models import AuditEntry, List, Subscriber, TrackingConsent
from tests.campaigns.batches import send
from tests.campaigns.test_admin_composing import page, said
from tests.conftest import NOW, MailServer

pytestmark = pytest.mark.django_db(transaction=True)

WAS, NEW = "https://almanac.example/", "https://almanac.example/2027?a=1&b=2"


@pytest.fixture
def people(garden: List, subscribe: Callable[..., list[Subscriber]]) -> list[Subscriber]:
    return subscribe(garden, 3)


@pytest.fixture
def campaign(people: list[Subscriber], launched: Callable[..., Campaign]) -> Campaign:
    return launched()


@pytest.fixture
def index(campaign: Campaign) -> int:
    return Link.objects.get(campaign=campaign, url=WAS).index


def change(campaign: Campaign, index: int, url: str = NEW, shown: str = WAS) -> None:
    retargeting.retarget(campaign.pk, index, url, shown=shown, actor="ada", now=NOW)


def test_the_old_target_stays_in_the_history(campaign: Campaign, index: int) -> None:
    told: list[int] = []
    retargeting.on_retargeted.append(told.append)
    try:
        change(campaign, index, f"  {NEW} ")
    finally:
        retargeting.on_retargeted.remove(told.append)
    assert Link.objects.get(campaign=campaign, index=index).url == NEW
    former = FormerTarget.objects.get(link__campaign=campaign)
    assert (former.url, former.until, former.changed_by) == (WAS, NOW, "ada")
    assert AuditEntry.objects.get(action="campaign.retarget").details == {"link": index, "from": WAS, "to": NEW}
    assert told == [campaign.pk]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "begins with https"),
        ("javascript:alert(1)", "begins with https"),
        ("ftp://almanac.example/", "begins with https"),
        ("https://almanac.example/\r\nSet-Cookie: a=b", "begins with https"),
        ("https://almanac.example/{{ name }}", "merge tag"),
        ("https://almanac.example/" + "a" * 2_000, "longer than 2,000"),
        (WAS, "leads there already"),
    ],
)
def test_what_is_no_target_is_refused_in_a_sentence(campaign: Campaign, index: int, url: str, sentence: str) -> None:
    with pytest.raises(CampaignError, match=sentence):
        change(campaign, index, url)
    assert Link.objects.get(campaign=campaign, index=index).url == WAS


def test_two_editors_do_not_undo_each_other_unseen(campaign: Campaign, index: int) -> None:
    change(campaign, index)
    with pytest.raises(CampaignError, match="somebody else has just let this link lead to"):
        change(campaign, index, "https://third.example/")
    with pytest.raises(CampaignError, match="no such link"):
        change(campaign, 99)
    assert FormerTarget.objects.count() == 1


def test_mails_that_have_not_left_and_web_versions_follow(
    campaign: Campaign, index: int, people: list[Subscriber], mail_server: MailServer
) -> None:
    Subscriber.objects.filter(pk=people[0].pk).update(tracking_consent=TrackingConsent.NONE)
    composing.revision(campaign.pk)  # this process keeps the mail already
    change(campaign, index)
    send(Batch.objects.get(campaign=campaign), mail_server)
    by_address = {message["To"]: message for message in mail_server.messages}
    text = by_address[people[0].email].get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert NEW in text
    token = delivery_tokens(keyring(), DeliveryKey(campaign.pk, people[1].pk)).control
    assert NEW in archive.web_version(token).text


def test_the_report_changes_it_and_shows_where_it_led(admin_client: Client, campaign: Campaign, index: int) -> None:
    address = page("retarget", campaign.pk, index)
    assert address in admin_client.get(page("report", campaign.pk)).content.decode()
    response = admin_client.post(address, {"url": NEW, "shown": WAS}, follow=True)
    assert f"From now on this link leads to {NEW}." in said(response)
    html = " ".join(response.content.decode().split())
    assert f"{WAS} (changed by admin)" in html
    refused = admin_client.post(address, {"url": "javascript:alert(1)", "shown": NEW}, follow=True)
    assert "begins with https" in said(refused)


def test_who_may_not_send_changes_no_link(client: Client, campaign: Campaign, index: int) -> None:
    user = User.objects.create_user("author", "author@shed.example", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["change_campaign", "view_campaign"]))
    client.force_login(user)
    address = page("retarget", campaign.pk, index)
    assert address not in client.get(page("report", campaign.pk)).content.decode()
    assert client.post(address, {"url": NEW, "shown": WAS}).status_code == 403
