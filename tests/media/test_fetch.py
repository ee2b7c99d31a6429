"""The web is fetched only where it is safe: checked against real servers on this machine."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from bindlm.errors import MediaError
from bindlm.media import ImageLimits, UrlLimits, load_image
from bindlm.media.fetch import fetch_url, is_public_address
from bindlm.media.names import Medium

# For the name pictures.test, valid until the year 2120; it protects nothing but this test.
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQ7jZKouma2+Wbx24
hqD1xxj594iQjYC9NJj3j+aepDyhRANCAAS6eL3dFgXOCxPUdIk2BCkecJWZ0nwv
3Rtqeu9YYwtX+Jq423bWfg6kwUnl4qN927QVvrFQdBQEo8jgsfZoluNG
-----END PRIVATE KEY-----
"""
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1waWN0dXJl
cy50ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYD
VQQDDA1waWN0dXJlcy50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEuni9
3RYFzgsT1HSJNgQpHnCVmdJ8L90banrvWGMLV/iauNt21n4OpMFJ5eKjfdu0Fb6x
UHQUBKPI4LH2aJbjRqNcMFowGAYDVR0RBBEwD4INcGljdHVyZXMudGVzdDAPBgNV
HRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIChDAdBgNVHQ4EFgQUKVYKRqilkaK5
o6HS/1FDTvWZpp4wCgYIKoZIzj0EAwIDSAAwRQIhALWmtnSUUO1MQ+FjXqrLGRwD
RQl79fD/kzmqUO1+RoyDAiBBXMGoL1wuD8y/oKAHWKWrnocZ1p1gmVCarPrwr1tF
mw==
-----END CERTIFICATE-----
"""


@dataclass
class Site:
    """A server on a loopback port whose answers a test writes by hand."""

    port: int = 0
    answers: dict[str, list[bytes]] = field(default_factory=dict)
    """Path -> pieces of the raw answer, sent one by one."""
    pause_s: float = 0.0
    """Between the pieces."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Host header of each request."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    @property
    def netloc(self) -> str:
        return f"127.0.0.1:{self.port}"


def answer(body: bytes, status: str = "200 OK", length: int | None = None, extra: str = "") -> list[bytes]:
    declared = len(body) if length is None else length
    return [f"HTTP/1.1 {status}\r\nContent-Length: {declared}\r\n{extra}\r\n".encode() + body]


def redirect(target: str, status: str = "302 Found") -> list[bytes]:
    return answer(b"", status, extra=f"Location: {target}\r\n")


@pytest.fixture
def open_site() -> Iterator[object]:
    servers = []

    def open_site(context: ssl.SSLContext | None = None) -> Site:
        site = Site()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests.append((self.path, self.headers["Host"]))
                try:
                    for number, piece in enumerate(site.answers[self.path]):
                        time.sleep(site.pause_s if number else 0)
                        self.wfile.write(piece)
                except OSError:
                    pass  # the client has hung up, as it should
                self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass  # a refused handshake is part of a test

        server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        site.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return site

    yield open_site
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def site(open_site) -> Site:
    return open_site()


def fetch(url: str, max_bytes: int = 10_000, **limits: object) -> bytes:
    return fetch_url(url, Medium("picture", "'x'"), max_bytes=max_bytes, limits=UrlLimits(**limits))


CANNOT = "it cannot be fetched"


def cannot_fetch(url: str, match: str = CANNOT, max_bytes: int = 10_000, **limits: object) -> str:
    with pytest.raises(MediaError, match=match) as caught:
        fetch(url, max_bytes, **limits)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_a_picture_is_fetched(site, picture, encode):
    site.answers["/cat.png?size=1&name=%C3%A4"] = answer(encode(picture, "PNG"))
    allowed = UrlLimits(allow_private_hosts=(site.netloc,))
    loaded = load_image(site.url("/cat.png?size=1&name=ä#part"), allow_url=allowed)
    assert np.array_equal(np.asarray(loaded), np.asarray(picture))
    assert site.requests == [("/cat.png?size=1&name=%C3%A4", site.netloc)]


def test_nothing_is_fetched_unless_allowed(site):
    with pytest.raises(MediaError, match="allow_url=True"):
        load_image(site.url("/cat.png"))
    for allow_url in (True, UrlLimits(ports=(site.port,))):
        with pytest.raises(MediaError, match=f"{CANNOT}|only the ports"):
            load_image(site.url("/cat.png"), allow_url=allow_url)
    assert site.requests == []


def test_private_addresses_are_refused_however_they_are_written(site):
    hosts = "127.0.0.1 localhost LOCALHOST 2130706433 0x7f000001 127.1 0177.0.0.1 １２７.0.0.1 0.0.0.0".split()
    hosts += "[::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1]".split()
    messages = {cannot_fetch(f"http://{host}:{site.port}/", ports=(site.port,)) for host in hosts}
    messages.add(cannot_fetch("http://unknown.invalid/"))
    assert len(messages) == 1, "the message tells private from unknown"
    assert site.requests == []


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.255.255.254",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
        ),
        *(
            "0.0.0.0",
            "0.1.2.3",
            "100.64.0.1",
            "192.0.0.8",
            "192.0.0.170",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.9",
        ),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
        *(
            "64:ff9b:1::1",
            "100::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "2002:808:808::1",
            "fc00::1",
            "fd00::1",
        ),
        *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "not an address", "", "127.1", "8.8.8.8:80"),
    ],
)
def test_special_addresses_are_not_public(address):
    assert not is_public_address(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "192.169.0.1", "2606:2800:220:1::1", "64:ff9b::808:808"]
)
def test_other_addresses_are_public(address):
    assert is_public_address(address)


@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("http://host:8080/", "only the ports 80 and 443"),
        ("http://host:22/", "only the ports"),
        ("http://me:secret@host/", "user name"),
        ("http://me@host/", "user name"),
        ("http:///path", "not of the form"),
        ("http://", "not of the form"),
        ("ftp://host/", "not of the form"),
        ("http://host:99999/", "malformed"),
        ("http://host:x/", "malformed"),
        ("http://[::1/", "malformed"),
        ("http://" + "a" * 64 + ".com/", "malformed"),
        ("http://a..b/", "malformed"),
        ("http://ho st/", "blank"),
        ("http://host/a b", "blank"),
        ("http://host\\@evil/", "backslash"),
        ("http://host/\r\nX-Evil: 1", "control character"),
        ("http://host\t/", "control character"),
        ("http://ho_st!/", "not of the form"),
        ("http://[fe80::1%25eth0]/", "not of the form|malformed"),
    ],
)
def test_addresses_out_of_the_ordinary_are_refused_before_any_look_up(url, match, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: pytest.fail("looked up"))
    assert "secret" not in cannot_fetch(url, match)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let each look-up of a name give the next of these lists of addresses; returns the names that were looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: object, **kwargs: object) -> list[tuple[object, ...]]:
        if not host.endswith(".test"):  # an address, which needs no look-up
            return real(host, port, *args, **kwargs)
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr("bindlm.media.fetch.socket.getaddrinfo", getaddrinfo)
    return asked


def record_connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    dialled: list[tuple[str, int]] = []

    def create_connection(address: tuple[str, int], timeout: float) -> socket.socket:
        dialled.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr("bindlm.media.fetch.socket.create_connection", create_connection)
    return dialled


def test_the_address_that_was_checked_is_the_one_dialled(monkeypatch):
    """DNS rebinding: a name that is public when it is checked and private when it is dialled."""
    asked = resolve_to(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    dialled = record_connections(monkeypatch)
    cannot_fetch("http://rebinding.test/")
    assert asked == ["rebinding.test"]
    assert dialled == [("93.184.216.34", 80)]


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    resolve_to(monkeypatch, ["93.184.216.34", "10.0.0.1"])
    dialled = record_connections(monkeypatch)
    cannot_fetch("https://mixed.test/")
    assert dialled == []


def test_the_next_address_is_dialled_if_the_first_does_not_answer(monkeypatch):
    resolve_to(monkeypatch, ["93.184.216.34", "93.184.216.35"])
    dialled = record_connections(monkeypatch)
    cannot_fetch("https://two.test/")
    assert dialled == [("93.184.216.34", 443), ("93.184.216.35", 443)]


def test_the_host_header_keeps_the_name(site, monkeypatch):
    asked = resolve_to(monkeypatch, ["127.0.0.1"])
    site.answers["/"] = answer(b"body")
    assert fetch(site.url("", "pictures.test"), allow_private_hosts=(f"pictures.test:{site.port}",)) == b"body"
    assert asked == ["pictures.test"]
    assert site.requests == [("/", f"pictures.test:{site.port}")]


def test_redirects_are_followed_up_to_the_limit(site):
    allowed = {"allow_private_hosts": (site.netloc,)}
    statuses = ("301 Moved Permanently", "303 See Other", "307 Temporary Redirect")
    for step, status in enumerate(statuses):
        site.answers[f"/{step}"] = redirect(f"/{step + 1}" if step else site.url("/1"), status)
    site.answers["/3"] = answer(b"body")
    assert fetch(site.url("/0"), **allowed) == b"body"
    assert [path for path, _ in site.requests] == ["/0", "/1", "/2", "/3"]
    cannot_fetch(site.url("/0"), max_redirects=2, **allowed)
    site.answers["/circle"] = redirect("/circle")
    site.requests.clear()
    cannot_fetch(site.url("/circle"), **allowed)
    assert len(site.requests) == 4


def test_a_redirect_to_a_private_host_is_refused(open_site):
    door, inside = open_site(), open_site()
    inside.answers["/secret"] = answer(b"secret")
    ports = (80, 443, inside.port)
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        door.answers["/"] = redirect(inside.url("/secret", host))
        cannot_fetch(door.url("/"), ports=ports, allow_private_hosts=(door.netloc,))
    door.answers["/"] = redirect(inside.url("/secret"))
    cannot_fetch(door.url("/"), "only the ports", allow_private_hosts=(door.netloc,))
    assert len(door.requests) == 4
    assert inside.requests == []
    assert fetch(door.url("/"), allow_private_hosts=(door.netloc, inside.netloc)) == b"secret"


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/", "data:;base64,QUJD", "http://me:pw@host/"])
def test_a_redirect_to_another_scheme_is_refused(target, site):
    site.answers["/"] = redirect(target)
    cannot_fetch(site.url("/"), "not of the form|user name", allow_private_hosts=(site.netloc,))


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "204 No Content", "206 Partial Content", "304 Same"])
def test_only_status_200_has_a_picture(status, site):
    site.answers["/"] = answer(b"not a picture", status)
    message = cannot_fetch(site.url("/"), allow_private_hosts=(site.netloc,))
    assert "not a picture" not in message


def test_a_body_over_the_limit_is_cut_while_it_is_read(site):
    allowed = {"allow_private_hosts": (site.netloc,)}
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"400\r\n" + b"x" * 1024 + b"\r\n"
    endless = [chunked, *[piece] * 100_000]
    unlimited = [b"HTTP/1.0 200 OK\r\n\r\n", *[b"x" * 1024] * 100_000]
    understated = answer(b"x" * 20_000, length=5)
    site.answers.update({
        "/declared": answer(b"", length=10**12),
        "/endless": endless,
        "/unlimited": unlimited,
        "/understated": understated,
        "/exact": answer(b"x" * 10_000),
        "/one%20more": answer(b"x" * 10_001),
    })  # fmt: skip
    for path in ("/endless", "/unlimited", "/one%20more"):
        start = time.monotonic()
        cannot_fetch(site.url(path), "larger than the 10000 bytes", **allowed)
        assert time.monotonic() - start < 2
    cannot_fetch(site.url("/declared"), **allowed)  # and sends nothing
    assert fetch(site.url("/exact"), **allowed) == b"x" * 10_000
    assert fetch(site.url("/understated"), **allowed) == b"xxxxx"
    with pytest.raises(MediaError, match="larger than the 9999 bytes"):
        load_image(site.url("/exact"), limits=ImageLimits(max_bytes=9_999), allow_url=UrlLimits(**allowed))


def test_answers_that_are_incomplete_or_garbled(site):
    site.answers.update({
        "/short": answer(b"x" * 50, length=100),
        "/chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nxxx"],
        "/badchunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nxxx\r\n0\r\n\r\n"],
        "/garbage": [b"\x16\x03\x01 no http at all\r\n\r\n"],
        "/headers": [b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n"],
        "/line": [b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"],
        "/nothing": [b""],
        "/packed": answer(b"x", extra="Content-Encoding: gzip\r\n"),
        "/nowhere": answer(b"", "302 Found"),
    })  # fmt: skip
    for path in site.answers:
        cannot_fetch(site.url(path), allow_private_hosts=(site.netloc,))


@pytest.mark.parametrize("what", ["headers", "body", "silence"])
def test_one_deadline_covers_a_server_that_drips(what, site):
    """Each byte comes in time, all of them would take 50 s."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n"
    drip = [bytes([byte]) for byte in b"X-Drip: " + b"y" * 490]
    site.answers["/"] = {"headers": [head, *drip], "body": [head + b"\r\n", *drip], "silence": [b"", b""]}[what]
    site.pause_s = 5 if what == "silence" else 0.1
    start = time.monotonic()
    cannot_fetch(site.url("/"), "within 0.4 seconds", allow_private_hosts=(site.netloc,), timeout_s=0.4)
    assert 0.3 < time.monotonic() - start < 2


def test_one_deadline_covers_redirects(site):
    site.answers["/"] = [b"", *redirect("/")]
    site.pause_s = 0.25
    start = time.monotonic()
    cannot_fetch(site.url("/"), allow_private_hosts=(site.netloc,), timeout_s=0.4, max_redirects=50)
    assert time.monotonic() - start < 2


def test_one_deadline_covers_the_look_up(monkeypatch):
    monkeypatch.setattr("bindlm.media.fetch.socket.getaddrinfo", lambda *args, **kwargs: time.sleep(5) or [])
    start = time.monotonic()
    cannot_fetch("http://slow.test/", timeout_s=0.2)
    assert time.monotonic() - start < 2


@pytest.fixture
def secure_site(open_site, tmp_path) -> tuple[Site, list[str | None]]:
    """A server under TLS and the names that clients asked it for."""
    (tmp_path / "key.pem").write_text(KEY)
    (tmp_path / "certificate.pem").write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    names: list[str | None] = []
    context.sni_callback = lambda sock, name, context: names.append(name)
    site = open_site(context)
    site.answers["/"] = answer(b"body")
    return site, names


def trust_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    default = ssl.create_default_context

    def create_default_context() -> ssl.SSLContext:
        context = default()
        context.load_verify_locations(cadata=CERTIFICATE)
        return context

    monkeypatch.setattr("bindlm.media.fetch.ssl.create_default_context", create_default_context)


def test_under_tls_the_name_is_asked_for_and_verified(secure_site, monkeypatch):
    site, names = secure_site
    resolve_to(monkeypatch, ["127.0.0.1"])
    urls = [f"https://{host}:{site.port}/" for host in ("pictures.test", "other.test")]
    allowed = tuple(url[8:-1] for url in urls)
    cannot_fetch(urls[0], allow_private_hosts=allowed)  # signed by nobody known
    assert site.requests == []
    trust_the_certificate(monkeypatch)
    assert fetch(urls[0], allow_private_hosts=allowed) == b"body"
    assert site.requests == [("/", f"pictures.test:{site.port}")]
    cannot_fetch(urls[1], allow_private_hosts=allowed)  # a certificate for another name
    assert len(site.requests) == 1
    assert names == ["pictures.test", "pictures.test", "other.test"]


def test_the_usual_port_is_not_in_the_host_header(secure_site, site, monkeypatch):
    secure, _ = secure_site
    resolve_to(monkeypatch, ["93.184.216.34"])
    trust_the_certificate(monkeypatch)
    site.answers["/"] = answer(b"body")
    dial = socket.create_connection
    for scheme, port, server in (("http", 80, site), ("https", 443, secure)):

        def dial_here(address: tuple[str, int], timeout: float, server: Site = server) -> socket.socket:
            assert address[0] == "93.184.216.34"
            return dial(("127.0.0.1", server.port), timeout)

        monkeypatch.setattr("bindlm.media.fetch.socket.create_connection", dial_here)
        assert fetch(f"{scheme}://pictures.test/") == fetch(f"{scheme}://PICTURES.test:{port}") == b"body"
        assert server.requests == [("/", "pictures.test")] * 2


def test_a_redirect_does_not_leave_tls(secure_site, site, monkeypatch):
    secure, _ = secure_site
    resolve_to(monkeypatch, ["127.0.0.1"])
    trust_the_certificate(monkeypatch)
    site.answers["/"] = answer(b"body")
    secure.answers["/"] = redirect(site.url("/"))
    allowed = (f"pictures.test:{secure.port}", site.netloc)
    cannot_fetch(f"https://pictures.test:{secure.port}/", allow_private_hosts=allowed)
    assert site.requests == []


def test_proxies_of_the_environment_are_not_used(site, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{site.netloc}")
    resolve_to(monkeypatch, ["93.184.216.34"])
    dialled = record_connections(monkeypatch)
    cannot_fetch("http://pictures.test/")
    assert dialled == [("93.184.216.34", 80)]
    assert site.requests == []
