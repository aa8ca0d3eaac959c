"""Which names a server answers to: a page elsewhere must not reach what only this machine may.

A browser keeps pages from asking other origins, and an origin is a name. Whoever owns a name can
let it point at 127.0.0.1 for a moment (DNS rebinding): its pages then reach a server on loopback,
and all that gives them away is the Host that the browser sends.
"""

import ipaddress
import re
from collections.abc import Sequence

from adde.errors import UserError

HOST = re.compile(r"\[(?P<v6>[0-9a-f:.]+)\](:\d*)?|(?P<name>[^\s:/@\[\]]+)(:\d*)?", re.ASCII)


class AllowedHosts:
    """The hosts that a server bound to `address` answers to.

    On loopback: any that names loopback, and `names`. Off loopback `names`, loopback, and for
    probes, which ask at an address, anything.

    Args:
        address: what the server is bound to.
        names: given by the operator; port and case do not matter.

    Raises:
        UserError: a name is none; names it.
    """

    def __init__(self, address: str, names: Sequence[str]) -> None:
        self.local = is_loopback(address)
        self._names = {_given(name) for name in names}

    def allows(self, values: Sequence[str], probe: bool) -> bool:
        """Whether a request with so many Host headers is for this server.

        Args:
            values: of all the request's Host headers.
            probe: of health or metrics.
        """
        if not self.local and (probe or not self._names):
            return True
        # Of two, another program on the way may have believed the other.
        host = name_of(values[0]) if len(values) == 1 else None
        return host is not None and (host in self._names or is_loopback(host))


def name_of(host: str) -> str | None:
    """The name in a Host header, without port and brackets; None where it is none."""
    found = HOST.fullmatch(host.lower())
    if found is None:
        return None
    return found["v6"] or found["name"].removesuffix(".")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _given(name: str) -> str:
    found = name_of(name)
    if found is None:
        expected = "a name such as shop.example, or an address such as 10.0.0.7 or [fd00::7]"
        raise UserError(f"--allow-host: expected {expected}, found {name!r}")
    return found
