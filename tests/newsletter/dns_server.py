"""A DNS server on loopback that knows what a test tells it, so that lookups go over real UDP."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

Zone = Mapping[tuple[str, str], list[str]]  # (name, type) → texts as in a zone file; [] for a name without that type
SERVFAIL = "SERVFAIL"


def _answer(zone: Zone, wire: bytes) -> bytes:
    query = dns.message.from_wire(wire)
    question = query.question[0]
    name, kind = question.name.to_text().rstrip(".").lower(), question.rdtype.name
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    texts = zone.get((name, kind))
    if texts == [SERVFAIL]:
        response.set_rcode(dns.rcode.SERVFAIL)
    elif texts:
        response.answer.append(dns.rrset.from_text_list(question.name, 60, "IN", kind, texts))
    elif not any(known == name for known, _kind in zone):
        response.set_rcode(dns.rcode.NXDOMAIN)
    return response.to_wire()


@contextlib.contextmanager
def serving(zone: Zone) -> Iterator[str]:
    """Answer on a free port until the block ends; gives "127.0.0.1:port"."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                wire, client = udp.recvfrom(4096)
                if wire == b"stop":
                    return
                udp.sendto(_answer(zone, wire), client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        host, port = udp.getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ending:
                ending.sendto(b"stop", (host, port))
            thread.join(timeout=5)
