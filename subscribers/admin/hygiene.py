"""Hygiene in the admin: each list's page with its policy and log, and the preview that a person approves."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.core.validators import MaxValueValidator, MinValueValidator
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_GET, require_POST

from subscribers.admin import hygiene_presenting as presenting
from subscribers.hygiene import policies, pruning
from subscribers.hygiene.errors import HygieneError
from subscribers.models import HygienePolicy, HygieneRun, List

if TYPE_CHECKING:  # unfold has no types; its classes are these
    from django.contrib.admin import ModelAdmin
else:
    from unfold.admin import ModelAdmin

NAMES_A_PAGE = 50
RUNS_SHOWN = 30


class PolicyForm(forms.ModelForm[HygienePolicy]):
    """The rule of a list; the page writes it as a sentence around the fields."""

    class Meta:
        model = HygienePolicy
        fields = ("min_campaigns", "min_days", "engaged_factor", "cap_percent", "is_scheduled")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limits = {
            "min_campaigns": (1, 500, 1),
            "min_days": (1, 3650, 1),
            "engaged_factor": (1, 10, 0.1),
            "cap_percent": (0, 100, 0.1),
        }
        for name, (least, most, step) in limits.items():
            field = self.fields[name]
            field.validators += [MinValueValidator(least), MaxValueValidator(most)]
            field.widget.attrs |= {"class": "nl-input hy-figure", "min": least, "max": most, "step": step}


@admin.register(HygieneRun)
class HygieneRunAdmin(ModelAdmin[HygieneRun]):
    """Previews and runs are made by hygiene alone; here they are looked at, approved and undone."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: HygieneRun | None = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        def page(route: str, view: Callable[..., HttpResponseBase], name: str) -> URLPattern:
            return path(route, self.admin_site.admin_view(view), name=f"subscribers_hygienerun_{name}")

        return [
            page("", require_GET(self.overview), "changelist"),
            page("list/<int:list_id>/", self.of_list, "list"),
            page("list/<int:list_id>/preview/", require_POST(self.make_preview), "preview"),
            page("<int:run_id>/change/", require_GET(self.one), "change"),
            page("<int:run_id>/approve/", require_POST(self.approve), "approve"),
            page("<int:run_id>/undo/", require_POST(self.undo), "undo"),
        ]

    def overview(self, request: HttpRequest) -> HttpResponse:
        """All lists with where their hygiene stands; with one list only, its page."""
        self._may_look(request)
        lists = list(List.objects.order_by("name"))
        if len(lists) == 1:
            return redirect("admin:subscribers_hygienerun_list", lists[0].pk)
        standings = [presenting.standing(newsletter) for newsletter in lists]
        return self._page(request, "overview", {"title": _("Hygiene"), "standings": standings})

    def of_list(self, request: HttpRequest, list_id: int) -> HttpResponse:
        """A list's policy and log. POST changes the policy."""
        self._may_look(request)
        newsletter = get_object_or_404(List, pk=list_id)
        form = PolicyForm(request.POST or None, instance=policies.policy_of(list_id))
        if request.method == "POST":
            self._may_act(request)
            if form.is_valid():
                form.save()
                messages.success(request, _("The policy was saved. It counts from the next preview on."))
                return redirect("admin:subscribers_hygienerun_list", list_id)
        runs = HygieneRun.objects.filter(list_id=list_id)[:RUNS_SHOWN]
        context = {
            "title": newsletter.name,
            "newsletter": newsletter,
            "standing": presenting.standing(newsletter),
            "form": form,
            "runs": [presenting.Line(run) for run in runs],
            "may_act": self.has_change_permission(request),
        }
        return self._page(request, "list", context)

    def make_preview(self, request: HttpRequest, list_id: int) -> HttpResponse:
        """Judge the list as it stands now."""
        self._may_act(request)
        get_object_or_404(List, pk=list_id)
        made = pruning.preview(list_id, actor=request.user.get_username())
        return redirect("admin:subscribers_hygienerun_change", made.pk)

    def one(self, request: HttpRequest, run_id: int) -> HttpResponse:
        """A preview or run: whom it names, and why."""
        self._may_look(request)
        run = get_object_or_404(HygieneRun.objects.select_related("list", "preview"), pk=run_id)
        query = request.GET.get("q", "").strip()
        entries = run.entries.select_related("subscription__subscriber").order_by("pk")
        if query:
            entries = entries.filter(subscription__subscriber__email__icontains=query)
        names = Paginator(entries, NAMES_A_PAGE).get_page(request.GET.get("page"))
        context = {
            "title": _("Preview") if run.kind == HygieneRun.Kind.PREVIEW else _("Run"),
            "run": run,
            "shown": presenting.Shown(run),
            "rule": presenting.rule_words(run.policy),
            "people": [presenting.Named(entry) for entry in names],
            "names": names,
            "query": query,
            "may_act": self.has_change_permission(request),
            "may_see_people": request.user.has_perm("subscribers.view_subscriber"),
        }
        return self._page(request, "run", context)

    def approve(self, request: HttpRequest, run_id: int) -> HttpResponse:
        """Carry a preview out, if it still names as many people as were shown."""
        self._may_act(request)
        seen = get_object_or_404(HygieneRun, pk=run_id, kind=HygieneRun.Kind.PREVIEW)
        if request.POST.get("count") != str(seen.removed) or not request.POST.get("seen"):
            messages.error(request, _("Please look at the names first and tick the box."))
            return redirect("admin:subscribers_hygienerun_change", seen.pk)
        try:
            made = pruning.run(seen.list_id, at=timezone.now(), approve=seen.pk, actor=request.user.get_username())
        except HygieneError as error:
            messages.error(request, str(error))
            return redirect("admin:subscribers_hygienerun_change", seen.pk)
        words = ngettext("%(n)d person is no longer mailed.", "%(n)d people are no longer mailed.", made.removed)
        messages.success(request, words % {"n": made.removed})
        return redirect("admin:subscribers_hygienerun_change", made.pk)

    def undo(self, request: HttpRequest, run_id: int) -> HttpResponse:
        """Take a run back."""
        self._may_act(request)
        try:
            restored = pruning.undo(run_id, actor=request.user.get_username())
        except HygieneError as error:
            messages.error(request, str(error))
        else:
            words = ngettext("%(n)d person is mailed again.", "%(n)d people are mailed again.", restored)
            messages.success(request, words % {"n": restored})
        return redirect("admin:subscribers_hygienerun_change", run_id)

    def _page(self, request: HttpRequest, name: str, context: dict[str, Any]) -> HttpResponse:
        return render(request, f"admin/hygiene/{name}.html", {**self.admin_site.each_context(request), **context})

    def _may_look(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _may_act(self, request: HttpRequest) -> None:
        if not self.has_change_permission(request):
            raise PermissionDenied
