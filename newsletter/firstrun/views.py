"""The first-run page, closed for good by its own success, and the page on the sender's domain."""

import logging
import re
from typing import Any, cast

from django.contrib import messages
from django.contrib.admin.views.decorators import staff_member_required
from django.contrib.auth import login
from django.contrib.auth.models import User
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import urlencode
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_http_methods

from newsletter import ratelimit
from newsletter.firstrun import founding, sending
from newsletter.firstrun.forms import FirstRunForm
from subscribers.models import SenderIdentity

log = logging.getLogger(__name__)

NOT_IN_SELECTORS = re.compile(r"[^a-z0-9._-]")
TRIES = 20  # an hour from one network; the token has a hundred bits, this spares the log


@sensitive_post_parameters("token", "password")
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def first_run(request: HttpRequest) -> HttpResponse:
    """Owner, sender and first list, for whoever holds the token and while there is no owner."""
    if founding.is_founded():
        raise Http404
    if request.method != "POST":
        if ratelimit.allow("setup-token-said", "", limit=1, seconds=60, now=timezone.now()):
            log.warning("The set-up token of this installation is %s", founding.setup_token())
        return _first_run_page(request, FirstRunForm())
    form = FirstRunForm(request.POST)
    who = ratelimit.network(ratelimit.client_address(request))
    if not ratelimit.allow("setup", who, limit=TRIES, seconds=3600, now=timezone.now()):
        form.add_error(None, _("Too many tries from your network; please wait an hour."))
    if not form.is_valid():
        return _first_run_page(request, form)
    try:
        made = founding.found(form.answers(), only_once=True)
    except founding.BadAnswer as error:
        form.add_error(error.name if error.name in form.fields else None, str(error))
        return _first_run_page(request, form)
    except founding.AlreadyFounded as error:
        raise Http404 from error
    login(request, made.owner, backend="django.contrib.auth.backends.ModelBackend")
    messages.success(request, _("You are set up. What is left is to tell the world that you may send."))
    return redirect("setup-domain")


def _first_run_page(request: HttpRequest, form: FirstRunForm) -> HttpResponse:
    return render(request, "firstrun/first_run.html", {"form": form}, status=200 if not form.is_bound else 422)


@never_cache
@staff_member_required
@require_http_methods(["GET", "HEAD", "POST"])
def domain(request: HttpRequest) -> HttpResponse:
    """The records that a sender's domain has and needs; checked again, and a test mail sent, by POST."""
    given = request.POST if request.method == "POST" else request.GET
    senders = list(SenderIdentity.objects.order_by("pk"))
    selector = NOT_IN_SELECTORS.sub("", given.get("selector", "").lower())[:63]
    chosen = _chosen(senders, given.get("sender", ""))
    if request.method == "POST":
        if chosen:
            _act(request, chosen, selector)
        query = urlencode({"sender": chosen.pk if chosen else "", "selector": selector})
        return redirect(f"{reverse('setup-domain')}?{query}")
    context: dict[str, Any] = {
        "senders": senders,
        "chosen": chosen,
        "selector": selector,
        "records": sending.records(chosen, selector=selector) if chosen else [],
    }
    return render(request, "firstrun/domain.html", context)


def _chosen(senders: list[SenderIdentity], wanted: str) -> SenderIdentity | None:
    if not wanted:
        return senders[0] if senders else None
    return get_object_or_404(SenderIdentity, pk=int(wanted) if wanted.isdecimal() and len(wanted) < 10 else 0)


def _act(request: HttpRequest, sender: SenderIdentity, selector: str) -> None:
    if "test" not in request.POST:
        sending.records(sender, selector=selector, refresh=True)
        messages.success(request, _("Looked up again just now."))
        return
    to = request.POST.get("to", "") or cast(User, request.user).email
    try:
        address = sending.send_test(sender, to)
    except sending.NotSent as error:
        messages.error(request, str(error))
    else:
        messages.success(request, _("A test mail is on its way to %(address)s.") % {"address": address})
