"""A certificate authority of one server, and the server's certificate.

Owners trust this authority for this server only; no public one is involved. Both certificates
are valid for ten years: to renew them is to make a new server folder.
"""

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blindmerge.errors import ConfigInvalid

__all__ = ["Credentials", "make_credentials"]

_VALID = datetime.timedelta(days=3650)
_SKEW = datetime.timedelta(hours=1)  # an owner's clock may be behind


class Credentials:
    """What a server needs for TLS, as PEM. The authority's own key is not kept by anybody."""

    def __init__(self, authority: bytes, certificate: bytes, key: bytes) -> None:
        self.authority = authority
        self.certificate = certificate
        self.key = key


def make_credentials(name: str, hosts: Sequence[str], now: datetime.datetime) -> Credentials:
    """A new authority and a certificate for a server with these host names and IP addresses.

    name: of the coordinator.   now: in UTC.   Raises ConfigInvalid for a name that is no host.
    """
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    authority_key = ec.generate_private_key(ec.SECP256R1())
    server_key = ec.generate_private_key(ec.SECP256R1())
    issuer = _subject(f"blindmerge authority of {name}")
    signed_by = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    authority = (
        _builder(issuer, issuer, authority_key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(signed_by, critical=False)
        .sign(authority_key, SHA256())
    )
    certificate = (
        _builder(_subject(f"blindmerge server of {name}"), issuer, server_key, now)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(server_key.public_key()), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signed_by),
            critical=False,
        )
        .sign(authority_key, SHA256())
    )
    return Credentials(
        authority.public_bytes(Encoding.PEM),
        certificate.public_bytes(Encoding.PEM),
        server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _VALID)
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _usage(**allowed: bool) -> x509.KeyUsage:
    kinds = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**(dict.fromkeys(kinds, False) | allowed))


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if not host.isascii() or not all(x.replace("-", "").isalnum() for x in labels):
        raise ConfigInvalid(
            f"{host[:100]!a} is neither a host name nor an IP address",
            hint="give the name that owners will connect to, without port: --host fl.example.org",
        )
    return x509.DNSName(host)
