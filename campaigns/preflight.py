"""What must be right before a campaign leaves, and what an editor should know."""

import html
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from campaigns import composing
from campaigns.errors import Busy, CampaignError
from campaigns.models import Campaign
from newsletter.mailing.compiling import Compiled, Piece
from subscribers import audience

Level = Literal["ok", "warning", "blocker"]

GMAIL_CLIPS_AT = 102 * 1024  # bytes of HTML; the pixel at the end is lost with the rest
NO_POSTAL_ADDRESS = "no-postal-address"
BUSY = "busy"  # it could not be looked at just now
WARN_FROM = 80 * 1024
_IMAGE = re.compile(r"<img\s[^>]*>", re.IGNORECASE)
_ALT = re.compile(r"\salt=\"[^\"]+\"", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One line of the checklist; `remedy` says what to do about it."""

    level: Level
    code: str
    message: str
    remedy: str = ""


def check(campaign: Campaign) -> list[Finding]:
    """The checklist of a campaign as it stands; it may go out when no line is a blocker."""
    findings = [_subject(campaign), _audience(campaign)]
    try:
        compiled = composing.compile_campaign(campaign)
        preview = composing.preview_of(compiled, campaign, None)
        composing.check_for_a_stranger(compiled, campaign)
    except Busy as error:
        return [*findings, Finding("blocker", BUSY, str(error))]
    except CampaignError as error:
        return [*findings, Finding("blocker", "compile", str(error), "Mend the text or the layout.")]
    findings += [
        _unsubscribe(compiled),
        _postal_address(campaign, preview.html),
        _size(preview.html),
        _images(preview.html),
        _body(campaign),
    ]
    findings += [Finding("warning", "merge-tag", warning, "Check its spelling.") for warning in compiled.warnings]
    findings += [Finding("warning", "source", note) for note in compiled.notes]
    return findings


def blockers(findings: list[Finding], *, overrides: Collection[str] = ()) -> list[str]:
    """The sentences of what forbids sending, less the codes that somebody let pass."""
    return [
        f"{finding.message} {finding.remedy}".strip()
        for finding in findings
        if finding.level == "blocker" and finding.code not in overrides
    ]


def _subject(campaign: Campaign) -> Finding:
    if not campaign.subject.strip():
        return Finding("blocker", "subject", "The campaign has no subject.", "Write one.")
    if len(campaign.subject) > 70:
        return Finding("warning", "subject", "The subject is long; phones show about 40 characters.", "Shorten it.")
    return Finding("ok", "subject", "The subject fits.")


def _audience(campaign: Campaign) -> Finding:
    counted = audience.count(campaign.list_id)
    if not counted.recipients:
        return Finding("blocker", "audience", "Nobody on this list can be mailed.", "Import or confirm subscribers.")
    left_out = counted.pending + counted.unsubscribed + counted.pruned + counted.suppressed
    return Finding("ok", "audience", f"{counted.recipients:,} people will get it; {left_out:,} are left out.")


def _body(campaign: Campaign) -> Finding:
    if not campaign.body.strip():
        return Finding("blocker", "body", "The campaign has no text.", "Write something.")
    return Finding("ok", "body", "There is a text, and its plain version is made from it.")


def _unsubscribe(compiled: Compiled) -> Finding:
    if all(_has_unsubscribe(part) for part in (compiled.html, compiled.text)):
        return Finding("ok", "unsubscribe", "Every mail has an unsubscribe link.")
    return Finding(
        "blocker",
        "unsubscribe",
        "The mail has no unsubscribe link.",
        "Put {{ unsubscribe_url }} into the text or choose a layout that has it.",
    )


def _has_unsubscribe(pieces: list[Piece]) -> bool:
    """A link that everybody gets: one inside a condition does not count."""
    return any(piece == ["control", "u"] for piece in pieces)


def _postal_address(campaign: Campaign, page: str) -> Finding:
    sender = campaign.from_identity
    if not sender.postal_address.strip():
        return Finding("blocker", NO_POSTAL_ADDRESS, "The sender has no postal address.", "Add it to the sender.")
    if _words(sender.postal_address) not in _words(page):
        return Finding(
            "blocker", "postal", "The mail does not show the postal address.", "Put {{ postal_address }} into it."
        )
    return Finding("ok", "postal", "The postal address is in the mail.")


def _words(text: str) -> str:
    return " ".join(html.unescape(text).split())


def _size(page: str) -> Finding:
    size = len(page.encode("utf-8"))
    if size < WARN_FROM:
        return Finding("ok", "size", f"The mail is {size / 1024:.0f} KB; Gmail shows up to 102 KB whole.")
    clipped = size > GMAIL_CLIPS_AT
    message = f"The mail is {size / 1024:.0f} KB; Gmail cuts off {'it' if clipped else 'mails'} at 102 KB."
    return Finding("warning", "size", message, "Shorten it, or link to the rest.")


def _images(page: str) -> Finding:
    without = [image for image in _IMAGE.findall(page) if not _ALT.search(image)]
    if without:
        return Finding("warning", "alt", f"{len(without)} images have no description.", "Write one for each.")
    return Finding("ok", "alt", "Every image has a description.")
