"""A compiled mail for the tests of mailing."""

from pathlib import Path
from typing import Any

from newsletter.mailing.compiling import Compiled, Source, compile_source
from newsletter.mailing.headers import list_id
from newsletter.mailing.personalizing import Addresses, Personalizer, Recipient
from newsletter.mailing.tokens import DeliveryKey, Keyring

LETTER = (Path(__file__).parents[3] / "templates" / "mail" / "letter.mjml").read_text(encoding="utf-8")
PLAIN = "<mjml><mj-body><mj-section><mj-column>{{ content }}</mj-column></mj-section></mj-body></mjml>"
RING = Keyring.parse(["1:secret"])
SITE = Addresses("https://news.shed.example", "https://t.shed.example")
CONSTANTS = {
    "list_name": "The Potting Shed",
    "sender_name": "Ann & Co",
    "postal_address": "1 Garden Row, Bath",
    "language": "en",
}


HEADERS = {
    "sender_name": "Ann & Co",
    "sender_email": "ann@shed.example",
    "reply_to": "",
    "list_id": list_id("The Potting Shed", "garden", "shed.example").decode(),
    "feedback_id": "1:garden:issue:1",
    "verp": "1",
}


def source(body: str = "Hello", *, subject: str = "News", layout: str = PLAIN, **more: Any) -> Source:
    return Source(subject=subject, body=body, layout=layout, constants=CONSTANTS, **more)


def compiled(body: str = "Hello", **more: Any) -> Compiled:
    return compile_source(source(body, **more), headers=HEADERS)


def personalizer(mail: Compiled) -> Personalizer:
    return Personalizer(mail, keyring=RING, addresses=SITE, mail_from="bounce@shed.example", boundary="=_nl-1")


def person(**more: Any) -> Recipient:
    return Recipient(**{"key": DeliveryKey(1, 2), "email": "ada@mail.example", "name": "Ada Green", **more})
