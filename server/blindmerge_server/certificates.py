"""A certificate authority of one server, and the server's certificates.

Owners trust this authority for this server only; no public one is involved. It is valid for ten
years, a certificate for two: `renewed` gives the next one, and owners need do nothing. The
certificate's key stays the same, so that a renewal replaces one file.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from blindmerge.errors import ConfigInvalid

__all__ = ["Credentials", "ends", "make_credentials", "renewed", "trouble"]

_AUTHORITY_VALID = datetime.timedelta(days=3650)
_SERVER_VALID = datetime.timedelta(days=730)
_SKEW = datetime.timedelta(hours=1)  # an owner's clock may be behind
_WARN_BEFORE = datetime.timedelta(days=60)
_MADE_ANEW = "make a new server folder; owners get its ca.crt"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What a server needs for TLS, as PEM.   authority_key: which only renewals need."""

    authority: bytes
    authority_key: bytes
    certificate: bytes
    key: bytes


def make_credentials(name: str, hosts: Sequence[str], now: datetime.datetime) -> Credentials:
    """A new authority and a certificate for a server with these host names and IP addresses.

    name: of the coordinator.   now: in UTC.   Raises ConfigInvalid for a name that is no host.
    """
    names = _names(hosts)
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _subject(f"blindmerge authority of {name}")
    authority = (
        _builder(issuer, issuer, authority_key.public_key(), now, now + _AUTHORITY_VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False
        )
        .sign(authority_key, SHA256())
    )
    subject = _subject(f"blindmerge server of {name}")
    certificate = _signed(authority, authority_key, subject, server_key.public_key(), names, now)
    private = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Credentials(
        authority.public_bytes(Encoding.PEM),
        authority_key.private_bytes(*private),
        certificate.public_bytes(Encoding.PEM),
        server_key.private_bytes(*private),
    )


def renewed(old: Credentials, hosts: Sequence[str], now: datetime.datetime) -> bytes:
    """The next certificate of a server, as PEM, by the same authority and for the same key.

    hosts: instead of those in the old one, if there are any.   now: in UTC.
    Raises ConfigInvalid if the authority ends as well, or its key is another's.
    """
    authority, before = _read(old.authority), _read(old.certificate)
    try:
        key = load_pem_private_key(old.authority_key, None)
    except ValueError as error:
        raise ConfigInvalid(
            "the authority's key is damaged", hint=f"restore it, or {_MADE_ANEW}"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != (
        authority.public_key()
    ):
        raise ConfigInvalid(
            "the authority's key is not the key of its certificate",
            hint=f"restore both from one backup, or {_MADE_ANEW}",
        )
    end = authority.not_valid_after_utc
    if end - now < _WARN_BEFORE:
        raise ConfigInvalid(
            f"the authority itself ends on {end:%Y-%m-%d}, so it signs no more", hint=_MADE_ANEW
        )
    found = before.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    names, public = _names(hosts) if hosts else found, before.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigInvalid("the server's certificate is of another kind", hint=_MADE_ANEW)
    signed = _signed(authority, key, before.subject, public, names, now)
    return signed.public_bytes(Encoding.PEM)


def ends(certificate: bytes) -> datetime.datetime:
    """When a certificate ends, in UTC.   Raises ConfigInvalid if the PEM holds none."""
    return _read(certificate).not_valid_after_utc


def trouble(certificate: bytes, now: datetime.datetime) -> str:
    """What is wrong with a server's certificate, or will be in 60 days; empty if nothing."""
    end = ends(certificate)
    if now > end:
        return f"the server's certificate ended on {end:%Y-%m-%d}: nobody can connect"
    days = (end - now).days
    if end - now < _WARN_BEFORE:
        return f"the server's certificate ends on {end:%Y-%m-%d}, in {days} days"
    return ""


def _read(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigInvalid(
            "a certificate in the server's folder `tls` is damaged", hint="restore it"
        ) from error


def _signed(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    names: x509.SubjectAlternativeName,
    now: datetime.datetime,
) -> x509.Certificate:
    """A certificate of a server."""
    end = min(now + _SERVER_VALID, authority.not_valid_after_utc)
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(subject, authority.subject, key, now, end)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer),
            critical=False,
        )
        .sign(authority_key, SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(end)
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


def _names(hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_general_name(host) for host in hosts])


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
