"""Network interface by which this machine reaches another one."""

from __future__ import annotations

import fcntl
import socket
import struct

SIOCGIFADDR = 0x8915  # ioctl of Linux: address of an interface
ADDRESS = slice(20, 24)  # of its answer


def interface_to(address: str) -> str | None:
    """Return the name of the interface, such as `eth0`; None if there is no route or the interface has no name.

    Example: `interface_to("127.0.0.1")` is `lo`.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing; the system chooses the route
        except OSError:
            return None
        here = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                if fcntl.ioctl(probe, SIOCGIFADDR, request)[ADDRESS] == here:
                    return name
            except OSError:  # it has no address
                continue
    return None
