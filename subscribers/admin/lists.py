"""Lists and the senders whom their mail comes from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from django.contrib import admin
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy
from unfold.decorators import display

from subscribers.models import List, SenderIdentity, Subscription

if TYPE_CHECKING:  # unfold has no types; its classes are these
    from django.contrib.admin import ModelAdmin
else:
    from unfold.admin import ModelAdmin


@admin.register(List)
class ListAdmin(ModelAdmin[List]):
    """A list's name, words and sender. Its short name is part of addresses in mails already sent, so it stays."""

    list_display = ("newsletter", "active", "waiting", "is_public", "sign_up_page")
    search_fields = ("name", "slug")
    prepopulated_fields = {"slug": ("name",)}
    actions = None
    fieldsets = (
        (None, {"fields": ("name", "slug", "description", "language", "is_public")}),
        (gettext_lazy("Sender"), {"fields": ("sender",)}),
        (gettext_lazy("Consent"), {"fields": ("consent_text",)}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[List]:
        def people(state: str) -> Count:
            return Count("subscriptions", filter=Q(subscriptions__state=state))

        return (
            super()
            .get_queryset(request)
            .annotate(actives=people(Subscription.State.ACTIVE), waitings=people(Subscription.State.PENDING))
        )

    def get_readonly_fields(self, request: HttpRequest, obj: List | None = None) -> tuple[str, ...]:
        return ("slug",) if obj else ()

    def get_prepopulated_fields(self, request: HttpRequest, obj: List | None = None) -> dict[str, Sequence[str]]:
        return {} if obj else {"slug": ("name",)}

    def has_delete_permission(self, request: HttpRequest, obj: List | None = None) -> bool:
        """A list with people on it holds their consent; it is not deleted by one click."""
        return super().has_delete_permission(request, obj) and (obj is None or not obj.subscriptions.exists())

    @display(description=gettext_lazy("Newsletter"), header=True, ordering="name")
    def newsletter(self, newsletter: List) -> list[str]:
        return [newsletter.name, newsletter.slug]

    @display(description=gettext_lazy("Active"), ordering="actives")
    def active(self, newsletter: List) -> str:
        return f"{newsletter.actives:,}"  # type: ignore[attr-defined]  # annotated above

    @display(description=gettext_lazy("Waiting for confirmation"), ordering="waitings")
    def waiting(self, newsletter: List) -> str:
        return f"{newsletter.waitings:,}"  # type: ignore[attr-defined]

    @display(description=gettext_lazy("Sign-up page"))
    def sign_up_page(self, newsletter: List) -> str:
        path = reverse("subscribers:subscribe", args=[newsletter.slug])
        return format_html('<a class="text-primary-600 dark:text-primary-500 underline" href="{}">{}</a>', path, path)


@admin.register(SenderIdentity)
class SenderAdmin(ModelAdmin[SenderIdentity]):
    list_display = ("sender", "reply_to", "postal_address")
    search_fields = ("name", "email")
    actions = None

    @display(description=gettext_lazy("Sender"), header=True, ordering="name")
    def sender(self, sender: SenderIdentity) -> list[str]:
        return [sender.name, sender.email]
