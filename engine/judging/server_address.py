"""The address at which a judge's server listens: loopback, or the one address at which all ranks reach it."""

import os
import random
import socket
from collections.abc import Callable, Sequence

from ralign.engine.runtime.errors import UserError

LOOPBACK = "127.0.0.1"


def server_address(world_size: int, is_first_rank: bool, gather: Callable[[object], list]) -> str:
    """The address for the first rank's server, on every rank. Collective.

    On several machines it is an address of the first rank's machine to which the other machines resolve its names:
    MASTER_ADDR, through which they have joined the job, or else its host name. The machine itself may resolve them
    to loopback.

    Args:
        gather: the values of all ranks, in rank order, on every rank.

    Raises:
        UserError: on every rank, if the other machines know no address of the first rank's.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == world_size:
        return LOOPBACK
    machine = socket.gethostname()
    first_machine = gather(machine)[0]
    names = list(dict.fromkeys((os.environ["MASTER_ADDR"], first_machine)))
    ranks = gather((machine, resolve(names)))
    found = [addresses for host, addresses in ranks if host != first_machine]
    found = found or [addresses for _, addresses in ranks]
    address = gather(next(filter(is_own, shared(found)), None) if is_first_rank else None)[0]
    if address is None:
        raise UserError(
            f"the judge's server has no address: the other machines resolve {' and '.join(names)} to "
            f"{', '.join(dict.fromkeys(sum(found, []))) or 'nothing'}, which the first rank's machine does not have"
        )
    return address


def resolve(names: Sequence[str]) -> list[str]:
    """The IP addresses of hosts, in order, each once; a name that does not resolve has none."""
    addresses: list[str] = []
    for name in names:
        try:
            found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError:
            continue
        addresses += [str(place[0]) for *_, place in found]
    return list(dict.fromkeys(addresses))


def shared(lists: Sequence[Sequence[str]]) -> list[str]:
    """What all lists have, in the first one's order."""
    return [item for item in (lists[0] if lists else []) if all(item in other for other in lists)]


def is_own(address: str) -> bool:
    """Whether this machine has the address."""
    with socket.socket(_family(address)) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def free_port(address: str) -> int:
    """A free port below the ephemeral range, so that no connection takes it before the server binds it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket(_family(address)) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port


def in_url(address: str) -> str:
    """The address as a URL has it: IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
