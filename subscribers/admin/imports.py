"""Uploads of subscribers: a file goes in, a task brings it in, the report says what was refused and why."""

from codecs import BOM_UTF8
from itertools import chain
from typing import TYPE_CHECKING, Any

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from unfold.decorators import display

from subscribers import tasks
from subscribers.csvfile import BadFile, CsvFile
from subscribers.models import ImportRun

if TYPE_CHECKING:  # unfold has no types; its classes are these
    from django.contrib.admin import ModelAdmin
else:
    from unfold.admin import ModelAdmin

_COLOURS = {
    ImportRun.State.WAITING: "info",
    ImportRun.State.RUNNING: "warning",
    ImportRun.State.DONE: "success",
    ImportRun.State.FAILED: "danger",
}


class UploadForm(forms.ModelForm[ImportRun]):
    """What to bring in and how. A file whose header cannot be read is refused here, before anything is queued."""

    class Meta:
        model = ImportRun
        fields = ("list", "file", "welcome", "source")
        help_texts = {
            "file": gettext_lazy(
                "CSV. The first line names the columns: email, and if you like name, language and tags; "
                "any other column becomes an attribute for merge tags."
            ),
            "source": gettext_lazy("Kept as proof, for example “fair in May, paper forms”."),
        }

    def clean_file(self) -> Any:
        upload = self.cleaned_data["file"]
        if isinstance(upload, UploadedFile):
            try:
                CsvFile(upload)  # type: ignore[arg-type]  # reads bytes as any binary file does
            except BadFile as error:
                raise forms.ValidationError(str(error)) from error
            upload.seek(0)
        return upload


@admin.register(ImportRun)
class ImportAdmin(ModelAdmin[ImportRun]):
    """A run is started by adding it; afterwards it is only looked at."""

    form = UploadForm
    list_display = ("run", "shown_state", "imported", "updated", "unchanged", "refused", "report_link")
    list_filter = ("state", "list")
    actions = None
    fieldsets = (
        (None, {"fields": ("list", "file_name", "welcome", "source")}),
        (
            gettext_lazy("What became of it"),
            {"fields": ("state_name", "imported", "updated", "unchanged", "refused", "message", "report_link")},
        ),
        (gettext_lazy("When"), {"fields": ("created_at", "finished_at")}),
    )

    def get_fieldsets(self, request: HttpRequest, obj: ImportRun | None = None) -> Any:
        return self.fieldsets if obj else ((None, {"fields": ("list", "file", "welcome", "source")}),)

    def get_readonly_fields(self, request: HttpRequest, obj: ImportRun | None = None) -> Any:
        return [name for _title, options in self.fieldsets for name in options["fields"]] if obj else ()

    def has_change_permission(self, request: HttpRequest, obj: ImportRun | None = None) -> bool:
        return False

    def get_urls(self) -> list[URLPattern]:
        report = path(
            "<int:run_id>/report/", self.admin_site.admin_view(self.report_view), name="subscribers_importrun_report"
        )
        return [report, *super().get_urls()]

    def save_model(self, request: HttpRequest, obj: ImportRun, form: Any, change: bool) -> None:
        obj.source = obj.source or f"import: {obj.file.name}"[:120]
        super().save_model(request, obj, form, change)
        transaction.on_commit(lambda: tasks.enqueue(tasks.import_file, obj.pk))

    def response_add(self, request: HttpRequest, obj: ImportRun, post_url_continue: str | None = None) -> HttpResponse:
        """Straight to the run, which shows how far it is."""
        messages.success(request, _("The file is being brought in. This page follows it."))
        response = HttpResponse(status=302)
        response["Location"] = reverse("admin:subscribers_importrun_change", args=[obj.pk])
        return response

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().change_view(request, object_id, form_url, extra_context)
        under_way = (ImportRun.State.WAITING, ImportRun.State.RUNNING)
        if ImportRun.objects.filter(pk=object_id, state__in=under_way).exists():
            response["Refresh"] = "2"
        return response

    def report_view(self, request: HttpRequest, run_id: int) -> StreamingHttpResponse:
        """The CSV of refused rows. It holds addresses, so it is served to editors only, never as a public file."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        run = get_object_or_404(ImportRun, pk=run_id)
        if not run.report:
            raise Http404
        # Spreadsheets take a file without the mark for the code page of their country.
        response = StreamingHttpResponse(chain([BOM_UTF8], run.report.open("rb")), content_type="text/csv")
        response["Content-Disposition"] = f'attachment; filename="refused-{run.pk}.csv"'
        return response

    @display(description=gettext_lazy("Import"), header=True, ordering="pk")
    def run(self, run: ImportRun) -> list[str]:
        return [str(run.list), f"{self.file_name(run)} · {run.created_at:%Y-%m-%d %H:%M}"]

    @display(description=gettext_lazy("State"), label=_COLOURS)
    def shown_state(self, run: ImportRun) -> tuple[str, str]:
        return run.state, run.get_state_display()

    @display(description=gettext_lazy("State"))
    def state_name(self, run: ImportRun) -> str:
        return run.get_state_display()

    @display(description=gettext_lazy("File"))
    def file_name(self, run: ImportRun) -> str:
        return (run.file.name or "").rpartition("/")[2]

    @display(description=gettext_lazy("Refused rows"))
    def report_link(self, run: ImportRun) -> str:
        if not run.report or not run.refused:
            return "–"
        address = reverse("admin:subscribers_importrun_report", args=[run.pk])
        link = '<a class="text-primary-600 dark:text-primary-500 underline" href="{}">{}</a>'
        return format_html(link, address, _("Download the report"))
