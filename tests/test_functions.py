"""The upper parts of the scripts in another program: imported, or cut out as they stand.

The program has a umask, signal handlers, blocked signals, a timer and streams of its own, and looks
whether they are what they were.
"""

import subprocess
import sys
import textwrap

import pytest
from conftest import ENV, SCRIPTS, Pair

PROGRAM = """
import os, signal, sys, threading, time, types

scripts, api, primitive, way, thing = sys.argv[1:]
os.umask(0o027)
signal.signal(signal.SIGALRM, lambda number, frame: None)
signal.signal(signal.SIGUSR1, lambda number, frame: None)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM, signal.SIGUSR2})
signal.setitimer(signal.ITIMER_REAL, 1000, 500)


def state():
    mask = os.umask(0)
    os.umask(mask)
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    return (
        mask, signal.pthread_sigmask(signal.SIG_BLOCK, ()), 900 < left <= 1000, interval,
        {number: signal.getsignal(number) for number in signal.valid_signals()},
        [(id(stream), stream.line_buffering, stream.errors, os.get_blocking(stream.fileno()))
         for stream in (sys.stdin, sys.stdout, sys.stderr)],
    )


def same():
    assert state() == before, (state(), before)


def load(side):
    name = f"{api}_{primitive}_{side}"
    if way == "imported":
        sys.path[:0] = [scripts]
        return __import__(name)
    text = open(f"{scripts}/{name}.py").read()
    module = types.ModuleType(name)
    exec(text[: text.index("# --- the command line")], module.__dict__)
    return module


def raises(kind, function, *args, **options):
    try:
        function(*args, **options)
    except kind as error:
        return str(error)
    raise AssertionError(f"{kind} is not raised")


def later(function, *args):
    def run():
        time.sleep(1.2)  # longer than any time limit inside
        function(*args)

    threading.Thread(target=run).start()


before = state()
server, client = load("server"), load("client")
same()
thing = thing if api == "posix" else int(thing)
package = sys.modules[f"{api}_ipc"]
stop = []
"""
MSQ = """
queue = server.open_queue(thing)
same()
other = client.open_queue(thing)
same()
client.send(other, b"one")
same()
bodies = server.messages(queue, stop)
assert next(bodies) == b"one"
same()
later(client.send, other, b"two")
assert next(bodies) == b"two"
same()
stop.append("enough")
assert list(bodies) == []
same()
full = ({"timeout": 0} if api == "posix" else {"block": False})
raises(package.BusyError, lambda: [client.send(other, b"x" * 1000, **full) for _ in range(10000)])
if api == "posix":
    raises(package.BusyError, client.send, other, b"more", timeout=1.2)
same()
stop.clear()
later(lambda: next(server.messages(queue, stop)) if api == "posix" else queue.receive(block=False))
client.send(other, b"x" * 1000)
same()
waiting = client.open_queue(thing)
(package.unlink_message_queue(thing) if api == "posix" else queue.remove())
raises(package.ExistentialError, client.send, waiting, b"more")
raises(package.ExistentialError, lambda: list(server.messages(queue, stop)))
same()
"""
SHM = """
segment = client.open_segment(thing, size=100)
same()
reader = server.open_segment(thing)
same()
assert server.read_text(reader) == ""
client.write_text(segment, "hello, Zo\\u00eb")
same()
assert server.read_text(reader) == "hello, Zo\\u00eb"
same()
raises(ValueError, client.write_text, segment, "x" * 101)
same()
assert server.read_text(reader) == "hello, Zo\\u00eb"


def mine(module):
    with module.locked(segment):
        raise KeyError("of the caller")


for module in (server, client):
    assert "of the caller" in raises(KeyError, mine, module)
    same()
    with module.locked(segment):
        same()
        began = time.monotonic()
        assert "locked" in raises(TimeoutError, server.read_text, reader, 0.3)
        assert 0.25 < time.monotonic() - began < 10
        raises(TimeoutError, client.write_text, client.open_segment(thing), "other", 0)
    with module.locked(reader, 0):
        same()
later(client.write_text, segment, "in a thread")
end = time.monotonic() + 10
while server.read_text(reader) != "in a thread" and time.monotonic() < end:
    time.sleep(0.01)
assert server.read_text(reader) == "in a thread"
(package.unlink_shared_memory(thing) if api == "posix" else package.SharedMemory(thing).remove())
raises(package.ExistentialError, client.write_text, segment, "more")
same()
"""
SEM = """
semaphore = server.open_semaphore(thing, value=1)
same()
other = client.open_semaphore(thing)
same()
values = server.values(semaphore, stop, 0.05)
assert next(values) == 1
same()
client.acquire(other)
same()
assert next(values) == 0
same()
raises(package.BusyError, client.acquire, other, 0)
same()
began = time.monotonic()
raises(package.BusyError, client.acquire, other, 1.2)
assert 1.1 < time.monotonic() - began < 10
same()
later(semaphore.release)
assert next(values) == 1
same()
client.acquire(other)
later(semaphore.release)
client.acquire(other, 30)
same()
later(semaphore.release)
client.acquire(other, None)
same()
taken = []
thread = threading.Thread(target=lambda: taken.append(client.acquire(other, None)))
thread.start()
later(semaphore.release)
thread.join(10)
assert taken == [None]
stop.append("enough")
assert list(values) in ([], [0])
same()
(package.unlink_semaphore(thing) if api == "posix" else semaphore.remove())
raises(package.ExistentialError, client.acquire, other, None)
stop.clear()
raises(package.ExistentialError, lambda: list(server.values(semaphore, stop, 0.05)))
same()
"""


@pytest.mark.parametrize("way", ["imported", "cut out"])
def test_the_upper_part_leaves_a_program_as_it_was(pair: Pair, way, tmp_path):
    code = PROGRAM + {"msq": MSQ, "shm": SHM, "sem": SEM}[pair.primitive]
    done = subprocess.run(
        [sys.executable, "-c", code, SCRIPTS, pair.api, pair.primitive, way, pair.thing],
        capture_output=True, text=True, env=ENV, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py")))
def test_an_import_changes_nothing(name, tmp_path):
    code = PROGRAM.partition("server, client =")[0] + f"sys.path[:0] = [scripts]; import {name}"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nsame()", SCRIPTS, "", "", "", ""],
        capture_output=True, text=True, env=ENV, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_message_that_was_yielded_is_the_callers(msq):
    """A signal that comes while the caller works on it is noted, and interrupts nothing."""
    code = """
        import os, signal, sys, time
        scripts, name, thing = sys.argv[1:]
        sys.path[:0] = [scripts]
        module, common = __import__(name), __import__("common")
        queue = module.open_queue(int(thing) if thing.isdecimal() else thing)
        done = []
        stop = common.stop_signals()
        print("ready", flush=True)
        for body in module.messages(queue, stop):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1.5)
            done.append(body)
        print(done, flush=True)
        """

    with msq.server("-c0"):
        pass
    msq.client("-c2", "-i0", "-q")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), SCRIPTS, msq.script("server"), msq.thing],
        capture_output=True, text=True, env=ENV, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("ready\n[b'{\"count\": 1}']\n", "")
