"""Settings of a policy server: its address, token and certificate."""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import InputError
from . import protocol
from .codec import DEFAULT_MESSAGE_LIMITS, MessageLimits


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens, and what a client needs to connect.

    Attributes:
        token: The secret that clients send.
        host: Address to listen on; one that other machines can reach needs a certificate.
        port: Port to listen on; 0 chooses a free one.
        certificate: PEM file of the TLS certificate.
        key: PEM file of its private key, without a password.
        policy: Name of the policy, for clients.
        limits: Limits of messages.
        ping_seconds: Interval of pings; a client that does not answer one within this time is disconnected.

    Raises:
        InputError: The token is too weak, a value is out of range, or the certificate is missing.
    """

    token: str = field(repr=False)
    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    policy: str = "policy"
    limits: MessageLimits = DEFAULT_MESSAGE_LIMITS
    ping_seconds: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", protocol.check_token(self.token, "the server"))
        if not 0 <= self.port <= 65535:
            raise InputError(
                "port", got=self.port, expected="0 to 65535", fix="Choose another --port; 0 chooses a free one."
            )
        if not self.ping_seconds > 0:
            raise InputError(
                "ping_seconds", got=self.ping_seconds, expected="above 0", fix="Set ping_seconds to 5, the default."
            )
        if (self.certificate is None) != (self.key is None):
            given, missing = ("key", "certificate") if self.certificate is None else ("certificate", "key")
            raise InputError(
                missing, got="nothing", expected=f"a file, as there is a {given}", fix=f"Give --{missing}."
            )
        if self.certificate is None and not protocol.is_loopback(self.host):
            fix = "Give --certificate and --key, or leave --host out and use an SSH tunnel."
            expected = "a certificate and its key where other machines can reach the server"
            raise InputError(f"host {self.host}", got="no certificate", expected=expected, fix=fix)

    def context(self) -> ssl.SSLContext | None:
        """Return the TLS context, None without a certificate; InputError if the files cannot be used."""
        if self.certificate is None or self.key is None:
            return None
        for name in ("certificate", "key"):
            if not getattr(self, name).is_file():
                fix = f"Give --{name} an existing file."
                raise InputError(name, got=f"no file {getattr(self, name)}", expected="a PEM file", fix=fix)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without this callback OpenSSL would ask for a password at the terminal.
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")
        except (ssl.SSLError, OSError, ValueError) as error:
            got = f"{self.certificate} and {self.key} ({getattr(error, 'reason', None) or error})"
            fix = "Give the PEM files that belong together, the key without a password."
            raise InputError("certificate", got=got, expected="a certificate and its key", fix=fix) from None
        return context

    def check_bindable(self) -> None:
        """Raise InputError if the server cannot listen on its address; call it before loading a policy."""
        try:
            family, kind, _, _, address = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                # As asyncio's servers do, so that the port of a server that has just ended counts as free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            raise self.refusal(error) from None

    def url(self, port: int) -> str:
        """Return the address for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ws' if self.certificate is None else 'wss'}://{host}:{port}"

    def refusal(self, error: OSError) -> InputError:
        """Return the InputError for an address on which the system does not allow to listen."""
        if error.errno == errno.EADDRINUSE:
            fix = "Stop the other server, or choose another --port; 0 chooses a free one."
            return InputError("port", got=f"{self.port}, in use", expected="a free port", fix=fix)
        if error.errno == errno.EACCES:
            fix = "Choose a --port from 1024 to 65535."
            return InputError("port", got=f"{self.port}, not allowed", expected="a port that you may use", fix=fix)
        got = error.strerror or str(error)
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            got = f"{self.host}, no address of this machine"
        return InputError("host", got=got, expected="an address of this machine", fix="Leave --host out for 127.0.0.1.")
