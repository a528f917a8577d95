"""Whether somebody is told by mail what becomes of their campaigns."""

from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from campaigns import telling


@require_http_methods(["GET", "POST"])
def mails(request: HttpRequest, model_admin: Any) -> HttpResponse:
    """The wish of whoever is logged in."""
    if not model_admin.has_view_permission(request):
        raise PermissionDenied
    user_id = request.user.pk
    assert user_id is not None  # the admin lets nobody in who is not logged in
    if request.method == "POST":
        wants = request.POST.get("wants") == "yes"
        telling.wish(user_id, wants_mails=wants)
        messages.success(request, _("You are told by mail.") if wants else _("You get no more such mails."))
        return redirect("admin:campaigns_campaign_mails")
    context = {
        **model_admin.admin_site.each_context(request),
        "opts": model_admin.opts,
        "title": _("Mails to you"),
        "wants": telling.wants_mails(user_id),
        "address": getattr(request.user, "email", ""),
    }
    return render(request, "admin/campaigns/campaign/mails.html", context)
