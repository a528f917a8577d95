"""Subscribers: whom we know, what they get, and what they agreed to. Editors read; people decide for themselves."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Prefetch, QuerySet
from django.http import HttpRequest
from django.utils.html import format_html_join
from django.utils.safestring import mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display

from subscribers.models import ConsentRecord, Subscriber, Subscription, Tag

if TYPE_CHECKING:  # unfold has no types; its classes are these
    from django.contrib.admin import ModelAdmin, TabularInline
else:
    from unfold.admin import ModelAdmin, TabularInline

ESTIMATE_FROM = 100_000


class EstimatingPaginator(Paginator[Any]):
    """Counts a small table exactly and a big one by PostgreSQL's own estimate: COUNT(*) of millions takes seconds."""

    @cached_property
    def count(self) -> int:
        rows = self.object_list
        if isinstance(rows, QuerySet) and not rows.query.where:
            with connection.cursor() as cursor:
                cursor.execute("SELECT reltuples FROM pg_class WHERE oid = %s::regclass", [rows.model._meta.db_table])
                estimate = int(cursor.fetchone()[0])
            if estimate >= ESTIMATE_FROM:
                return estimate
        return rows.count() if isinstance(rows, QuerySet) else len(rows)


class ReadOnlyInline:
    """Rows that an editor may see and nobody may change here."""

    extra = 0
    can_delete = False
    tab = True

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class SubscriptionInline(ReadOnlyInline, TabularInline[Subscription, Subscriber]):
    model = Subscription
    fields = ("list", "state", "state_since", "source", "created_at")
    readonly_fields = fields
    verbose_name_plural = gettext_lazy("Subscriptions")


class ConsentInline(ReadOnlyInline, TabularInline[ConsentRecord, Subscriber]):
    model = ConsentRecord
    fields = ("at", "kind", "list", "text", "source", "network")
    readonly_fields = fields
    ordering = ("-at",)
    verbose_name_plural = gettext_lazy("Proof of consent")


@admin.register(Subscriber)
class SubscriberAdmin(ModelAdmin[Subscriber]):
    """Nobody is added or deleted here: people sign up or are imported, and hygiene only changes a state."""

    list_display = ("person", "gets", "tracking_consent", "created_at")
    list_filter = ("tracking_consent", "is_protected", "subscriptions__list", "subscriptions__state")
    search_fields = ("email_key", "name")
    search_help_text = gettext_lazy("Search addresses and names")
    ordering = ("-pk",)
    list_per_page = 50
    list_filter_submit = True
    list_fullwidth = True
    show_full_result_count = False
    paginator = EstimatingPaginator
    actions = None
    inlines = (SubscriptionInline, ConsentInline)
    autocomplete_fields = ("tags",)
    readonly_fields = ("email", "suppressed", "tracking_consent", "duplicates", "created_at")
    fieldsets = (
        (None, {"fields": ("email", "name", "language", "time_zone", "tags")}),
        (gettext_lazy("What applies to this person"), {"fields": ("suppressed", "tracking_consent", "is_protected")}),
        (gettext_lazy("More"), {"fields": ("attributes", "duplicates", "created_at")}),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Subscriber]:
        shown = Prefetch("subscriptions", Subscription.objects.select_related("list"))
        return super().get_queryset(request).prefetch_related(shown)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        return super().get_search_results(request, queryset, search_term.casefold())

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Subscriber | None = None) -> bool:
        return False

    @display(description=gettext_lazy("Person"), header=True, ordering="email_key")
    def person(self, subscriber: Subscriber) -> list[str]:
        return [subscriber.email, subscriber.name or "–"]

    @display(description=gettext_lazy("Newsletters"))
    def gets(self, subscriber: Subscriber) -> str:
        if subscriber.suppressed_at:
            return _("Suppressed: gets nothing")
        rows = ((each.list.name, each.get_state_display()) for each in subscriber.subscriptions.all())
        return format_html_join(mark_safe("<br>"), "{}: {}", rows) or "–"

    @display(description=gettext_lazy("Suppressed"))
    def suppressed(self, subscriber: Subscriber) -> str:
        if not subscriber.suppressed_at:
            return _("No")
        return _("Yes, since %(date)s: no list mails this address.") % {"date": f"{subscriber.suppressed_at:%Y-%m-%d}"}

    @display(description=gettext_lazy("Perhaps the same person"))
    def duplicates(self, subscriber: Subscriber) -> str:
        """Others whose address differs by what most mail providers ignore."""
        if not subscriber.duplicate_hint:
            return "–"
        local, _at, domain = subscriber.duplicate_hint.rpartition("@")
        alike = Subscriber.objects.filter(email_key__startswith=local[:3], duplicate_hint=f"{local}@{domain}")
        return ", ".join(alike.exclude(pk=subscriber.pk).values_list("email", flat=True)[:5]) or "–"


@admin.register(Tag)
class TagAdmin(ModelAdmin[Tag]):
    search_fields = ("name",)
    list_display = ("name",)
