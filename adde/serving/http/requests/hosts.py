"""Check the Host header, so that web pages cannot reach a server on loopback by DNS rebinding.

Browsers isolate pages by origin, which is a host name. The owner of a name can briefly point it at
127.0.0.1 (DNS rebinding); its pages can then reach a server on loopback, and only the Host header
gives them away.
"""

import ipaddress
import re
from collections.abc import Sequence

from adde.errors import UserError

HOST = re.compile(r"\[(?P<v6>[0-9a-f:.]+)\](:\d*)?|(?P<name>[^\s:/@\[\]]+)(:\d*)?", re.ASCII)


class AllowedHosts:
    """The hosts that a server bound to `address` answers to.

    On loopback: loopback names and `names`. Elsewhere: `names` and loopback names; probes, which
    use addresses, with any host; without `names`, any host.

    Args:
        address: the server's bind address.
        names: from the operator; port and case are ignored.

    Raises:
        UserError: a name is malformed; names it.
    """

    def __init__(self, address: str, names: Sequence[str]) -> None:
        self.local = is_loopback(address)
        self._names = {_given(name) for name in names}

    def allows(self, values: Sequence[str], probe: bool) -> bool:
        """Whether to answer a request with these Host headers.

        Args:
            values: all Host headers of the request.
            probe: whether it is a request for health or metrics.
        """
        if not self.local and (probe or not self._names):
            return True
        # With two Host headers, a proxy may have used the other one.
        host = name_of(values[0]) if len(values) == 1 else None
        return host is not None and (host in self._names or is_loopback(host))


def name_of(host: str) -> str | None:
    """Return the name in a Host header, without port and brackets; None if malformed."""
    found = HOST.fullmatch(host.lower())
    if found is None:
        return None
    return found["v6"] or found["name"].removesuffix(".")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
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
