"""The composer over HTTP: what is saved, what is refused, what the preview says; and the layouts beside it."""

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse

from campaigns import composing
from campaigns.admin.forms import fingerprint
from campaigns.models import Campaign, CampaignState, MailTemplate
from subscribers.models import List, Subscriber
from tests.conftest import MailServer

pytestmark = pytest.mark.django_db

Draft = Callable[..., Campaign]


def page(name: str, *arguments: Any) -> str:
    return reverse(f"admin:campaigns_campaign_{name}", args=arguments)


def typed(campaign: Campaign, **changes: Any) -> dict[str, Any]:
    """What the composer's form sends for a campaign."""
    fields = {
        "list": campaign.list_id,
        "sender": campaign.sender_id or "",
        "layout": campaign.layout_id or "",
        "subject": campaign.subject,
        "preheader": campaign.preheader,
        "format": campaign.format,
        "body": campaign.body,
        "loaded": fingerprint(campaign) if campaign.pk else "",
    }
    return {**fields, **changes}


def said(response: Any) -> str:
    """The sentences that the next page shows."""
    return " ".join(str(message) for message in response.context["messages"])


@pytest.fixture
def author(client: Client) -> Client:
    """Somebody who may write campaigns but not let mail go out."""
    user = User.objects.create_user("author", "author@shed.example", is_staff=True)
    names = ["add_campaign", "change_campaign", "view_campaign"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client.force_login(user)
    return client


def test_a_new_campaign_is_saved_as_a_draft_of_whoever_wrote_it(admin_client: Client, garden: List) -> None:
    assert admin_client.get(page("add")).status_code == 200
    new = Campaign(list=garden, subject="  Rain\tat last ", body="It rains.")

    response = admin_client.post(page("add"), typed(new, _save="1"), follow=True)

    campaign = Campaign.objects.get()
    assert response.redirect_chain[-1][0] == page("change", campaign.pk)
    assert (campaign.subject, campaign.state) == ("Rain at last", CampaignState.DRAFT)
    assert campaign.created_by is not None
    assert campaign.created_by.username == "admin"


def test_a_draft_opens_with_its_preview_and_checklist_even_without_scripts(admin_client: Client, draft: Draft) -> None:
    html = admin_client.get(page("change", draft().pk)).content.decode()
    assert 'sandbox=""' in html
    assert "Content-Security-Policy" in html
    assert "Hello Robin" in html
    assert "Nobody on this list can be mailed." in html


def test_a_draft_without_a_subject_is_not_saved_and_keeps_its_text(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    response = admin_client.post(page("change", campaign.pk), typed(campaign, subject="", body="new words", _save="1"))
    assert response.status_code == 200
    assert "This field is required." in response.content.decode()
    assert "new words" in response.content.decode()
    campaign.refresh_from_db()
    assert campaign.body != "new words"


def test_a_colleagues_version_is_not_overwritten_in_silence(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    mine = typed(campaign, body="my words", _save="1")
    Campaign.objects.filter(pk=campaign.pk).update(body="a colleague's words")

    first = admin_client.post(page("change", campaign.pk), mine)

    assert "Somebody else has saved this campaign" in first.content.decode()
    campaign.refresh_from_db()
    assert campaign.body == "a colleague's words"
    again = {**mine, "loaded": first.context["adminform"].form["loaded"].value()}
    admin_client.post(page("change", campaign.pk), again)
    campaign.refresh_from_db()
    assert campaign.body == "my words"


@pytest.mark.parametrize("state", [state for state in CampaignState if state != CampaignState.DRAFT])
def test_what_is_no_draft_any_more_can_be_read_but_not_changed(
    admin_client: Client, draft: Draft, state: CampaignState
) -> None:
    campaign = draft()
    Campaign.objects.filter(pk=campaign.pk).update(state=state)

    opened = admin_client.get(page("change", campaign.pk), follow=True)
    saved = admin_client.post(page("change", campaign.pk), typed(campaign, body="too late", _save="1"))
    deleted = admin_client.post(reverse("admin:campaigns_campaign_delete", args=[campaign.pk]), {"post": "yes"})

    assert opened.redirect_chain[-1][0] in {page("mail", campaign.pk), page("report", campaign.pk)}
    assert "no longer a draft" in saved.content.decode()
    assert "too late" in saved.content.decode()
    assert deleted.status_code == 403
    campaign.refresh_from_db()
    assert (campaign.state, campaign.body == "too late") == (state, False)


def test_a_draft_can_be_deleted(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    admin_client.post(page("delete", campaign.pk), {"post": "yes"})
    assert not Campaign.objects.exists()


def test_merge_tags_work_in_the_preheader_of_the_preview_too(admin_client: Client, draft: Draft) -> None:
    shown = admin_client.post(page("preview"), typed(draft(), preheader="For {{ name | upcase }}")).json()
    assert shown["preheader"] == "For ROBIN READER"


def test_the_preview_shows_what_is_typed_and_stores_nothing(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    shown = admin_client.post(page("preview"), typed(campaign, subject="Sun again", body="The **sun** is out.")).json()
    assert shown["subject"] == "Sun again"
    assert "<strong>sun</strong>" in shown["document"]
    assert "The sun is out." in shown["text"]
    campaign.refresh_from_db()
    assert campaign.subject != "Sun again"


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("mjml", "<mj-text>Hello <b>{{ first_name }}</b></mj-text>", "Hello <b>Robin</b>"),
        ("mjml", "<mjml><mj-body><mj-section></mj-section></mj-body></mjml>", "mj-outlook"),
        ("html", "<style>p { color: red }</style><p>Hello {{ first_name }}", '<p style="color: red;">Hello Robin'),
    ],
)
def test_the_three_ways_of_writing_are_previewed_and_saved(
    admin_client: Client, draft: Draft, kind: str, body: str, words: str
) -> None:
    campaign = draft()
    written = typed(campaign, format=kind, body=body)
    assert words in admin_client.post(page("preview"), written).json()["document"]
    admin_client.post(page("change", campaign.pk), {**written, "_save": "1"})
    campaign.refresh_from_db()
    assert (campaign.format, campaign.body) == (kind, body)
    copied = admin_client.post(page("copy", campaign.pk), follow=True)
    assert f'value="{kind}" id="id_format_{["markdown", "mjml", "html"].index(kind)}" checked' in _compact(copied)


def _compact(response: Any) -> str:
    return " ".join(response.content.decode().replace('class="nl-input"', "").split())


def test_changing_the_way_of_writing_keeps_the_text_and_says_what_is_wrong(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    as_mjml = typed(campaign, format="mjml")
    shown = admin_client.post(page("preview"), as_mjml).json()
    assert shown == {
        "error": "The text is not valid MJML (line 1): a text stands outside of MJML’s blocks, put it into <mj-text>."
    }
    saved = admin_client.post(page("change", campaign.pk), {**as_mjml, "_save": "1"}, follow=True)
    assert "a text stands outside of MJML’s blocks" in saved.content.decode()
    body = campaign.body.strip()
    campaign.refresh_from_db()
    assert (campaign.format, campaign.body) == ("mjml", body)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("<!--" * 240_000, "This mail takes more than 2 seconds to compute"),
        ("{{ (1..20000000) | join: '' | size }}", "The range (1..20000000) in the text is too long"),
        ("{% for a in (1..1000) %}" + "{% if a %}{% endif %}" * 400 + "{% endfor %}", "have too much to do"),
    ],
)
def test_a_text_that_runs_away_is_a_sentence_in_preview_and_checklist(
    admin_client: Client, draft: Draft, body: str, sentence: str
) -> None:
    campaign = draft(format="html", body=body)
    assert sentence in admin_client.post(page("preview"), typed(campaign)).json()["error"]
    assert sentence in admin_client.get(page("checks", campaign.pk)).content.decode()


def test_a_text_past_the_limit_is_not_saved_and_not_lost(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    response = admin_client.post(page("change", campaign.pk), typed(campaign, body="x" * 1_000_001, _save="1"))
    assert "The text has 1.0 MB; more than 1 MB cannot become a mail." in response.content.decode()
    assert "x" * 1_000_001 in response.content.decode()


def test_the_preview_is_sealed_and_light_unless_dark_is_asked_for(admin_client: Client, draft: Draft) -> None:
    light = admin_client.post(page("preview"), typed(draft())).json()["document"]
    dark = admin_client.post(page("preview"), typed(draft(), preview_dark="on")).json()["document"]
    for document in (light, dark):
        assert document.index("Content-Security-Policy") < document.lower().index("<html")
        assert "prefers-color-scheme: dark" not in document
    assert light != dark


def test_the_preview_says_in_a_sentence_what_is_wrong(admin_client: Client, draft: Draft) -> None:
    broken = admin_client.post(page("preview"), typed(draft(), body="Hello {{ name")).json()
    assert broken == {"error": "A merge tag in the text is opened with {{ but never closed with }}."}
    homeless = admin_client.post(page("preview"), typed(draft(), list="")).json()
    assert "Choose a list first" in homeless["error"]


def test_the_preview_can_be_a_subscribers(
    admin_client: Client, author: Client, draft: Draft, garden: List, subscribe: Callable[..., list[Subscriber]]
) -> None:
    subscribe(garden, 1, name="Ada Lovelace")
    as_ada = typed(draft(), preview_as="reader0@mail.example")
    found = admin_client.get(page("people"), {"q": "READ"}).json()
    assert found == {"people": [{"email": "reader0@mail.example", "name": "Ada Lovelace"}]}
    assert "Hello Ada" in admin_client.post(page("preview"), as_ada).json()["text"]


def test_who_may_not_see_subscribers_finds_none(author: Client, draft: Draft) -> None:
    assert author.get(page("people"), {"q": "reader"}).status_code == 403
    assert (
        "Hello Robin" in author.post(page("preview"), typed(draft(), preview_as="reader0@mail.example")).json()["text"]
    )


def test_a_test_is_sent_of_what_is_on_the_screen(admin_client: Client, draft: Draft, mail_server: MailServer) -> None:
    campaign = draft()
    button = {"_test": "1", "test_addresses": "ann@shed.example, ben@shed.example"}

    response = admin_client.post(
        page("change", campaign.pk), typed(campaign, subject="Just typed", **button), follow=True
    )

    assert "A test is on its way to ann@shed.example, ben@shed.example." in said(response)
    assert sorted(mail_server.recipients) == ["ann@shed.example", "ben@shed.example"]
    assert {str(message["Subject"]) for message in mail_server.messages} == {"[Test] Just typed"}


@pytest.mark.parametrize(
    ("addresses", "sentence"),
    [
        ("", "Say where the test goes."),
        ("ann@shed.example, ben", "“ben” is not an e-mail address."),
        (" ".join(f"a{i}@shed.example" for i in range(11)), "A test goes to 10 addresses at most."),
    ],
)
def test_a_test_to_nowhere_is_refused_but_the_text_is_saved(
    admin_client: Client, draft: Draft, mail_server: MailServer, addresses: str, sentence: str
) -> None:
    campaign = draft()
    sent = typed(campaign, body="kept", _test="1", test_addresses=addresses)
    assert sentence in said(admin_client.post(page("change", campaign.pk), sent, follow=True))
    campaign.refresh_from_db()
    assert (campaign.body, mail_server.received) == ("kept", [])


def test_a_mail_servers_refusal_of_a_test_is_a_sentence(
    admin_client: Client, draft: Draft, mail_server: MailServer
) -> None:
    mail_server.answers["ann@shed.example"] = "550 5.1.1 no such user"
    sent = typed(draft(), _test="1", test_addresses="ann@shed.example")
    response = admin_client.post(page("change", draft().pk), sent, follow=True)
    assert "1 of 1 test mails were not accepted" in said(response)


def test_an_author_may_write_but_not_even_send_a_test(author: Client, draft: Draft, mail_server: MailServer) -> None:
    campaign = draft()
    assert "_review" not in author.get(page("change", campaign.pk)).content.decode()
    sent = typed(campaign, body="kept", _test="1", test_addresses="ann@shed.example")
    assert "may write campaigns but not send" in said(author.post(page("change", campaign.pk), sent, follow=True))
    campaign.refresh_from_db()
    assert (campaign.body, mail_server.received) == ("kept", [])


def test_a_copy_is_a_new_draft_with_the_same_content(admin_client: Client, launched: Draft, garden: List) -> None:
    with pytest.raises(Exception, match="Nobody"):
        launched()
    source = Campaign.objects.get()
    response = admin_client.post(page("copy", source.pk), follow=True)
    copy = Campaign.objects.exclude(pk=source.pk).get()
    assert response.redirect_chain[-1][0] == page("change", copy.pk)
    assert (copy.subject, copy.body, copy.state) == (source.subject, source.body, CampaignState.DRAFT)


def test_nothing_moves_by_a_get(admin_client: Client, draft: Draft) -> None:
    campaign = draft()
    for name in ("copy", "send", "schedule"):
        assert admin_client.get(page(name, campaign.pk)).status_code == 405
    assert admin_client.get(page("act", campaign.pk, "cancel")).status_code == 405
    assert admin_client.get(page("preview")).status_code == 405


def test_strangers_see_the_login_page(client: Client, draft: Draft) -> None:
    for address in (page("changelist"), page("report", draft().pk), page("people")):
        assert "/login/" in client.get(address)["Location"]


# Layouts ------------------------------------------------------------------------------------------------------


def layout_page(name: str, *arguments: Any) -> str:
    return reverse(f"admin:campaigns_mailtemplate_{name}", args=arguments)


def test_a_layout_is_edited_beside_a_preview_even_before_there_is_a_list(admin_client: Client) -> None:
    layout = composing.default_layout()
    assert "A heading of the mail" in admin_client.get(layout_page("change", layout.pk)).content.decode()
    assert admin_client.get(layout_page("changelist")).status_code == 200
    shown = admin_client.post(layout_page("preview"), {"mjml": layout.mjml}).json()
    assert "A heading of the mail" in shown["document"]


@pytest.mark.parametrize(
    ("mjml", "sentence"),
    [
        ("<mjml>" + "x" * 1_000_001, "The layout has 1.0 MB; more than 1 MB cannot become a mail."),
        ("<mjml><mj-body><mj-section></mj-section></mj-body></mjml>", "The layout has no place for the text"),
        ("<mjml><mj-body>\n<mj-foo /></mj-body></mjml>", "The layout is not valid MJML (line 2): there is no"),
    ],
)
def test_a_layout_says_in_a_sentence_why_it_makes_no_mail(admin_client: Client, mjml: str, sentence: str) -> None:
    layout = composing.default_layout()
    assert sentence in admin_client.post(layout_page("preview"), {"mjml": mjml}).json()["error"]
    fields = {"name": "Letter", "slug": "letter", "mjml": mjml, "_continue": "1"}
    assert sentence in admin_client.post(layout_page("change", layout.pk), fields).content.decode()


def test_a_layout_that_makes_no_mail_is_not_saved(admin_client: Client) -> None:
    layout = composing.default_layout()
    fields = {"name": "Letter", "slug": "letter", "mjml": "<mjml><mj-body>", "_continue": "1"}
    response = admin_client.post(layout_page("change", layout.pk), fields)
    assert "not valid MJML" in response.content.decode()
    assert MailTemplate.objects.get().mjml == layout.mjml
