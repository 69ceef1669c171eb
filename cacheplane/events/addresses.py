"""Where a webhook may go: public addresses by https, unless `WEBHOOK_ALLOW_PRIVATE_HOSTS` says otherwise.

A name is resolved once, each of its addresses is checked, and the connection goes to those addresses and no other: a
name that changes its mind in between changes nothing.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from django.conf import settings
from yarl import URL

from cacheplane.errors import InvalidRequest
from cacheplane.events.models import URL_CHARS_MAX

PORTS = (443, 80)
_NOT_PUBLIC_4 = [
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, where clouds keep their metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
_GLOBAL_6 = IPv6Network("2000::/3")
"""All else is loopback, local, multicast, mapped from IPv4 (`::ffff:0:0/96`), translated to it (`64:ff9b::/96`)."""
_NOT_PUBLIC_6 = [
    IPv6Network(network)
    for network in (
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    )  # Teredo, examples, 6to4, examples
]


class AddressRefused(Exception):
    """The endpoint's name leads to where webhooks do not go."""


def is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    return address in _GLOBAL_6 and not any(address in network for network in _NOT_PUBLIC_6)


def checked_url(raw: str) -> str:
    """The URL as it will be asked for. Raises InvalidRequest for one that a webhook never goes to."""
    try:
        url = URL(raw)
        host, port = url.raw_host, url.port
    except ValueError:
        raise _refused(raw, "a URL") from None
    if len(raw) > URL_CHARS_MAX or not raw.isprintable() or any(char in raw for char in " \\"):
        raise _refused(raw, f"a URL of at most {URL_CHARS_MAX} characters, without blanks and backslashes")
    if not host or url.scheme not in ("https", "http"):
        raise _refused(raw, "an https URL with a host")
    if url.raw_user is not None or url.raw_password is not None:
        raise InvalidRequest("Invalid request: url: got credentials in it, takes a URL without them")
    if not settings.WEBHOOK_ALLOW_PRIVATE_HOSTS:
        if url.scheme != "https":
            raise _refused(raw, "an https URL")
        if port not in PORTS:
            raise _refused(raw, "port 443 or 80")
        _refuse_private_literal(raw, host)
    asked_for = str(url.with_fragment(None))
    if len(asked_for) > URL_CHARS_MAX:
        raise _refused(raw, f"a URL of at most {URL_CHARS_MAX} characters when it is escaped")
    return asked_for


def _refuse_private_literal(raw: str, host: str) -> None:
    try:
        address = ip_address(host)
    except ValueError:
        return  # a name: where it leads to is looked at whenever something is delivered
    if not is_public(address):
        raise _refused(raw, "a public address")


def _refused(raw: str, taken: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid request: url: got {raw[:200]!r}, takes {taken}")


def resolve(host: str, port: int) -> list[str]:
    """Every address of `host`, each of them allowed. Raises AddressRefused, OSError when there is none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = list(dict.fromkeys(str(about[4][0]) for about in found))
    if not settings.WEBHOOK_ALLOW_PRIVATE_HOSTS:
        for address in addresses:
            if not is_public(ip_address(address)):
                raise AddressRefused
    return addresses
