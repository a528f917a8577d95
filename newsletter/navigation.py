"""The admin's sidebar: what an editor does, in four groups; the raw tables behind it are not in it."""

from typing import Any

from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

# (title, icon, name of the admin page, permission that shows it; "" for everybody who may log in)
Item = tuple[Promise, str, str, str]
GROUPS: list[tuple[Promise | str, list[Item]]] = [
    ("", [(_("Overview"), "home", "index", "")]),
    (
        _("Write"),
        [
            (_("Campaigns"), "mail", "campaigns_campaign_changelist", "campaigns.view_campaign"),
            (_("Layouts"), "dashboard_customize", "campaigns_mailtemplate_changelist", "campaigns.view_mailtemplate"),
        ],
    ),
    (
        _("Audience"),
        [
            (_("Lists"), "list_alt", "subscribers_list_changelist", "subscribers.view_list"),
            (_("Subscribers"), "group", "subscribers_subscriber_changelist", "subscribers.view_subscriber"),
            (_("Imports"), "upload_file", "subscribers_importrun_changelist", "subscribers.view_importrun"),
            (_("Suppressed"), "block", "subscribers_suppression_changelist", "subscribers.view_suppression"),
        ],
    ),
    (
        _("Hygiene"),
        [
            (
                _("Who no longer reads"),
                "cleaning_services",
                "subscribers_hygienerun_changelist",
                "subscribers.view_hygienerun",
            ),
        ],
    ),
    (
        _("Settings"),
        [
            (_("Senders"), "badge", "subscribers_senderidentity_changelist", "subscribers.view_senderidentity"),
            (_("Sending limits"), "speed", "campaigns_sendinglimit_changelist", "campaigns.view_sendinglimit"),
            (_("Sending domain"), "dns", "setup-domain", "subscribers.view_senderidentity"),
            (_("Staff"), "manage_accounts", "auth_user_changelist", "auth.view_user"),
            (_("Roles"), "admin_panel_settings", "auth_group_changelist", "auth.view_group"),
        ],
    ),
]


def navigation(request: HttpRequest) -> list[dict[str, Any]]:
    """The sidebar as unfold takes it: only pages that exist and that this person may open."""
    groups = []
    for title, items in GROUPS:
        shown = [
            {"title": name, "icon": icon, "link": link}
            for name, icon, page, permission in items
            if (not permission or request.user.has_perm(permission)) and (link := admin_page(page))
        ]
        if shown:
            groups.append({"title": title, "items": shown})
    return groups


def admin_page(name: str, *arguments: Any) -> str:
    """The address of an admin page, or of one beside the admin; empty where this installation has none of that name."""
    for full_name in (f"admin:{name}", name):
        try:
            return reverse(full_name, args=arguments)
        except NoReverseMatch:
            continue
    return ""
