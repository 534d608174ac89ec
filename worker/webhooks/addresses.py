"""Which addresses a webhook may lead to: users choose the URLs, and must not reach servers of ours by them.

A name is resolved once, and the connection goes to the address that was checked: a second look-up could return another one.
"""

from __future__ import annotations

import ipaddress
import socket

from shared.errors import InvalidRequest, Outage

#: Translates addresses of version 4 (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: Public, but the host of a virtual machine in Azure, which gives it credentials.
_HOSTS_OWN = (ipaddress.ip_address("168.63.129.16"),)
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def resolve(host: str, port: int, *, allow_private: bool) -> str:
    """The address to connect to.

    Raises:
        InvalidRequest: the host has an address that is not public.
        Outage: the name can't be resolved now.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Outage(f"{host!r} can't be resolved ({type(error).__name__}): is the name right?") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_private:
        for address in addresses:
            if not is_public(address):
                # Not which: a user would learn the addresses of our servers.
                raise InvalidRequest(f"{host!r} leads to an address that is not public: use a public one")
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, by itself and by the address it contains."""
    address: Address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not (address.is_multicast or address.is_reserved or address in _HOSTS_OWN)
