"""The upper parts of the scripts, taken home: cut out or imported, in programs that know nothing
of the command line, on objects of their own."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sysv_ipc
from conftest import (
    CALLS,
    ENV,
    SCRIPTS,
    Pair,
    Process,
    capable,
    in_namespaces,
    needs,
    until,
    with_glibc,
)
from test_contract import mode_of

CUT = "# --- the command line"
PAGES = sorted(path.stem for path in SCRIPTS.glob("*_*_*.py"))

# A program that has set up its process in its own way, and what it can see of that.
OWN = """
import io, os, signal, sys, threading, time
rung = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP, signal.SIGALRM):
    signal.signal(number, lambda number, frame: rung.append(number))
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGTSTP, signal.SIGUSR2})
os.kill(os.getpid(), signal.SIGTERM)  # which waits until the program wants it
os.umask(0o027)
signal.setitimer(signal.ITIMER_REAL, 1000, 500)
signal.setitimer(signal.ITIMER_PROF, 1000, 500)
due = time.monotonic() + 1000

def state():
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    with open("/proc/self/status") as file:
        umask = next(line for line in file if line.startswith("Umask"))
    timers = ""
    if os.path.exists("/proc/self/timers"):  # CONFIG_CHECKPOINT_RESTORE, proc(5)
        with open("/proc/self/timers") as file:
            timers = file.read()
    return {
        "umask": umask,
        "handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "pending": signal.sigpending(),
        "rung": list(rung),
        "timer": (abs(time.monotonic() + left - due) < 5, interval),
        "other timer": signal.getitimer(signal.ITIMER_PROF)[1],
        "timers of timer_create(2)": timers,
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.excepthook),
        "buffering": sys.__stdout__.line_buffering,
        "path": list(sys.path),
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
    }

def call(function, *args, **options):
    before = state()
    try:
        result = function(*args, **options)
    except Exception as error:
        result = error
    after = state()
    for what in before:
        if before[what] != after[what]:
            name = getattr(function, "__qualname__", function)
            print(f"{name}{args} changed {what}: {before[what]} to {after[what]}")
    called.add(getattr(function, "__name__", ""))
    return result

def works(function, *args, **options):
    result = call(function, *args, **options)
    if isinstance(result, Exception):
        raise result
    return result

def fails(kind, function, *args):
    result = call(function, *args)
    assert isinstance(result, kind), (function, args, result)

def soon(function, *args):
    threading.Timer(0.1, function, args).start()

called = set()
"""

# Every function of an upper part, when it succeeds, when it waits, and when it fails.
STEPS = {
    "msq_server": """
queue = works(script.open_queue, thing)
works(script.open_queue, thing)
other = package.MessageQueue(thing)
stop = []
bodies = works(script.messages, queue, stop)
other.send(b"one")
assert works(next, bodies) == b"one"
soon(other.send, b"two")
assert works(next, bodies) == b"two"
soon(stop.append, 1)
fails(StopIteration, next, bodies)
remove()
fails(package.ExistentialError, next, script.messages(queue, []))
""",
    "msq_client": """
queue = works(script.open_queue, thing)
works(script.open_queue, thing)
other = package.MessageQueue(thing)
no_wait = {"posix": 0, "sysv": False}[api]
while not isinstance(call(script.send, queue, bytes(1000), no_wait), package.BusyError):
    pass
if api == "posix":
    fails(package.BusyError, script.send, queue, b"", 0.1)
soon(other.receive)
works(script.send, queue, bytes(1000))
fails((ValueError, OSError), script.send, queue, bytes(2**20))
remove()
fails(package.ExistentialError, script.send, queue, b"one")
""",
    "shm_server": """
segment = works(script.open_segment, thing)
another = works(script.open_segment, thing)
assert works(script.read_text, segment) == ""
lock = script.locked(segment)
works(lock.__enter__)
fails(TimeoutError, script.read_text, another, 0.05)
works(lock.__exit__, None, None, None)
""",
    "shm_client": """
segment = works(script.open_segment, thing)
another = works(script.open_segment, thing)
works(script.write_text, segment, "text")
fails(ValueError, script.write_text, segment, "x" * 5000)
lock = script.locked(segment)
works(lock.__enter__)
fails(TimeoutError, script.write_text, another, "text", 0.05)
works(lock.__exit__, None, None, None)
remove()
fails(package.ExistentialError, script.write_text, segment, "text")
""",
    "sem_server": """
semaphore = works(script.open_semaphore, thing, value=1)
works(script.open_semaphore, thing)
stop = []
values = works(script.values, semaphore, stop, 0.02)
assert works(next, values) == 1
soon(package.Semaphore(thing).acquire)
assert works(next, values) == 0
soon(stop.append, 1)
fails(StopIteration, next, values)
remove()
fails(package.ExistentialError, next, script.values(semaphore, []))
""",
    "sem_client": """
semaphore = works(script.open_semaphore, thing, value=1)
works(script.open_semaphore, thing)
other = package.Semaphore(thing)
works(script.acquire, semaphore, 5)
fails(package.BusyError, script.acquire, semaphore, 0)
fails(package.BusyError, script.acquire, semaphore, 0.1)
for limit in (None, 5):
    soon(other.release)
    works(script.acquire, semaphore, limit)
fails(InterruptedError, script.acquire, semaphore, None, [1])
stop = []
soon(stop.append, 1)
fails(InterruptedError, script.acquire, semaphore, None, stop)
if api == "sysv":
    works(script.acquire, semaphore, 5, [], 0)
remove()
fails(package.ExistentialError, script.acquire, semaphore, 5)
""",
}
HELPERS = """
if hasattr(script, "check"):
    call(script.check, semaphore)
print("called", *sorted(called))
"""


UNLINK = {
    "msq": "package.unlink_message_queue",
    "shm": "package.unlink_shared_memory",
    "sem": "package.unlink_semaphore",
}


def upper(script: str) -> str:
    text, line, _ = (SCRIPTS / f"{script}.py").read_text().partition(f"{CUT}\n")
    assert line
    return text


def home(way: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a program that has the upper parts alone, or the whole scripts."""
    if way == "cut":
        for script in PAGES:
            (tmp_path / f"{script}.py").write_text(upper(script))
    path = tmp_path if way == "cut" else SCRIPTS
    return {**ENV, "PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"}


def program(pair: Pair, side: str, *code: str) -> list[str]:
    """A program that has the script, its package and its object at hand."""
    api, script, kind = pair.api, pair.script(side), f"package.{pair.kind.__name__}"
    start = f"""
import os, signal, sys, threading, time
import {api}_ipc as package
import {script} as script
api, thing = {api!r}, {(pair.name if api == "posix" else pair.key)!r}
def remove(thing=thing):
    if api == "posix":
        {UNLINK[pair.primitive]}(thing)
    else:
        gone = {kind}(thing)
        gone.remove()
        getattr(gone, "detach", int)()  # or it lives on
"""
    return [sys.executable, "-c", "\n".join((start, *code))]


def run(argv: list[str], env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("page", PAGES)
def test_the_form_of_the_two_parts(page):
    text = (SCRIPTS / f"{page}.py").read_text()
    tree = ast.parse(upper(page))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"common", "argparse", "sys", "print", "exit", "SystemExit", "input"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                {node.module}
                if isinstance(node, ast.ImportFrom)
                else {alias.name for alias in node.names}
            )
            assert not modules & {"common", "argparse", "sys", "json"}
    package = f"{page.partition('_')[0]}_ipc"
    calls = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(f"{package}.")
    ]
    assert min(calls) <= 40
    assert re.search(
        r"\n# --- the (queue|segment|semaphore): these functions work in any program\n", text
    )


@pytest.mark.parametrize("page", PAGES)
def test_a_function_leaves_the_process_as_it_was(page, make_pair, tmp_path):
    api, primitive, side = page.split("_")
    code = (OWN, STEPS[f"{primitive}_{side}"], HELPERS)
    done = run(program(make_pair(api, primitive), side, *code), home("cut", tmp_path))
    *changes, last = done.stdout.splitlines() or [""]
    assert (changes, done.stderr) == ([], "")
    functions = {n.name for n in ast.parse(upper(page)).body if isinstance(n, ast.FunctionDef)}
    assert functions <= {*last.split(), "locked"}, "the steps call each"
    assert ("locked" in functions) == ("__enter__" in last)


# For each page, a call that waits until a signal comes.
HELD = """
segment, another = script.open_segment(thing), script.open_segment(thing)
lock = script.locked(another)
lock.__enter__()
"""
WAITING = {
    "msq_server": "queue = script.open_queue(thing)\nwait = script.messages(queue, []).__next__",
    "msq_client": """
queue = script.open_queue(thing)
package.MessageQueue(thing)
try:
    while True:
        script.send(queue, bytes(1000), {"posix": 0, "sysv": False}[api])
except package.BusyError:
    wait = lambda: script.send(queue, bytes(1000))
""",
    "shm_server": f"{HELD}wait = lambda: script.read_text(segment)",
    "shm_client": f"{HELD}wait = lambda: script.write_text(segment, 'text')",
    "sem_server": """
values = script.values(script.open_semaphore(thing), [])
next(values)
wait = values.__next__
""",
    "sem_client": "wait = lambda: script.acquire(script.open_semaphore(thing, value=0))",
}
INTERRUPTED = """
signal.signal(signal.SIGINT, signal.default_int_handler)
before = state()
soon(os.kill, os.getpid(), signal.SIGINT)
try:
    wait()
except KeyboardInterrupt:
    after = state()
    print(*(f"{what}: {before[what]} to {after[what]}" for what in before
            if before[what] != after[what]))
"""


@pytest.mark.parametrize("page", PAGES)
def test_a_wait_that_ctrl_c_ends_leaves_the_process_as_it_was(page, make_pair, tmp_path):
    """By Python's own handler, which raises KeyboardInterrupt in the middle of it."""
    api, primitive, side = page.split("_")
    code = (OWN, WAITING[f"{primitive}_{side}"], INTERRUPTED)
    done = run(program(make_pair(api, primitive), side, *code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("\n", "")


@in_namespaces
@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("call, when", [("link", 1), ("chmod", 1), ("link", 2), ("unlink", 2)])
def test_ctrl_c_while_a_semaphore_is_made(make_pair, side, call, when, tmp_path):
    """Python's own handler raises when all is cleared away, and the signals are as they were."""
    code = """
try:
    script.open_semaphore(thing)
except KeyboardInterrupt:
    print(signal.pthread_sigmask(signal.SIG_BLOCK, []), len(os.listdir("/dev/shm")))
"""
    (tmp_path / "shm").mkdir()
    argv = program(make_pair("posix", "sem"), side, code)
    inject = f"inject={call}:signal=INT:when={when}"
    traced = ["strace", "-f", "-q", "-o", str(tmp_path / "log"), "-e", inject, *argv]
    mount = f"mount --bind {shlex.quote(str(tmp_path / 'shm'))} /dev/shm; exec {shlex.join(traced)}"
    done = run(["unshare", "--mount", "sh", "-c", mount], home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("set() 1\n", "")


@needs("strace")
@pytest.mark.parametrize("side", ["server", "client"])
def test_ctrl_c_right_after_the_lock_was_taken(make_pair, side, tmp_path):
    """flock(2) has it already when Python's own handler raises."""
    use = {"server": "script.read_text(segment)", "client": "script.write_text(segment, 'text')"}
    code = f"""
segment, another = script.open_segment(thing), script.open_segment(thing)
try:
    {use[side]}
except KeyboardInterrupt:
    with script.locked(another, 0.1):
        print("free")
"""
    argv = program(make_pair("posix", "shm"), side, code)
    inject = ["-e", "inject=flock:signal=INT:when=1"]
    done = run(["strace", "-q", "-o", str(tmp_path / "log"), *inject, *argv], home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("free\n", "")


@pytest.mark.parametrize("page", [page for page in PAGES if "_shm_" in page])
def test_how_long_a_lock_is_waited_for(page):
    """The ten seconds of the reference, unless the caller says how long."""
    tree = ast.parse(upper(page))
    defaults = {
        node.name: ast.unparse(node.args.defaults[-1])
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.args.args[-1].arg == "timeout"
    }
    assert set(defaults.values()) == {"10"}
    assert len(defaults) == 2


def test_a_program_without_a_name(tmp_path):
    """As one that C has embedded."""
    code = "import sys; sys.argv = []; import common; print(common.SCRIPT)"
    done = run([sys.executable, "-c", code], home("whole", tmp_path))
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_text_that_fills_the_segment_is_not_copied(make_pair, api, tmp_path):
    """Where there is no memory for that, the mark would stand already, and the old text be lost."""
    code = """
import resource
size = 2**23
segment, text = script.open_segment(thing, size=size), "x" * size
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
room = used + size * 3 // 2  # for the text in UTF-8, and not for one more
resource.setrlimit(resource.RLIMIT_AS, (room, room))
script.write_text(segment, text)
"""
    done = run(program(make_pair(api, "shm"), "client", code), home("cut", tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_semaphore_that_is_removed_each_time_is_given_up(make_pair, tmp_path):
    """Somebody removes it whenever it is opened: that ends with an error, not an endless loop."""
    pair = make_pair("posix", "sem")
    code = """
def unlink(event, args):
    if event == "open" and args[0] == "/proc/self/maps":
        remove()
sys.addaudithook(unlink)
try:
    script.open_semaphore(thing)
except package.ExistentialError as error:
    print(error)
"""
    done = run(program(pair, "server", code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("the semaphore was removed each time\n", "")


@pytest.mark.parametrize("below", ["shm_client", "shm_server"])
def test_upper_parts_one_below_the_other(make_pair, below):
    """All of System V that call the C library themselves share the name of it."""
    key = make_pair("sysv", "sem").key
    parts = [upper(f"sysv_{name}") for name in ("sem_client", below)]
    code = f"""
try:
    acquire(sem_open({key}, value=0), 0)
except sysv_ipc.BusyError:
    print("busy")
"""
    parts[0] += "sem_open = open_semaphore\n"
    done = run([sys.executable, "-c", "\n".join([*parts, code])], ENV)
    assert (done.stdout, done.stderr) == ("busy\n", "")


@pytest.mark.parametrize("page", PAGES)
def test_the_mode_that_a_function_is_given_is_exact(page, make_pair, tmp_path):
    """Whatever the umask, also a mode that keeps the maker out, who gets in with CAP_IPC_OWNER."""
    api, primitive, side = page.split("_")
    pair = make_pair(api, primitive)
    mode = 0o440 if capable("CAP_IPC_OWNER") else 0o640
    opens = {"msq": "queue", "shm": "segment", "sem": "semaphore"}[primitive]
    code = f"os.umask(0o077)\nscript.open_{opens}(thing, {mode})"
    done = run(program(pair, side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr, mode_of(pair)) == ("", "", mode)


def test_an_import_changes_nothing(tmp_path):
    """In a thread, where no handler can be set, and with a standard output of the program's own."""
    code = f"""
import importlib
sys.stdout = io.StringIO()
for name in {["common", *PAGES]}:
    thread = threading.Thread(target=call, args=(importlib.import_module, name))
    thread.start()
    thread.join()
    assert name in sys.modules
sys.__stdout__.write(sys.stdout.getvalue())
"""
    done = run([sys.executable, "-c", OWN + code], home("imported", tmp_path))
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("primitive", ["msq", "shm", "sem"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_threads_that_open_and_threads_that_make_files(api, primitive, side, make_pair, tmp_path):
    """Two threads open objects of their own, while a third makes files as the umask has it."""
    pair, second = make_pair(api, primitive), make_pair(api, primitive)
    second.name, second.key = f"{pair.name}-2", pair.key + 1
    things = [each.name if api == "posix" else each.key for each in (pair, second)]
    mode = 0o600 if primitive == "sem" else 0o666  # of the semaphore, which becomes the umask
    code = f"""
sys.setswitchinterval(1e-6)  # the threads take turns as often as they can
os.umask(0o027)
modes, ended = set(), []
opens = script.open_{ {"msq": "queue", "shm": "segment", "sem": "semaphore"}[primitive] }
def make_files():
    for number in range(200):
        fd = os.open(f"{tmp_path}/file{{number}}", os.O_CREAT | os.O_EXCL, 0o777)
        modes.add(os.fstat(fd).st_mode & 0o777)
        os.close(fd)
    ended.append(1)
def open_and_remove(thing):
    while not ended:
        opened = opens(thing, {mode})
        remove(thing)
        for close in ("close_fd", "detach", "close"):
            getattr(opened, close, int)()
        if hasattr(opened, "detach"):
            package.Semaphore(~thing).remove()
threads = [threading.Thread(target=open_and_remove, args=(thing,)) for thing in {things}]
threads.append(threading.Thread(target=make_files))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(*sorted(oct(mode) for mode in modes if mode & 0o027), oct(os.umask(0)))
"""
    done = run(program(pair, side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("0o27\n", "")


WAITS = {"posix": ("mq_timedreceive", "mq_timedsend"), "sysv": ("msgrcv", "msgsnd")}
WORKER = """
stop, rung = set(), []
signal.signal(signal.SIGTERM, lambda number, frame: stop.add(number))
signal.signal(signal.SIGUSR1, lambda number, frame: rung.append(number))
jobs = script.open_queue(thing)
def work(body):
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "a timer runs while the program works"
    send(body)
print("ready", flush=True)
for body in script.messages(jobs, stop):
    work(body)
print("end", len(rung) > 0)
"""


def calls(process: Process, name: str) -> bool:
    """Whether it waits in that system call."""
    number = Path(f"/proc/{process.pid}/syscall").read_text().split()[0]
    return number == str(CALLS[os.uname().machine][name])


@pytest.mark.parametrize("signals", [False, True], ids=["long", "signals"])
def test_a_worker_whose_answers_have_no_room(api, signals, make_pair, tmp_path):
    """Its own send, in the package's words, waits longer than any limit of ours; or it is that of
    the client's script, and signals come meanwhile. No job is lost and none is done twice."""
    pair, back = make_pair(api, "msq"), make_pair(api, "msq")
    thing = repr(back.name if api == "posix" else back.key)
    code = f"answers = package.MessageQueue({thing})\nsend = answers.send"
    if signals:
        code += (
            f"\nimport {api}_msq_client\nsend = lambda body: {api}_msq_client.send(answers, body)"
        )
    env = home("imported" if signals else "cut", tmp_path)
    create = {"posix": {"flags": 0o300, "max_messages": 1}, "sysv": {"flags": 0o3000}}[api]
    with back.opened(**create) as answers, pair.opened(**create) as jobs:
        if api == "sysv":
            answers.max_size = 10
        receive, send = WAITS[api]
        answers.send(b"0123456789")
        with Process(program(pair, "server", code, WORKER), env=env) as worker:
            worker.wait_line("ready")
            until(lambda: calls(worker, receive))
            for _ in range(50 if signals else 0):
                worker.popen.send_signal(signal.SIGUSR1)
            jobs.send(b"job 1")
            until(lambda: calls(worker, send), "it sends its answer")
            if signals:
                for _ in range(50):
                    worker.popen.send_signal(signal.SIGUSR1)
                    until(lambda: calls(worker, send))
                worker.popen.send_signal(signal.SIGTERM)
                until(lambda: calls(worker, send), "it still has an answer to send")
            else:
                time.sleep(1.2)
            jobs.send(b"job 2")  # is there room for it, or has the worker taken it too early?
            assert worker.popen.poll() is None, worker.err
            assert answers.receive()[0] == b"0123456789"
            assert answers.receive()[0] == b"job 1"
            if not signals:
                assert answers.receive()[0] == b"job 2"
                until(lambda: calls(worker, receive))
                worker.popen.send_signal(signal.SIGTERM)
            assert (worker.wait(), worker.err) == (0, [])
            assert worker.out == ["ready", f"end {signals}"]
        assert jobs.current_messages == (1 if signals else 0), "the job it did not begin waits"
        assert answers.current_messages == 0


@pytest.mark.parametrize("way", ["cut", "imported", "in place of show()"])
@pytest.mark.parametrize("error", ["FileNotFoundError", "ValueError", "BusyError"])
def test_an_exception_of_the_program_is_its_own(api, error, way, make_pair, tmp_path):
    """Also one of the package, which comes from another queue than the worker's."""
    pair = make_pair(api, "msq")
    fails = {
        "FileNotFoundError": "open('/no/such/image.png')",
        "ValueError": "int('seven')",
        "BusyError": "raise package.BusyError('the answers have no room')",
    }[error]
    code = f"""
def work(body, *rest):
    {fails}
jobs = script.open_queue(thing)
package.MessageQueue(thing).send(b"job")
"""
    if way == "in place of show()":
        code += f"import common\nscript.show = work\nsys.argv[1:] = {pair.option}\n"
        code += "common.run(script.main)"
    else:
        code += "for body in script.messages(jobs, []):\n    work(body)"
    done = run(program(pair, "server", code), home("cut" if way == "cut" else "imported", tmp_path))
    assert done.returncode == 1
    assert "Traceback" in done.stderr and ", in work\n" in done.stderr
    assert re.search(rf"(?m)^(\w+\.)?{error}: .*(image.png|seven|no room)", done.stderr)
    assert f"{pair.thing}: " not in done.stderr


@pytest.mark.parametrize("where", ["threads", "asyncio"])
def test_a_limit_in(where, api, make_pair, tmp_path):
    """Two at once of six; then all are taken, one more waits, and Ctrl-C ends the program."""
    pair = make_pair(api, "sem")
    start = """
import asyncio
semaphore = script.open_semaphore(thing, value=2)
stop, inside, most = [], [], []
def take():
    script.acquire(semaphore, None, stop)
def wait():
    print(max(most), semaphore.value, flush=True)
    try:
        take()
    except InterruptedError:
        print("gave up", flush=True)
"""
    threads = """
def work():
    take()
    inside.append(1)
    most.append(len(inside))
    time.sleep(0.01)
    inside.pop()
    semaphore.release()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
take(), take()
last = threading.Thread(target=wait)
try:
    last.start()
    while True:  # Ctrl-C in join() would make the interpreter forget the thread, before 3.13
        time.sleep(0.1)  # and just before a wait without a limit it would not end that
finally:
    stop.append(1)
"""
    coroutines = """
async def work():
    await asyncio.to_thread(take)
    inside.append(1)
    most.append(len(inside))
    await asyncio.sleep(0.01)
    inside.pop()
    semaphore.release()
async def main():
    try:
        await asyncio.gather(*(work() for _ in range(6)))
        take(), take()
        last = asyncio.create_task(asyncio.to_thread(wait))
        while True:  # Ctrl-C just before a wait without a limit would not end that
            await asyncio.sleep(0.1)
    finally:
        stop.append(1)
asyncio.run(main())
"""
    code = start + (threads if where == "threads" else coroutines)
    with Process(program(pair, "client", code), env=home("cut", tmp_path)) as limit:
        limit.wait_line("2 0")
        assert limit.stop(signal.SIGINT) == -signal.SIGINT
        assert limit.err[-1] == "KeyboardInterrupt"
        assert limit.out == ["2 0", "gave up"]


def test_a_limit_leaves_no_alarm_behind(make_pair, tmp_path):
    """In a program without a timer of its own, where an alarm would end it."""
    code = """
semaphore = script.open_semaphore(thing, value=1)
script.acquire(semaphore, 0.2)
for limit in (0.1, -1, 0):
    try:
        script.acquire(semaphore, limit)
    except package.BusyError:
        handler = signal.getsignal(signal.SIGALRM)
        print(*signal.getitimer(signal.ITIMER_REAL), handler is signal.SIG_DFL)
time.sleep(0.3)
"""
    done = run(program(make_pair("sysv", "sem"), "client", code), home("cut", tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.0 0.0 True\n" * 3, "")


def test_a_time_limit_in_a_thread_of_system_v(make_pair, tmp_path):
    """Some end by it, and another one meanwhile gets what is given back, all with one object."""
    code = """
semaphore = script.open_semaphore(thing, value=0)
ended = []
def limit(seconds):
    ended.append((seconds, call(script.acquire, semaphore, seconds)))
threads = [threading.Thread(target=limit, args=[seconds]) for seconds in (0, 0.2, 30)]
for thread in threads:
    thread.start()
for thread in threads[:2]:
    thread.join()
semaphore.release()
threads[2].join()
print(*ended)
"""
    argv = program(make_pair("sysv", "sem"), "client", OWN, code)
    done = run(argv, home("cut", tmp_path))
    assert (done.stdout.count("Semaphore is busy"), done.stderr) == (2, "")
    assert done.stdout.endswith("(30, None)\n")


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_queue_without_a_name_is_an_error(side, make_pair, tmp_path):
    """mq_open(3) says of "/" that there is no such queue, also where it is to make one."""
    code = """
try:
    script.open_queue("/")
except package.ExistentialError as error:
    print(error)
"""
    argv = program(make_pair("posix", "msq"), side, code)
    done = run(argv, home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("No queue exists with the specified name\n", "")


def test_what_cannot_be_taken_is_not_given_back(make_pair, tmp_path):
    """A short of C that is too small for a number has another one."""
    code = """
for by in (32769, 40000, 65535):
    try:
        script.acquire(semaphore, 0, by=by)
    except Exception as error:
        print(type(error).__name__, semaphore.value)
"""
    argv = program(make_pair("sysv", "sem"), "client", WAIT["sem"], code)
    done = run(argv, home("cut", tmp_path))
    assert done.stdout == "error 0\n" * 3, done


LIMITED = {
    ("sem", "client"): "object = script.open_semaphore(thing, value=0)\n"
    "def wait(limit): script.acquire(object, limit)",
    ("shm", "server"): "object = script.open_segment(thing)\nhold()\n"
    "def wait(limit): script.read_text(object, limit)",
    ("shm", "client"): "object = script.open_segment(thing)\nhold()\n"
    "def wait(limit): script.write_text(object, 'text', limit)",
}
HOLD = """
import fcntl
def hold():
    global held
    if api == "posix":
        held = open(f"/dev/shm{thing}")
        fcntl.flock(held, fcntl.LOCK_EX)
    else:
        held = package.Semaphore(~thing)
        held.acquire()
"""


@pytest.mark.parametrize("timer", [0, 0.05], ids=["still", "signals"])
@pytest.mark.parametrize("primitive, side", LIMITED)
def test_a_limit_is_kept_whatever_signals_come(api, primitive, side, timer, make_pair, tmp_path):
    """Not over too early, nor begun anew by each signal, nor spent in going round."""
    code = f"""
signal.signal(signal.SIGALRM, lambda number, frame: None)
signal.setitimer(signal.ITIMER_REAL, {timer}, {timer})
for limit in (0.3, 1.2):
    began = time.monotonic()
    spent = time.process_time()
    try:
        wait(limit)
        print("not in vain")
    except (package.BusyError, TimeoutError) as error:
        took = time.monotonic() - began
        assert limit - 0.01 < took < limit + 1, took
        assert time.process_time() - spent < 0.2
        print("busy" if "usy" in str(error) else "locked")
"""
    argv = program(make_pair(api, primitive), side, HOLD, LIMITED[primitive, side], code)
    with Process(argv, env=home("cut", tmp_path)) as process:
        process.wait(10)
    assert (set(process.out), process.err) == ({"busy" if primitive == "sem" else "locked"}, [])


@pytest.mark.parametrize("side", ["server", "client"])
def test_an_exception_under_the_lock_gives_it_back(api, side, make_pair, tmp_path):
    code = """
segment = script.open_segment(thing)
try:
    with script.locked(segment):
        raise LookupError
except LookupError:
    with script.locked(script.open_segment(thing), 0):
        print("free")
"""
    done = run(program(make_pair(api, "shm"), side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("free\n", "")


WAIT = {
    "msq": "queue = script.open_queue(thing)\ndef wait(stop): list(script.messages(queue, stop))",
    "sem": "semaphore = script.open_semaphore(thing, value=0)\n"
    "def wait(stop): script.acquire(semaphore, 0.5)",
}


@pytest.mark.parametrize("primitive", ["msq", "sem"])
def test_a_timer_of_the_program_rings_while_it_waits(api, primitive, make_pair, tmp_path):
    """Its handler is what ends the wait, so that a timer which rings too late is seen."""
    end = "stop.append(1)" if primitive == "msq" else "semaphore.release()"
    code = f"""
late, stop = [], []
def ring(number, frame):
    late.append(time.monotonic() - due)
    {end}
signal.signal(signal.SIGALRM, ring)
for _ in range(2):
    stop.clear()
    due = time.monotonic() + 0.1
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    wait(stop)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
print(len(late), "times", "on time" if min(late) < 0.4 else late)
"""
    side = "server" if primitive == "msq" else "client"
    argv = program(make_pair(api, primitive), side, WAIT[primitive], code)
    done = run(argv, home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("2 times on time\n", "")


def test_a_timer_of_the_program_rings_not_before_its_time(api, make_pair, tmp_path):
    """Though thousands of waits have stopped it, and set it for what was left."""
    code = """
stop, rung, sender = [], [], package.MessageQueue(thing)
def ring(number, frame):
    rung.append(time.monotonic() - began)
    stop.append(1)
def feed():
    while not stop:
        sender.send(b"text")
        time.sleep(0.0001)
signal.signal(signal.SIGALRM, ring)
threading.Thread(target=feed).start()
began = time.monotonic()
signal.setitimer(signal.ITIMER_REAL, 1)
print(len(list(script.messages(queue, stop))) > 500, rung[0] > 0.998 or rung)
"""
    open_it = "queue = script.open_queue(thing)"
    argv = program(make_pair(api, "msq"), "server", open_it, code)
    done = run(argv, home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_a_timer_that_is_about_to_ring_is_not_lost(api, make_pair, tmp_path):
    """Of one that has less than a microsecond left setitimer(2) says that nothing is left."""
    code = """
sender = os.fork()  # a thread would get the signal that the main one has blocked
while not sender:
    queue.send(b"text")
    time.sleep(0.0001)
rung, lost = [], []
signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
bodies = script.messages(queue, [])
for turn in range(3000):
    rung.clear()
    end = time.monotonic() + 0.5
    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (2 + turn % 30))
    while not rung and time.monotonic() < end:
        next(bodies)
    if not rung:
        lost.append(turn)
        break
os.kill(sender, signal.SIGKILL)
print(lost)
"""
    open_it = "script.open_queue(thing)\nqueue = package.MessageQueue(thing)"
    argv = program(make_pair(api, "msq"), "server", open_it, code)
    done = run(argv, home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_handler_of_the_program_has_no_timer_of_ours_beside_it(api, make_pair, tmp_path):
    """Its own send() or acquire() would end, for an alarm that is none of its own."""
    code = """
stop, seen = [], []
def handler(number, frame):
    seen.append(signal.getitimer(signal.ITIMER_REAL))
    stop.append(number)
signal.signal(signal.SIGUSR1, handler)
threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGUSR1]).start()
list(script.messages(queue, stop))
print(seen)
"""
    open_it = "queue = script.open_queue(thing)"
    argv = program(make_pair(api, "msq"), "server", open_it, code)
    done = run(argv, home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("[(0.0, 0.0)]\n", "")


@pytest.mark.parametrize("primitive", ["msq", "sem"])
def test_a_timer_that_has_rung_before_the_wait_rings_on(api, primitive, make_pair, tmp_path):
    """Of one whose SIGALRM is pending setitimer(2) says that nothing is left, only the interval."""
    code = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
while signal.SIGALRM not in signal.sigpending():
    time.sleep(0.01)
stop = []
threading.Timer(0.2, lambda: (stop.append(1), give())).start()
wait(stop)
rung = [signal.sigtimedwait({signal.SIGALRM}, 10).si_signo for _ in range(3)]
print(rung, signal.getitimer(signal.ITIMER_REAL)[1])
"""
    give = "def give(): pass" if primitive == "msq" else "def give(): semaphore.release()"
    side = "server" if primitive == "msq" else "client"
    argv = program(make_pair(api, primitive), side, WAIT[primitive], give, code)
    done = run(argv, home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("[14, 14, 14] 0.1\n", "")


@pytest.mark.parametrize("pending", ["", "os.kill(os.getpid(), signal.SIGALRM)"])
@pytest.mark.parametrize("primitive", ["msq", "sem"])
def test_a_wait_where_the_program_has_blocked_the_signals_of_timers(
    api, primitive, pending, make_pair, tmp_path
):
    """The wait ends all the same, and the signal is blocked as before, and pending if it was."""
    code = f"""
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGALRM, signal.SIGRTMAX}})
{pending}
stop = []
threading.Timer(0.1, stop.append, [1]).start()
before = state()
try:
    wait(stop)
except package.BusyError:
    pass
assert state() == before
print("ended")
"""
    side = "server" if primitive == "msq" else "client"
    argv = program(make_pair(api, primitive), side, OWN, WAIT[primitive], code)
    with Process(argv, env=home("cut", tmp_path)) as process:
        process.wait(5)
        assert (process.out, process.err) == (["ended"], [])


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_lock_that_was_left_gets_the_mode_of_the_segment(make_pair, side, tmp_path):
    """Whoever may write to the new segment may lock it."""
    pair = make_pair("sysv", "shm")
    lock = sysv_ipc.Semaphore(~pair.key, sysv_ipc.IPC_CREX, 0o600)
    lock.release()
    done = run(program(pair, side, "script.open_segment(thing, 0o666)"), home("cut", tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert lock.mode & 0o777 == 0o666


@with_glibc
@pytest.mark.parametrize("side", ["server", "client"])
def test_the_file_of_a_semaphore_where_the_c_library_is_not_gnus(make_pair, side, tmp_path):
    """Its dlopen(3) lacks what GNU's alone has; `make test-musl` has the real one."""
    pair = make_pair("posix", "sem")
    code = "import importlib\ndel os.RTLD_DEEPBIND\nprint(importlib.reload(script).PATH)"
    done = run(program(pair, side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("/dev/shm/\n", "")


@with_glibc
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_segment_is_not_taken_for_a_semaphore(make_pair, side, tmp_path):
    """Where its name would be that of a semaphore with the musl C library."""
    segment, semaphore = make_pair("posix", "shm"), make_pair("posix", "sem")
    segment.client()
    semaphore.name = segment.name
    done = run(program(semaphore, side, "script.open_semaphore(thing)"), home("cut", tmp_path))
    assert (done.stderr, segment.path.stat().st_size) == ("", 4096)
    assert Path(f"/dev/shm/sem.{segment.name[1:]}").exists()


STOPPED = {
    "sem_client": "lambda stop: script.acquire(script.open_semaphore(thing, value=0), None, stop)",
    "sem_server": "lambda stop: list(script.values(script.open_semaphore(thing), stop, 60))",
    "msq_server": "lambda stop: list(script.messages(script.open_queue(thing), stop))",
}


@pytest.mark.parametrize("page", STOPPED)
def test_a_stop_that_another_thread_puts_ends_a_wait(api, page, make_pair, tmp_path):
    """It wakes nobody, so the wait looks again within a second."""
    code = f"""
stop = []
threading.Timer(0.1, stop.append, [1]).start()
began = time.monotonic()
try:
    ({STOPPED[page]})(stop)
except InterruptedError:
    pass
print("soon" if time.monotonic() - began < 4 else time.monotonic() - began)
"""
    primitive, side = page.split("_")
    done = run(program(make_pair(api, primitive), side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("soon\n", "")


def test_a_stop_in_the_last_wait_for_a_semaphore(api, make_pair, tmp_path):
    """It is the reason that counts: who is told to stop does not hear that it is busy."""
    code = """
semaphore = script.open_semaphore(thing, value=0)
stop = []
threading.Timer(0.1, stop.append, [1]).start()
try:
    script.acquire(semaphore, 0.3, stop)
except InterruptedError:
    print("stopped")
"""
    done = run(program(make_pair(api, "sem"), "client", code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("stopped\n", "")


NEW = {
    "msq": "open_queue(thing)",
    "shm": "open_segment(thing)",
    "sem": "open_semaphore(thing)",
}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_function_makes_when_it_is_told_nothing(page, make_pair, tmp_path):
    """The same that the command makes, which gives the function each of its arguments."""
    api, primitive, side = page.split("_")
    pair = make_pair(api, primitive)
    done = run(program(pair, side, f"script.{NEW[primitive]}"), home("cut", tmp_path))
    assert (done.returncode, done.stderr, mode_of(pair)) == (0, "", 0o600)
    options = {
        "msq": ["--max-messages", "10", "--max-message-size", "8192"] if api == "posix" else [],
        "shm": ["--size", "4096"],
        "sem": ["--value", "2"],
    }[primitive]  # one that differs is said
    with pair.server("--mode", "600", *options) as server:
        assert server.stop() == 0
    assert server.err == []


def test_a_thread_that_may_not_wait_is_as_it_was(make_pair, tmp_path):
    """No signal is opened that it has blocked, and no timer is left."""
    code = """
def wait():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMAX})
    error = call(next, script.messages(queue, set()))
    print(type(error).__name__, "main thread" in str(error))
queue = script.open_queue(thing)
thread = threading.Thread(target=wait)
thread.start()
thread.join()
"""
    done = run(program(make_pair("sysv", "msq"), "server", OWN, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("ValueError True\n", "")


def test_a_value_is_looked_for_every_second(api, make_pair, tmp_path):
    code = """
semaphore = script.open_semaphore(thing)
values = script.values(semaphore, [])
assert next(values) == 2
threading.Timer(0.1, package.Semaphore(thing).acquire).start()
began = time.monotonic()
assert next(values) == 1
print("soon" if time.monotonic() - began < 4 else time.monotonic() - began)
"""
    done = run(program(make_pair(api, "sem"), "server", code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("soon\n", "")


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_segment_is_found_by_a_name_without_its_slash(make_pair, side, tmp_path):
    """shm_open(3) takes one. Of mode 400, an ordinary user reads it."""
    code = {
        "client": "script.write_text(segment, 'text')",
        "server": "os.fchmod(segment.fd, 0o400); segment = script.open_segment(thing[1:])",
    }
    pair = make_pair("posix", "shm")
    start = "os.getuid() or os.setuid(1500); segment = script.open_segment(thing[1:])"
    done = run(program(pair, side, start, code[side]), home("cut", tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_no_semaphore_is_not_mapped_any_more(make_pair, tmp_path):
    code = """
script.open_semaphore(thing).close()
os.truncate(script.PATH + thing[1:], 0)
try:
    script.open_semaphore(thing)
except ValueError as error:
    print(error, open("/proc/self/maps").read().count("/dev/shm/"))
"""
    done = run(program(make_pair("posix", "sem"), "server", code), home("cut", tmp_path))
    assert (done.stderr, done.stdout.split()[-1]) == ("", "0")


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_number_in_a_path_is_not_taken_for_an_inode(make_pair, side, tmp_path):
    """Such as the 3 of "Python 3  course", where the packages lie: they are mapped too."""
    code = """
import mmap
semaphore = script.open_semaphore(thing)
remove()
package.Semaphore(thing, package.O_CREX).close()
inode = os.stat(script.PATH + thing[1:]).st_ino
with open(f"Python {inode}  course", "w+b") as file:
    file.truncate(1)
    mapped = mmap.mmap(file.fileno(), 1)
try:
    script.check(semaphore)
except package.ExistentialError:
    print("removed")
"""
    argv = program(make_pair("posix", "sem"), side, code)
    done = run(argv, home("cut", tmp_path), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("removed\n", "")


@in_namespaces
@pytest.mark.parametrize("side", ["server", "client"])
def test_the_end_of_an_inode_is_not_taken_for_another(make_pair, side, tmp_path):
    """The packages that are mapped have longer ones, such as 1048, than a semaphore's 48."""
    code = """
import re
semaphore = script.open_semaphore(thing)
remove()
with open("/proc/self/maps") as maps:
    mapped = set(re.findall(r" ([0-9]+)  +/", maps.read()))
while True:
    with open(script.PATH + thing[1:], "xb") as file:
        file.write(bytes(32))
        inode = str(os.fstat(file.fileno()).st_ino)
    if inode not in mapped and any(one.endswith(inode) for one in mapped):
        break
    remove()
try:
    script.check(semaphore)
except package.ExistentialError:
    print("removed")
"""
    few = 'mount -t tmpfs tmpfs /dev/shm; exec "$@"'  # there the first inodes are 1, 2, 3
    argv = program(make_pair("posix", "sem"), side, code)
    done = run(["unshare", "--mount", "sh", "-ec", few, "sh", *argv], home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("removed\n", "")


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_semaphore_is_removed_and_the_program_opens_its_successor(make_pair, side, tmp_path):
    """As one thread may, while another still waits for the old one."""
    wait = {
        "server": "values = script.values(semaphore, [], 0.02); next(values)",
        "client": "",
    }
    use = {"server": "next(values)", "client": "script.acquire(semaphore, 10)"}
    code = f"""
semaphore = script.open_semaphore(thing, value=0)
{wait[side]}
def replace():
    remove()
    globals()["successor"] = script.open_semaphore(thing)
soon = threading.Timer(0.3, replace)
soon.start()
try:
    {use[side]}
except package.ExistentialError:
    print("removed")
"""
    done = run(program(make_pair("posix", "sem"), side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("removed\n", "")


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_lock_is_waited_for_when_no_limit_is_given(api, side, make_pair, tmp_path):
    """For longer than a second, as any other writer may be slow."""
    use = "script.read_text(segment)" if side == "server" else "script.write_text(segment, 'x')"
    code = f"""
segment, another = script.open_segment(thing), script.open_segment(thing)
for use in (lambda: {use}, lambda: script.locked(segment).__enter__()):
    lock = script.locked(another)
    lock.__enter__()
    threading.Timer(1.5, lock.__exit__, [None, None, None]).start()
    use()
print("waited")
"""
    done = run(program(make_pair(api, "shm"), side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("waited\n", "")


def test_what_waits_until_a_text_is_whole(api, make_pair, tmp_path):
    """Every signal, at each step of the write: a handler of any of them may raise."""
    code = """
masks = []
class Noted:
    def __init__(self, thing):
        self.thing = thing
    def __getattr__(self, name):
        if name in ("write", "pwrite"):
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return getattr(self.thing, name)
segment = script.open_segment(thing)
if api == "posix":
    script.os = Noted(os)
else:
    segment = Noted(segment)
script.write_text(segment, "text")
waits = set.intersection(*masks)
print(len(masks), *sorted(map(int, waits)))
"""
    done = run(program(make_pair(api, "shm"), "client", code), home("cut", tmp_path))
    all_but = sorted(set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP})  # more would be slow
    assert (done.stdout, done.stderr) == (" ".join(map(str, [4, *map(int, all_but)])) + "\n", "")


@pytest.mark.parametrize("side", ["server", "client"])
def test_another_gives_back_before_a_new_semaphore_has_its_value(make_pair, side, tmp_path):
    """It is opened then, as one that was there before."""
    code = """
made = package.Semaphore
def raced(key, flags=0, *args, **options):
    semaphore = made(key, flags, *args, **options)
    if flags:
        made(key).release()
    return semaphore
package.Semaphore = raced
print(script.open_semaphore(thing, value=0).value)
"""
    done = run(program(make_pair("sysv", "sem"), side, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_the_types_that_are_meant_when_none_is_named(make_pair, tmp_path):
    code = """
queue = script.open_queue(thing)
package.MessageQueue(thing).send(b"of type 5", type=5)
stop = []
threading.Timer(2, stop.append, [1]).start()
print(next(script.messages(queue, stop), "none"))
"""
    pair = make_pair("sysv", "msq")
    done = run(program(pair, "server", code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("b'of type 5'\n", "")
    code = (
        "script.send(script.open_queue(thing), b'x')\nprint(package.MessageQueue(thing).receive())"
    )
    done = run(program(pair, "client", code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("(b'x', 1)\n", "")


def test_the_priority_that_is_meant_when_none_is_named(make_pair, tmp_path):
    code = (
        "script.send(script.open_queue(thing), b'x')\nprint(package.MessageQueue(thing).receive())"
    )
    done = run(program(make_pair("posix", "msq"), "client", code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("(b'x', 0)\n", "")


def test_the_timer_of_a_wait_meets_its_own_handler_alone(make_pair, tmp_path):
    """Between two statements it would end a program: SIGRTMAX kills by default."""
    code = """
queue, stop, found = script.open_queue(thing), [], []
real = signal.signal
def noted(number, handler):
    with open("/proc/self/timers") as timers:
        found.append(timers.read())
    return real(number, handler)
signal.signal = noted
threading.Timer(0.1, stop.append, [1]).start()
list(script.messages(queue, stop))
print(found)
"""
    done = run(program(make_pair("sysv", "msq"), "server", code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("['', '']\n", "")


def test_a_thread_that_computes_keeps_no_wait_from_ending(make_pair, tmp_path):
    """The kernel gives a signal of the whole process to the thread that runs at that moment."""
    code = """
import hashlib
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
queue, over, took = script.open_queue(thing), [], []
def compute():
    while not over:
        hashlib.sha256(bytes(10**6))
signal.signal(signal.SIGUSR1, lambda number, frame: None)
threading.Thread(target=compute).start()
for _ in range(4):
    stop = []
    threading.Timer(0.3, stop.append, [1]).start()
    rescue = threading.Timer(6, os.kill, [os.getpid(), signal.SIGUSR1])
    rescue.start()
    began = time.monotonic()
    list(script.messages(queue, stop))
    took.append(time.monotonic() - began)
    rescue.cancel()
over.append(1)
print(max(took) < 5 or took)
"""
    done = run(program(make_pair("sysv", "msq"), "server", code), home("cut", tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_wait_that_gets_no_timer_leaves_the_process_as_it_was(make_pair, tmp_path):
    code = """
import resource
queue = script.open_queue(thing)
resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
call(next, script.messages(queue, []))
"""
    done = run(program(make_pair("sysv", "msq"), "server", OWN, code), home("cut", tmp_path))
    assert (done.stdout, done.stderr) == ("", "")


def test_a_forked_process_only_notes_a_stop(tmp_path):
    """One that is spawned does not; and the row of the traps that a cure in the child is in."""
    code = """
import common, multiprocessing, signal, sys, time
def work(queue, cure):
    if cure:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    queue.put("at work")
    for _ in range(20):
        time.sleep(0.1)
if __name__ == "__main__":
    stop = common.stop_signals()
    for way, cure in (("fork", False), ("fork", True), ("spawn", False)):
        context = multiprocessing.get_context(way)
        queue = context.Queue()
        process = context.Process(target=work, args=(queue, cure))
        process.start()
        queue.get()
        process.terminate()
        process.join()
        print(way, cure, process.exitcode)
"""
    (tmp_path / "program.py").write_text(code)
    done = run([sys.executable, tmp_path / "program.py"], home("imported", tmp_path))
    assert done.stdout == "fork False 0\nfork True -15\nspawn False -15\n", done


def test_a_lock_inside_the_lock(make_pair, api, tmp_path):
    """That of POSIX is free when the inner one ends; that of System V is waited for, in vain."""
    code = """
segment = script.open_segment(thing)
another = script.locked(script.open_segment(thing), 0)
with script.locked(segment):
    for lock in (lambda: script.write_text(segment, "text", 0.1), another.__enter__):
        try:
            lock()
        except TimeoutError:
            print("TimeoutError")
        else:
            print("locked")
"""
    done = run(program(make_pair(api, "shm"), "client", code), home("cut", tmp_path))
    assert done.stdout.split() == {"posix": ["locked"] * 2, "sysv": ["TimeoutError"] * 2}[api], done


@needs("strace")
def test_a_timer_that_rings_before_the_wait_rings_again(make_pair, tmp_path):
    """The process is held up between the two for longer than the limit is, as on a busy machine."""
    code = """
stop = []
threading.Timer(2, stop.append, [1]).start()
list(script.messages(script.open_queue(thing), stop))
print("ended")
"""
    log = tmp_path / "log"
    held_up = "inject=timer_settime:delay_exit=1200000:when=1"
    argv = ["strace", "-f", "-q", "-o", str(log), "-e", "trace=timer_settime", "-e", held_up]
    with Process(
        [*argv, *program(make_pair("sysv", "msq"), "server", code)], env=home("cut", tmp_path)
    ) as process:
        process.wait(10)
        assert (process.out, process.err) == (["ended"], [])
    assert "DELAYED" in log.read_text()


LITERAL = {  # what the tests of time and of counts have seen
    "msq_client": ["send N messages (default: 15)", "between two messages (default: 1)"],
    "shm_server": ["pause in seconds (default: 3)"],
    "sem_server": ["pause in seconds (default: 1)"],
    "sem_client": ["seconds to wait (default: 0)"],
}


@pytest.mark.parametrize("page", PAGES)
def test_a_default_in_the_help_is_the_functions(page, make_pair, tmp_path):
    api, primitive, side = page.split("_")
    pair = make_pair(api, primitive)
    text = " ".join(pair.run(side, "--help").stdout.split())
    code = f"import inspect\nprint(inspect.signature(script.{NEW[primitive].partition('(')[0]}))"
    signature = run(program(pair, side, code), home("imported", tmp_path)).stdout
    found = 0
    for name, default in re.findall(r"(\w+): int = (\d+)", signature):
        option = f"--{name.replace('_', '-')}"
        said = re.search(rf" {option} [A-Z]+ [^()]*\(default: (\w+)\)", text)
        if said:
            found += 1
            assert int(said[1], 8 if name == "mode" else 10) == int(default), option
    assert found or page in ("posix_msq_client", "sysv_msq_client")
    assert all(line in text for line in LITERAL.get(f"{primitive}_{side}", []))
