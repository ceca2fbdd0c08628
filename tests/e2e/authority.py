"""Certificates for one test."""

import datetime
import ipaddress
import pathlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Identity:
    """A certificate and its key, PEM."""
    cert: bytes
    key: bytes

    def write(self, folder: pathlib.Path, name: str) -> dict[str, str]:
        """Files of it: {"cert": path, "key": path}."""
        paths = {"cert": folder / f"{name}.cert", "key": folder / f"{name}.key"}
        paths["cert"].write_bytes(self.cert)
        paths["key"].write_bytes(self.key)
        return {kind: str(path) for kind, path in paths.items()}


class Authority:
    """Makes certificates for one test."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.cert = self._sign(self.name, self.key.public_key(), authority=True).public_bytes(
            serialization.Encoding.PEM)

    def _sign(self, name: x509.Name, key, authority: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key)
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - datetime.timedelta(hours=1))
                .not_valid_after(now + datetime.timedelta(hours=1))
                .add_extension(x509.BasicConstraints(authority, None), critical=True)
                .add_extension(x509.SubjectAlternativeName(here), critical=False)
                .sign(self.key, hashes.SHA256()))

    def issue(self, common_name: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        cert = self._sign(name, key.public_key())
        return Identity(cert.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption()))
