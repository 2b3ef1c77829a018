"""Ports: why a server could not listen."""

from __future__ import annotations

from tasks.machine.ports import port_problem


def test_a_host_that_is_no_address_is_found() -> None:
    assert "no address" in (port_problem("no.such.host.invalid", 8000) or "")
