"""The services' merge rules: one text with placeholders and a person's values become what that person gets.

They are as strict as a service may be: syntax that is not known is an error, and where a service might go about it in
one pass or value by value, both must give the same.
"""

import html
import re
from collections.abc import Callable, Mapping

Values = Mapping[str, str]


class BadCall(Exception):
    """What a service refuses with 400."""


def mailgun(text: str, own: Values) -> str:
    """`%recipient.x%`, a value put in as it is; Mailgun's own tags are filled in before."""
    text = re.sub(r"%(unsubscribe_url|tag_unsubscribe_url|unsubscribe_email)%", "MAILGUN'S OWN", text)
    once = re.sub(r"%recipient\.([\w:-]+)%", lambda found: own.get(found.group(1), found.group()), text)
    one_by_one = text
    for key, value in own.items():
        one_by_one = one_by_one.replace(f"%recipient.{key}%", value)
    assert once == one_by_one, "it must not matter how the service goes about it"
    return once


def sendgrid(text: str, own: Values) -> str:
    """Substitutions by the whole tag, one after the other."""
    for tag, value in own.items():
        text = text.replace(tag, value)
    return text


def brevo(text: str, own: Values) -> str:
    """A template language that escapes unless told otherwise."""
    escapes = True
    written = []
    tokens = re.compile(r"\{\{\s*params\.(\w+)\s*\}\}|\{%\s*autoescape off\s*%\}|\{%\s*endautoescape\s*%\}|\{[{%#]")
    place = 0
    for found in tokens.finditer(text):
        written.append(text[place : found.start()])
        place = found.end()
        if found.group(1):
            value = own[found.group(1)]
            written.append(html.escape(value) if escapes else value)
        elif "autoescape" in found.group():
            escapes = "end" in found.group()
        else:
            raise BadCall(f"template syntax error at {text[found.start() : found.start() + 40]!r}")
    return "".join((*written, text[place:]))


def mailjet(text: str, own: Values) -> str:
    """`{{var:x}}`, where the template language is asked for."""

    def fill(found: re.Match[str]) -> str:
        if not found.group(1):
            raise BadCall(f"template error at {found.group()}")
        return own[found.group(1)]

    return re.sub(r"\{\{var:(\w+)\}\}|\{[{%#]", fill, text)


def sparkpost(text: str, own: Values, *, escapes: bool = False) -> str:
    """Two braces escape in HTML, three never do."""

    def fill(found: re.Match[str]) -> str:
        if found.group(1):
            return own[found.group(1)]
        if not found.group(2):
            raise BadCall(f"substitution error at {found.group()}")
        return html.escape(own[found.group(2)]) if escapes else own[found.group(2)]

    return re.sub(r"\{\{\{(\w+)\}\}\}|\{\{(\w+)\}\}|\{\{|\}\}", fill, text)


RULES: dict[str, Callable[[str, Values], str]] = {
    "mailgun": mailgun,
    "sendgrid": sendgrid,
    "brevo": brevo,
    "mailjet": mailjet,
    "sparkpost": sparkpost,
}
