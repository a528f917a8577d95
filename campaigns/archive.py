"""A sent issue as a web page."""

from campaigns import composing
from campaigns.errors import CampaignError
from newsletter.mailing.keys import keyring
from newsletter.mailing.personalizing import Addresses, Personalizer, Rendered
from newsletter.mailing.tokens import BadToken, Purpose, read_delivery
from subscribers.models import Subscriber


class NotFoundError(Exception):
    """No such page; whether the token was forged or the issue is gone is nobody's business."""


def web_version(token: str) -> Rendered:
    """What a recipient was sent, by their control token: untracked, and without their control links' addresses.

    A forwarded page must not let a stranger unsubscribe the recipient, so those links lead to the site's first page.
    Raises NotFoundError.
    """
    try:
        key = read_delivery(keyring(), Purpose.CONTROL, token)
        compiled = composing.revision(key.campaign_id).compiled
        subscriber = Subscriber.objects.get(pk=key.subscriber_id)
    except (BadToken, CampaignError, Subscriber.DoesNotExist) as error:
        raise NotFoundError from error
    recipient = composing.sample_recipient(key.campaign_id, subscriber)
    without_controls = compiled.without_controls()
    return Personalizer(
        without_controls, keyring=keyring(), addresses=Addresses("", ""), mail_from="", boundary="web"
    ).rendered(recipient)
