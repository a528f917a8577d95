"""Certificates for servers of the tests, made as they are needed."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@dataclass(frozen=True)
class Certified:
    """A server's side of TLS, and the file of the authority that vouches for it."""

    context: ssl.SSLContext
    authority: Path


def certified(
    folder: Path, *, address: str = "127.0.0.1", until: timedelta = timedelta(days=1), days_ago: int = 2
) -> Certified:
    """An authority of one's own, and a certificate by it for an IP address."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "An authority of the tests")])
    now = datetime.now(UTC)

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=days_ago))
            .not_valid_after(now + until)
        )

    root = certificate(authority, authority_key).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    server = certificate(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mail")]), server_key)
    server = server.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), False)
    paths = {name: folder / f"{name}.pem" for name in ("authority", "server", "key")}
    paths["authority"].write_bytes(root.sign(authority_key, SHA256()).public_bytes(Encoding.PEM))
    paths["server"].write_bytes(server.sign(authority_key, SHA256()).public_bytes(Encoding.PEM))
    paths["key"].write_bytes(server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(paths["server"], paths["key"])
    return Certified(context, paths["authority"])
