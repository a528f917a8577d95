"""The demo's mail server keeps every message that it has acknowledged."""

import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from newsletter import mailserver


@pytest.fixture
def server(tmp_path: Path) -> Iterator[mailserver.Running]:
    with mailserver.running(tmp_path / "mail") as running:
        yield running


def send(port: int, *recipients: str, subject: str = "Hello", body: str = "Grüße\n") -> None:
    message = EmailMessage()
    message["Subject"] = subject
    message.set_content(body, cte="8bit")
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail("bounce+abc@example.org", recipients, message.as_bytes(), mail_options=["BODY=8BITMIME"])


def test_a_message_is_kept_with_its_envelope_byte_for_byte(server: mailserver.Running) -> None:
    send(server.port, "ann@example.org", "bob@example.org")

    [message] = server.mailbox
    assert (message.id, message.mail_from) == (1, "bounce+abc@example.org")
    assert message.rcpt_tos == ["ann@example.org", "bob@example.org"]
    assert "Grüße".encode() in message.raw
    assert message.size == len(message.raw)
    assert server.mailbox.get(1) == message
    assert server.mailbox.get(0) is server.mailbox.get(2) is None


def test_the_newest_come_first_and_can_be_narrowed_to_a_recipient(server: mailserver.Running) -> None:
    for number in range(5):
        send(server.port, f"ann+{number % 2}@example.org", subject=f"Issue {number}")

    assert [message.id for message in server.mailbox.messages(0, 2)] == [5, 4]
    assert [message.id for message in server.mailbox.messages(4, 10)] == [1]
    assert server.mailbox.messages(5, 10) == []
    assert [message.id for message in server.mailbox.messages(1, 1, recipient="ANN+0@")] == [3]


def test_an_empty_or_missing_mailbox_has_no_messages(tmp_path: Path) -> None:
    assert mailserver.Mailbox(tmp_path / "nowhere").messages() == []
    assert list(mailserver.Mailbox(tmp_path / "nowhere")) == []


def test_pipelined_sessions_are_offered_and_answered(server: mailserver.Running) -> None:
    with smtplib.SMTP("127.0.0.1", server.port) as client:
        client.ehlo()
        assert {"pipelining", "8bitmime", "smtputf8"} <= set(client.esmtp_features)
    envelope = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"
    with socket.create_connection(("127.0.0.1", server.port)) as client_socket, client_socket.makefile("rb") as replies:
        client_socket.sendall(b"EHLO here\r\n" + envelope)
        client_socket.sendall(b"Subject: 1\r\n\r\n..dot\r\n.\r\n" + envelope)
        client_socket.sendall(b"Subject: 2\r\n\r\n\r\n.\r\nQUIT\r\n")
        codes = [line[:3] for line in replies if line[3:4] == b" "]
    assert codes == [b"220", b"250", b"250", b"250", b"354", b"250", b"250", b"250", b"354", b"250", b"221"]
    assert [message.raw[:10] for message in server.mailbox] == [b"Subject: 1", b"Subject: 2"]
    assert b"\r\n.dot\r\n" in next(iter(server.mailbox)).raw


def test_a_killed_server_loses_nothing_and_its_half_written_frame_is_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    command = [sys.executable, "-m", "newsletter.mailserver", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        send(int(process.stdout.readline().rpartition(":")[2]), "ann@example.org")
        process.kill()
    for name in ("messages", "index"):
        with (folder / name).open("ab") as file:
            file.write(b"half")

    with mailserver.running(folder) as server:
        send(server.port, "bob@example.org")
        assert [message.rcpt_tos for message in server.mailbox] == [["ann@example.org"], ["bob@example.org"]]


def test_the_process_ends_on_sigterm_and_says_when_its_port_is_taken(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "newsletter.mailserver", "--dir", str(tmp_path), "--port"]
    with mailserver.listen() as taken:
        refused = subprocess.run([*command, str(taken.getsockname()[1])], check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "cannot listen on 127.0.0.1" in refused.stderr
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
