"""How the processes of a run meet: process 0 lets in those of its run, each once, and nobody else.

JAX's coordination service does not ask who comes. It ends a whole job when a process comes twice
or is one of another job, it shares its port with other services of the same user, and it crashes
where it cannot have the port. So the port that the user names is held by process 0 alone, without
sharing, for as long as the processes are together. Whoever comes there says what its run is and
which process it is. When all have come they are told the port of JAX's service, a free one that
nobody else knows; later ones are refused and disturb nothing.

A message is one line of JSON. A process says ``{"run": {...}, "process": i}`` and hears
``{"port": n}``, ``{"refused": why}`` or ``{"missing": who}``. Nothing is encrypted and there is no
password: the network has to be one that is trusted.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

LONGEST_LINE = 2**20
"""bytes of a message"""
PATIENCE = 10
"""seconds in which a process that connects has to say who it is"""
PAUSE = 0.2
"""seconds between two attempts to reach process 0"""

Json = Any
Address = tuple[str, int]

_log = logging.getLogger(__name__)


class AddressError(Exception):
    """An address that cannot be used; the message is one line."""


class RefusedError(Exception):
    """Process 0 is not one of this process's run, or has this process already; one line."""


class MissingError(Exception):
    """Not all processes came in time; the message is one line."""


class Meeting(NamedTuple):
    """What process 0 holds while the processes are together."""

    listener: socket.socket
    run: Mapping[str, Json]
    number: int
    present: dict[int, socket.socket]
    # index -> connection, of those that wait to be told the port
    complete: threading.Event
    # everybody has come
    changed: threading.Condition


def address(text: str) -> Address:
    """Host and port of ``HOST:PORT``, where an IPv6 address is in brackets.

    Raises:
      AddressError: it is none.
    """
    found = re.fullmatch(r"(?:\[([^\s\[\]/]+)\]|([^\s:\[\]/]+)):([0-9]{1,5})", text)
    if not found or not 1 <= int(found[3]) <= 65535:
        raise AddressError(f"{text}: must be HOST:PORT with a port from 1 to 65535")
    return found[1] or found[2], int(found[3])


def as_text(where: Address) -> str:
    """``HOST:PORT``."""
    host, port = where
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def difference(first: Mapping[str, Json], other: Mapping[str, Json], index: int) -> str | None:
    """The first fact in which process ``index`` differs from process 0, with both values."""
    for name in (*first, *other):
        if first.get(name) != other.get(name):
            return (
                f"processes differ: {name} is {first.get(name)!r} on process 0,"
                f" {other.get(name)!r} on process {index}"
            )
    return None


def where_to_listen(coordinator: Address) -> str:
    """The address, as a number, at which process 0 listens.

    It is the one that the coordinator's host names. Many machines resolve their own name to a
    loopback address, at which others do not reach them: then it is the one that stands for all.

    Raises:
      AddressError: the host has no address.
    """
    host, port = coordinator
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise AddressError(f"coordinator {as_text(coordinator)}: {_reason(e)}") from e
    family, *_, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    number = str(place[0])
    own = host.partition(".")[0] == socket.gethostname().partition(".")[0]
    if own and ipaddress.ip_address(number).is_loopback:
        return "0.0.0.0" if family == socket.AF_INET else "::"
    return number


def begin(at: Address, run: Mapping[str, Json], count: int) -> Meeting:
    """Holds the port and answers whoever comes, until ``end``. For process 0.

    Args:
      at: address, as a number, and port at which to listen.
      run: what every process of this run knows of it, name -> value.
      count: processes, with this one.

    Raises:
      AddressError: the port is in use, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in at[0] else socket.AF_INET
    try:
        listener = socket.create_server(at, family=family, backlog=max(count, 128))
    except OSError as e:
        in_use = "the port is in use; name another one"
        reason = in_use if e.errno == errno.EADDRINUSE else f"cannot listen there: {_reason(e)}"
        raise AddressError(f"coordinator {as_text(at)}: {reason}") from e
    known = json.loads(json.dumps(dict(run)))  # as the others' comes
    meeting = Meeting(listener, known, count, {}, threading.Event(), threading.Condition())
    threading.Thread(target=_receive, args=(meeting,), daemon=True).start()
    return meeting


def wait(meeting: Meeting, timeout: float) -> None:
    """Returns when all have come. For process 0.

    Raises:
      MissingError: they have not within ``timeout`` seconds. Those that wait hear of it.
    """
    others = set(range(1, meeting.number))
    with meeting.changed:
        if meeting.changed.wait_for(lambda: others <= meeting.present.keys(), timeout):
            meeting.complete.set()
            return
        missing = " and ".join(map(str, sorted(others - meeting.present.keys())))
        error = f"not all processes had come after {timeout} s: {missing} missing"
        _tell_all(meeting, {"missing": error})
    end(meeting)
    raise MissingError(error)


def let_in(meeting: Meeting, port: int) -> None:
    """Tells all the port of JAX's service. For process 0, after ``wait``."""
    with meeting.changed:
        _tell_all(meeting, {"port": port})


def end(meeting: Meeting) -> None:
    """Gives the port back. For process 0."""
    with contextlib.suppress(OSError):
        meeting.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
    meeting.listener.close()


def join(coordinator: Address, run: Mapping[str, Json], index: int, timeout: float) -> int:
    """Goes to process 0 and waits for the others; the port of JAX's service. For the others.

    Args:
      coordinator: host and port of process 0, which may start later.
      run: what every process of this run knows of it, name -> value.
      index: which process this is, from 1.
      timeout: seconds.

    Raises:
      AddressError: something else is at this port.
      RefusedError: process 0 is one of another run, or has process ``index`` already.
      MissingError: not all have come in time.
    """
    place, why = as_text(coordinator), "nothing was heard from it"
    last = time.monotonic() + timeout
    while (left := last - time.monotonic()) > 0:
        said = ""
        try:
            with socket.create_connection(coordinator, timeout=left) as connection:
                # Where nobody listens, this end may be given the very port that it looks for.
                if connection.getsockname() != connection.getpeername():
                    _tell(connection, {"run": dict(run), "process": index})
                    connection.settimeout(max(last - time.monotonic(), PAUSE))
                    said = _line(connection)
        except TimeoutError:
            continue
        except OSError as e:
            why = _reason(e)
        match _object(said):
            case {"port": int(port)}:
                return port
            case {"refused": str(text)}:
                raise RefusedError(f"refused by process 0 at {place}: {text}")
            case {"missing": str(text)}:
                raise MissingError(text)
        if said:
            raise AddressError(f"coordinator {place}: what answers there is no process 0 of a run")
        time.sleep(PAUSE)
    raise MissingError(f"not all processes had come after {timeout} s: process 0 at {place}: {why}")


@contextlib.contextmanager
def free_port(host: str) -> Iterator[int]:
    """A port at which nobody listens, and which no other program is given meanwhile.

    It may be listened at with SO_REUSEPORT, as gRPC does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, 0))
        yield held.getsockname()[1]


def _receive(meeting: Meeting) -> None:
    """Answers whoever comes, each in a thread, until the listener is closed."""
    while True:
        try:
            connection, place = meeting.listener.accept()
        except OSError:
            if meeting.listener.fileno() < 0:
                return
            time.sleep(PAUSE)  # one that went away, or too many open files: neither lasts
            continue
        args = (meeting, connection, place[0])
        threading.Thread(target=_answer, args=args, daemon=True).start()


def _answer(meeting: Meeting, connection: socket.socket, place: str) -> None:
    """Lets one process wait for the others, or refuses it. Who is no process hears nothing."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(PATIENCE)
        match _object(_line(connection)):
            case {"run": dict(run), "process": int(index)} if index > 0:
                pass
            case _:
                return
        with meeting.changed:
            refusal = difference(meeting.run, run, index)
            if not refusal and (meeting.complete.is_set() or index in meeting.present):
                refusal = f"process {index} has come already"
            if not refusal:
                meeting.present[index] = connection
                meeting.changed.notify_all()
        if refusal:
            _log.warning("refused a process from %s: %s", place, refusal)
            _tell(connection, {"refused": refusal})
            return
        connection.settimeout(None)
        with contextlib.suppress(OSError):
            connection.recv(1)  # returns when it goes away
        with meeting.changed:
            if not meeting.complete.is_set():
                del meeting.present[index]


def _tell_all(meeting: Meeting, message: Json) -> None:
    for connection in meeting.present.values():
        with contextlib.suppress(OSError):  # JAX says it if one has just gone
            _tell(connection, message)


def _tell(connection: socket.socket, message: Json) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _line(connection: socket.socket) -> str:
    """What the other end says; empty if it goes away."""
    with connection.makefile("rb") as file:
        return file.readline(LONGEST_LINE).decode(errors="replace")


def _object(line: str) -> Json:
    """What a message says; None if it is none."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
