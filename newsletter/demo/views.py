"""The inbox page: only in the demo, and no mail ever runs a script in it.

The list and the message are our page; the mail's HTML has an address of its own, which a sandboxed frame shows. Its
Content-Security-Policy holds even when that address is opened by itself.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from newsletter.demo import inbox
from newsletter.mailserver import Mailbox, Message

VIEWS = ("html", "text", "headers", "source")
PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# Popups may leave the sandbox: a link opens as it would from any mail client.
FRAME_SANDBOX = "allow-popups allow-popups-to-escape-sandbox"
FRAME_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src {images}; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'self'; sandbox {FRAME_SANDBOX}"
)
IMAGES_ON = "http: https: data:"
IMAGES_OFF = "'none'"

View = Callable[..., HttpResponseBase]


def demo_only(view: View) -> View:
    """No such page outside the demo, even where the address was mounted by mistake."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        if not settings.DEMO:
            raise Http404
        return view(request, *args, **kwargs)

    return guarded


def mailbox() -> Mailbox:
    return Mailbox(settings.DEMO_MAILBOX)


def _message(message_id: int) -> Message:
    message = mailbox().get(message_id)
    if message is None:
        raise Http404(_("There is no such mail."))
    return message


@demo_only
@never_cache
@require_safe
def show(request: HttpRequest, message_id: int | None = None) -> HttpResponse:
    """The list, and beside it the message that was chosen."""
    given = request.GET
    before = given.get("before", "")
    kept = {
        "q": given.get("q", "")[:200],
        "before": before if before.isdecimal() and len(before) < 19 else "",
        "images": "off" if given.get("images") == "off" else "",
    }
    found = inbox.page(mailbox(), search=kept["q"], before=int(kept["before"] or 0) or None)
    context = {
        "page": found,
        "search": kept["q"],
        "images": not kept["images"],
        "kept": _query(kept),
        "older_query": _query({**kept, "before": str(found.older or "")}),
    }
    if message_id is not None:
        view = given.get("view", "html")
        context |= _opened(_message(message_id), view if view in VIEWS else "html", kept)
    response = render(request, "demo/inbox.html", context)
    response["Content-Security-Policy"] = PAGE_POLICY
    return response


def _opened(message: Message, view: str, kept: dict[str, str]) -> dict[str, Any]:
    """What the template needs of the message that is shown."""
    address = reverse("inbox-message", args=[message.id])
    other = "" if kept["images"] else "off"
    return {
        "mail": inbox.open_mail(message),
        "view": view,
        "here": {name: address + _query({**kept, "view": name if name != "html" else ""}) for name in VIEWS},
        "toggle": address + _query({**kept, "images": other}),
        "sandbox": FRAME_SANDBOX,
        "source": message.raw.decode("utf-8", "replace") if view == "source" else "",
    }


def _query(values: dict[str, str]) -> str:
    """A query string of what is set, with its question mark; empty when nothing is."""
    given = {name: value for name, value in values.items() if value}
    return f"?{urlencode(given)}" if given else ""


@demo_only
@never_cache
@require_safe
def frame(request: HttpRequest, message_id: int) -> HttpResponse:
    """A mail's HTML for the frame; `images=off` keeps every image away."""
    mail = inbox.open_mail(_message(message_id))
    images = IMAGES_OFF if request.GET.get("images") == "off" else IMAGES_ON
    # Links of the mail open in a tab of their own. The first base element of a document decides.
    response = HttpResponse(
        f'<!doctype html><base target="_blank">{mail.html}', content_type="text/html; charset=utf-8"
    )
    response["Content-Security-Policy"] = FRAME_POLICY.format(images=images)
    response["X-Content-Type-Options"] = "nosniff"
    response["Referrer-Policy"] = "no-referrer"
    return response


@demo_only
@require_POST
def unsubscribe(request: HttpRequest, message_id: int) -> HttpResponse:
    """The one click that a mailbox provider offers beside the sender's name."""
    mail = inbox.open_mail(_message(message_id))
    try:
        status = inbox.unsubscribe(mail, site_url=settings.SITE_URL)
    except inbox.OneClickFailed as error:
        messages.error(request, str(error))
    else:
        text = _("%(recipient)s is unsubscribed: the one-click request was answered with %(status)d.")
        messages.success(request, text % {"recipient": mail.envelope.recipient, "status": status})
    query = request.POST.get("kept", "")
    address = reverse("inbox-message", args=[message_id])
    return redirect(address + (query if query.startswith("?") else ""))


@demo_only
@never_cache
@require_safe
def count(request: HttpRequest) -> JsonResponse:
    """How many messages there are, for the page to notice new ones."""
    return JsonResponse({"total": len(mailbox())})
