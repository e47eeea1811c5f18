"""How processes meet: those of one run come together, and whoever else comes disturbs nothing."""

import contextlib
import http.client
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedprune import meeting

HERE = "127.0.0.1"
RUN = {"processes": 3, "workdir": "a", "ratios": (0.5, 0.9)}


@contextlib.contextmanager
def begun(run=RUN, number=3, at=(HERE, 0)):
    """A meeting and where it is."""
    found = meeting.begin(at, run, number)
    try:
        yield found, found.listener.getsockname()[:2]
    finally:
        meeting.end(found)


@pytest.fixture
def pool():
    with ThreadPoolExecutor() as threads:
        yield threads


def until_there(found, *indices):
    with found.changed:
        assert found.changed.wait_for(lambda: set(indices) == found.present.keys(), 60)


def test_addresses():
    for text, expected in {
        "127.0.0.1:7000": ("127.0.0.1", 7000),
        "node-1.cluster:65535": ("node-1.cluster", 65535),
        "[::1]:1": ("::1", 1),
    }.items():
        assert meeting.address(text) == expected
        assert meeting.as_text(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "a:", ":7", "a:b", "a:7b", "a:0", "a:65536", "a:-1", "a:+1", "a:1.0", "a:7:7"),
        *("a: 7", "a b:7", "::1:7", "[]:7", "http://a:7", "a:7/", "a:٧", "a:7\n", "a:000007"),
    ],
)
def test_addresses_that_are_none(text):
    with pytest.raises(meeting.AddressError, match="must be HOST:PORT with a port from 1 to 65535"):
        meeting.address(text)


def test_strangers_are_refused_and_the_others_meet(pool, caplog):
    with begun() as (found, at):
        came = pool.submit(meeting.join, at, RUN, 2, 60)
        until_there(found, 2)
        strangers = [
            ({**RUN, "workdir": "b"}, 1, "workdir is 'a' on process 0, 'b' on process 1"),
            ({**RUN, "processes": 4}, 3, "processes is 3 on process 0, 4 on process 3"),
            ({**RUN, "more": 1}, 1, "more is None on process 0, 1 on process 1"),
            (RUN, 2, "process 2 has come already"),
        ]
        for run, index, says in strangers:
            with pytest.raises(meeting.RefusedError, match=says):
                meeting.join(at, run, index, 60)
        assert [r.message.endswith(s[2]) for r, s in zip(caplog.records, strangers, strict=True)]
        silent = socket.create_connection(at)
        for text in (b"\n", b"[1]\n", b"nonsense", b'{"run": {}}\n', b"\xff\xfe\n"):
            with socket.create_connection(at) as other:
                other.sendall(text)
        web = http.client.HTTPConnection(*at, timeout=60)
        web.request("GET", "/")
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            web.getresponse()
        assert not came.done()

        last = pool.submit(meeting.join, at, RUN, 1, 60)
        meeting.wait(found, 60)
        meeting.let_in(found, 1234)
        assert came.result(60) == last.result(60) == 1234
        for index in (1, 2):
            with pytest.raises(meeting.RefusedError, match=f"process {index} has come already"):
                meeting.join(at, RUN, index, 60)
        silent.close()


def test_one_that_goes_away_while_it_waits_may_come_again(pool):
    with begun({}, 2) as (found, at):
        with socket.create_connection(at) as one:
            one.sendall(b'{"run": {}, "process": 1}\n')
            until_there(found, 1)
        until_there(found)
        again = pool.submit(meeting.join, at, {}, 1, 60)
        meeting.wait(found, 60)
        meeting.let_in(found, 7)
        assert again.result(60) == 7


def test_who_is_missing_is_said_to_all(pool):
    with begun() as (found, at):
        came = pool.submit(meeting.join, at, RUN, 2, 60)
        until_there(found, 2)
        says = r"^not all processes had come after 0\.1 s: 1 missing$"
        with pytest.raises(meeting.MissingError, match=says):
            meeting.wait(found, 0.1)
        with pytest.raises(meeting.MissingError, match=says):
            came.result(60)
        with pytest.raises(meeting.MissingError, match=f"process 0 at {HERE}:{at[1]}: "):
            meeting.join(at, RUN, 1, 0.1)


def test_process_0_may_come_last_and_be_started_again(pool):
    with meeting.free_port(HERE) as port:
        pass
    came = pool.submit(meeting.join, (HERE, port), {}, 1, 60)
    with begun({}, 2, (HERE, port)) as (found, _):
        until_there(found, 1)
        connection = found.present[1]
    connection.shutdown(socket.SHUT_RDWR)  # as when the process ends
    with begun({}, 2, (HERE, port)) as (found, _):
        meeting.wait(found, 60)
        meeting.let_in(found, 7)
        assert came.result(60) == 7


def test_a_port_is_held_alone_and_only_where_told():
    with begun() as (_, at):
        with pytest.raises(
            meeting.AddressError, match=f"coordinator {HERE}:{at[1]}: the port is in"
        ):
            meeting.begin(at, RUN, 3)
        with socket.socket() as sharing:
            sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                sharing.bind(at)
        with begun(at=("127.0.0.2", at[1])):  # it would be in use if all addresses were bound
            pass
    with begun(at=at):  # it has been given back
        pass
    with pytest.raises(meeting.AddressError, match=r"192\.0\.2\.1:7000: cannot listen there: "):
        meeting.begin(("192.0.2.1", 7000), RUN, 3)


def test_something_else_at_the_port():
    with socket.create_server((HERE, 0)) as server:

        def answer():
            with server.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(meeting.AddressError, match="what answers there is no process 0"):
            meeting.join(server.getsockname(), RUN, 1, 60)


def test_where_to_listen(monkeypatch):
    """A machine's own name that leads to itself alone would keep the other machines out."""
    known = {"node": "127.0.1.1", "node.here": "127.0.1.1", "front": "127.0.0.3", "own6": "::1"}
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if host == "nowhere":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(known.get(host, host), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "gethostname", lambda: "node")
    for host, expected in {
        "127.0.0.1": "127.0.0.1",
        "::1": "::1",
        "192.0.2.1": "192.0.2.1",
        "front": "127.0.0.3",
        "node": "0.0.0.0",
        "node.here": "0.0.0.0",
    }.items():
        assert meeting.where_to_listen((host, 7)) == expected
    monkeypatch.setattr(socket, "gethostname", lambda: "own6")
    assert meeting.where_to_listen(("own6", 7)) == "::"
    with pytest.raises(meeting.AddressError, match="coordinator nowhere:7: Name or service not"):
        meeting.where_to_listen(("nowhere", 7))


def test_a_free_port_is_kept_for_whom_may_share_it():
    with meeting.free_port(HERE) as port, socket.socket() as shares, socket.socket() as alone:
        with pytest.raises(OSError, match="in use"):
            alone.bind((HERE, port))
        shares.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shares.bind((HERE, port))
        shares.listen()
