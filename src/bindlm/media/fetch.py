"""Fetch one file from the web without becoming a door into the private network.

A server that fetches addresses for strangers can be pointed at what only it can reach: itself, its neighbours, the
cloud's metadata service. So an address is taken apart once, its host is looked up once, every address found must be on
the public internet, and the connection goes to exactly the address that was checked: a name that answers differently
the second time (DNS rebinding) gains nothing. Redirects go through the same gate. One deadline covers everything.

All refusals that depend on the network read the same, so that nobody can map a private network by the messages.
Proxies named in the environment are not used: the check of the address would be theirs.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from bindlm.errors import MediaError
from bindlm.media.limits import UrlLimits
from bindlm.media.names import Medium

_CHUNK = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DEFAULT_PORTS = {"http": 80, "https": 443}
_BAD_IN_URL = re.compile(r"[\x00-\x20\x7f\\]")  # parsers disagree about these: some drop them, some split at them
_HOST = re.compile(r"[a-z0-9._:-]+")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_SPECIAL = (  # called global by some versions of Python: protocol assignments, the anycast of 6to4, ORCHID and Teredo
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("192.88.99.0/24"),
    ipaddress.ip_network("2001::/23"),
)
_SAVE_IT = "Save the file and give its path"


class _FetchRefusedError(Exception):
    """The network, the host or its answer is not as it should be; told to the caller in one text for all cases."""


@dataclass(frozen=True)
class _Target:
    """An address taken apart; every later step uses these parts, never the text."""

    url: str
    scheme: str
    host: str
    """ASCII, lower case, no brackets."""
    port: int
    path: str
    """What stands in the request line: path and query."""
    may_be_private: bool


def fetch_url(url: str, medium: Medium, *, max_bytes: int, limits: UrlLimits) -> bytes:
    """The body of an `http://` or `https://` address.

    Args:
        url: The address.
        medium: What to call it in messages.
        max_bytes: Most bytes of the body; reading stops when there are more, whatever the answer's header says.
        limits: Time, redirects, ports, and private hosts to allow.

    Raises:
        MediaError: The address is malformed or not allowed, or cannot be fetched within the limits.
    """
    deadline = time.monotonic() + limits.timeout_s
    target = _parse(url, medium, limits)
    try:
        for _ in range(limits.max_redirects + 1):
            answer = _get(target, deadline, max_bytes)
            if isinstance(answer, bytes):
                break
            following = _parse(answer, medium, limits)
            if target.scheme == "https" and following.scheme == "http":
                raise _FetchRefusedError
            target = following
        else:
            raise _FetchRefusedError
    except MediaError:  # from _parse; also a ValueError
        raise
    except (_FetchRefusedError, OSError, http.client.HTTPException, ValueError):  # OSError: time-outs and TLS too
        raise medium.error(
            "it cannot be fetched: the host is unknown, not on the public internet, redirects to where it may not, "
            f"or gave no complete answer with status 200 within {limits.timeout_s:g} seconds",
            f"Check the address in a browser. {_SAVE_IT}",
        ) from None
    if len(answer) > max_bytes:
        raise medium.error(f"it is larger than the {max_bytes} bytes allowed", "Give the address of a smaller file")
    return answer


def _parse(url: str, medium: Medium, limits: UrlLimits) -> _Target:
    """Take `url` apart, refusing whatever is unusual: it is the only parser an address meets."""
    if _BAD_IN_URL.search(url):
        raise medium.error("its address holds a blank, a backslash or a control character", "Write a blank as %20")
    try:
        parts = urlsplit(url)
        host, port, scheme = parts.hostname or "", parts.port, parts.scheme
        if ":" not in host:  # IPv6 addresses are no names
            host = host.encode("idna").decode("ascii").lower()
    except ValueError:  # UnicodeError too
        raise medium.error("its address is malformed", "Check the address") from None
    if scheme not in _DEFAULT_PORTS or not _HOST.fullmatch(host):
        raise medium.error("its address, or a redirect, is not of the form http(s)://host/path", "Check the address")
    if parts.username is not None or parts.password is not None:
        raise medium.error("its address holds a user name", _SAVE_IT)
    port = _DEFAULT_PORTS[scheme] if port is None else port
    may_be_private = f"{host}:{port}" in limits.allow_private_hosts
    if port not in limits.ports and not may_be_private:
        ports = " and ".join(str(allowed) for allowed in limits.ports)
        raise medium.error(f"only the ports {ports} are allowed in its address and in redirects", _SAVE_IT)
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?[]')}" if parts.query else ""
    )
    return _Target(url, scheme, host, port, path, may_be_private)


def _get(target: _Target, deadline: float, max_bytes: int) -> bytes | str:
    """One request: the body (cut at one byte past `max_bytes`), or the address that the answer redirects to."""
    with _connect(target, deadline) as sock:
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.default_port = _DEFAULT_PORTS[target.scheme]  # so that the Host header names a port only if unusual
        # A connection that has a socket opens none of its own, so the host is not looked up a second time.
        connection.sock = _DeadlineSocket(sock, deadline)
        headers = {"Accept-Encoding": "identity", "Connection": "close", "User-Agent": "bindlm"}
        connection.request("GET", target.path, headers=headers)
        with connection.getresponse() as response:
            location = response.getheader("Location")
            if response.status in _REDIRECTS and location:
                return urljoin(target.url, location)
            if response.status != 200 or response.getheader("Content-Encoding", "identity").lower() != "identity":
                raise _FetchRefusedError
            return _read_body(response, max_bytes)


def _read_body(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    declared = response.length  # None where the answer does not say
    body = bytearray()
    while len(body) <= max_bytes:
        chunk = response.read(min(_CHUNK, max_bytes + 1 - len(body)))
        if not chunk:
            if declared is not None and len(body) < declared:  # the connection broke off
                raise _FetchRefusedError
            break
        body += chunk
    return bytes(body)


def _connect(target: _Target, deadline: float) -> socket.socket:
    """A connected socket to an address of the host that has passed the check, under TLS where the scheme asks."""
    addresses = _look_up(target.host, target.port, deadline)
    # One private address among public ones is enough to refuse: which one is tried first would be up to the stranger.
    if not addresses or not (target.may_be_private or all(map(is_public_address, addresses))):
        raise _FetchRefusedError
    sock: socket.socket | None = None
    for address in addresses[:4]:
        try:
            sock = socket.create_connection((address, target.port), timeout=_remaining(deadline))
            break
        except OSError:
            continue
    if sock is None:
        raise _FetchRefusedError
    if target.scheme == "http":
        return sock
    try:
        sock.settimeout(_remaining(deadline))
        # The certificate must be the host's, although we dial a number: the name goes into SNI and the check.
        return ssl.create_default_context().wrap_socket(sock, server_hostname=target.host)
    except BaseException:
        sock.close()
        raise


def _look_up(host: str, port: int, deadline: float) -> list[str]:
    """Addresses of `host`, in the system's order. A thread waits for the resolver, which knows no time limit."""
    found: list[str] = []

    def resolve() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend(dict.fromkeys(str(entry[4][0]) for entry in entries))

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(_remaining(deadline))
    return list(found)


def is_public_address(address: str) -> bool:
    """Whether `address` (IPv4 or IPv6, as text) is one machine on the public internet.

    False for private, loopback, link-local, shared, reserved, documentation, multicast and unspecified addresses, and
    for IPv6 that wraps IPv4 (mapped, 6to4, Teredo). NAT64, how hosts with IPv4 only look from networks with IPv6
    only, is judged by the IPv4 address inside.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            return is_public_address(str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)))
        if ip not in _GLOBAL_UNICAST or ip.sixtofour is not None:
            return False
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not special and not ip.is_multicast and not any(ip in network for network in _SPECIAL)


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


class _DeadlineSocket:
    """What `http.client` needs of a socket, with one deadline for all reads and writes.

    The time-out of a plain socket starts anew with each byte, so a server that drips them could hold us for hours.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def sendall(self, data: Any) -> None:
        self._sock.settimeout(_remaining(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._deadline), _CHUNK)

    def close(self) -> None:
        """Nothing: `http.client` closes before it reads the body; the owner of the socket closes it."""


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_remaining(self._deadline))
        return self._sock.recv_into(buffer)
