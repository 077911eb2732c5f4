"""Deliberate faults at moments that the test makes: a call stopped, refused, or starved."""

import argparse
import contextlib
import errno
import fcntl
import functools
import importlib.util
import json
import math
import os
import pty
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import posix_ipc
import pytest
import sysv_ipc
from conftest import (
    ENV,
    PAIRS,
    SCRIPTS,
    Pair,
    Process,
    in_namespaces,
    needs,
    state,
    until,
    waits_in,
    with_glibc,
)
from test_contract import mode_of
from test_shm import lock_held
from test_users import ALICE, BOB, argv_of, run_as, scripts

__all__ = ["argv_of", "run_as", "scripts"]  # the fixtures of the other users
root = in_namespaces  # which needs the capabilities that let root become others


def traced(log: Path, call: str, what: str, argv: list[str], *paths: object) -> list[str]:
    only = [word for path in paths for word in ("-P", str(path))]
    trace = ["-e", f"trace={call}", "-e", f"inject={call}:{what}"]
    return ["strace", "-f", "-q", "-o", str(log), *only, *trace, *argv]


@contextlib.contextmanager
def halted(
    log: Path, call: str, when: int | str, argv: list[str], *paths: object, **options: object
) -> Iterator[tuple[Process, Callable[[], None]]]:
    """A script stopped right after a system call; what is yielded second lets it go on."""
    with Process(traced(log, call, f"signal=STOP:when={when}", argv, *paths), **options) as process:
        until(lambda: log.exists() and "stopped by SIGSTOP" in log.read_text(), f"{call} {when}")
        pid = int(log.read_text().split()[0])
        try:
            yield process, lambda: os.kill(pid, signal.SIGCONT)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def blocks(*numbers: int) -> Callable[[], object]:
    return lambda: signal.pthread_sigmask(signal.SIG_BLOCK, numbers)


def once(pair: Pair) -> list[str]:
    return ["-c1", "-i0"] if pair.primitive == "msq" else []


def family(pid: int) -> list[int]:
    """A shell, and what it runs."""
    return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.replace("\n", "").isprintable()


def test_a_full_standard_error_keeps_no_server_from_its_work(make_pair):
    """What it says there at the start, of a --value that does not count, is not the point."""
    sem = make_pair("posix", "sem")
    sem.client()
    with open("/dev/full", "w") as full:
        server = subprocess.Popen(
            sem.argv("server", "--value", "9"), stdout=subprocess.PIPE, stderr=full, env=ENV
        )
        assert server.stdout.readline().startswith(b"start ")
        server.terminate()
        assert server.communicate(timeout=20)[0].endswith(f"{sem.end_line}\n".encode())
        assert server.returncode == 0


LOOK = "newfstatat,lstat,stat,statx"


@root
@needs("strace")
@pytest.mark.parametrize("primitive", ["shm", "sem"])
def test_an_object_that_is_swapped_after_the_look_at_its_owner(make_pair, primitive, tmp_path):
    pair = make_pair("posix", primitive)
    with pair.server():
        pass
    other = pair.path.with_name(f"{pair.path.name}-of-alice")
    shutil.copyfile(pair.path, other)
    other.chmod(0o666)
    os.chown(other, ALICE, ALICE)
    looked = (pair.path, f"/dev/shm/{pair.name}")  # as open_segment() writes it
    with halted(tmp_path / "log", LOOK, 1, pair.argv("server"), *looked) as (server, go_on):
        other.rename(pair.path)
        go_on()
        assert server.wait(5) == 1
    assert f"belongs to uid {ALICE}" in server.err[-1]


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_no_memory_to_open_it(pair, side, tmp_path):
    pair.client(*once(pair), stdin="")
    files = [pair.path] if pair.api == "posix" and pair.primitive != "msq" else []
    posix = {"msq": "mq_open", "shm": "open,openat", "sem": "open,openat"}  # open: of musl
    sysv = {"msq": "msgget", "shm": "shmget", "sem": "semget"}
    call = {"posix": posix, "sysv": sysv}[pair.api][pair.primitive]
    argv = traced(tmp_path / "log", call, "error=ENOMEM", pair.argv(side), *files)
    done = subprocess.run(argv, env=ENV, capture_output=True, text=True, input="", timeout=20)
    assert (done.returncode, one_line(done.stderr)) == (1, True), done.stderr


@root
@needs("strace")
@pytest.mark.parametrize("number", ["INT", "TERM", "HUP"])
@pytest.mark.parametrize("call, when", [("link", 1), ("chmod", 1), ("link", 2), ("unlink", 2)])
def test_a_client_that_is_ended_while_it_makes_a_semaphore(make_pair, number, call, when, tmp_path):
    """Neither sem_open(3) nor the client leaves the file by which it begins."""
    pair = make_pair("posix", "sem")
    shm = tmp_path / "shm"
    shm.mkdir()
    argv = traced(tmp_path / "log", call, f"signal={number}:when={when}", pair.argv("client"))
    own = f"mount --bind {shlex.quote(str(shm))} /dev/shm; exec {shlex.join(argv)}"
    unshare = ["unshare", "--mount", "sh", "-c", own]
    done = subprocess.run(unshare, env=ENV, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (-getattr(signal, f"SIG{number}"), "")
    assert [path.name for path in shm.iterdir()] == [pair.path.name]


# --- data


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_no_object_gets_the_number_of_a_closed_descriptor(pair, closed):
    """What the server says of the full standard output would be written into the object."""
    pair.client(*once(pair), stdin="precious\n")
    options = {"msq": ["-c2"], "shm": ["-c1", "--size", "9"], "sem": ["--value", "7"]}
    shell = [
        "sh",
        "-c",
        f'"$@" >/dev/full {closed}',
        "sh",
        *pair.argv("server", *options[pair.primitive]),
    ]
    with Process(shell) as server:
        if pair.primitive == "sem" and "1>&-" in closed:  # it has no end, and nobody to tell
            until(lambda: any(waits_in(one, "clock_nanosleep") for one in family(server.pid)))
        elif pair.primitive == "msq" and "1>&-" in closed:
            pair.client("-c1", "-q")
            server.wait()
        else:
            server.wait()
    if pair.primitive == "msq":
        with pair.opened(**({"mode": 0o400} if pair.api == "sysv" else {})) as queue:
            assert queue.current_messages <= 1
            assert all(
                json.loads(queue.receive()[0]) == {"count": 1}
                for _ in range(queue.current_messages)
            )
    elif pair.primitive == "shm":
        assert "precious" in pair.run("server", "-c1").stdout
    else:
        assert pair.client("-r").stdout == "semaphore: 2\n"


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_reader_of_an_unbuffered_server_gets_all_of_it(shm, blocking):
    shm.client("--size", 150_000, stdin="x" * 140_000 + "\n")  # more than a pipe holds
    read, write = os.pipe()
    os.set_blocking(write, blocking)
    python, *rest = shm.argv("server", "-c1")
    with subprocess.Popen([python, "-u", *rest], stdout=write, env=ENV) as server:
        os.close(write)
        until(lambda: not open(f"/proc/{server.pid}/wchan").read().startswith("do_exit"))
        for number in (signal.SIGSTOP, signal.SIGCONT):
            server.send_signal(number)
        with open(read) as file:
            assert file.read().count("x") == 140_000
        assert server.wait(20) == 0


@needs("strace")
@pytest.mark.parametrize("primitive", ["msq", "shm"])
def test_a_part_of_a_line_is_not_taken_for_a_line(make_pair, api, primitive, tmp_path):
    """The rest comes between the end of what is there and the look whether there is more."""
    pair = make_pair(api, primitive)
    argv = pair.argv("client", *(["--stdin"] if primitive == "msq" else []))

    def feed(log: Path, when: int, rest: bytes) -> int:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.write(write, b'"first"')  # which is JSON by itself
        with halted(log, "fcntl", when, argv, stdin=read) as (client, go_on):
            os.write(write, rest)
            os.close(write)
            go_on()
            status = client.wait()
        os.close(read)
        return status

    log = tmp_path / "count"
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.write(write, b'"first"')
    counted = traced(log, "fcntl", "delay_exit=0", argv)
    done = subprocess.run(counted, stdin=read, env=ENV, capture_output=True, text=True)
    assert (done.returncode, "unavailable" in done.stderr) == (1, True)  # as cat(1) says it
    calls = [line for line in log.read_text().splitlines() if "fcntl(" in line]
    when = max(number for number, line in enumerate(calls, 1) if "(0, F_GETFL" in line)
    os.close(write)
    os.close(read)
    assert feed(tmp_path / "log", when, b" half\n") == 1
    if primitive == "msq":
        with pair.opened(**({"mode": 0o400} if api == "sysv" else {})) as queue:
            assert queue.current_messages == 0
    else:
        assert "first" not in pair.run("server", "-c1").stdout


@pytest.mark.parametrize("primitive", ["msq", "shm"])
def test_a_non_blocking_standard_input_that_has_its_lines(make_pair, api, primitive):
    pair = make_pair(api, primitive)
    read, write = os.pipe()
    os.set_blocking(read, False)
    before = 300 * (b"x" * 99 + b"\n") if primitive == "shm" else b""  # more than it reads at once
    os.write(write, before + b'"a line"\n')
    os.close(write)
    argv = pair.argv("client", *(["--stdin"] if primitive == "msq" else []))
    done = subprocess.run(argv, stdin=read, env=ENV, capture_output=True, text=True)
    os.close(read)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a line" in pair.run("server", "-c1").stdout


def test_what_a_semaphore_client_did_before_its_output_was_full_is_said(sem):
    for option, left in (("-w", 1), ("-r", 2)):
        with open("/dev/full", "w") as full:
            argv = sem.argv("client", option)
            done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, env=ENV, text=True)
        assert done.returncode == 1
        said = f"not printed: semaphore: {left}: it was done all the same\n"
        assert done.stderr.endswith(f"No space left on device: {said}")
        with sem.opened() as semaphore:
            assert semaphore.value == left


def test_what_the_kernel_undoes_is_not_said_to_be_done(make_pair):
    """After --undo the value is what it was, and --zero takes nothing."""
    sem = make_pair("sysv", "sem")
    for option in (["--undo"], ["-r", "--undo"], ["--zero", "--value", "0"]):
        sem.remove()
        with open("/dev/full", "w") as full:
            argv = sem.argv("client", *option)
            if "-r" in option:
                sem.client()
            done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, env=ENV, text=True)
        assert done.returncode == 1
        assert re.search(r"No space left on device: not printed: semaphore: \d\n$", done.stderr)


def test_a_message_that_the_output_has_no_room_for_is_in_the_error(msq):
    """It is off the queue, and would be nowhere."""
    msq.client("--stdin", stdin='{"an": "order"}\n')
    with open("/dev/full", "w") as full:
        argv = msq.argv("server", "--json")
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, env=ENV, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        'No space left on device: not printed: {"an": "order"}'
    )


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("option", ["-P", "-I"] if sys.version_info >= (3, 11) else ["-I"])
def test_a_linked_script_finds_what_it_shares(pair, option, side, tmp_path):
    python, script, *rest = pair.argv(side, "--help")
    (tmp_path / "link.py").symlink_to(script)
    for path in (script, tmp_path / "link.py"):
        done = subprocess.run([python, option, path, *rest], env=ENV, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


# --- hangs and starvation


def test_a_server_beside_busy_writers(shm):
    """Eight of them, each of which writes all the time."""
    shm.client(stdin="text\n")
    shell = f"yes text | {shlex.join(shm.argv('client'))}"
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(Process(["sh", "-c", shell]))
        done = shm.run("server", "-c3", "-i0.1", timeout=20)
    assert done.stdout.count("text") == 3


HAND_ON = (
    "import sys, sysv_ipc, time\n"
    "lock = sysv_ipc.Semaphore(int(sys.argv[1]))\n"
    "lock.undo = True\n"
    "while True:\n"
    "    lock.acquire()\n"
    "    time.sleep(float(sys.argv[2]))\n"
    "    lock.release()\n"
)


def test_a_semaphore_that_two_others_hand_to_each_other(make_pair):
    """Each keeps it for more than a second, and who leaves the queue goes to its end."""
    sem = make_pair("sysv", "sem")
    semaphore = sysv_ipc.Semaphore(sem.key, sysv_ipc.IPC_CREX)
    semaphore.release()
    foreign = [sys.executable, "-c", HAND_ON, str(sem.key), "1.2"]
    with Process(foreign) as first, Process(foreign) as second:
        until(lambda: semaphore.last_pid in (first.pid, second.pid))
        until(lambda: semaphore.waiting_for_nonzero)
        done = sem.client("-t", "12", timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_queue_at_which_two_others_wait(make_pair):
    """Each message that is taken makes room for the one that has waited longest."""
    msq = make_pair("posix", "msq")
    code = "import posix_ipc, sys\nqueue = posix_ipc.MessageQueue(sys.argv[1])\n"
    code += "while True: queue.send(b'1')"
    msq.client("-c1")
    foreign = [sys.executable, "-c", code, msq.name]
    with msq.opened() as queue, Process(foreign) as first, Process(foreign) as second:
        until(lambda: all(waits_in(pid, "mq_timedsend") for pid in (first.pid, second.pid)))
        with msq.start("client", "-c1", "-t30") as client:
            until(lambda: waits_in(client.pid, "mq_timedsend"))
            for _ in range(8):
                if client.popen.poll() is None:
                    queue.receive()
                    time.sleep(1.2)  # the pace of a slow reader
            assert client.popen.poll() == 0


def test_a_lock_that_two_others_hand_to_each_other(make_pair):
    """It is never seen free: semop(2) gives it to the next in the queue while it is released."""
    shm = make_pair("sysv", "shm")
    shm.client(stdin="text\n")
    lock = sysv_ipc.Semaphore(~shm.key)
    foreign = [sys.executable, "-c", HAND_ON, str(~shm.key), "0.01"]
    with Process(foreign) as first, Process(foreign) as second:
        until(lambda: lock.last_pid in (first.pid, second.pid) and lock.waiting_for_nonzero)
        done = shm.run("server", "-c20", "-i0", timeout=20)
        assert shm.client(stdin="another\n" * 10).returncode == 0
    assert (done.stdout.count("text"), done.stderr) == (20, "")


def test_a_lock_that_is_gone_has_no_cure(make_pair):
    """kernel.shmmax is one for a segment that is not there."""
    shm = make_pair("sysv", "shm")
    with shm.server("-i0.02") as server:
        server.wait_line("start")
        sysv_ipc.Semaphore(~shm.key).remove()
        assert server.wait() == 1
    reason = "No semaphore exists with the specified key"
    assert server.err == [f"sysv_shm_server: {shm.key}: {reason}"]


def test_a_lock_without_its_value_is_called_so_every_time(make_pair):
    """Its creator died. A waiter that dies too leaves o_time set, where it waited with SEM_UNDO."""
    shm = make_pair("sysv", "shm")
    sysv_ipc.SharedMemory(shm.key, sysv_ipc.IPC_CREAT, 0o600, 4096).detach()
    lock = sysv_ipc.Semaphore(~shm.key, sysv_ipc.IPC_CREX)
    said = f": the lock never got its value: `ipcrm -s {lock.id}` removes it\n"
    with Process(shm.argv("client"), stdin=subprocess.PIPE) as client:
        client.type("text\n")
        client.wait_line(f"write to {shm.key}")
        for _ in range(2):
            done = shm.run("server", timeout=10)
            assert (done.returncode, said in done.stderr) == (1, True)
        client.stop(signal.SIGINT)
    assert said in shm.run("server", timeout=10).stderr


def test_a_lock_whose_creator_is_slow_is_waited_for_whatever_signals_come(make_pair):
    shm = make_pair("sysv", "shm")
    sysv_ipc.SharedMemory(shm.key, sysv_ipc.IPC_CREAT, 0o600, 4096).detach()
    lock = sysv_ipc.Semaphore(~shm.key, sysv_ipc.IPC_CREX)
    with Process(shm.argv("client"), stdin=subprocess.PIPE) as client:
        client.type("text\n")
        client.wait_line(f"write to {shm.key}")
        until(lambda: waits_in(client.pid, "clock_nanosleep"))
        for _ in range(3):
            os.kill(client.pid, signal.SIGSTOP)
            until(lambda: state(client.pid) == "T")
            os.kill(client.pid, signal.SIGCONT)
            until(lambda: waits_in(client.pid, "clock_nanosleep"))
        lock.release()
        client.stdin.close()
        assert (client.wait(), client.err) == (0, [])


LOCKING = """
import sys, {script} as script
segment = script.open_segment({thing!r})
print("open", flush=True)
with script.locked(segment, float(sys.argv[1])):
    print("held")
"""


def locking(pair: Pair, limit: float, side: str = "client") -> list[str]:
    thing = pair.name if pair.api == "posix" else pair.key
    code = LOCKING.format(script=pair.script(side), thing=thing)
    return [sys.executable, "-c", f"import sys; sys.path[0] = {str(SCRIPTS)!r}\n{code}", str(limit)]


@pytest.mark.parametrize("side", ["server", "client"])
def test_between_two_looks_for_the_value_of_a_lock_it_sleeps(make_pair, side):
    shm = make_pair("sysv", "shm")
    sysv_ipc.SharedMemory(shm.key, sysv_ipc.IPC_CREAT, 0o600, 4096).detach()
    lock = sysv_ipc.Semaphore(~shm.key, sysv_ipc.IPC_CREX)
    with Process(locking(shm, 60, side)) as process:
        process.wait_line("open")
        until(lambda: waits_in(process.pid, "clock_nanosleep"))
        lock.release()
        assert (process.wait(), process.out) == (0, ["open", "held"])


def test_a_waiter_that_is_stopped_past_its_limit_tries_once_more(make_pair):
    """The lock is free when it goes on."""
    shm = make_pair("sysv", "shm")
    shm.client(stdin="text\n")
    lock = sysv_ipc.Semaphore(~shm.key)
    lock.acquire()
    began = time.monotonic()
    with Process(locking(shm, 2)) as process:
        until(lambda: waits_in(process.pid, "semtimedop"))
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: state(process.pid) == "T")
        started = time.monotonic()
        lock.release()
        until(lambda: time.monotonic() > started + 2.1)
        os.kill(process.pid, signal.SIGCONT)
        assert (process.wait(), process.out) == (0, ["open", "held"]), time.monotonic() - began


def test_a_taker_that_is_stopped_past_its_limit_tries_once_more(sem):
    """One is given back while it is stopped: it is not busy when it goes on."""
    sem.client("--value", 1)
    with sem.start("client", "-t", 1.5) as client:
        until(lambda: waits_in(client.pid, "semtimedop", "futex"))
        os.kill(client.pid, signal.SIGSTOP)
        until(lambda: state(client.pid) == "T")
        stopped = time.monotonic()
        sem.client("-r")
        until(lambda: time.monotonic() > stopped + 1.6)
        os.kill(client.pid, signal.SIGCONT)
        assert (client.wait(), client.err) == (0, [])


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_waiter_that_is_held_up_after_its_first_try_tries_once_more(make_pair, side, tmp_path):
    """The lock was held at the first try. When the time is up, it has long been free."""
    shm, log = make_pair("sysv", "shm"), tmp_path / "log"
    shm.client(stdin="text\n")
    lock = sysv_ipc.Semaphore(~shm.key)
    lock.acquire()
    with halted(log, "semtimedop", 1, locking(shm, 1, side)) as (process, go_on):
        lock.release()
        began = time.monotonic()
        until(lambda: time.monotonic() > began + 1.1)
        go_on()
        assert (process.wait(), process.out) == (0, ["open", "held"])


@pytest.mark.parametrize("api", ["posix", "sysv"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_the_limit_of_a_wait_for_the_lock_is_time(make_pair, api, side):
    """Not so many tries, of which each takes longer in a program whose other threads compute."""
    shm = make_pair(api, "shm")
    shm.client(stdin="text\n")
    busy = (
        "import threading, time; ended = threading.Event()\n"
        "def compute():\n    while not ended.is_set(): sum(range(1000))\n"
        "for _ in range(8): threading.Thread(target=compute, daemon=True).start()\n"
        "began = time.monotonic()\n"
        "import atexit; atexit.register(lambda: print(time.monotonic() - began))\n"
    )
    argv = locking(shm, 1.5, side)
    argv[2] = busy + argv[2]
    with lock_held(shm):
        done = subprocess.run(argv, env=ENV, capture_output=True, text=True, timeout=60)
    assert "TimeoutError: locked" in done.stderr
    assert 1.5 <= float(done.stdout.split()[-1]) < 6


@pytest.mark.parametrize("api", ["posix", "sysv"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_wait_for_the_lock_may_be_without_a_limit(make_pair, api, side):
    shm = make_pair(api, "shm")
    shm.client(stdin="text\n")
    with lock_held(shm):
        process = Process(locking(shm, math.inf, side))
        call = {"posix": "clock_nanosleep", "sysv": "semtimedop"}[api]
        until(lambda: waits_in(process.pid, call))
    with process:
        assert (process.wait(), process.out) == (0, ["open", "held"])


@pytest.mark.parametrize("side", ["server", "client"])
def test_what_the_caller_raises_counts_though_the_lock_was_removed(make_pair, side):
    shm = make_pair("sysv", "shm")
    code = (
        f"import sysv_ipc, {shm.script(side)} as script\n"
        f"segment = script.open_segment({shm.key})\n"
        "try:\n"
        "    with script.locked(segment):\n"
        f"        sysv_ipc.Semaphore(~{shm.key}).remove()\n"
        "        raise KeyError('mine')\n"
        "except KeyError as error: print(error)\n"
    )
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("'mine'\n", "")


@pytest.mark.parametrize("limit", [-1, -0.5, -1e-20, 0])
def test_a_limit_that_is_over_takes_what_is_free_and_waits_for_nothing(shm, limit):
    shm.client(stdin="text\n")
    free = subprocess.run(locking(shm, limit), env=ENV, capture_output=True, text=True)
    assert free.stdout == "open\nheld\n"
    with lock_held(shm):
        busy = subprocess.run(locking(shm, limit), env=ENV, capture_output=True, text=True)
    assert (busy.stdout, "TimeoutError: locked" in busy.stderr) == ("open\n", True)


@needs("strace")
def test_the_kernel_refuses_the_wait_itself(make_pair, tmp_path):
    """semop(2): ENOMEM, where there is no memory for what SEM_UNDO has to remember."""
    sem = make_pair("sysv", "sem")
    sem.client("--value", 2)
    argv = traced(tmp_path / "log", "semtimedop", "error=ENOMEM", sem.argv("client", "-w"))
    done = subprocess.run(argv, env=ENV, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sysv_sem_client: {sem.key}: {os.strerror(errno.ENOMEM)}\n"


@needs("strace")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_at_the_start_line_is_heeded(pair, number, tmp_path):
    """The signal comes while the start line is written: before the first wait, at any rate."""
    log = tmp_path / "log"
    when = 2 if (pair.api, pair.primitive) == ("posix", "sem") else 1  # sem_open(3) writes first
    env = {**ENV, "PYTHONDONTWRITEBYTECODE": "1"}  # or the first write may be that of a .pyc
    with halted(log, "write", when, pair.argv("server"), env=env) as (server, go_on):
        os.kill(int(log.read_text().split()[0]), number)
        go_on()
        assert server.wait(5) == 0
    assert server.out[-1] == pair.end_line


@needs("strace")
@pytest.mark.parametrize(
    "primitive, side, calls, number",
    [
        (primitive, side, calls, number)
        for primitive, calls in (("shm", 3), ("sem", 2))
        for side in ("server", "client")
        for number in ("INT", "TERM", "HUP")
        if (side, number) != ("server", "HUP")  # by which a server may be killed
    ],
)
def test_a_stop_parts_no_system_v_semaphore_from_its_value(
    make_pair, primitive, side, calls, number, tmp_path
):
    """It comes right after semget(2): the value would be missing for everybody, and for good."""
    for when in range(1, calls + 1):
        pair, log = make_pair("sysv", primitive), tmp_path / f"log{when}"
        argv = traced(log, "semget", f"signal={number}:when={when}", pair.argv(side))
        subprocess.run(argv, env=ENV, stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
        assert f"SIG{number}" in log.read_text()
        done = pair.client(stdin="text\n")
        assert (done.returncode, done.stderr) == (0, ""), (when, log.read_text())


@needs("strace")
@pytest.mark.parametrize("primitive, call", [("msq", "mq_open"), ("sem", "link")])
def test_a_stop_parts_no_posix_object_from_its_mode(make_pair, primitive, call, tmp_path):
    """It comes right after the call that makes it, with the umask taken off the mode."""
    pair, log = make_pair("posix", primitive), tmp_path / "log"
    argv = traced(log, call, "signal=TERM:when=1", pair.argv("server", "--mode", "666"))
    done = subprocess.run(argv, env=ENV, umask=0o077, capture_output=True, text=True, timeout=20)
    assert "SIGTERM" in log.read_text()
    assert (done.stdout, done.stderr) == (f"{pair.start_line}\n{pair.end_line}\n", "")
    assert mode_of(pair) == 0o666


@needs("strace")
def test_a_stop_just_before_the_wait_is_seen_at_once(make_pair, tmp_path):
    """It comes when the timer has been set, and no msgrcv(2) waits any more."""
    log = tmp_path / "log"
    injected = traced(
        log, "timer_settime", "signal=TERM:when=1", make_pair("sysv", "msq").argv("server")
    )
    injected[injected.index("trace=timer_settime")] += ",msgrcv"
    done = subprocess.run(injected, env=ENV, capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    calls = [line for line in log.read_text().splitlines() if "msgrcv(" in line]
    assert calls and all("IPC_NOWAIT" in call for call in calls)


WAITS = "timer_create,msgrcv,mq_timedreceive,clock_nanosleep,nanosleep,futex"


def waits(log: Path, at_least: float = 0.5) -> list[float]:
    """How long the longer calls took in which a script waited."""
    took = re.findall(r"^\d+ .*<([0-9.]+)>$", log.read_text(), re.M) if log.exists() else []
    return [float(seconds) for seconds in took if float(seconds) > at_least]


@needs("strace")
def test_a_wait_ends_by_itself_within_a_second(pair, tmp_path):
    """A stop that came in the instant before it is seen then, by a clock that nobody sets."""
    log = tmp_path / "log"
    argv = ["strace", "-f", "-q", "-T", "-o", str(log), "-e", f"trace={WAITS}"]
    with Process([*argv, *pair.argv("server")]) as server:
        until(lambda: len(waits(log)) >= 3)
        os.kill(int(log.read_text().split()[0]), signal.SIGTERM)
        assert (server.wait(5), server.err) == (0, [])
    assert min(waits(log)[:3]) < 1.3, log.read_text()  # the others may have been held up
    assert set(re.findall(r"timer_create\((\w+)", log.read_text())) <= {"CLOCK_MONOTONIC"}


@needs("strace")
def test_a_client_looks_within_a_second_whether_its_semaphore_is_there(make_pair, tmp_path):
    sem, log = make_pair("posix", "sem"), tmp_path / "log"
    argv = ["strace", "-f", "-q", "-T", "-o", str(log), "-e", f"trace={WAITS}"]
    with Process([*argv, *sem.argv("client", "--value", "0", "-w")]) as client:
        until(lambda: len(waits(log)) >= 2)
        sem.remove()
        assert client.wait(5) == 1
    assert min(waits(log)[:2]) < 1.3, log.read_text()


def test_a_server_that_gets_no_timer_says_so(make_pair):
    """Without one, no stop could end its wait."""
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_SIGPENDING, (0, 0))
    done = make_pair("sysv", "msq").run("server", preexec_fn=limited)
    assert (done.returncode, done.stderr.split(": ", 2)[2:]) == (
        1,
        ["no timer: `ulimit -i` is the limit\n"],
    )


def test_a_blocked_alarm_keeps_no_time_limit_from_ending_a_wait(make_pair):
    sem = make_pair("sysv", "sem")
    sem.client("--value", 1)
    done = sem.client("-t", "0.2", preexec_fn=blocks(signal.SIGALRM), timeout=5)
    assert (done.returncode, "busy" in done.stderr) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_whose_signals_were_blocked_ends(pair, number):
    with pair.server(preexec_fn=blocks(signal.SIGTERM, signal.SIGINT)) as server:
        assert server.stop(number, timeout=5) == 0


@needs("strace")
@pytest.mark.parametrize("when", range(20, 26))
def test_a_server_that_was_stopped_waits_for_no_lock(shm, when, tmp_path):
    """It has slept for most of a second by then, and whoever holds the lock may be stopped."""
    log, look, lock = tmp_path / "log", "shmctl", "semtimedop"
    only = []
    if shm.api == "posix":
        look, lock, only = "/stat", "flock", ["-P", str(shm.path)]
        shm.client()  # or strace(1) knows no such path
    trace = ["-e", f"trace={look},{lock}", "-e", f"inject={look}:signal=TERM:when={when}"]
    server = shm.argv("server", "-i0.01")
    subprocess.run(
        ["strace", "-q", "-o", log, *only, *trace, *server], env=ENV, check=True, timeout=20,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    before, _, after = log.read_text().partition("SIGTERM")
    take = {"flock": "LOCK_EX", "semtimedop": "sem_op=-1"}[lock]
    assert take in before
    assert take not in after


# --- other users


@root
def test_a_link_that_leads_nowhere_is_an_error(make_pair):
    shm = make_pair("posix", "shm")
    shm.path.symlink_to("/nowhere")
    try:
        for side in ("server", "client"):
            done = shm.run(side, timeout=5)
            assert (done.returncode, one_line(done.stderr)) == (1, True)
    finally:
        shm.path.unlink()


@root
def test_anothers_empty_file_is_refused_before_its_lock(make_pair):
    shm = make_pair("posix", "shm")
    shm.path.touch()
    os.chown(shm.path, BOB, BOB)
    with shm.path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = shm.run("server", "-c1", timeout=5)
    assert (done.returncode, f"uid {BOB}" in done.stderr) == (1, True)
    assert shm.path.stat().st_size == 0


@root
@pytest.mark.parametrize("valued", [False, True])
def test_anothers_lock_is_refused_and_nothing_made(make_pair, run_as, valued):
    """His lock may never get its value, and to advise --clean would be to advise a failure."""
    shm = make_pair("sysv", "shm")
    pid = os.fork()
    if not pid:
        os.umask(0)
        os.setuid(BOB)
        lock = sysv_ipc.Semaphore(~shm.key, sysv_ipc.IPC_CREX, 0o666)
        if valued:
            lock.release()
        os._exit(0)
    os.waitpid(pid, 0)
    done = run_as(shm, ALICE, "server")
    assert (done.returncode, f"uid {BOB}" in done.stderr) == (1, True)
    for client in (run_as(shm, ALICE, "client"), shm.client(stdin="text\n")):  # root is let in
        assert client.returncode == 1
        assert "--clean" not in client.stderr
    with pytest.raises(sysv_ipc.ExistentialError):
        sysv_ipc.SharedMemory(shm.key)
    assert sysv_ipc.Semaphore(~shm.key).mode == 0o666


@root
def test_the_mode_of_a_lock_that_outlived_its_segment_is_not_kept_silent(make_pair, run_as):
    shm = make_pair("sysv", "shm")
    run_as(shm, ALICE, "client")
    shm.remove()
    done = run_as(shm, ALICE, "server", "-c1", "--mode", "666")
    assert done.returncode == 0
    assert done.stderr or run_as(shm, BOB, "client").returncode == 0


@root
def test_a_refused_segment_is_told_in_words(make_pair, run_as):
    shm = make_pair("sysv", "shm")
    run_as(shm, ALICE, "client")
    for side in ("server", "client"):
        assert "%o" not in run_as(shm, BOB, side).stderr


@root
@pytest.mark.parametrize("primitive", ["msq", "shm", "sem"])
def test_who_is_refused_keeps_no_descriptor(make_pair, run_as, primitive):
    """A program that tries again and again, until the name is free, would have none left. What a
    semaphore would leave is a mapping."""
    pair = make_pair("posix", primitive)
    run_as(pair, BOB, "client", *once(pair), stdin="text\n")
    opens = {"msq": "open_queue", "shm": "open_segment", "sem": "open_semaphore"}[primitive]
    code = (
        f"import os, {pair.script('server')} as script\n"
        "for _ in range(5):\n"
        f"    try: script.{opens}({pair.name!r})\n"
        "    except PermissionError as error: print(error, len(os.listdir('/proc/self/fd')))\n"
        "    assert '/dev/shm/' not in open('/proc/self/maps').read()\n"
    )
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (len(set(done.stdout.splitlines())), done.stderr) == (1, ""), done
    assert f"uid {BOB}" in done.stdout


@root
def test_who_is_refused_keeps_no_segment_attached(make_pair, run_as):
    """It could not be freed as long as that program runs."""
    pair = make_pair("sysv", "shm")
    run_as(pair, BOB, "client", stdin="text\n")
    sysv_ipc.Semaphore(~pair.key).remove()  # or it would be refused for that
    code = (
        "import sysv_shm_server as script\n"
        "for _ in range(5):\n"
        f"    try: script.open_segment({pair.key})\n"
        "    except PermissionError as error: print(error)\n"
        "assert 'SYSV' not in open('/proc/self/maps').read()\n"
    )
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout.count(f"uid {BOB}"), done.stderr) == (10, ""), done


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_segment_that_cannot_be_sized_keeps_no_descriptor(make_pair, side):
    """A program that tries again and again, until there is room, would have none left."""
    pair = make_pair("posix", "shm")
    code = (
        f"import os, resource, {pair.script(side)} as script\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "for _ in range(5):\n"
        f"    try: script.open_segment({pair.name!r})\n"
        "    except OSError as error: print(error, len(os.listdir('/proc/self/fd')))\n"
    )
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert (len(lines), len(set(lines)), done.stderr) == (5, 1, ""), done
    assert os.strerror(errno.EFBIG) in lines[0]


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_semaphore_that_was_closed_is_not_mapped_any_more(make_pair, side):
    """A program that opens one for each job would have the memory of all of them."""
    pair = make_pair("posix", "sem")
    code = (
        f"import {pair.script(side)} as script\n"
        "def mapped(): return open('/proc/self/maps').read().count('/dev/shm/')\n"
        f"for _ in range(5): script.open_semaphore({pair.name!r}).close(); print(mapped())"
    )
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n" * 5, "")


# --- commands that hold


@pytest.mark.parametrize("key", [b"\x03", b"\x1c"])
def test_a_key_at_the_terminal_comes_once_with_input_from_elsewhere(sem, key, tmp_path):
    got, terminal = tmp_path / "got", tmp_path / "on"
    shell = f"trap 'echo x >>{got}' INT QUIT; : >{terminal}; n=0; while [ $n -lt 10 ]; do "
    argv = sem.argv("client", "--", "sh", "-c", shell + "sleep 0.1; n=$((n+1)); done; exit 7")
    pid, fd = pty.fork()
    if not pid:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execve(argv[0], argv, ENV)
    until(terminal.exists)
    os.write(fd, key)
    _, status = os.waitpid(pid, 0)
    os.close(fd)
    assert os.waitstatus_to_exitcode(status) == 7
    assert got.read_text() == "x\n"
    assert sem.client().stdout == "semaphore: 1\n"


@pytest.mark.parametrize("how", ["the terminal hangs up", "Ctrl-C, and a group of its own"])
def test_a_command_that_the_terminal_does_not_reach_is_told_by_the_client(sem, how, tmp_path):
    """At a hang-up the kernel tells the leader of the session alone, and at a key one group."""
    started = tmp_path / "started"
    command = ["sh", "-c", f": >{started}; exec sleep 60"]
    if how == "Ctrl-C, and a group of its own":
        command = ["timeout", "60", *command]
    argv = sem.argv("client", "--", *command)
    pid, fd = pty.fork()
    if not pid:
        os.execve(argv[0], argv, ENV)
    until(started.exists)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if how == "the terminal hangs up":
        os.close(fd)
    else:
        os.write(fd, b"\x03")
    try:
        until(lambda: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT), timeout=10)
    finally:
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)  # which does nothing to one that has ended
        os.waitpid(pid, 0)
    assert sem.client().stdout == "semaphore: 1\n"
    if how != "the terminal hangs up":
        os.close(fd)


@needs("strace")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_between_the_taking_and_the_command_starts_no_command(make_pair, number, tmp_path):
    """It comes with the call after which the client looks whether a stop has come."""
    sem = make_pair("posix", "sem")
    argv = sem.argv("client", "--", "echo", "at work")
    log, call = tmp_path / "log", "rt_sigaction"

    def trace(what: str) -> subprocess.CompletedProcess[str]:
        words = traced(log, call, what, argv)
        words.remove("-f")  # or the command would get the signal too, at as many calls
        return subprocess.run(words, env=ENV, capture_output=True, text=True)

    assert trace("delay_exit=0").stdout == "at work\n"
    calls = [line for line in log.read_text().splitlines() if line.startswith(call)]
    ask = f"{call}(SIGCHLD, {{sa_handler=SIG_DFL"
    when = max(number for number, line in enumerate(calls, 1) if line.startswith(ask))
    done = trace(f"signal={number}:when={when}")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
    assert sem.client().stdout == "semaphore: 1\n"


@with_glibc
@needs("strace")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_that_waits_stops_no_command(make_pair, number, tmp_path):
    """While it is blocked the kernel keeps it, as if it were not ignored."""
    sem, log = make_pair("posix", "sem"), tmp_path / "log"
    ignore = {"preexec_fn": lambda: signal.signal(number, signal.SIG_IGN)}
    argv = sem.argv("client", "--", "echo", "at work")
    with halted(log, "rt_sigprocmask", 2, argv, **ignore) as (client, go_on):
        os.kill(int(log.read_text().split()[0]), number)
        go_on()
        until(lambda: log.read_text().count("stopped by SIGSTOP") == 2)  # the command, likewise
        command = int(log.read_text().rpartition(" --- stopped by SIGSTOP")[0].split()[-1])
        os.kill(command, signal.SIGCONT)
        assert client.wait() == 0
    assert client.out == ["at work"]


@with_glibc
@needs("strace")
def test_a_stop_just_before_the_command_starts_none(make_pair, tmp_path):
    """The client has blocked it for the command's time, and taken a semaphore."""
    sem, log, proof = make_pair("posix", "sem"), tmp_path / "log", tmp_path / "proof"
    posix_ipc.Semaphore(sem.name, posix_ipc.O_CREX, initial_value=2).close()
    argv = sem.argv("client", "--", "touch", str(proof))
    strace = ["strace", "-q", "-o", str(log), "-e", "trace=rt_sigprocmask"]  # of the client alone
    assert subprocess.run([*strace, *argv], env=ENV, timeout=20).returncode == 0
    proof.unlink()
    calls = log.read_text().splitlines()
    blocked = [n for n, call in enumerate(calls, 1) if re.search(r"BLOCK, \[.*TERM.* CHLD\]", call)]
    inject = f"inject=rt_sigprocmask:signal=TERM:when={blocked[0]}"
    done = subprocess.run([*strace, "-e", inject, *argv], env=ENV, capture_output=True, timeout=20)
    assert (done.returncode, done.stderr, proof.exists()) == (143, b"", False)
    assert posix_ipc.Semaphore(sem.name).value == 2


def test_a_full_pipe_keeps_no_client_from_ending(sem):
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, bytes(4096))
    os.set_blocking(write, True)
    client = subprocess.Popen(sem.argv("client"), stdout=write, env=ENV)
    until(lambda: waits_in(client.pid, "write"))
    client.terminate()
    assert client.wait(5) == -signal.SIGTERM
    os.close(read)
    os.close(write)


def test_ignored_sigchld_hides_no_status(sem):
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN)}
    assert sem.client("--", "sh", "-c", "exit 7", **ignore).returncode == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_a_semaphore_never_gets_its_value(make_pair, number):
    """The wait is short, and the stop is heeded after it."""
    sem = make_pair("sysv", "sem")
    sysv_ipc.Semaphore(sem.key, sysv_ipc.IPC_CREX)
    with sem.start("client", "-w") as client:
        until(lambda: waits_in(client.pid, "clock_nanosleep"))
        client.popen.send_signal(number)
        assert client.wait(10) == -number
    assert (client.out, client.err) == ([], [])


def test_a_command_gets_no_sigchld_of_its_own(make_pair):
    """Of its being stopped and continued its parent is told, and nobody else."""
    sem = make_pair("posix", "sem")
    code = """
import os, signal, time
os.setpgid(0, 0)
signal.signal(signal.SIGCHLD, lambda number, frame: print("told", flush=True))
signal.signal(signal.SIGUSR1, lambda number, frame: print("ended", flush=True) or os._exit(0))
print(os.getpid(), flush=True)
time.sleep(20)
"""
    with sem.start("client", "--", sys.executable, "-c", code) as client:
        until(lambda: client.out)
        command = int(client.out[0])
        os.kill(command, signal.SIGSTOP)
        until(lambda: state(command) == "T")
        os.kill(command, signal.SIGCONT)
        until(lambda: (state(command), state(client.pid)) == ("S", "S"))
        os.kill(command, signal.SIGUSR1)
        assert client.wait(5) == 0
    assert client.out[1:] == ["ended"]


def test_an_ignored_sigint_stays_ignored_in_client_and_command(sem):
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    whom = "$PPID $$" if sem.api == "posix" else "$$"  # there its parent is this process
    done = sem.client("--", "sh", "-c", f"kill -INT {whom}; sleep 0.2; exit 5", **ignore)
    assert done.returncode == 5


@pytest.mark.parametrize("primitive", ["msq", "shm"])
def test_an_ignored_signal_stays_ignored(make_pair, api, primitive):
    """A job of a script runs so, and Ctrl-C at the terminal is not meant for it."""
    pair = make_pair(api, primitive)
    options = ["--stdin"] if primitive == "msq" else []
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    with pair.start("client", *options, stdin=subprocess.PIPE, **ignore) as client:
        client.type('"before"\n')
        until(lambda: waits_in(client.pid, "read") and pair.exists())
        client.popen.send_signal(signal.SIGINT)
        client.type('"after"\n')
        client.popen.stdin.close()
        assert client.wait() == 0


@root
@needs("setpriv")
def test_a_command_that_changed_its_user_keeps_the_semaphore(make_pair, argv_of, scripts):
    sem = make_pair("posix", "sem")
    program = scripts / "become"
    shutil.copy(shutil.which("setpriv"), program)
    program.chmod(0o4755)
    become = [program, "--reuid", BOB, "--clear-groups", "sh", "-c", "echo on; read line; exit 3"]
    argv = argv_of(sem, ALICE, "client", "--value", 1, "--", *become)
    with Process(argv, stdin=subprocess.PIPE, cwd="/") as client:
        client.wait_line("on")
        client.popen.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # so that the signal is dealt with, if it ends the client
        assert posix_ipc.Semaphore(sem.name).value == 0
        client.popen.stdin.write("go\n")
        client.popen.stdin.close()
        assert client.wait() == 3
    assert posix_ipc.Semaphore(sem.name).value == 1


def test_the_kernel_gives_back_what_a_killed_command_held(make_pair):
    sem = make_pair("sysv", "sem")
    with sem.start("client", "--value", 1, "--", "sh", "-c", "echo on; exec sleep 60") as client:
        client.wait_line("on")
        assert sem.client().returncode == 1
        client.stop(signal.SIGKILL)
    assert sem.client("-t", 5).returncode == 0


# --- objects that go


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_semaphore_removed_while_it_is_opened_is_made_anew(make_pair, side, tmp_path):
    sem = make_pair("posix", "sem")
    with halted(tmp_path / "log", "/^link", 2, sem.argv(side)) as (process, go_on):
        sem.path.unlink()
        go_on()
        until(lambda: process.out or process.popen.poll() is not None)
        assert process.err == []
        with contextlib.suppress(ProcessLookupError):  # a client has ended
            os.killpg(process.pid, signal.SIGKILL)  # strace, and what it traces
        process.wait()
    assert sem.path.exists()


@pytest.mark.parametrize("primitive", ["shm", "sem"])
@pytest.mark.parametrize("how", ["mv", "link"])
def test_a_moved_or_linked_object_is_seen_to_be_gone(make_pair, primitive, how):
    pair = make_pair("posix", primitive)
    other = pair.path.with_name(pair.path.name + "-other")
    try:
        with pair.server() as server:
            if how == "link":
                os.link(pair.path, other)
                pair.path.unlink()
            else:
                pair.path.rename(other)
            assert server.wait(5) == 1
        assert server.err == [f"{pair.script('server')}: {pair.thing}: the {WHAT[primitive]}"]
    finally:
        other.unlink()


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_segment_removed_while_it_is_looked_at(make_pair, side, tmp_path):
    """Each call that names the file, or its descriptor, is held up, and the file removed."""
    shm = make_pair("posix", "shm")
    shm.run("client", stdin="before\n")
    argv = traced(tmp_path / "log", "/stat", "delay_exit=30000", shm.argv(side), shm.path)
    with Process(argv, stdin=subprocess.PIPE) as process:
        until(lambda: process.out, "the first line")
        if side == "client":
            process.type("after\n" * 200)  # so it looks again, should the removal come late
        seen = len((tmp_path / "log").read_text())
        until(lambda: len((tmp_path / "log").read_text()) > seen, "another look")
        shm.path.unlink()
        assert process.wait() == 1
    there = (": the segment was removed", ": No such file or directory: removed, or no /dev/shm")
    assert process.err in [[f"{shm.script(side)}: {shm.name}{text}"] for text in there]


@needs("strace")
def test_a_queue_removed_between_two_tries_to_send(make_pair, tmp_path):
    """The second, which waits, then finds an identifier that is not valid (EINVAL)."""
    msq = make_pair("sysv", "msq")
    msq.client("-c1")
    with msq.opened() as queue:
        for length in (2000, 1):
            with contextlib.suppress(sysv_ipc.BusyError):
                while True:
                    queue.send(b"x" * length, block=False)
    with halted(tmp_path / "log", "msgctl", 1, msq.argv("client", "-c1")) as (client, go_on):
        msq.remove()
        go_on()
        assert client.wait(5) == 1
    assert client.err == [f"sysv_msq_client: {msq.key}: The queue no longer exists"]


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_queue_removed_between_two_looks_for_it_gets_its_mode(make_pair, side, tmp_path):
    msq, options = make_pair("posix", "msq"), {"server": ["--mode", "640"], "client": ["-c1"]}[side]
    msq.client("-c1")
    argv = msq.argv(side, *options)
    with halted(tmp_path / "log", "mq_open", 1, argv, umask=0o777) as (process, go_on):
        msq.remove()
        go_on()
        until(lambda: process.out)
        assert mode_of(msq) == {"server": 0o640, "client": 0o600}[side]
        assert process.err == []


@needs("strace")
def test_a_semaphore_removed_between_two_looks_for_it_gets_its_mode(make_pair, tmp_path):
    """When the server is to give the name to the one that it has made, another has it (EEXIST)."""
    sem, log = make_pair("posix", "sem"), tmp_path / "log"
    argv = sem.argv("server", "--mode", "640")
    with halted(log, "link", "1..2", argv, umask=0o077) as (server, go_on):
        sem.client()
        go_on()
        until(lambda: log.read_text().count("stopped by SIGSTOP") == 2)
        assert "EEXIST" in log.read_text()
        sem.remove()
        go_on()
        server.wait_line("start")
        assert mode_of(sem) == 0o640
        assert server.err == []


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("thing", ["link", "semaphore"])
def test_only_the_semaphore_that_was_made_gets_the_mode(make_pair, side, thing, tmp_path):
    """What has its name by then is somebody else's, or another's doing."""
    sem, log, private = make_pair("posix", "sem"), tmp_path / "log", tmp_path / "private"
    private.touch(0o640)
    mode = ["--mode", "666"] if side == "server" else []
    with halted(log, "chmod,fchmodat", 1, sem.argv(side, *mode)) as (process, go_on):
        assert not sem.path.exists(), "it is seen before it has its mode"
        if thing == "link":
            sem.path.symlink_to(private)
        else:
            posix_ipc.Semaphore(sem.name, posix_ipc.O_CREX, 0o644).close()
        go_on()
        if thing == "semaphore" and side == "server":
            process.wait_line("start")
        else:
            assert process.wait(5) == 1
    assert mode_of(sem) == (0o640 if thing == "link" else 0o644)
    assert private.stat().st_mode & 0o777 == 0o640
    first = re.search(r'"(/dev/shm/[^"]+)"', log.read_text())
    assert first and not Path(first[1]).exists(), "the name that it had first is left behind"
    sem.path.unlink()


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("call", ["fchmod", "fallocate"])
def test_a_segment_appears_with_its_mode_and_size(make_pair, side, call, tmp_path):
    """Nobody sees it before, nothing is left of one that is killed, and who was faster counts."""
    shm, log = make_pair("posix", "shm"), tmp_path / "log"
    mode = ["--mode", "666"] if side == "server" else []
    argv = shm.argv(side, "--size", 8192, *mode)
    with halted(log, call, 1, argv, umask=0o077):
        assert not shm.path.exists()
    assert not shm.path.exists()
    with halted(tmp_path / "log2", call, 1, argv) as (process, go_on):
        shm.run("server", "--mode", "640", "-c0")
        go_on()
        process.wait_line("start" if side == "server" else "write to")
        until(lambda: any("--size is 4096, not 8192" in line for line in process.err))
    assert (shm.path.stat().st_size, mode_of(shm)) == (4096, 0o640)


@pytest.mark.parametrize("side", ["server", "client"])
def test_what_is_no_segment_stays_open_to_nobody(make_pair, side):
    """posix_fallocate(3) refuses it, when it is open already."""
    shm = make_pair("posix", "shm")
    os.mkfifo(shm.path)
    code = f"""
import os, posix_shm_{side} as script
before = os.listdir("/proc/self/fd")
try:
    script.open_segment({shm.name!r})
except OSError as error:
    print(error.errno, before == os.listdir("/proc/self/fd"))
"""
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{errno.ESPIPE} True\n", "")


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_system_without_o_tmpfile_is_an_error_of_one_line(make_pair, side, tmp_path):
    """As macOS is."""
    shm = make_pair("posix", "shm")
    (tmp_path / "sitecustomize.py").write_text("import os\ndel os.O_TMPFILE\n")
    done = shm.run(side, env={**ENV, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "O_TMPFILE" in done.stderr


@with_glibc
@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_semaphore_that_another_makes_meanwhile(make_pair, side, tmp_path):
    """The script has looked for it in vain, and is about to make it."""
    sem, log = make_pair("posix", "sem"), tmp_path / "log"
    path = f"/dev/shm/sem.{sem.name[1:]}"
    first = "/stat" if side == "server" else "openat"  # the server looks whose it is
    with halted(log, first, 1, sem.argv(side), path) as (process, go_on):
        assert "ENOENT" in log.read_text()
        sem.client("--value", 7)
        go_on()
        process.wait_line("size: 6" if side == "server" else "semaphore: 5")
    assert (process.err, mode_of(sem)) == ([], 0o600)


def test_a_client_waits_for_the_lock_of_a_segment_that_is_removed(make_pair):
    """In System V the lock is an object itself, which ends the wait when it is removed."""
    shm = make_pair("posix", "shm")
    shm.client(stdin="text\n")
    with lock_held(shm), shm.start("client", stdin=subprocess.PIPE) as client:
        client.wait_line("write to")
        client.type("another\n")
        until(lambda: waits_in(client.pid, "clock_nanosleep"))
        shm.remove()
        assert client.wait(5) == 1
    assert client.err == [f"{shm.script('client')}: {shm.thing}: the segment was removed"]


def test_a_reader_waits_for_the_lock_of_a_segment_that_is_removed(make_pair):
    """In a program of its own: the server looks every second anyhow."""
    shm = make_pair("posix", "shm")
    shm.client(stdin="text\n")
    code = "import posix_shm_server; segment = posix_shm_server.open_segment(sys.argv[1])\n"
    code += "print('open', flush=True); posix_shm_server.read_text(segment)"
    code = f"import sys; sys.path[0] = {str(SCRIPTS)!r}; {code}"
    with lock_held(shm), Process([sys.executable, "-c", code, shm.name]) as reader:
        reader.wait_line("open")
        until(lambda: waits_in(reader.pid, "clock_nanosleep"))
        shm.remove()
        assert reader.wait(5) == 1
    assert reader.err[-1] == "posix_ipc.ExistentialError: the segment was removed"


@in_namespaces
@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("primitive", ["shm", "sem"])
def test_a_mount_over_its_folder_is_a_removal(make_pair, primitive, copied, tmp_path):
    """Also where the same name is in it, with the same inode: each tmpfs numbers from the start."""
    pair = make_pair("posix", primitive)
    empty = 'mount -t tmpfs tmpfs /dev/shm; exec "$@"'
    other = f"mount -t tmpfs tmpfs {tmp_path};"
    if copied:
        other += f"cp {pair.path} {tmp_path}; stat -c %i {pair.path} {tmp_path}/{pair.path.name};"
    with Process(["unshare", "--mount", "sh", "-ec", empty, "sh", *pair.argv("server")]) as server:
        server.wait_line("start")
        enter = ["nsenter", f"--mount=/proc/{server.pid}/ns/mnt", "sh", "-ec"]
        inodes = subprocess.check_output([*enter, f"{other} mount --bind {tmp_path} /dev/shm"])
        assert len(set(inodes.split())) == copied
        assert server.wait(5) == 1
    assert server.err == [f"{pair.script('server')}: {pair.thing}: the {WHAT[primitive]}"]


WHAT = {"shm": "segment was removed", "sem": "semaphore was removed, or its file truncated"}

# --- first and last moments, and words


@pytest.mark.parametrize("kind", ["abstract", "nowhere", "full"])
def test_a_notify_socket_that_does_not_answer_ends_no_server_and_hangs_none(pair, kind, tmp_path):
    address = f"@{pair.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        if kind == "full":
            listener.bind("\0" + address[1:])
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sender.sendto(b"x", "\0" + address[1:])
        elif kind == "nowhere":
            address = str(tmp_path / "nobody")
        with pair.server(env={**ENV, "NOTIFY_SOCKET": address}) as server:
            assert server.stop(timeout=5) == 0
        assert server.out[-1] == pair.end_line


def test_systemd_is_told_that_a_server_is_ready_as_soon_as_it_listens_again(pair):
    address = f"\0{pair.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sender.sendto(b"x", address)
        listener.settimeout(20)
        with pair.server(env={**ENV, "NOTIFY_SOCKET": f"@{pair.name}"}):
            while listener.recv(100) != b"READY=1":
                pass


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_ctrl_c_while_the_imports_run_is_no_traceback(pair, side, tmp_path):
    module = argparse.__spec__.cached
    # musl opens files by open(2), which not every machine has.
    argv = traced(tmp_path / "log", "?open,openat", "signal=INT:when=1", pair.argv(side), module)
    done = subprocess.run(
        argv, env=ENV, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (-signal.SIGINT, 130)


@pytest.mark.parametrize("end", ["server", "client"])
def test_what_the_user_typed_wrongly_is_shown_on_its_line(pair, end):
    option, value = (
        ("-c", "\n9999999999999\n") if end == "server" else (pair.option[0], "/x\x1b[31m/")
    )
    if pair.primitive == "sem" and end == "server":
        option, value = "-i", "\n-1\n"
    done = pair.run(end, option, value)
    assert done.returncode == 2
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert done.stderr.splitlines()[-1].startswith(f"{pair.script(end)}: error: argument")


@needs("strace")
@pytest.mark.parametrize("primitive", ["msq", "shm", "sem"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_full_descriptor_table(make_pair, primitive, side, tmp_path):
    """The object's own descriptor is one too many. (A System V object has none.)"""
    pair = make_pair("posix", primitive)
    call, paths = ("mq_open", []) if primitive == "msq" else ("?open,openat", [pair.path])
    argv = traced(tmp_path / "log", call, "error=EMFILE", pair.argv(side), *paths)
    done = subprocess.run(argv, env=ENV, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (done.returncode, one_line(done.stderr)) == (1, True)
    assert done.stderr.startswith(f"{pair.script(side)}: {pair.name}: ")
    assert "INJECTED" in (tmp_path / "log").read_text()


@needs("strace")
def test_no_descriptor_for_the_notice_that_a_server_is_ready(pair, tmp_path):
    argv = traced(tmp_path / "log", "socket", "error=EMFILE", pair.argv("server"))
    with Process(argv, env={**ENV, "NOTIFY_SOCKET": "@nobody"}) as server:
        server.wait_line("start")
        until(lambda: "INJECTED" in (tmp_path / "log").read_text())
        os.kill(int((tmp_path / "log").read_text().split()[0]), signal.SIGTERM)
        assert (server.wait(5), server.err) == (0, [])


@needs("strace")
def test_no_descriptor_to_import_what_the_notice_needs(pair, tmp_path):
    files = socket.__file__, importlib.util.cache_from_source(socket.__file__)
    argv = traced(tmp_path / "log", "open,openat", "error=EMFILE", pair.argv("server"), *files)
    env = {**ENV, "NOTIFY_SOCKET": "@nobody"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20)
    assert done.stderr == f"{pair.script('server')}: {pair.thing}: {os.strerror(errno.EMFILE)}\n"
    assert done.returncode == 1


@needs("strace")
def test_what_the_kernel_refuses_is_not_sent_after_all(make_pair, tmp_path):
    """The client says that it has failed, so nothing may follow."""
    pair = make_pair("sysv", "msq")
    argv = traced(tmp_path / "log", "msgsnd", "error=ENOMEM:when=1", pair.argv("client", "-c1"))
    done = subprocess.run(argv, env=ENV, capture_output=True, text=True)
    assert (done.returncode, one_line(done.stderr)) == (1, True)
    assert sysv_ipc.MessageQueue(pair.key).current_messages == 0


@needs("strace")
def test_a_limit_that_cannot_be_read_keeps_no_server_from_its_queue(make_pair, tmp_path):
    pair = make_pair("sysv", "msq")
    limit = "/proc/sys/kernel/msgmax"
    argv = traced(tmp_path / "log", "open,openat", "error=EMFILE", pair.argv("server"), limit)
    with Process(argv) as server:
        server.wait_line("start")
        assert "INJECTED" in (tmp_path / "log").read_text()
        os.kill(int((tmp_path / "log").read_text().split()[0]), signal.SIGTERM)
        assert (server.wait(5), server.err) == (0, [])


@needs("strace")
@pytest.mark.parametrize("call, when", [("msgrcv", 1), ("timer_settime", 2)])
def test_an_exception_of_the_callers_handler_comes_through(make_pair, call, when, tmp_path):
    """An OSError too, though the call that the signal interrupts may raise one itself."""
    pair = make_pair("sysv", "msq")
    if call == "msgrcv":
        pair.run("client", "-c1")
    code = f"""
import signal, sysv_msq_server as server
class Mine(TimeoutError): ...
def handler(number, frame): raise Mine
signal.signal(signal.SIGUSR1, handler)
try:
    for body in server.messages(server.open_queue({pair.key}), ()): pass
except Exception as error:
    print(repr(error), repr(error.__cause__))
"""
    signalled = f"signal=USR1:when={when}"
    done = subprocess.run(
        traced(tmp_path / "log", call, signalled, [sys.executable, "-c", code]),
        capture_output=True, text=True, cwd=SCRIPTS, env=ENV, timeout=20,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("Mine() None\n", "")


def test_a_name_with_control_characters(make_pair):
    """It is a good name, and shown with escapes."""
    for primitive in ("msq", "shm", "sem"):
        pair = make_pair("posix", primitive, name=f"/a\x1b[31m\nb{os.getpid()}")
        with pair.server() as server:
            assert server.out[0].split(" size")[0].endswith(rf": /a\x1b[31m\nb{os.getpid()}")
            pair.remove()
            assert server.wait(5) == 1
        assert rf": /a\x1b[31m\nb{os.getpid()}: the " in server.err[0]


@pytest.mark.parametrize("api, primitive", [pair for pair in PAIRS if pair != ("sysv", "shm")])
def test_made_while_another_removes(make_pair, api, primitive):
    """The server's own open function, two hundred times, beside one who removes all the time."""
    # A segment of System V that is removed between shmget(2) and shmat(2) looks like one that is
    # over a limit: there it is an error.
    pair = make_pair(api, primitive)
    script, thing = pair.script("server"), repr(pair.name if api == "posix" else pair.key)
    opened = {"msq": "open_queue", "shm": "open_segment", "sem": "open_semaphore"}[primitive]
    code = f"import {script} as script\nfor _ in range(200):\n    one = script.{opened}({thing})\n"
    if api == "posix":
        code += "    one.close_fd()\n" if primitive == "shm" else "    one.close()\n"
    elif primitive == "shm":
        code += "    one.detach()\n"
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    with Process([sys.executable, "-c", code], env=env) as opener:
        while opener.popen.poll() is None:
            with contextlib.suppress(sysv_ipc.Error):
                pair.remove()
        assert (opener.wait(), opener.err) == (0, [])


@needs("prlimit")
def test_a_command_that_leaves_its_client_no_descriptor(make_pair):
    pair = make_pair("posix", "sem")
    done = pair.client("--", "sh", "-c", "prlimit --pid $PPID --nofile=3:3; exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert posix_ipc.Semaphore(pair.name).value == 2


@pytest.mark.parametrize("what", ["a loop of links", "a folder", "nothing"])
def test_what_a_command_leaves_in_place_of_its_semaphore(make_pair, what):
    """Its status is the command's all the same."""
    pair = make_pair("posix", "sem")
    new = {"a loop of links": "ln -s $0 $0", "a folder": "mkdir $0", "nothing": ":"}[what]
    done = pair.client("--", "sh", "-c", f"rm $0; {new}; exit 7", pair.path)
    assert (done.returncode, done.stderr) == (7, "")
    shutil.rmtree(pair.path) if what == "a folder" else pair.path.unlink(missing_ok=True)


@needs("strace")
def test_it_is_given_back_though_no_file_can_be_opened(make_pair, tmp_path):
    """The client looks at its mappings first; from then on there is no room for open files."""
    pair = make_pair("posix", "sem")
    log = tmp_path / "log"
    strace = ["strace", "-q", "-o", str(log), "-e", "trace=open,openat"]  # of the client alone
    argv = pair.argv("client", "--", "sh", "-c", "exit 7")
    assert subprocess.run([*strace, *argv], env=ENV, timeout=30).returncode == 7
    looks = [n for n, line in enumerate(log.read_text().splitlines(), 1) if "/self/maps" in line]
    late = ["-e", f"inject=open,openat:error=ENFILE:when={looks[-1] + 1}+"]
    assert subprocess.run([*strace, *late, *argv], env=ENV, timeout=30).returncode == 7
    assert posix_ipc.Semaphore(pair.name).value == 2


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_fifo_in_place_of_a_semaphore_stays_as_it_is(make_pair, side):
    pair = make_pair("posix", "sem")
    os.mkfifo(pair.path)
    done = pair.run(side, timeout=20)
    assert (done.returncode, one_line(done.stderr)) == (1, True)
    assert pair.path.is_fifo()


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_fifo_in_place_of_a_segment_stays_as_it_is(make_pair, side):
    pair = make_pair("posix", "shm")
    os.mkfifo(pair.path)
    pair.path.chmod(0o644)
    done = pair.run(side)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{pair.script(side)}: {pair.name}: {os.strerror(errno.ESPIPE)}\n"
    assert pair.path.stat().st_mode & 0o777 == 0o644


@needs("strace")
def test_a_queue_that_is_removed_before_the_start_line(make_pair, tmp_path):
    """After the server has seen that it is its own, and before it looks at the mode."""
    pair = make_pair("sysv", "msq")
    with halted(tmp_path / "log", "msgctl", 2, pair.argv("server")) as (server, go_on):
        pair.remove()
        go_on()
        assert server.wait() == 1
    assert server.out == []
    assert server.err == [f"sysv_msq_server: {pair.key}: The queue no longer exists"]


def test_a_server_that_gets_no_memory_for_a_message(make_pair):
    """It makes room for one of 16 MiB at least."""
    pair = make_pair("sysv", "msq")
    with pair.server() as server:
        until(lambda: waits_in(server.popen.pid, "msgrcv"))
        pages = int(Path(f"/proc/{server.popen.pid}/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") - 2**23
    limited = functools.partial(resource.setrlimit, resource.RLIMIT_AS, (limit, limit))
    with pair.server(preexec_fn=limited) as server:
        assert server.wait() == 1
    assert server.out == [pair.start_line]
    assert server.err == [f"sysv_msq_server: {pair.key}: Out of memory"]
