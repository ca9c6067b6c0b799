"""Interface to another machine."""

from __future__ import annotations

import socket

from workers.engines.network import interface_to


def test_this_machine_is_reached_by_its_loopback_interface() -> None:
    assert interface_to("127.0.0.1") == "lo"
    assert interface_to("127.0.1.1") == "lo", "Debian's address of the machine's own name"


def test_an_address_without_a_route_has_no_interface() -> None:
    assert interface_to("255.255.255.255") is None, "a broadcast is not a machine"


def test_the_interface_of_an_own_address_is_one_of_this_machine() -> None:
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    names = {name for _, name in socket.if_nameindex()}
    assert {interface_to(str(address)) for address in own} <= {*names, None}
