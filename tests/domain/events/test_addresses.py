"""Where a webhook never goes."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import anyio
import pytest

from cacheplane.errors import InvalidRequest
from cacheplane.events import addresses, delivery
from cacheplane.events.addresses import AddressRefused
from tests.receiver import Receiver

PRIVATE = [
    *["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255"],
    *["192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1"],
    *["198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"],
    *["255.255.255.255", "192.88.99.1"],
    *["::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "100::1"],
    *["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1"],
    *["64:ff9b::808:808", "64:ff9b:1::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1", "4000::1"],
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700:4700::1111"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not addresses.is_public(ip_address(address))
    leads_to(monkeypatch, address)
    with pytest.raises(AddressRefused):
        addresses.resolve("hooks.example.com", 443)
    literal = f"[{address.replace('%', '%25')}]" if ":" in address else address
    with pytest.raises(InvalidRequest, match="Invalid request: url: got"):
        addresses.checked_url(f"https://{literal}/hook")


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_taken(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leads_to(monkeypatch, address)
    assert addresses.resolve("hooks.example.com", 443) == [address]
    addresses.checked_url(f"https://{f'[{address}]' if ':' in address else address}/hook")


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    leads_to(monkeypatch, "8.8.8.8", "10.0.0.1")
    with pytest.raises(AddressRefused):
        addresses.resolve("hooks.example.com", 443)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"])
def test_other_spellings_of_loopback_are_seen_through(host: str) -> None:
    try:
        addresses.checked_url(f"https://{host}/")
    except InvalidRequest:
        return
    with pytest.raises((AddressRefused, OSError)):
        addresses.resolve(host, 443)


@pytest.mark.parametrize(
    "url",
    [
        *[
            "http://example.com/",
            "ftp://example.com/",
            "file:///etc/passwd",
            "//example.com",
            "example.com",
            "",
        ],
        *[
            "https://",
            "https://example.com:8443/",
            "https://example.com:22/",
            "https://[::1/",
            "https://a b.com/",
        ],
        *["https://example.com\\@10.0.0.1/", "https://example.com/\r\nx", "https://example.com:99999/"],
        "https://example.com/" + "a" * 2048,
        "https://example.com/" + "é" * 2000,
        "https://example.com/\ud800",
    ],
)
def test_a_url_that_is_not_plain_https_is_refused_and_named(url: str) -> None:
    with pytest.raises(InvalidRequest, match="Invalid request: url: got"):
        addresses.checked_url(url)


@pytest.mark.parametrize("allow", [False, True])
def test_credentials_are_refused_and_not_repeated(settings: Any, allow: bool) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_HOSTS = allow
    for url in ("https://user:hunter2@example.com/", "https://hunter2@example.com/"):
        with pytest.raises(InvalidRequest) as refused:
            addresses.checked_url(url)
        assert "hunter2" not in refused.value.message


def test_a_checked_url_is_escaped_once_and_stays_as_it_is() -> None:
    checked = addresses.checked_url("https://bücher.example/é?q=ü%20x#fragment")
    assert checked == "https://xn--bcher-kva.example/%C3%A9?q=%C3%BC%20x"
    assert addresses.checked_url(checked) == checked


def test_an_intranet_may_allow_what_is_refused(settings: Any) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_HOSTS = True
    assert addresses.checked_url("http://10.0.0.1:8080/hook") == "http://10.0.0.1:8080/hook"


# --- What a delivery does with it ------------------------------------------------------------------------------


def leads_to(monkeypatch: pytest.MonkeyPatch, *found: str) -> list[str]:
    """Every name leads to these addresses; who was asked for."""
    asked: list[str] = []

    def answer(host: str, port: int, **_about: Any) -> list[Any]:
        asked.append(host)
        kinds = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
        return [(kind, 1, 6, "", (address, port)) for kind, address in zip(kinds, found, strict=True)]

    monkeypatch.setattr(addresses.socket, "getaddrinfo", answer)
    return asked


def sent(url: str) -> delivery.Outcome:
    claim = delivery.Claim(
        delivery_id="whd-1", endpoint_id="we-1", fence=1, tries=1, url=url, headers={}, body=b"{}"
    )
    with ThreadPoolExecutor(1) as names:

        async def once() -> delivery.Outcome:
            return await delivery.send(claim, names=names)

        return anyio.run(once)


def test_a_name_that_leads_inside_is_never_connected_to(
    receiver: Receiver, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_HOSTS = False
    monkeypatch.setattr(addresses, "PORTS", (443, int(receiver.url.split(":")[2].split("/")[0])))
    leads_to(monkeypatch, "127.0.0.1")
    outcome = sent(receiver.url.replace("http://127.0.0.1", "https://hooks.example.com"))
    assert (outcome.http_status, outcome.error) == (None, "address_refused")
    assert receiver.got == []


def test_the_connection_goes_to_the_checked_address_without_a_second_look(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second resolution would lead nowhere: nobody has this name."""
    asked = leads_to(monkeypatch, "127.0.0.1")
    outcome = sent(receiver.url.replace("127.0.0.1", "hooks.invalid"))
    assert outcome.http_status == 204
    assert asked == ["hooks.invalid"]
    assert receiver.got[0].headers["host"].startswith("hooks.invalid:")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.answers, receiver.location = [status], receiver.url + "/elsewhere"
    outcome = sent(receiver.url)
    assert (outcome.http_status, outcome.is_success) == (status, False)
    assert [one.path for one in receiver.got] == ["/hook"]


def test_a_proxy_of_the_environment_is_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert sent(receiver.url).http_status == 204


def test_a_slow_receiver_is_given_up(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "TIMEOUT_SECONDS", 0.2)
    receiver.delay_seconds = 1
    assert sent(receiver.url).error == "timeout"


def test_a_name_without_an_address_and_a_port_without_a_listener_are_outcomes(settings: Any) -> None:
    settings.WEBHOOK_ALLOW_PRIVATE_HOSTS = True
    assert sent("http://127.0.0.1:9/").error == "ClientConnectorError"
    assert sent("http://hooks.invalid/").error == "name_not_found"
    assert sent("http://" + "a" * 80 + ".example/").error == "name_not_found"


def test_a_long_answer_is_not_read(receiver: Receiver) -> None:
    receiver.answers, receiver.body = [200], b"x" * (32 << 20)
    outcome = sent(receiver.url)
    assert outcome.is_success
