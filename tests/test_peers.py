"""Peers that are none of ours: C for POSIX, Perl and util-linux for System V; both ways."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import missing, needs, until, with_glibc

IPC_CREAT, SETVAL = 0o1000, 16


@pytest.fixture(scope="session")
def peer(tmp_path_factory) -> Path:
    """The C program beside this file, compiled."""
    if absent := missing("cc"):
        pytest.skip(absent)
    path = tmp_path_factory.mktemp("peer") / "peer"
    source = Path(__file__).with_name("peer.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-o", path, source, "-lrt"], check=True)
    return path


def run(*argv: object) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def perl(program: str, *args: object) -> str:
    if absent := missing("perl"):
        pytest.skip(absent)
    return run("perl", "-e", program, *args)


def test_c_and_a_posix_queue(make_pair, peer):
    pair = make_pair("posix", "msq")
    with pair.server() as server:
        run(peer, "msq", "send", pair.name, '{"from": "C"}')
        server.wait_line("{'from': 'C'}")
        run(peer, "msq", "send", pair.name, "no JSON")
        server.wait_line("b'no JSON'")
        server.stop()
    pair.client("-c1", "-q")
    assert run(peer, "msq", "receive", pair.name) == '{"count": 1}\n'


def test_c_and_a_posix_segment(make_pair, peer):
    pair = make_pair("posix", "shm")
    with pair.server("--changes", "-i0.02") as server:
        run(peer, "shm", "write", pair.name, "from C, without a lock")
        server.wait_line("from C, without a lock")
        run(peer, "shm", "write", pair.name, "shorter")
        server.wait_line("shorter")
        pair.client(stdin="from Python\n")
        assert run(peer, "shm", "read", pair.name) == "from Python\n"
        server.wait_line("from Python")
        server.stop()
    assert server.texts[-4:-1] == ["from C, without a lock", "shorter", "from Python"]


@pytest.mark.parametrize("size", [1, 100, 100_000])
def test_a_posix_segment_that_c_made(make_pair, peer, size):
    pair = make_pair("posix", "shm")
    run(peer, "shm", "create", pair.name, size)
    assert pair.client(stdin="x\n").returncode == 0
    assert pair.run("server", "-c1").stdout.splitlines()[1].endswith(" x")
    assert pair.path.stat().st_size == size


def test_a_posix_segment_that_c_made_and_did_not_size(make_pair, peer):
    pair = make_pair("posix", "shm")
    run(peer, "shm", "create", pair.name, 0)
    assert pair.client(stdin="text\n").returncode == 0
    assert pair.path.stat().st_size == 4096


@with_glibc
def test_c_and_a_posix_semaphore(make_pair, peer):
    pair = make_pair("posix", "sem")
    assert run(peer, "sem", "create", pair.name, 5) == "5\n"
    with pair.server("-i0.02") as server:
        server.wait_line("semaphore: 5")
        assert run(peer, "sem", "wait", pair.name) == "4\n"
        server.wait_line("semaphore: 4")
        assert pair.client().stdout == "semaphore: 3\n"
        assert run(peer, "sem", "post", pair.name) == "4\n"
        assert pair.client("-r").stdout == "semaphore: 5\n"


def test_perl_and_a_sysv_queue(make_pair):
    pair = make_pair("sysv", "msq")
    send = "msgsnd(msgget($ARGV[0], 0) // die($!), pack('l! Z*', $ARGV[1], $ARGV[2]), 0) or die($!)"
    with pair.server() as server:
        perl(send, pair.key, 7, '{"from": "Perl"}')
        server.wait_line("{'from': 'Perl'}")
        perl(send, pair.key, 7, "no JSON")
        server.wait_line("b'no JSON'")
        server.stop()
    pair.client("-c1", "-q", "--type", 5)
    receive = (
        "msgrcv(msgget($ARGV[0], 0) // die($!), $m, 8192, 5, 0) // die($!);"
        "($type, $text) = unpack('l! a*', $m); print \"$type $text\""
    )
    assert perl(receive, pair.key) == '5 {"count": 1}'


def test_perl_and_a_sysv_segment(make_pair):
    pair = make_pair("sysv", "shm")
    write = (
        "shmwrite(shmget($ARGV[0], 0, 0) // die($!), $ARGV[1], 0, length($ARGV[1]) + 1) or die($!)"
    )
    read = "shmread(shmget($ARGV[0], 0, 0) // die($!), $m, 0, 20) or die($!); print $m"
    with pair.server("--changes", "-i0.02") as server:
        perl(write, pair.key, "from Perl, without a lock")
        server.wait_line("from Perl, without a lock")
        pair.client(stdin="from Python\n")
        assert perl(read, pair.key) == "from Python".ljust(20, "\0")


def test_a_sysv_segment_that_perl_made(make_pair):
    pair = make_pair("sysv", "shm")
    perl(f"defined(shmget($ARGV[0], 100, {IPC_CREAT} | 0600)) or die($!)", pair.key)
    assert pair.client(stdin="x" * 100 + "\n").returncode == 0
    assert pair.client(stdin="x" * 101 + "\n").returncode == 1
    assert pair.run("server", "-c1").stdout.splitlines()[1].endswith("x" * 100)


def test_perl_and_a_sysv_semaphore(make_pair):
    pair = make_pair("sysv", "sem")
    semop = "semop(semget($ARGV[0], 1, 0) // die($!), pack('s!3', 0, $ARGV[1], 0)) or die($!)"
    make = (
        f"$s = semget($ARGV[0], 1, {IPC_CREAT} | 0600) // die($!);"
        f"semctl($s, 0, {SETVAL}, 5) or die($!); semop($s, pack('s!3', 0, -1, 0)) or die($!)"
    )
    perl(make, pair.key)
    with pair.server("-i0.02") as server:
        server.wait_line("semaphore: 4")
        perl(semop, pair.key, -3)
        server.wait_line("semaphore: 1")
        assert pair.client().stdout == "semaphore: 0\n"
        perl(semop, pair.key, 2)
        assert pair.client("-r").stdout == "semaphore: 3\n"


def key_of(number: str, column: str) -> int:
    for line in run("ipcs", column).splitlines():
        if line.split()[1:2] == [number]:
            return int(line.split()[0], 16)
    raise AssertionError(f"ipcs does not show {number}")


@needs("ipcmk", "ipcs", "ipcrm")
@pytest.mark.parametrize(
    "primitive, option, column",
    [("msq", "-Q", "-q"), ("shm", "-M4096", "-m"), ("sem", "-S1", "-s")],
)
def test_util_linux(make_pair, primitive, option, column):
    """An object that ipcmk(1) made, seen in ipcs(1), used by the scripts, removed by ipcrm(1)."""
    key = 0
    while not 0 < key < 2**31:  # it takes any key, and half of them are negative in C
        number = run("ipcmk", option).split()[-1]
        key = key_of(number, column)
        if key >= 2**31:
            run("ipcrm", option[:2].lower(), number)
    pair = make_pair("sysv", primitive, key=key)
    if primitive == "sem":  # without a semop(2) it never got a value, by its o_time
        perl("semop(semget($ARGV[0], 1, 0) // die($!), pack('s!3', 0, 2, 0)) or die($!)", key)
    with pair.server() as server:
        server.wait_line("start")
        options = ["-c1"] if primitive == "msq" else []
        assert pair.client(*options, stdin="text\n").returncode == 0
        run("ipcrm", option[:2].lower(), number)
        assert server.wait(5) == 1
    assert not re.search(rf"^0x\S+ +{number} ", run("ipcs", column), re.M)


@needs("ipcs")
def test_ipcs_shows_what_the_scripts_made(make_pair):
    for primitive, column, more in (("msq", "-q", ["-c1"]), ("shm", "-m", []), ("sem", "-s", [])):
        pair = make_pair("sysv", primitive)
        pair.client(*more, stdin="text\n")
        until(lambda: f"{pair.key:#010x}" in run("ipcs", column))
        assert " 600 " in next(
            line
            for line in run("ipcs", column).splitlines()
            if line.startswith(f"{pair.key:#010x}")
        )
