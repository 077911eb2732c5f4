"""What the tests share: scripts run as processes, on objects of their own that are removed."""

import collections
import contextlib
import functools
import json
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import posix_ipc
import pytest
import sysv_ipc

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
APIS = ("posix", "sysv")
PRIMITIVES = ("msq", "shm", "sem")
# What the C library puts before the name of the file of a POSIX semaphore; musl puts nothing.
SEM = "sem." if platform.libc_ver()[0] == "glibc" else ""
with_glibc = pytest.mark.skipif(not SEM, reason="needs the GNU C library, and its system calls")
PAIRS = [(api, primitive) for api in APIS for primitive in PRIMITIVES]
# The class of each pair's object.
KINDS = {
    (package.__name__.removesuffix("_ipc"), primitive): getattr(package, kind)
    for package in (posix_ipc, sysv_ipc)
    for primitive, kind in zip(
        PRIMITIVES, ("MessageQueue", "SharedMemory", "Semaphore"), strict=True
    )
}
TITLE = {"msq": "message queue", "shm": "shared memory", "sem": "semaphore"}
# A process with nothing of the developer's in its way, and no buffering that a user would not have.
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MAKE", "NOTIFY"))}
# `nohup make test &` makes the shell ignore these, and the scripts would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
# How much longer the storms last: `make soak` sets it.
SOAK = float(os.environ.get("SOAK", "1"))
# How long a test waits for what must come: `make mutants`, where it often does not, waits less.
PATIENCE = float(os.environ.get("PATIENCE", "40"))
# The kernel counts the bytes of a user's queues over the whole machine, whatever the namespace.
with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (resource.RLIM_INFINITY,) * 2)
SHORT = "number of files open"  # so posix_ipc says it, and pytest shortens what stands before
MSGQUEUE = """\
The limit of POSIX queues is counted per user, over all that runs on this machine: another run of
these tests, or any other program, has used it up. Root's tests raise it by themselves; anybody else
can run `ulimit -q unlimited` first, where the hard limit lets them."""
# The numbers of the system calls that the tests look for, as /proc/PID/syscall shows them.
X86_64 = {
    "read": 0, "write": 1, "semop": 65, "msgsnd": 69, "msgrcv": 70, "flock": 73, "futex": 202,
    "select": 23, "pselect6": 270, "nanosleep": 35,
    "semtimedop": 220, "clock_nanosleep": 230, "mq_timedsend": 242, "mq_timedreceive": 243,
}  # fmt: skip
GENERIC = {
    "flock": 32, "read": 63, "write": 64, "select": 72, "pselect6": 72,
    "futex": 98, "clock_nanosleep": 115, "nanosleep": 101, "mq_timedsend": 182,
    "mq_timedreceive": 183, "msgrcv": 188, "msgsnd": 189, "semtimedop": 192, "semop": 193,
}  # fmt: skip
CALLS = {"x86_64": X86_64, "aarch64": GENERIC, "riscv64": GENERIC}


def note_use(test: str, what: str) -> None:
    with open(os.environ["USES"], "a") as file:
        name = re.sub(r"@[^]]*$", "", test)  # without the group that xdist adds
        file.write(f"{name}\t{what}\n")


def note_scripts(event: str, args: tuple[object, ...]) -> None:
    """For `make mutants`: which scripts a test starts, names in a shell's line, or imports."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
    if test and event in ("subprocess.Popen", "os.exec", "import"):
        for words in set(re.findall(r"(?:posix|sysv)[_-](?:msq|shm|sem)(?:_\w+)?", str(args[:2]))):
            name = words.replace("-", "_")
            for side in ("server", "client") if name.count("_") == 1 else ("",):
                script = f"{name}_{side}" if side else name
                if (SCRIPTS / f"{script}.py").exists():
                    note_use(test, f"scripts/{script}.py")


if "USES" in os.environ:
    sys.addaudithook(note_scripts)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """In CI everything that the tests need has been installed, so a skipped test has failed."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        said = ["\n".join([str(each.argv), *each.err]) for each in started if each.err]
        if said:
            report.sections.append(("standard error of its processes", "\n".join(said)))
        if SHORT in report.longreprtext + "".join(said):
            report.sections.append(("RLIMIT_MSGQUEUE", MSGQUEUE))
    if call.when == "teardown":
        started.clear()
    if "USES" in os.environ and call.when == "call":
        note_use(item.nodeid, f"{report.duration}")
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where everything must run: {report.longrepr}"


started: list["Process"] = []  # by the test that is running
failed_tests: dict[str, bool] = {}  # and whether one was short of POSIX queues


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        name = re.sub(r"@[^]]*$", "", report.nodeid)  # without the group that xdist adds
        short = any(title == "RLIMIT_MSGQUEUE" for title, _ in report.sections)
        failed_tests[name] = failed_tests.get(name, False) or short


def queues_fit(count: int) -> bool:
    """Whether this user may have that many POSIX queues more."""
    queues: list[posix_ipc.MessageQueue] = []
    try:
        while len(queues) < count:
            queues.append(posix_ipc.MessageQueue(None, posix_ipc.O_CREX, read=False))
            queues[-1].unlink()
    except OSError:
        return False
    finally:
        for queue in queues:
            queue.close()
    return True


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Any:
    """Where another run took the queues away, what failed meanwhile is tried again, once.

    A test does not always know why it failed: a client that was refused a queue is a client that
    does not come. So all of them are tried, when there is room again.
    """
    yield
    again = session.exitstatus == pytest.ExitCode.TESTS_FAILED and any(failed_tests.values())
    if not again or hasattr(session.config, "workerinput") or "SECOND_TRY" in os.environ:
        return
    print(f"\n{MSGQUEUE}\nWhat failed is tried once more, when there is room.", flush=True)
    with contextlib.suppress(AssertionError):
        until(functools.partial(queues_fit, 5), timeout=120, pause=1)
    argv = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", *failed_tests]
    done = subprocess.run(argv, cwd=session.config.rootpath, env=os.environ | {"SECOND_TRY": "1"})
    session.exitstatus = done.returncode


# The packages of Debian that have other names than a program of theirs that a test needs.
PACKAGES = {
    "cc": "gcc", "ip": "iproute2", "ss": "iproute2", "nohup": "coreutils", "pgrep": "procps",
    "ps": "procps", "mosquitto_pub": "mosquitto-clients", "mosquitto_sub": "mosquitto-clients",
    "redis-cli": "redis-tools", "ipcmk": "util-linux", "ipcrm": "util-linux", "ipcs": "util-linux",
    "nsenter": "util-linux", "prlimit": "util-linux", "setpriv": "util-linux",
    "unshare": "util-linux",
}  # fmt: skip


def missing(*programs: str) -> str:
    """What of these is not here, and how to get it; nothing where all are."""
    absent = [Path(program).name for program in programs if not shutil.which(program)]
    if not absent:
        return ""
    packages = sorted({PACKAGES.get(name, name) for name in absent})
    return f"needs {', '.join(absent)} (Debian: apt-get install {' '.join(packages)})"


def needs(*programs: str) -> pytest.MarkDecorator:
    """A mark for a test that cannot be run without these programs."""
    return pytest.mark.skipif(bool(missing(*programs)), reason=missing(*programs))


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become other users")


@functools.cache
def may_unshare() -> bool:
    try:
        done = subprocess.run(["unshare", "--ipc", "--mount", "true"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0 and os.geteuid() == 0


def capable(name: str) -> bool:
    """Whether this process has a capability, by its name in capabilities(7)."""
    numbers = {"CAP_IPC_OWNER": 15, "CAP_SYS_ADMIN": 21}
    found = re.search(r"(?m)^CapEff:\s*(\w+)$", Path("/proc/self/status").read_text())
    return bool(found and int(found[1], 16) >> numbers[name] & 1)


in_namespaces = pytest.mark.skipif(
    "not __import__('conftest').may_unshare()",
    reason="needs root who may make namespaces (in a container: --cap-add SYS_ADMIN), and unshare",
)


def needs_shm(mebibytes: int) -> None:
    """Skip where /dev/shm has no room for that much."""
    room = os.statvfs("/dev/shm")
    if room.f_bavail * room.f_frsize < mebibytes * 2**20:
        pytest.skip(f"needs {mebibytes} MiB of room in /dev/shm (docker run --shm-size)")


# nsenter(1) and a manager's sandbox go to the root of the namespace, and not to that of a chroot.
in_no_chroot = pytest.mark.skipif(
    bool(os.environ.get("CHROOT")),  # by places.py, since a process cannot tell
    reason="needs the root folder of the machine, and not one of chroot(2)",
)


def readme() -> str:
    """The text of all pages, the README first."""
    pages = [ROOT / name / "README.md" for name in ("", "scripts", "systemd", "tests")]
    return "\n".join(page.read_text() for page in pages if page.exists())


# The interpreter may lie where another user cannot go, so it becomes that user when all that the
# scripts may import has been imported.
ENTER = """
import __future__, argparse, atexit, contextlib, ctypes, datetime, errno, fcntl, functools
import itertools, json, math, collections.abc, gettext, io, locale, os, re, shutil, signal
import socket, subprocess, sys, time
import stat, struct, textwrap, types, typing, unicodedata, encodings.idna
import posix_ipc, sysv_ipc
uid, script = int(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[2:]
sys.path[0] = os.path.dirname(script)
os.setgroups([]); os.setgid(uid); os.setuid(uid)
exec(compile(open(script).read(), script, "exec"), {"__name__": "__main__"})
"""


def as_user(uid: int, argv: list[str], folder: Path) -> list[str]:
    """The command that runs a script as that user, from a folder that the user can read."""
    python, script, *options = argv
    return [python, "-B", "-c", ENTER, str(uid), str(folder / Path(script).name), *options]


def waits_in(pid: int, *calls: str) -> bool:
    """Whether the process is in one of these system calls now."""
    if platform.machine() not in CALLS:
        pytest.skip(f"needs the numbers of system calls on {platform.machine()}, in {__file__}")
    numbers = CALLS[platform.machine()]
    if "clock_nanosleep" in calls:
        calls += ("select", "pselect6", "nanosleep")  # of Python 3.10, and of musl
    with contextlib.suppress(OSError), open(f"/proc/{pid}/syscall") as file:
        return file.read().split()[0] in {str(numbers[call]) for call in calls}
    return False


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def state(pid: int) -> str:
    """One letter: R runs, S sleeps, T is stopped, X is dead (proc(5))."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    return "X"


def until(
    condition: Callable[[], object], what: str = "", timeout: float = PATIENCE, pause: float = 0.005
) -> None:
    """Wait for a condition; fail, and say for what, when it does not come."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout} s in vain: {what or condition}"
        time.sleep(pause)


class Process:
    """A script that runs, with a thread that collects what it prints, line by line."""

    def __init__(self, argv: list[str], **options: Any) -> None:
        options = {"stdin": subprocess.DEVNULL, "env": ENV, "text": True, **options}
        options.setdefault("start_new_session", True)  # what it starts can be ended with it
        self.popen: subprocess.Popen[str] = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
        )
        assert self.popen.stdout and self.popen.stderr
        self.pid = self.popen.pid
        self.out: list[str] = []
        self.err: list[str] = []
        self.threads = [
            threading.Thread(target=self._collect, args=(self.popen.stdout, self.out), daemon=True),
            threading.Thread(target=self._collect, args=(self.popen.stderr, self.err), daemon=True),
        ]
        for thread in self.threads:
            thread.start()
        self.argv = argv
        started.append(self)

    @staticmethod
    def _collect(stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    @property
    def stdin(self) -> IO[str]:
        """Of one that was started with stdin=PIPE."""
        assert self.popen.stdin
        return self.popen.stdin

    def type(self, text: str) -> None:
        """Write it to the standard input."""
        self.stdin.write(text)
        self.stdin.flush()

    @property
    def texts(self) -> list[str]:
        """What it printed, without the times."""
        return [
            line.partition(" ")[2] if line[2:3] == ":" and line[5:6] == ":" else line
            for line in list(self.out)
        ]

    def wait_line(self, text: str, timeout: float = PATIENCE) -> None:
        until(
            lambda: any(text in line for line in list(self.out)) or self.popen.poll() is not None,
            f"{text!r} in {self.out} {self.err}",
            timeout,
        )
        if self.popen.poll() is not None:
            self.wait()
        assert any(text in line for line in self.out), f"{text!r} not in {self.out} {self.err}"

    def wait(self, timeout: float = PATIENCE) -> int:
        status = self.popen.wait(timeout)
        for thread in self.threads:
            thread.join(timeout)
        return status

    def stop(self, number: int = signal.SIGTERM, timeout: float = PATIENCE) -> int:
        self.popen.send_signal(number)
        return self.wait(timeout)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()
        if self.popen.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.popen.stdin.close()
        for stream in (self.popen.stdout, self.popen.stderr):
            assert stream
            stream.close()


def start_together(argvs: list[list[str]]) -> list[subprocess.Popen[str]]:
    """Start the processes, which all wait at a gate until the last of them is there."""
    gate_out, gate_in = os.pipe()
    processes = [
        subprocess.Popen(
            ["sh", "-c", 'read _; exec "$0" "$@" </dev/null', *argv],
            stdin=gate_out,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENV,
        )
        for argv in argvs
    ]
    os.close(gate_out)
    os.close(gate_in)  # at the end of file they go
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[str, str, int]]:
    return [(*process.communicate(timeout=60), process.returncode) for process in processes]


class Pair:
    """One of the six pairs on an object of its own."""

    def __init__(self, api: str, primitive: str, name: str = "", key: int = 0) -> None:
        self.api, self.primitive = api, primitive
        self.name = name or f"/test-{os.getpid()}-{random.randrange(2**40):x}"
        self.key = key or random.randrange(2**20, 2**31 - 1)
        self.thing = self.name if api == "posix" else str(self.key)
        self.option = ["-n", self.name] if api == "posix" else ["-k", str(self.key)]
        self.kind = KINDS[api, primitive]

    def argv(self, side: str, *args: object) -> list[str]:
        script = SCRIPTS / f"{self.api}_{self.primitive}_{side}.py"
        return [sys.executable, str(script), *self.option, *map(str, args)]

    def script(self, side: str) -> str:
        return f"{self.api}_{self.primitive}_{side}"

    @property
    def start_line(self) -> str:
        size = " size: 2" if self.primitive == "sem" else ""
        return f"start {TITLE[self.primitive]} server: {self.thing}{size}"

    @property
    def end_line(self) -> str:
        return f"end {TITLE[self.primitive]} server: {self.thing}"

    def start(self, side: str, *args: object, **options: Any) -> Process:
        return Process(self.argv(side, *args), **options)

    @contextlib.contextmanager
    def server(self, *args: object, **options: Any) -> Iterator[Process]:
        with self.start("server", *args, **options) as process:
            until(
                lambda: (
                    any(line.startswith("start ") for line in process.out + process.err)
                    or process.popen.poll() is not None
                ),
                f"the start of {process.popen.args!r}",
            )
            yield process

    def client(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run("client", *args, **options)

    def run(
        self,
        side: str,
        *args: object,
        stdin: str | bytes = "",
        timeout: float = 3 * PATIENCE,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(side, *args),
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=timeout,
            **{"env": ENV, **options},
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    @property
    def path(self) -> Path:
        prefix = SEM if self.primitive == "sem" else ""
        return Path("/dev/shm") / f"{prefix}{self.name[1:]}"

    def remove(self) -> None:
        """Remove the object as ipcrm(1) or rm(1) would, not by the scripts under test."""
        with contextlib.suppress(posix_ipc.ExistentialError, sysv_ipc.ExistentialError):
            if self.api == "posix":
                unlink = {
                    "msq": posix_ipc.unlink_message_queue,
                    "shm": posix_ipc.unlink_shared_memory,
                    "sem": posix_ipc.unlink_semaphore,
                }[self.primitive]
                unlink(self.name)
            else:
                thing = self.kind(self.key, mode=0)
                thing.remove()
                if self.primitive == "shm":
                    thing.detach()  # or this process keeps it alive

    @contextlib.contextmanager
    def opened(self, *args: Any, **options: Any) -> Iterator[Any]:
        """The object, opened by this process, which lets go of it."""
        thing = self.kind(self.name if self.api == "posix" else self.key, *args, **options)
        try:
            yield thing
        finally:
            if self.primitive == "shm" and self.api == "posix":
                thing.close_fd()
            elif self.api == "posix":
                thing.close()
            elif self.primitive == "shm":
                thing.detach()

    def exists(self) -> bool:
        try:
            with self.opened(**({"mode": 0} if self.api == "sysv" else {})):
                return True
        except (posix_ipc.ExistentialError, sysv_ipc.ExistentialError):
            return False

    @property
    def lock(self) -> "Pair":
        """What locks the segment of a System V pair."""
        return Pair("sysv", "sem", key=~self.key)

    def remove_all(self) -> None:
        self.remove()
        if (self.api, self.primitive) == ("sysv", "shm"):
            self.lock.remove()


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(api: str, primitive: str, name: str = "", key: int = 0) -> Pair:
        pairs.append(Pair(api, primitive, name, key))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.remove_all()


@pytest.fixture(params=PAIRS, ids=["-".join(pair) for pair in PAIRS])
def pair(request: pytest.FixtureRequest, make_pair: Callable[..., Pair]) -> Pair:
    return make_pair(*request.param)


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def msq(api: str, make_pair: Callable[..., Pair]) -> Pair:
    return make_pair(api, "msq")


@pytest.fixture
def shm(api: str, make_pair: Callable[..., Pair]) -> Pair:
    return make_pair(api, "shm")


@pytest.fixture
def sem(api: str, make_pair: Callable[..., Pair]) -> Pair:
    return make_pair(api, "sem")


def rounds(number: int) -> int:
    """So many in the normal run, more of them when `make soak` asks for it."""
    return max(1, round(number * SOAK))


def record(**figures: int) -> None:
    """Add figures to those that `make soak` sums up."""
    if path := os.environ.get("SOAK_FIGURES"):
        with open(path, "a") as file:
            file.write(json.dumps(figures) + "\n")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest, and mostly waits, begins first, so that the others run beside it."""
    items.sort(key=lambda item: item.path.name not in ("test_systemd.py", "test_make.py"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Where much was skipped, one sentence at the end says so, and what to do about it."""
    skipped = terminalreporter.stats.get("skipped", [])
    if len(skipped) < 10:
        return
    reasons = collections.Counter(
        str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        .removeprefix("Skipped: ")
        .removeprefix("needs ")
        for report in skipped
    )
    needed = "; ".join(f"{reason} ({number})" for reason, number in reasons.most_common())
    terminalreporter.write_line(
        f"{len(skipped)} tests were not run, for this place lacks what they need: {needed}. "
        "On a Debian machine, as root, .ci/run installs what is missing and runs them all."
    )
