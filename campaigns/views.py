"""Public pages of campaigns."""

from django.http import Http404, HttpRequest, HttpResponse
from django.views.decorators.http import require_safe

from campaigns import archive

# Mail HTML never runs script here, whatever it holds, and never is of this origin.
MAIL_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; img-src * data:; "
    "style-src 'unsafe-inline'; script-src 'none'"
)


@require_safe
def web_version(request: HttpRequest, token: str) -> HttpResponse:
    """“View in browser” for one recipient."""
    try:
        rendered = archive.web_version(token)
    except archive.NotFoundError as error:
        raise Http404 from error
    response = HttpResponse(rendered.html)
    response["Content-Security-Policy"] = MAIL_POLICY
    response["Referrer-Policy"] = "no-referrer"
    response["X-Robots-Tag"] = "noindex"
    response["Cache-Control"] = "private, no-store"
    return response
