"""The public pages: thin edges over the domain modules.

No page sets a cookie. The forms are exempt from Django's CSRF check on purpose: a page with a token is authorised by
the token, which another site cannot know, and signing up is open to everybody anyway. (The check could not work there:
under `Referrer-Policy: no-referrer` browsers send `Origin: null`.)
"""

from collections.abc import Callable
from datetime import datetime
from functools import wraps

from django.core.exceptions import BadRequest, SuspiciousOperation
from django.http import HttpRequest, HttpResponse, HttpResponseBase, QueryDict
from django.http.multipartparser import MultiPartParserError
from django.http.request import UnreadablePostError
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from newsletter import ratelimit
from newsletter.mailing.keys import keyring
from newsletter.mailing.tokens import BadToken, DeliveryKey, Purpose, read_delivery
from subscribers import confirming, subscribing, unsubscribing, validating
from subscribers import preferences as choices
from subscribers.forms import PreferencesForm, SignUpForm
from subscribers.models import List, Subscription

SIGN_UPS_PER_HOUR = 30  # from one network: an office may sign up, a program may not
_CONTENT_POLICY = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; frame-ancestors 'none'"

View = Callable[..., HttpResponseBase]


def public(view: View) -> View:
    """A page for everybody: GET shows, POST acts, and nothing foreign is loaded."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        response = view(request, *args, **kwargs)
        response.setdefault("Content-Security-Policy", f"{_CONTENT_POLICY}; base-uri 'none'")
        return response

    return csrf_exempt(require_http_methods(["GET", "HEAD", "POST"])(wrapped))


def by_token(view: View) -> View:
    """A page whose address is a secret: it is not passed on, indexed or kept; a bad token gets a friendly 404."""

    @wraps(view)
    def wrapped(request: HttpRequest, token: str) -> HttpResponseBase:
        try:
            response = view(request, token)
        except (BadToken, choices.UnknownSubscriber):
            response = render(request, "public/bad_link.html", {"kind": view.__name__}, status=404)
        response["Referrer-Policy"] = "no-referrer"
        response["X-Robots-Tag"] = "noindex, nofollow"
        response["Cache-Control"] = "no-store, private"
        return response

    return public(wrapped)


@public
def home(request: HttpRequest) -> HttpResponse:
    """The newsletters that anybody may subscribe to."""
    return render(request, "public/home.html", {"lists": List.objects.filter(is_public=True)})


@public
def subscribe(request: HttpRequest, slug: str) -> HttpResponse:
    """A list's sign-up page. The answer to an address that is known is the answer to one that is not."""
    newsletter = get_object_or_404(List.objects.select_related("sender"), slug=slug)
    page = {"list": newsletter}
    if request.method != "POST":
        return render(request, "public/subscribe.html", {**page, "form": SignUpForm()})
    now = timezone.now()
    form = SignUpForm(_posted(request))
    if not _may_sign_up(request, now):
        return render(request, "public/too_many.html", page, status=429)
    if not form.is_valid():
        return render(request, "public/subscribe.html", {**page, "form": form}, status=422)
    email = form.cleaned_data["email"]
    if not form.is_from_a_program:
        subscribing.subscribe(
            newsletter.pk,
            email=email,
            name=form.cleaned_data["name"],
            source="sign-up page",
            network=_network(request),
            now=now,
        )
    return render(request, "public/check_inbox.html", {**page, "email": email.strip()})


@by_token
def confirm(request: HttpRequest, token: str) -> HttpResponse:
    """Double opt-in: GET shows a button, POST confirms."""
    now = timezone.now()
    if request.method == "POST":
        confirming.confirm(token, network=_network(request), now=now)
        return redirect("subscribers:confirm", token=token)
    subscription = confirming.look(token, now=now)
    return render(request, "public/confirm.html", _about(subscription))


@by_token
def unsubscribe(request: HttpRequest, token: str) -> HttpResponse:
    """The address in List-Unsubscribe: GET shows the page, POST with any body ends the subscription (RFC 8058)."""
    key = read_delivery(keyring(), Purpose.CONTROL, token)
    subscription = unsubscribing.mailed(*key)
    if subscription is None:
        raise BadToken
    if request.method != "POST":
        may_undo = unsubscribing.can_undo(subscription, campaign_id=key.campaign_id, now=timezone.now())
        return render(
            request, "public/unsubscribe.html", {**_about(subscription), "token": token, "may_undo": may_undo}
        )
    asked = _posted(request).get("action", "")
    if asked == "undo":
        _undo(request, key, subscription)
    else:
        _unsubscribe(request, key, subscription, source="unsubscribe page" if asked else "one-click")
    if asked:
        return redirect("subscribers:unsubscribe", token=token)
    return HttpResponse(_("Unsubscribed.") + "\n", content_type="text/plain; charset=utf-8")


@by_token
def preferences(request: HttpRequest, token: str) -> HttpResponse:
    """What a person may change with the link of a mail they got."""
    key = read_delivery(keyring(), Purpose.CONTROL, token)
    current = choices.load(key.subscriber_id)
    is_saved = False
    form = PreferencesForm(_posted(request) if request.method == "POST" else None, current=current)
    if form.is_bound and form.is_valid():
        origin = choices.Origin("preference page", key.campaign_id, _network(request))
        choices.change(key.subscriber_id, form.choice, origin=origin, now=timezone.now())
        current, is_saved = choices.load(key.subscriber_id), True
        form = PreferencesForm(None, current=current)
    tracking = zip(form["tracking_consent"], choices.TOLD_TRACKING.values(), strict=True)
    page = {"form": form, "current": current, "is_saved": is_saved, "tracking": tracking}
    return render(request, "public/preferences.html", page, status=422 if form.errors else 200)


def _about(subscription: Subscription) -> dict[str, object]:
    return {
        "subscription": subscription,
        "list": subscription.list,
        "email": validating.masked(subscription.subscriber.email),
    }


def _unsubscribe(request: HttpRequest, key: DeliveryKey, subscription: Subscription, *, source: str) -> None:
    unsubscribing.unsubscribe(
        list_id=subscription.list_id,
        subscriber_id=key.subscriber_id,
        campaign_id=key.campaign_id,
        source=source,
        network=_network(request),
        now=timezone.now(),
    )


def _undo(request: HttpRequest, key: DeliveryKey, subscription: Subscription) -> None:
    unsubscribing.undo(
        list_id=subscription.list_id,
        subscriber_id=key.subscriber_id,
        campaign_id=key.campaign_id,
        source="unsubscribe page",
        network=_network(request),
        now=timezone.now(),
    )


def _posted(request: HttpRequest) -> QueryDict:
    """The form's fields; none where the body is no form, broken or too big. A one-click POST may hold anything."""
    try:
        return request.POST
    except (BadRequest, MultiPartParserError, SuspiciousOperation, UnreadablePostError):
        return QueryDict()


def _network(request: HttpRequest) -> str:
    return ratelimit.network(ratelimit.client_address(request))


def _may_sign_up(request: HttpRequest, now: datetime) -> bool:
    # A household is a /64 in IPv6 and one address in IPv4.
    who = ratelimit.network(ratelimit.client_address(request), prefix4=32, prefix6=64)
    return ratelimit.allow("sign-up", who or "unknown", limit=SIGN_UPS_PER_HOUR, seconds=3600, now=now)
