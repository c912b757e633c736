"""Where a judge's server listens: loopback on one machine, else where the other machines find it."""

import socket

import pytest
from ralign.engine.judging import server_address as module
from ralign.engine.judging.server_address import (
    LOOPBACK,
    free_port,
    in_url,
    is_own,
    resolve,
    server_address,
    shared,
)
from ralign.engine.runtime.errors import UserError


class World:
    """Ranks on several machines, of which this process is rank 0; each machine resolves names by itself."""

    def __init__(self, machines: list[str], resolved: list[list[str]]):
        self.machines, self.resolved = machines, resolved

    def gather(self, value):
        if isinstance(value, str) and value == socket.gethostname():
            return self.machines
        if isinstance(value, tuple):
            return list(zip(self.machines, self.resolved, strict=True))
        return [value, *[None] * (len(self.machines) - 1)]

    def address(self) -> str:
        return server_address(len(self.machines), True, self.gather)


@pytest.fixture
def two_machines(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "node0.cluster")
    monkeypatch.setattr(module, "is_own", lambda address: address.startswith(("127.", "10.0.0.1")))


def test_on_one_machine_it_is_loopback(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert server_address(8, True, gather=lambda value: pytest.fail("no collective is needed")) == LOOPBACK


@pytest.mark.usefixtures("two_machines")
def test_it_is_what_the_other_machines_resolve_not_the_machine_s_own_loopback():
    me = socket.gethostname()
    world = World([me, "node1", "node2"], [["127.0.1.1"], ["10.9.9.9", "10.0.0.1"], ["10.0.0.1", "10.9.9.9"]])
    assert world.address() == "10.0.0.1"


@pytest.mark.usefixtures("two_machines")
def test_an_address_that_the_machine_does_not_have_is_a_mistake():
    world = World([socket.gethostname(), "node1"], [["127.0.1.1"], ["10.9.9.9"]])
    with pytest.raises(
        UserError, match=r"resolve node0\.cluster and .* to 10\.9\.9\.9, which the first rank's"
    ):
        world.address()


@pytest.mark.usefixtures("two_machines")
def test_ranks_of_one_machine_without_a_launcher(monkeypatch):
    me = socket.gethostname()
    assert World([me, me], [["127.0.0.1", "10.0.0.1"], ["127.0.0.1"]]).address() == LOOPBACK


def test_addresses_of_this_machine():
    assert is_own(LOOPBACK) and not is_own("192.0.2.1")  # an address for documentation, which no machine has
    assert LOOPBACK in resolve(["no-such-host.invalid", "localhost", LOOPBACK])
    assert shared([["a", "b", "c"], ["c", "b"]]) == ["b", "c"] and shared([]) == []
    assert 20_000 <= free_port(LOOPBACK) < 32_000
    assert in_url("10.0.0.1") == "10.0.0.1" and in_url("fd00::1") == "[fd00::1]"
