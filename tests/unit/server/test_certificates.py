"""Certificates: a TLS client with this authority connects to these hosts, and to no others.

The judge is `cryptography`'s own verifier of chains, and OpenSSL in a handshake.
"""

import datetime
import ipaddress
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from blindmerge.errors import ConfigInvalid
from blindmerge_server.certificates import (
    Credentials,
    ends,
    make_credentials,
    renewed,
    trouble,
)

NOW = datetime.datetime(2027, 1, 31, 12, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
HOSTS = ("fl.example.org", "10.0.0.7", "::1")


@pytest.fixture(scope="module")
def made() -> Credentials:
    return make_credentials("uni", HOSTS, NOW)


def verify(authority: bytes, certificate: bytes, host: str, at: datetime.datetime) -> None:
    store = Store([x509.load_pem_x509_certificate(authority)])
    try:
        subject: x509.IPAddress | x509.DNSName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(subject)
    verifier.verify(x509.load_pem_x509_certificate(certificate), [])


@pytest.mark.parametrize("host", HOSTS)
def test_the_server_is_who_it_says(made: Credentials, host: str) -> None:
    verify(made.authority, made.certificate, host, NOW)


@pytest.mark.parametrize("host", ["example.org", "x.fl.example.org", "10.0.0.8", "::2"])
def test_it_is_nobody_else(made: Credentials, host: str) -> None:
    with pytest.raises(VerificationError):
        verify(made.authority, made.certificate, host, NOW)


def test_another_authority_of_the_same_name_is_not_trusted(made: Credentials) -> None:
    other = make_credentials("uni", HOSTS, NOW)
    with pytest.raises(VerificationError):
        verify(other.authority, made.certificate, HOSTS[0], NOW)


def test_clocks_may_differ_by_some_minutes_and_two_years_are_the_end(made: Credentials) -> None:
    verify(made.authority, made.certificate, HOSTS[0], NOW - datetime.timedelta(minutes=59))
    verify(made.authority, made.certificate, HOSTS[0], NOW + 729 * DAY)
    for off in (datetime.timedelta(minutes=-61), 731 * DAY):
        with pytest.raises(VerificationError):
            verify(made.authority, made.certificate, HOSTS[0], NOW + off)


def test_a_renewed_certificate_is_trusted_by_who_trusted_the_old_one(made: Credentials) -> None:
    later = NOW + 700 * DAY
    new = renewed(made, (), later)
    for host in HOSTS:
        verify(made.authority, new, host, later + 729 * DAY)
    old, found = (x509.load_pem_x509_certificate(pem) for pem in (made.certificate, new))
    assert old.public_key() == found.public_key()
    assert old.serial_number != found.serial_number
    elsewhere = renewed(made, ["new.example.org"], later)
    verify(made.authority, elsewhere, "new.example.org", later)
    with pytest.raises(VerificationError):
        verify(made.authority, elsewhere, HOSTS[0], later)


def test_no_certificate_outlives_its_authority(made: Credentials) -> None:
    end = ends(made.authority)
    assert ends(renewed(made, (), end - 61 * DAY)) == end
    with pytest.raises(ConfigInvalid, match="the authority itself ends on 2037-01-28") as caught:
        renewed(made, (), end - 59 * DAY)
    assert "new server folder" in caught.value.hint


def test_the_key_of_another_authority_renews_nothing(made: Credentials) -> None:
    other = make_credentials("uni", HOSTS, NOW)
    for key, told in (
        (other.authority_key, "is not the key of its certificate"),
        (made.key, "is not the key of its certificate"),
        (b"", "is damaged"),
    ):
        with pytest.raises(ConfigInvalid, match=told):
            renewed(replace(made, authority_key=key), (), NOW)


def test_the_end_of_a_certificate_is_told_sixty_days_before(made: Credentials) -> None:
    end = ends(made.certificate)
    assert trouble(made.certificate, end - 60 * DAY) == ""
    soon = trouble(made.certificate, end - 59 * DAY)
    assert soon == "the server's certificate ends on 2029-01-30, in 59 days"
    assert "ended on 2029-01-30" in trouble(made.certificate, end + DAY)


def test_the_server_cannot_sign_for_others_and_the_authority_is_for_one_step(
    made: Credentials,
) -> None:
    server, authority = (
        x509.load_pem_x509_certificate(pem).extensions for pem in (made.certificate, made.authority)
    )
    assert not server.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    limits = authority.get_extension_for_class(x509.BasicConstraints).value
    assert (limits.ca, limits.path_length) == (True, 0)


def test_the_key_is_that_of_the_certificate_and_not_of_the_authority(
    made: Credentials, tmp_path: Path
) -> None:
    key = load_pem_private_key(made.key, None)
    server, authority = (
        x509.load_pem_x509_certificate(pem) for pem in (made.certificate, made.authority)
    )
    assert key.public_key() == server.public_key()
    assert key.public_key() != authority.public_key()
    (tmp_path / "crt").write_bytes(made.certificate)
    (tmp_path / "key").write_bytes(made.key)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "crt", tmp_path / "key")


@pytest.mark.parametrize(
    "host", ["", "fl.example.org:9092", "https://fl.example.org", "a b", "fl..org", "ä.org", "*"]
)
def test_what_is_no_host_is_refused_by_name(host: str) -> None:
    with pytest.raises(ConfigInvalid, match="neither a host name nor an IP address"):
        make_credentials("uni", [host], NOW)
