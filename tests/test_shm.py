"""The shared-memory pairs: whole texts, the layout that C shares, truncation and removal."""

import contextlib
import fcntl
import functools
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pexpect
import posix_ipc
import pytest
import sysv_ipc
from conftest import (
    ENV,
    Pair,
    Process,
    cpu,
    finish,
    needs,
    needs_shm,
    start_together,
    state,
    until,
    waits_in,
)


def contents(pair: Pair) -> bytes:
    if pair.api == "posix":
        return pair.path.read_bytes()
    with pair.opened() as segment:
        return segment.read()


def poke(pair: Pair, data: bytes, offset: int = 0) -> None:
    """Write without a lock, as a program that is none of ours would."""
    if pair.api == "posix":
        with pair.path.open("r+b") as file:
            file.seek(offset)
            file.write(data)
    else:
        with pair.opened() as segment:
            segment.write(data, offset)


def reading(pair: Pair) -> str:
    done = pair.run("server", "-c1", "-i0")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[1].partition(" ")[2]


def test_the_client_writes_and_the_server_prints(shm):
    with shm.server("-i0.05") as server:
        until(lambda: len(server.out) > 1, "the first reading")  # or it may come after the write
        done = shm.client(stdin="Hello, Zoë\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"write to {shm.thing}\n", "")
        server.wait_line("Hello, Zoë")
        server.stop()
    assert server.out[1].endswith(" ")  # the empty text of a new segment


def test_the_layout(shm):
    shm.client(stdin="a longer text\nshort\n")
    assert contents(shm) == b"short".ljust(4096, b"\0")


def test_a_text_that_fills_the_segment(shm):
    for text in ("x" * 7, "x" * 8, ""):
        done = shm.client("--size", 8, stdin=f"{text}\n")
        assert (done.returncode, done.stderr) == (0, "")
        assert contents(shm) == text.encode().ljust(8, b"\0")
        assert reading(shm) == text


@pytest.mark.parametrize(
    "text", [b"123456789", b"1\x002", b"1234567\x01", "1234567ë".encode(), b"\xff"]
)
def test_a_text_that_does_not_fit_changes_nothing(shm, text):
    shm.client("--size", 8, stdin="before\n")
    done = shm.client(stdin=text + b"\n")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{shm.script('client')}: {shm.thing}: ")
    assert len(done.stderr.splitlines()) == 1
    assert contents(shm) == b"before\0\0"
    done = shm.client(stdin=text + b"\nafter\n")
    assert done.returncode == 1
    assert contents(shm) == b"after\0\0\0"


def test_a_segment_of_one_byte(shm):
    assert shm.client("--size", 1, stdin="x\n").returncode == 0
    assert reading(shm) == "x"
    assert shm.client(stdin="\n").returncode == 0
    assert reading(shm) == ""
    assert shm.client(stdin="xy\n").returncode == 1
    poke(shm, b"\x01")
    assert reading(shm) == "(incomplete write)"


def test_a_write_that_was_cut_short_is_shown_and_mended(shm):
    shm.client(stdin="the text before\n")
    poke(shm, b"the te\0t halfway")
    poke(shm, b"\x01", 4095)
    assert reading(shm) == "(incomplete write)"
    shm.client(stdin="new\n")
    assert contents(shm) == b"new".ljust(4096, b"\0")


@pytest.mark.parametrize(
    "data, shown",
    [
        (b"\x1b[2J\x07\r\n\t\x7f", r"\x1b[2J\x07\r\n\t\x7f"),
        (b"\xff\xfeab", r"\xff\xfeab"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
        ("\x85\u202e\u2028".encode(), r"\x85\u202e\u2028"),
        (b"C string\0and what stood there before", "C string"),
    ],
)
def test_what_comes_out_of_a_segment_is_untrusted(shm, data, shown):
    shm.client(stdin="")
    poke(shm, data)
    assert reading(shm) == shown


def test_changes_only(shm):
    with shm.server("--changes", "-i0.02") as server:
        for text in ("one", "two"):
            shm.client(stdin=f"{text}\n")
            server.wait_line(text)
        shm.client(stdin="two\nthree\n")
        server.wait_line("three")
        server.stop()
    assert server.texts[1:-1] == ["", "one", "two", "three"]


def test_the_count_ends_the_server(shm):
    with shm.server("-c3", "-i0.02") as server:
        assert server.wait() == 0
    assert server.texts == [shm.start_line, "", "", "", shm.end_line]


def test_the_count_is_of_readings_whether_they_are_printed_or_not(shm):
    shm.client(stdin="text\n")
    done = shm.run("server", "--changes", "-c3", "-i0.02", timeout=10)
    assert (done.returncode, done.stdout.count("text")) == (0, 1)


def test_a_write_cut_short_before_the_start_is_a_change_too(shm):
    shm.client(stdin="text\n")
    poke(shm, b"\x01", 4095)
    assert "(incomplete write)" in shm.run("server", "--changes", "-c1", "-i0").stdout


def test_a_server_says_who_keeps_the_lock_and_goes_on(shm):
    """What it could not read is no reading, and no change of the text."""
    shm.client(stdin="before\n")
    with shm.server("--changes", "-i0.02") as server:
        server.wait_line("before")
        with contextlib.ExitStack() as lock:
            lock.enter_context(lock_held(shm))
            with shm.start("server", "-c1", "-i0.02") as once:
                until(lambda: server.err and once.err, "two complaints")
                lock.close()
                assert once.wait() == 0
        assert once.texts == [shm.start_line, "before", shm.end_line]
        shm.client(stdin="after\n")
        server.wait_line("after")
        server.stop()
    assert server.texts[1:-1] == ["before", "after"]
    number = shm.path.stat().st_ino if shm.api == "posix" else os.getpid()
    said = {
        "posix": f"locked: `grep ':{number} ' /proc/locks`",
        "sysv": f"locked by process {number}",
    }
    assert set(server.err) == {f"{shm.script('server')}: {shm.thing}: {said[shm.api]}"}


def test_a_lock_removed_under_who_waits_for_it(make_pair):
    shm = make_pair("sysv", "shm")
    shm.client(stdin="before\n")
    lock = sysv_ipc.Semaphore(~shm.key)
    lock.acquire()
    with shm.start("client", stdin=subprocess.PIPE) as client:
        client.type("after\n")
        until(lambda: lock.waiting_for_nonzero)
        lock.remove()
        assert client.wait(4) == 1


def test_the_size_of_a_new_segment(shm):
    with shm.server("--size", 10000):
        assert len(contents(shm)) == 10000


@pytest.mark.parametrize("size", [0, 1, 100000])
def test_a_posix_segment_truncated_or_enlarged_under_both(make_pair, size):
    pair = make_pair("posix", "shm")
    with (
        pair.server("-i0.02") as server,
        pair.start("client", stdin=subprocess.PIPE) as client,
    ):
        client.type("before\n")
        server.wait_line("before")
        os.truncate(pair.path, size)
        count = len(server.out)
        until(lambda: len(server.out) > count + 2)
        client.type("after\n")
        if size > 10:
            server.wait_line("after")
        else:
            until(lambda: client.err)
            assert client.err[0].endswith(f"the text does not fit, or has a NUL: 5 bytes of {size}")
        if size == 0:  # nor does an empty text, which is ended by a NUL
            client.type("\n")
            until(lambda: len(client.err) == 2)
            assert client.err[1].endswith("the text does not fit, or has a NUL: 0 bytes of 0")
        client.stdin.close()
        assert client.wait() == (0 if size > 10 else 1)
        assert server.stop() == 0
    assert server.texts[-2] == {0: "", 1: "b", 100000: "after"}[size]
    assert pair.client(stdin="again\n").returncode == (1 if size == 1 else 0)


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_symbolic_link_is_not_the_segment(make_pair, side):
    """shm_open(3) does not follow one, so that nobody else finds it there."""
    shm = make_pair("posix", "shm")
    moved = shm.path.with_name(f"{shm.path.name}-moved")
    with Process(shm.argv(side), stdin=subprocess.PIPE) as process:
        until(lambda: process.out)
        shm.path.rename(moved)
        try:
            shm.path.symlink_to(moved)
            if side == "client":
                process.type("text\n")
            assert process.wait(5) == 1
        finally:
            moved.unlink()
    assert process.err[-1].endswith(": the segment was removed")


def test_the_lock_is_1_when_nobody_holds_it(make_pair):
    """SEM_UNDO is undone by it: else the kernel would add what has been given back already."""
    shm = make_pair("sysv", "shm")
    for _ in range(2):
        shm.client(stdin="text\n" * 3)
        assert sysv_ipc.Semaphore(~shm.key).value == 1
        assert shm.run("server", "-c3", "-i0").returncode == 0
        assert sysv_ipc.Semaphore(~shm.key).value == 1


def test_a_segment_is_removed_under_the_server(shm):
    shm.client(stdin="text\n")
    with shm.server("-i60") as server:
        server.wait_line("text")
        shm.remove()
        assert server.wait(5) == 1
    assert server.err == [f"{shm.script('server')}: {shm.thing}: the segment was removed"]


def test_a_segment_is_removed_under_the_client(shm):
    with shm.start("client", stdin=subprocess.PIPE) as client:
        client.wait_line("write to")
        shm.remove()
        client.type("text\n")
        client.stdin.close()
        assert client.wait() == 1
    assert client.err == [f"{shm.script('client')}: {shm.thing}: the segment was removed"]


def test_a_segment_is_removed_while_a_writer_waits_for_the_lock(shm):
    """What was there when it began to wait is not there when it may write."""
    shm.client(stdin="before\n")
    with shm.start("client", stdin=subprocess.PIPE) as client:
        client.wait_line("write to")
        with lock_held(shm):
            client.type("text\n")
            until(lambda: waits_in(client.pid, "clock_nanosleep", "semtimedop"))
            shm.remove()
        client.stdin.close()
        assert client.wait() == 1
    assert client.err == [f"{shm.script('client')}: {shm.thing}: the segment was removed"]


def test_a_segment_is_replaced_under_the_client(shm):
    with shm.start("client", stdin=subprocess.PIPE) as client:
        client.wait_line("write to")
        shm.remove()
        assert shm.client(stdin="of the new one\n").returncode == 0
        client.type("text\n")
        client.stdin.close()
        assert client.wait() == 1
    assert client.err == [f"{shm.script('client')}: {shm.thing}: the segment was removed"]
    assert reading(shm) == "of the new one"


def test_a_write_after_one_cut_short_costs_what_its_text_costs(shm):
    """It does not cover the whole segment with NULs, for which there may be no memory."""
    size = 64 * 2**20
    if shm.api == "posix":  # with holes, or it needs as much in /dev/shm
        shm.path.touch()
        os.truncate(shm.path, size)
    shm.client("--size", size, stdin="text\n")
    poke(shm, b"\1", size - 1)
    attached = size if shm.api == "sysv" else 0
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_AS)
    few = functools.partial(limit, (attached + size, attached + size))
    done = shm.client(stdin="new\n", preexec_fn=few)
    assert (done.returncode, done.stderr) == (0, "")
    assert contents(shm).rstrip(b"\0") == b"new"


@needs("strace")
def test_a_write_cut_short_in_a_segment_with_holes(make_pair, tmp_path):
    """Of C, by ftruncate(2), and larger than what is free: the next write needs no more."""
    shm, log = make_pair("posix", "shm"), tmp_path / "log"
    free = os.statvfs("/dev/shm")
    shm.path.touch()
    os.truncate(shm.path, 2 * free.f_blocks * free.f_frsize)
    shm.client(stdin="first\n")
    kill = "inject=pwrite64:signal=KILL:when=2"
    strace = ["strace", "-o", str(log), "-e", kill, *shm.argv("client")]
    subprocess.run(strace, input=b"second\n", env=ENV, timeout=20)
    assert reading(shm) == "(incomplete write)"
    done = shm.client(stdin="third\n")
    assert (done.returncode, done.stderr, reading(shm)) == (0, "", "third")


@needs("strace")
@pytest.mark.parametrize("when", range(2, 7))
def test_nothing_stands_behind_the_text_whoever_was_killed(make_pair, when, tmp_path):
    """Its NULs come from the end on, so that what is left of the old text has none before it."""
    shm, log = make_pair("posix", "shm"), tmp_path / "log"
    shm.client("--size", 40_000, stdin="x" * 14_000 + "\n")
    kill = f"inject=pwrite64:signal=KILL:when={when}"
    strace = ["strace", "-o", str(log), "-e", kill, *shm.argv("client")]
    subprocess.run(strace, input=b"y" * 100 + b"\n", env=ENV, timeout=20)
    assert reading(shm) == "(incomplete write)"
    shm.client(stdin="new\n")
    assert contents(shm).rstrip(b"\0") == b"new"


def test_clean_removes_the_lock(make_pair):
    pair = make_pair("sysv", "shm")
    pair.client(stdin="text\n")
    assert pair.lock.exists()
    pair.run("server", "--clean")
    assert not pair.lock.exists()
    sysv_ipc.Semaphore(~pair.key, sysv_ipc.IPC_CREX)
    assert pair.run("server", "--clean").stdout == f"removed {pair.key}\n"


def test_the_semaphore_pair_may_use_the_same_key(make_pair):
    segment = make_pair("sysv", "shm")
    semaphore = make_pair("sysv", "sem", key=segment.key)
    assert semaphore.client().stdout == "semaphore: 1\n"
    assert segment.client(stdin="text\n").returncode == 0
    assert reading(segment) == "text"


@needs("strace", "/usr/bin/time")
def test_the_cost_of_a_reading_follows_the_text(shm, tmp_path):
    """Bytes read, not time: from a segment of 256 MiB no more than from one of 4 KiB."""
    trace = tmp_path / "trace"
    if shm.api == "posix":  # with holes, as ftruncate(2) makes it, or it would need the memory
        shm.path.touch(0o600)
        os.truncate(shm.path, 2**28)
    shm.client("--size", 2**28, stdin="a short text\n")
    argv = ["strace", "-e", "pread64", "-o", trace, *shm.argv("server", "-c1")]
    if shm.api == "sysv":  # reads by memcpy(3), which no system call shows: the peak of memory does
        argv = ["/usr/bin/time", "-f", "%M", "-o", trace, *shm.argv("server", "-c1")]
    done = subprocess.run(argv, env=ENV, check=True, stdout=subprocess.PIPE, text=True)
    assert "a short text" in done.stdout
    numbers = [
        int(line.rpartition(" ")[2]) for line in trace.read_text().splitlines() if "+" not in line
    ]
    assert sum(numbers) <= (2 * 4096 if shm.api == "posix" else 2**16)


def test_a_text_of_a_few_mebibytes(shm):
    text = "0123456789abcdef" * 2**18
    needs_shm(24)
    assert shm.client("--size", 2**22 + 1, stdin=f"{text}\n").returncode == 0
    assert reading(shm) == text


def test_an_interactive_client(shm):
    with shm.server("--changes", "-i0.02") as server:
        argv = shm.argv("client")
        child = pexpect.spawn(argv[0], argv[1:], env=ENV, encoding="utf-8", timeout=20)
        child.expect_exact(f"write to {shm.thing}\r\n")
        child.expect_exact("Please enter something: ")
        child.sendline("hello, Zoë")
        child.expect_exact("Please enter something: ")
        server.wait_line("hello, Zoë")
        child.sendeof()
        child.expect(pexpect.EOF)
        assert child.before.endswith("\r\n")  # the shell's prompt stands on a line of its own
        child.close()
        assert child.exitstatus == 0
        child = pexpect.spawn(argv[0], argv[1:], env=ENV, encoding="utf-8", timeout=20)
        child.expect_exact("Please enter something: ")
        child.sendintr()
        child.expect(pexpect.EOF)
        child.close()
        assert child.signalstatus == 2
        assert "Traceback" not in child.before


def test_the_posix_memory_is_reserved(make_pair):
    pair = make_pair("posix", "shm")
    needs_shm(4)
    pair.client("--size", 2**20, stdin="")
    assert pair.path.stat().st_blocks * 512 == 2**20
    assert posix_ipc.SharedMemory(pair.name).size == 2**20


def is_locked(shm: Pair) -> bool:
    if shm.api == "sysv":
        return sysv_ipc.Semaphore(~shm.key).value == 0
    with shm.path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextlib.contextmanager
def lock_held(shm: Pair) -> Iterator[None]:
    """Held by the test, as a writer holds it."""
    if shm.api == "sysv":
        lock = sysv_ipc.Semaphore(~shm.key)
        lock.acquire()
        yield
        lock.release()
    else:
        with shm.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def stop_when(process: Process, condition: Callable[[], bool]) -> None:
    """Stop the process (SIGSTOP) again and again until it stands where the condition is true."""

    def there() -> bool:
        process.popen.send_signal(signal.SIGSTOP)
        until(lambda: state(process.pid) == "T", "stopped", pause=0)
        if condition():
            return True
        process.popen.send_signal(signal.SIGCONT)
        return False

    until(there, "a process stopped at the moment", 60, pause=0.002)


def in_a_write(shm: Pair) -> bool:
    if shm.api == "sysv":
        with shm.opened() as segment:
            return segment.read(1, segment.size - 1) == b"\x01"
    with shm.path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\x01"


def waits_for_the_lock(pid: int) -> bool:
    """A script looks every now and then: there is no flock(2) or semop(2) that ends in time."""
    return waits_in(pid, "flock", "semop", "semtimedop", "clock_nanosleep")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_write_comes_after_it(shm, number):
    needs_shm(24)
    shm.client("--size", 2**23, stdin="before\n")
    text = "x" * (2**23 - 10)
    with shm.start("client", stdin=subprocess.PIPE) as client:
        feed = threading.Thread(target=feed_forever, args=(client, f"{text}\n"))
        feed.start()
        stop_when(client, lambda: in_a_write(shm))
        client.popen.send_signal(number)
        client.popen.send_signal(signal.SIGCONT)
        assert client.wait() in (-number, 128 + number)
        feed.join()
    assert not in_a_write(shm)
    assert contents(shm) == text.encode().ljust(2**23, b"\0")


def feed_forever(client: Process, text: str) -> None:
    with contextlib.suppress(BrokenPipeError, ValueError):
        while True:
            client.type(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_the_first_line(shm, number):
    with shm.start("client", stdin=subprocess.PIPE) as client:
        client.wait_line("write to")
        client.type("first\n")
        until(lambda: contents(shm).startswith(b"first") and not in_a_write(shm))
        until(lambda: waits_in(client.pid, "read"))
        assert client.stop(number) in (-number, 128 + number)
    assert reading(shm) == "first"


def test_a_client_that_made_the_segment_and_idles_blocks_nobody(shm):
    with shm.start("client", stdin=subprocess.PIPE) as idle:
        idle.wait_line("write to")
        assert reading(shm) == ""
        assert shm.client(stdin="from another\n").returncode == 0
        assert reading(shm) == "from another"
        idle.type("from the first\n")
        until(lambda: contents(shm).startswith(b"from the first"))
        assert reading(shm) == "from the first"
        idle.stdin.close()
        assert idle.wait() == 0


@pytest.mark.parametrize("side", ["server", "client"])
def test_who_is_killed_with_the_lock_leaves_no_lock(shm, side):
    needs_shm(24)
    text = "x" * (2**23 - 10)
    shm.client("--size", 2**23, stdin=f"{text}\n")
    argv = shm.argv("server", "-i0", "--changes") if side == "server" else shm.argv("client")
    with Process(argv, stdin=subprocess.PIPE) as process:
        if side == "client":
            feed = threading.Thread(target=feed_forever, args=(process, f"{text}\n"))
            feed.start()
        process.wait_line("start" if side == "server" else "write to")
        stop_when(process, lambda: is_locked(shm))
        process.stop(signal.SIGKILL)
        if side == "client":
            feed.join()
    assert not is_locked(shm)
    assert shm.client(stdin="after\n").returncode == 0
    assert reading(shm) == "after"


def test_stop_and_continue_while_waiting_for_the_lock(shm):
    """Ctrl-Z and fg: semop(2) fails with EINTR then, even without a handler (signal(7))."""
    shm.client(stdin="before\n")
    with shm.start("client", stdin=subprocess.PIPE) as client:
        with lock_held(shm):
            client.type("after\n")
            client.stdin.close()
            until(lambda: waits_for_the_lock(client.pid), "the client waits")
            for _ in range(3):
                client.popen.send_signal(signal.SIGSTOP)
                until(lambda: state(client.pid) == "T")
                client.popen.send_signal(signal.SIGCONT)
                until(lambda: waits_for_the_lock(client.pid), "the client waits again")
            assert contents(shm).startswith(b"before")
        assert client.wait() == 0
    assert client.err == []
    assert reading(shm) == "after"


def test_ctrl_c_while_waiting_for_the_lock(shm):
    shm.client(stdin="before\n")
    with lock_held(shm), shm.start("client", stdin=subprocess.PIPE) as client:
        client.type("after\n")
        until(lambda: waits_for_the_lock(client.pid), "the client waits")
        assert client.stop(signal.SIGINT) in (-signal.SIGINT, 128 + signal.SIGINT)
    assert client.err == []
    assert reading(shm) == "before"


def test_a_server_does_not_read_while_somebody_writes(shm):
    shm.client(stdin="before\n")
    with shm.server("-i0.02", "--changes") as server:
        server.wait_line("before")
        with lock_held(shm):
            poke(shm, b"half")
            before = cpu(server.pid)
            time.sleep(0.5)  # in which it would have read
            assert not any("half" in line for line in server.out)
            assert cpu(server.pid) - before < 0.3
            poke(shm, b"whole\0")
        server.wait_line("whole")
        assert server.stop() == 0
    assert server.texts[1:-1] == ["before", "whole"]


@pytest.mark.parametrize("length", [65535, 65536, 65537, 131072, 200_000])
def test_old_text_of_more_than_64_kib_goes(shm, length):
    """What a longer text left behind a shorter one, C programs would find in the segment."""
    shm.client("--size", 300_000, stdin="x" * length + "\nshort\n")
    assert contents(shm) == b"short".ljust(300_000, b"\0")


@pytest.mark.parametrize(
    "line, text",
    [(b"text\r\n", b"text"), (b"text", b"text"), (b"a\rb\n", b"a\rb"), (b" a \n", b" a ")],
)
def test_the_end_of_a_line_is_not_text(shm, line, text):
    assert shm.client(stdin=line).returncode == 0
    assert contents(shm) == text.ljust(4096, b"\0")


def test_creators_with_two_sizes(shm):
    """One of them makes it; the others say in one line what its size is, and go on."""
    sizes = [100, 8192] * 8
    processes = start_together([shm.argv("client", "--size", size) for size in sizes])
    done = finish(processes)
    size = len(contents(shm))
    assert size in (100, 8192)
    for given, (out, err, status) in zip(sizes, done, strict=True):
        assert (out, status) == (f"write to {shm.thing}\n", 0), done
        line = f"{shm.script('client')}: {shm.thing}: --size is {size}, not {given}\n"
        assert err == ("" if given == size else line)


@pytest.mark.parametrize("side", ["server", "client"])
def test_an_empty_segment_is_sized_by_the_next(make_pair, side):
    """Somebody made it, and died, or found no room, before it had a size."""
    pair = make_pair("posix", "shm")
    pair.path.touch(0o600)
    done = pair.run(side, "--size", 5000, *(["-c1"] if side == "server" else []), stdin="text\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert pair.path.stat().st_size == 5000
    assert pair.client(stdin="text\n").returncode == 0
    assert reading(pair) == "text"


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("size", [2**46, 2**47])
def test_a_size_that_no_machine_has(shm, side, size):
    done = shm.run(side, "--size", size)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{shm.script(side)}: {shm.thing}: ")
    assert len(done.stderr.splitlines()) == 1
    if shm.api == "sysv":
        assert not shm.exists() and not shm.lock.exists()
    else:  # a name without a size may stay: it may be somebody else's
        assert not shm.path.exists() or shm.path.stat().st_size == 0
    assert shm.client(stdin="text\n").returncode == 0
    assert reading(shm) == "text"
