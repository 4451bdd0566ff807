"""Why a listener cannot be opened. The node's certificates have theirs: `security.errors.CertificateProblem`.

ListenProblem
├── PortInUse           another program listens there
├── AddressUnusable     the address is not this machine's, or this user may not bind it
└── ListenerExposed     plain or anonymous, and bound to more than loopback
"""

from __future__ import annotations


class ListenProblem(OSError):
    """The node cannot listen where it was told; the message says what to do."""


class PortInUse(ListenProblem):
    def __init__(self, protocol: str, host: str, port: int) -> None:
        self.protocol, self.host, self.port = protocol, host, port
        super().__init__(
            f"port {port} on {host} is in use by another program; stop that one (`ss -ltnp 'sport = :{port}'` shows it), "
            f"or set listeners.{protocol}.port to another one (0 takes a free one)"
        )


class AddressUnusable(ListenProblem):
    def __init__(self, protocol: str, host: str, port: int, reason: str) -> None:
        self.protocol, self.host, self.port, self.reason = protocol, host, port, reason

        super().__init__(
            f"cannot listen on {host} port {port}: {reason}; set listeners.{protocol}.host or listeners.{protocol}.port"
        )


class ListenerExposed(ListenProblem):
    def __init__(self, protocol: str, host: str) -> None:
        self.protocol, self.host = protocol, host
        super().__init__(
            f"listeners.{protocol} is plain or anonymous and {host} is reachable from other machines: "
            "such a listener is for loopback only, bind 127.0.0.1 or ::1"
        )
