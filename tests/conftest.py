"""What the tests share: scripts run as processes, on objects of their own that are removed."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
APIS = ("posix", "sysv")
PRIMITIVES = ("msq", "shm", "sem")
PAIRS = [(api, primitive) for api in APIS for primitive in PRIMITIVES]
TITLE = {"msq": "message queue", "shm": "shared memory", "sem": "semaphore"}
# A process with nothing of the developer's in its way, and no buffering that a user would not have.
ENV = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MAKE", "NOTIFY"))}
# `nohup make test &` makes the shell ignore these, and the scripts would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
# How much longer the storms last: `make soak` sets it.
SOAK = float(os.environ.get("SOAK", "1"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI everything that the tests need has been installed, so a skipped test has failed."""
    outcome = yield
    report = outcome.get_result()
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where everything must run: {report.longrepr}"


def needs(*programs: str) -> pytest.MarkDecorator:
    """A mark for a test that cannot be run without these programs."""
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def until(
    condition: Callable[[], object], what: str = "", timeout: float = 20, pause: float = 0.005
) -> None:
    """Wait for a condition; fail, and say for what, when it does not come."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout} s in vain: {what or condition}"
        time.sleep(pause)


class Process:
    """A script that runs, with a thread that collects what it prints, line by line."""

    def __init__(self, argv: list[str], **options: object) -> None:
        options = {"stdin": subprocess.DEVNULL, "env": ENV, **options}
        self.popen = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )
        self.pid = self.popen.pid
        self.out: list[str] = []
        self.err: list[str] = []
        self.threads = [
            threading.Thread(target=self._collect, args=(self.popen.stdout, self.out)),
            threading.Thread(target=self._collect, args=(self.popen.stderr, self.err)),
        ]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def _collect(stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line.rstrip("\n"))

    @property
    def texts(self) -> list[str]:
        """What it printed, without the times."""
        return [
            line.partition(" ")[2] if line[2:3] == ":" and line[5:6] == ":" else line
            for line in list(self.out)
        ]

    def wait_line(self, text: str, timeout: float = 20) -> None:
        until(
            lambda: any(text in line for line in list(self.out)) or self.popen.poll() is not None,
            f"{text!r} in {self.out} {self.err}",
            timeout,
        )
        if self.popen.poll() is not None:
            self.wait()
        assert any(text in line for line in self.out), f"{text!r} not in {self.out} {self.err}"

    def wait(self, timeout: float = 20) -> int:
        status = self.popen.wait(timeout)
        for thread in self.threads:
            thread.join(timeout)
        return status

    def stop(self, number: int = signal.SIGTERM, timeout: float = 20) -> int:
        self.popen.send_signal(number)
        return self.wait(timeout)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            with contextlib.suppress(ProcessLookupError):
                self.popen.send_signal(signal.SIGCONT)
        self.wait()
        self.popen.stdout.close()
        self.popen.stderr.close()


class Pair:
    """One of the six pairs on an object of its own."""

    def __init__(self, api: str, primitive: str) -> None:
        self.api, self.primitive = api, primitive
        self.name = f"/test-{os.getpid()}-{random.randrange(2**40):x}"
        self.key = random.randrange(2**20, 2**31 - 1)
        self.thing = self.name if api == "posix" else str(self.key)
        self.option = ["-n", self.name] if api == "posix" else ["-k", str(self.key)]

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

    def start(self, side: str, *args: object, **options: object) -> Process:
        return Process(self.argv(side, *args), **options)

    @contextlib.contextmanager
    def server(self, *args: object, **options: object) -> Iterator[Process]:
        with self.start("server", *args, **options) as process:
            until(
                lambda: (
                    any(line.startswith("start ") for line in process.out + process.err)
                    or process.popen.poll() is not None
                ),
                f"the start of {process.popen.args}",
            )
            yield process

    def client(self, *args: object, **options: object) -> subprocess.CompletedProcess[str]:
        return self.run("client", *args, **options)

    def run(
        self, side: str, *args: object, stdin: str | bytes = "", timeout: float = 60, **options
    ) -> subprocess.CompletedProcess[str]:
        stdin = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            self.argv(side, *args),
            input=stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
            **{"env": ENV, **options},
        )
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
        return done

    @property
    def path(self) -> Path:
        prefix = "sem." if self.primitive == "sem" else ""
        return Path("/dev/shm") / f"{prefix}{self.name[1:]}"

    def remove(self) -> None:
        """Remove the object as ipcrm(1) or rm(1) would, not by the scripts under test."""
        import posix_ipc
        import sysv_ipc

        if self.api == "posix":
            unlink = {
                "msq": posix_ipc.unlink_message_queue,
                "shm": posix_ipc.unlink_shared_memory,
                "sem": posix_ipc.unlink_semaphore,
            }[self.primitive]
            with contextlib.suppress(posix_ipc.ExistentialError):
                unlink(self.name)
            return
        kind = {
            "msq": sysv_ipc.MessageQueue,
            "shm": sysv_ipc.SharedMemory,
            "sem": sysv_ipc.Semaphore,
        }[self.primitive]
        with contextlib.suppress(sysv_ipc.ExistentialError):
            thing = kind(self.key, mode=0)
            thing.remove()
            if self.primitive == "shm":
                thing.detach()  # or this process keeps it alive

    def remove_all(self) -> None:
        self.remove()
        if (self.api, self.primitive) == ("sysv", "shm"):
            lock = Pair("sysv", "sem")
            lock.key = ~self.key
            lock.remove()


@pytest.fixture
def make_pair() -> Iterator[Callable[[str, str], Pair]]:
    pairs: list[Pair] = []

    def make(api: str, primitive: str) -> Pair:
        pairs.append(Pair(api, primitive))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.remove_all()


@pytest.fixture(params=PAIRS, ids=["-".join(pair) for pair in PAIRS])
def pair(request: pytest.FixtureRequest, make_pair: Callable[[str, str], Pair]) -> Pair:
    return make_pair(*request.param)


@pytest.fixture(params=APIS)
def api(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def msq(api: str, make_pair: Callable[[str, str], Pair]) -> Pair:
    return make_pair(api, "msq")


@pytest.fixture
def shm(api: str, make_pair: Callable[[str, str], Pair]) -> Pair:
    return make_pair(api, "shm")


@pytest.fixture
def sem(api: str, make_pair: Callable[[str, str], Pair]) -> Pair:
    return make_pair(api, "sem")


def rounds(number: int) -> int:
    """So many in the normal run, more of them when `make soak` asks for it."""
    return max(1, round(number * SOAK))


def record(**figures: int) -> None:
    """Add figures to those that `make soak` sums up."""
    if path := os.environ.get("SOAK_FIGURES"):
        with open(path, "a") as file:
            file.write(json.dumps(figures) + "\n")
