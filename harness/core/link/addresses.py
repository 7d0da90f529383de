"""IP addresses, compared as addresses: however they are written."""

import ipaddress
from functools import lru_cache


@lru_cache(maxsize=4096)
def canonical(address: str) -> str:
    """The one text for an address: FD00:0::1 is fd00::1, ::ffff:10.0.0.1 is 10.0.0.1, a scope
    (fe80::1%eth0) is left out because frames carry none. What is no address stays as it is."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(found if mapped is None else mapped)
