"""Where the page listens, and who reaches it there."""

from __future__ import annotations

import errno
import ipaddress
import socket
from contextlib import suppress

from lumos_pl.errors import ConfigError

PORT = 8765
LOOPBACK = "127.0.0.1"


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at once: who comes while the model is loaded waits."""
    if not 0 <= port < 1 << 16:
        raise ConfigError("not a port", where="--port", got=port, expected="0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError("not an address of this machine", where="--host", got=host, expected=error.strerror) from None
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            fix = "end what listens there, or take another: --port 0 picks a free one"
            raise ConfigError("the port is taken", where="--port", got=port, fix=fix) from None
        raise ConfigError("cannot listen", where=f"--host {host} --port {port}", got=error.strerror) from None
    return listening


def tell_where(listening: socket.socket) -> None:
    """Print the address, and who else than this machine reaches it."""
    host, port = listening.getsockname()[:2]
    at = f"[{host}]" if ":" in host else host
    print(f"http://{at}:{port} | opens once the model is loaded | Ctrl-C ends it", flush=True)
    if not is_loopback(host):
        words = "whoever reaches this machine by the network can use the page and its model: it asks for no password"
        print(words, flush=True)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
