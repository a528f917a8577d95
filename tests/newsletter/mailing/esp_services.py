"""Local servers that speak the mail services' wire formats and merge by their rules, so that what each recipient would
get can be looked at. A server is strict where its service is: syntax that it does not know is an error.
"""

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from tests.newsletter.mailing import esp_merging
from tests.newsletter.mailing.esp_merging import BadCall

Reply = tuple[int, dict[str, str], Any]


@dataclass
class Arrived:
    """One message as its recipient would get it."""

    to: str
    name: str
    parts: Sequence[str]  # subject, HTML, text
    headers: dict[str, str]
    token: str
    tracking: bool | None = None  # whether the call asks the service to count; None: it cannot ask

    @property
    def subject(self) -> str:
        return self.parts[0]

    @property
    def html(self) -> str:
        return self.parts[1]

    @property
    def text(self) -> str:
        return self.parts[2]


@dataclass
class Call:
    """One HTTP request."""

    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Service:
    """A service under test. `answers` are replies for the next calls in turn, before it works as it should."""

    take: Callable[[Call], tuple[list[Arrived], Any]]
    refuses: set[str] = field(default_factory=set)  # addresses for which a call is refused
    answers: list[Reply | None] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    arrived: list[Arrived] = field(default_factory=list)
    delay: threading.Event | None = None  # calls are answered when it is set
    connections: set[int] = field(default_factory=set)
    most_at_once: int = 0
    port: int = 0
    errors: list[Exception] = field(default_factory=list)  # what was wrong with a call, for the test to raise
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, call: Call) -> Reply | None:
        """The reply to a call; None to hang up without one, after it was taken."""
        with self._lock:
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            if self.delay is not None:
                self.delay.wait(20)
            with self._lock:
                return self._answer(call)
        finally:
            with self._lock:
                self._open -= 1

    def _answer(self, call: Call) -> Reply | None:
        self.calls.append(call)
        canned = self.answers.pop(0) if self.answers else (0, {}, None)
        if canned is not None and canned[0]:
            return canned
        try:
            arrived, body = self.take(call)
            if any(one.to in self.refuses for one in arrived):
                raise BadCall("a recipient is not a valid address")
        except BadCall as error:
            return 400, {}, {"message": str(error), "error": str(error)}
        except Exception as error:
            self.errors.append(error)
            return 400, {}, {"message": repr(error)}
        self.arrived += arrived
        return (200, {"X-Message-Id": "1"}, body) if canned is not None else None


@contextmanager
def running(service: Service) -> Iterator[Service]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            service.connections.add(self.client_address[1])
            body = self.rfile.read(int(self.headers["Content-Length"]))
            names = {name.lower(): value for name, value in self.headers.items()}
            reply = service.answer(Call(self.path, names, body))
            if reply is None:
                self.close_connection = True
                return
            status, headers, said = reply
            written = json.dumps(said).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    for error in service.errors:
        raise error


# The services ------------------------------------------------------------------------------------------------------


def mailgun(call: Call) -> tuple[list[Arrived], Any]:
    """Mailgun: a form, `%recipient.x%` everywhere, a value put in as it is."""
    assert re.fullmatch(r"/v3/mg\.shed\.example/messages", call.path)
    assert base64.b64decode(call.headers["authorization"].removeprefix("Basic ")) == b"api:key"
    form = form_of(call)
    variables = json.loads(form["recipient-variables"][0])
    arrived = []
    for to in form["to"]:
        name, address = mailbox(to)
        own = variables[address]
        headers = {key[2:]: esp_merging.mailgun(value[0], own) for key, value in form.items() if key.startswith("h:")}
        tracking = form["o:tracking-opens"] != ["no"] or form["o:tracking-clicks"] != ["no"]
        parts = [esp_merging.mailgun(form[part][0], own) for part in ("subject", "html", "text")]
        arrived.append(Arrived(address, name, parts, headers, esp_merging.mailgun(form["v:d"][0], own), tracking))
    return arrived, {"id": "<1@mg.shed.example>", "message": "Queued. Thank you."}


def sendgrid(call: Call) -> tuple[list[Arrived], Any]:
    """SendGrid: personalizations with substitutions, each replaced in turn."""
    assert call.path == "/v3/mail/send"
    assert call.headers["authorization"] == "Bearer key"
    data = call.json
    content = {one["type"]: one["value"] for one in data["content"]}
    addresses = [one["to"][0]["email"].lower() for one in data["personalizations"]]
    if len(set(addresses)) != len(addresses):
        raise BadCall("each unique email address should only be included once")
    arrived = []
    for one in data["personalizations"]:
        (to,) = one["to"]
        substitutions: dict[str, str] = one.get("substitutions", {})
        if sum(len(key) + len(value.encode()) for key, value in substitutions.items()) > 10_000:
            raise BadCall("substitutions are too large")

        settings = data["tracking_settings"]
        tracking = any(settings[name]["enable"] for name in settings)
        parts = [
            esp_merging.sendgrid(text, substitutions)
            for text in (data["subject"], content["text/html"], content["text/plain"])
        ]
        custom = {**data.get("custom_args", {}), **one.get("custom_args", {})}
        headers = {**data["headers"], **one.get("headers", {})}
        arrived.append(Arrived(to["email"], to.get("name", ""), parts, headers, custom["d"], tracking))
    return arrived, ""


def brevo(call: Call) -> tuple[list[Arrived], Any]:
    """Brevo: versions of a message; a template language that escapes unless told otherwise."""
    assert call.path == "/v3/smtp/email"
    assert call.headers["api-key"] == "key"
    data = call.json
    arrived = []
    for version in data["messageVersions"]:
        (to,) = version["to"]
        parts = [esp_merging.brevo(data[part], version["params"]) for part in ("subject", "htmlContent", "textContent")]
        headers = dict(version["headers"])  # a version's headers stand instead of the message's
        token = json.loads(headers.pop("X-Mailin-custom"))["d"]
        arrived.append(Arrived(to["email"], to.get("name", ""), parts, headers, token))
    return arrived, {"messageIds": [f"<{i}@smtp-relay.example>" for i in range(len(arrived))]}


def mailjet(call: Call) -> tuple[list[Arrived], Any]:
    """Mailjet: at most 50 messages a call; `{{var:x}}` where the template language is asked for."""
    assert call.path == "/v3.1/send"
    assert base64.b64decode(call.headers["authorization"].removeprefix("Basic ")) == b"key:secret"
    data = call.json
    if len(data["Messages"]) > 50:
        raise BadCall("too many messages")
    shared = data["Globals"]
    arrived = []
    for message in data["Messages"]:
        (to,) = message["To"]
        whole = {**shared, **message}
        assert whole["TemplateLanguage"] is True

        tracking = (whole["TrackOpens"], whole["TrackClicks"]) != ("disabled", "disabled")
        parts = [esp_merging.mailjet(whole[part], whole["Variables"]) for part in ("Subject", "HTMLPart", "TextPart")]
        token = json.loads(whole["EventPayload"])["d"]
        arrived.append(Arrived(to["Email"], to.get("Name", ""), parts, whole["Headers"], token, tracking))
    said = [{"Status": "success", "To": [{"Email": one.to, "MessageID": 1}]} for one in arrived]
    return arrived, {"Messages": said}


def sparkpost(call: Call) -> tuple[list[Arrived], Any]:
    """SparkPost: recipients with substitution data; two braces escape in HTML, three do not."""
    assert call.path == "/api/v1/transmissions/"
    assert call.headers["authorization"] == "key"
    data = call.json
    content = data["content"]
    arrived = []
    for one in data["recipients"]:
        own = one["substitution_data"]
        name, address = mailbox(one["address"]["header_to"])
        assert address == one["address"]["email"]
        options = data["options"]
        headers = {key: esp_merging.sparkpost(value, own) for key, value in content["headers"].items()}
        arrived.append(
            Arrived(
                address,
                name,
                [
                    esp_merging.sparkpost(content["subject"], own),
                    esp_merging.sparkpost(content["html"], own, escapes=True),
                    esp_merging.sparkpost(content["text"], own),
                ],
                headers,
                one["metadata"]["d"],
                options["open_tracking"] or options["click_tracking"],
            )
        )
    said = {"total_accepted_recipients": len(arrived), "total_rejected_recipients": 0, "id": "1"}
    return arrived, {"results": said}


def postmark(call: Call) -> tuple[list[Arrived], Any]:
    """Postmark: a batch of messages, an answer for each."""
    assert call.path == "/email/batch"
    assert call.headers["x-postmark-server-token"] == "key"
    arrived = []
    for one in call.json:
        name, address = mailbox(one["To"])
        headers = {header["Name"]: header["Value"] for header in one["Headers"]}
        tracking = one["TrackOpens"] or one["TrackLinks"] != "None"
        parts = (one["Subject"], one["HtmlBody"], one["TextBody"])
        arrived.append(Arrived(address, name, parts, headers, one["Metadata"]["d"], tracking))
    return arrived, [
        {"ErrorCode": 0, "Message": "OK", "MessageID": f"m{i}", "To": one.to} for i, one in enumerate(arrived)
    ]


def resend(call: Call) -> tuple[list[Arrived], Any]:
    """Resend: a batch of up to 100 messages under a key."""
    assert call.path == "/emails/batch"
    assert call.headers["authorization"] == "Bearer key"
    assert 1 <= len(call.headers["idempotency-key"]) <= 256
    if len(call.json) > 100:
        raise BadCall("too many emails")
    arrived = []
    for one in call.json:
        (to,) = one["to"]
        name, address = mailbox(to)
        headers = dict(one["headers"])
        token = json.loads(headers.pop("X-Metadata"))["d"]
        arrived.append(Arrived(address, name, (one["subject"], one["html"], one["text"]), headers, token))
    return arrived, {"data": [{"id": str(i)} for i in range(len(arrived))]}


def ses(call: Call) -> tuple[list[Arrived], Any]:
    """Amazon SES, API v2: one raw message."""
    assert unquote(call.path) == "/v2/email/outbound-emails"
    assert call.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=key/")
    data = call.json
    raw = base64.b64decode(data["Content"]["Raw"]["Data"])
    assert raw.isascii()
    mail = message_from_bytes(raw, policy=policy.SMTP.clone(raise_on_defect=True))
    assert isinstance(mail, EmailMessage)
    (address,) = data["Destination"]["ToAddresses"]
    found = parts_of(mail)
    headers = {name: str(value) for name, value in mail.items()}
    token = json.loads(headers["X-Metadata"])["d"]
    name = mail["To"].addresses[0].display_name
    return [Arrived(address, name, (str(mail["Subject"]), *found), headers, token)], {"MessageId": "1"}


def mailtrap(call: Call) -> tuple[list[Arrived], Any]:
    """Mailtrap: a base and requests that override it."""
    assert call.path == "/api/batch"
    assert call.headers["api-token"] == "key"
    base = call.json["base"]
    arrived = []
    for request in call.json["requests"]:
        one = {**base, **request}
        (to,) = one["to"]
        parts = (one["subject"], one["html"], one["text"])
        token = one["custom_variables"]["d"]
        arrived.append(Arrived(to["email"], to.get("name", ""), parts, one["headers"], token))
    said = [{"success": True, "message_ids": [str(i)]} for i in range(len(arrived))]
    return arrived, {"success": True, "responses": said}


def mandrill(call: Call) -> tuple[list[Arrived], Any]:
    """Mandrill: one message; merge tags are read only where `merge` is on or there are variables."""
    assert call.path == "/api/1.0/messages/send.json"
    assert call.json["key"] == "key"
    one = call.json["message"]
    assert one["merge"] is False
    assert not {"merge_vars", "global_merge_vars"} & set(one)
    (to,) = one["to"]
    parts = (one["subject"], one["html"], one["text"])
    tracking = one["track_opens"] or one["track_clicks"]
    arrived = Arrived(to["email"], to.get("name", ""), parts, one["headers"], one["metadata"]["d"], tracking)
    return [arrived], [{"email": to["email"], "status": "queued", "_id": "1"}]


def mailersend(call: Call) -> tuple[list[Arrived], Any]:
    """MailerSend: one message; headers are for enterprise accounts, so there may be none."""
    assert call.path == "/v1/email"
    assert call.headers["authorization"] == "Bearer key"
    one = call.json
    if "headers" in one:
        raise BadCall("The headers feature is available to Enterprise accounts only.")
    (to,) = one["to"]
    headers = {"List-Unsubscribe": one["list_unsubscribe"], "Precedence": "bulk" if one["precedence_bulk"] else ""}
    tracking = one["settings"]["track_opens"] or one["settings"]["track_clicks"]
    parts = (one["subject"], one["html"], one["text"])
    return [Arrived(to["email"], to.get("name", ""), parts, headers, one["tags"][0], tracking)], {}


def postal(call: Call) -> tuple[list[Arrived], Any]:
    """Postal: one message, its tag all that can be said about it."""
    assert call.path == "/api/v1/send/message"
    assert call.headers["x-server-api-key"] == "key"
    one = call.json
    name, address = mailbox(one["to"][0])
    parts = (one["subject"], one["html_body"], one["plain_body"])
    said = {"status": "success", "data": {"messages": {address: {"id": 1}}}}
    return [Arrived(address, name, parts, one["headers"], one["tag"])], said


def scaleway(call: Call) -> tuple[list[Arrived], Any]:
    """Scaleway: one message, headers as keys and values."""
    assert call.path == "/emails"
    assert call.headers["x-auth-token"] == "key"
    one = call.json
    (to,) = one["to"]
    headers = {header["key"]: header["value"] for header in one["additional_headers"]}
    token = json.loads(headers.pop("X-Metadata"))["d"]
    parts = (one["subject"], one["html"], one["text"])
    said = {"emails": [{"mail_rcpt": to["email"], "id": "1", "status": "sending"}]}
    return [Arrived(to["email"], to.get("name", ""), parts, headers, token)], said


def unisender_go(call: Call) -> tuple[list[Arrived], Any]:
    """Unisender Go: one message, no template engine."""
    assert call.path == "/email/send.json"
    assert call.headers["x-api-key"] == "key"
    one = call.json["message"]
    assert one["template_engine"] == "none"
    (to,) = one["recipients"]
    parts = (one["subject"], one["body"]["html"], one["body"]["plaintext"])
    token = one["global_metadata"]["d"]
    name = to.get("substitutions", {}).get("to_name", "")
    tracking = bool(one["track_links"] or one["track_read"])
    said = {"status": "success", "job_id": "1", "emails": [to["email"]]}
    return [Arrived(to["email"], name, parts, one["headers"], token, tracking)], said


@dataclass(frozen=True)
class Wire:
    """A service and how EMAIL_URL is written for it."""

    url: str  # with {} for the server's address
    take: Callable[[Call], tuple[list[Arrived], Any]]
    people_a_call: int


WIRES: dict[str, Wire] = {
    "mailgun": Wire("mailgun://key@mg.shed.example?api_url={}/v3", mailgun, 200),
    "sendgrid": Wire("sendgrid://key@?api_url={}/v3", sendgrid, 200),
    "brevo": Wire("brevo://key@?api_url={}/v3", brevo, 1_000),
    "mailjet": Wire("mailjet://key:secret@?api_url={}/v3.1", mailjet, 50),
    "sparkpost": Wire("sparkpost://key@?api_url={}/api/v1", sparkpost, 200),
    "postmark": Wire("postmark://key@?api_url={}", postmark, 200),
    "resend": Wire("resend://key@?api_url={}", resend, 100),
    "mailtrap": Wire("mailtrap://key@?api_url={}/api", mailtrap, 200),
    "mandrill": Wire("mandrill://key@?api_url={}/api/1.0", mandrill, 1),
    "mailersend": Wire("mailersend://key@?api_url={}/v1", mailersend, 1),
    "postal": Wire("postal://key@?api_url={}", postal, 1),
    "scaleway": Wire("scaleway://key@?project_id=1&api_url={}", scaleway, 1),
    "unisender-go": Wire("unisender-go://key@?api_url={}", unisender_go, 1),
    "ses": Wire("ses://key:secret@?region=eu-west-1&endpoint_url={}", ses, 1),
}


# Reading -----------------------------------------------------------------------------------------------------------


def form_of(call: Call) -> dict[str, list[str]]:
    """The fields of a multipart form."""
    assert call.headers["content-type"].startswith("multipart/form-data")
    head = f"Content-Type: {call.headers['content-type']}\r\n\r\n".encode()
    form: dict[str, list[str]] = {}
    for part in BytesParser(policy=policy.HTTP).parsebytes(head + call.body).iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        form.setdefault(name, []).append(bytes(part.get_payload(decode=True)).decode())
    return form


def mailbox(written: str) -> tuple[str, str]:
    """Name and address of one mailbox, the name as it is meant."""
    if not written.endswith(">"):
        return "", written
    name, _, address = written.removesuffix(">").rpartition(" <")
    if name.startswith('"'):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return name, address


def parts_of(mail: EmailMessage) -> tuple[str, str]:
    """HTML and text of a message."""
    found = []
    for kind in ("html", "plain"):
        part = mail.get_body((kind,))
        assert isinstance(part, EmailMessage)
        found.append(str(part.get_content()))
    return found[0], found[1]
