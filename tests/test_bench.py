"""`make bench` itself: what it leaves when interrupted, what it does without a contestant."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import posix_ipc
import pytest
import sysv_ipc
from conftest import ENV, ROOT, SCRIPTS, Process, needs, until

BENCH = [sys.executable, str(ROOT / "tests/bench/bench.py")]

pytestmark = needs("ps", "pgrep")


def commands() -> str:
    return subprocess.check_output(["ps", "-wweo", "args"], text=True)


@contextlib.contextmanager
def running(*args: str, **options: object) -> Iterator[Process]:
    """A bench that is interrupted, and so ends all that it has started, whatever the test finds."""
    with Process([*BENCH, *args], start_new_session=True, **options) as bench:
        try:
            yield bench
        finally:
            if bench.popen.poll() is None:
                bench.stop(signal.SIGINT, 60)


def interrupt(bench: Process) -> None:
    """Ctrl-C goes to the whole group, as at a terminal."""
    os.killpg(bench.pid, signal.SIGINT)
    assert bench.wait(60) == 130
    assert bench.err == []
    nothing_left(bench.pid)


def nothing_left(pid: int) -> None:
    """No process, file or object: what a run makes has its process id in the name."""
    name, key = f"bench-{pid}", 2**20 + pid * 256
    until(lambda: subprocess.run(["pgrep", "-f", f"{name}|{key}"], capture_output=True).returncode)
    for folder in ("/dev/shm", tempfile.gettempdir()):
        assert [path for path in os.listdir(folder) if name in path] == []
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.MessageQueue(f"/{name}")
    for kind in (sysv_ipc.MessageQueue, sysv_ipc.SharedMemory, sysv_ipc.Semaphore):
        with pytest.raises(sysv_ipc.ExistentialError):
            kind(key)
    with pytest.raises(sysv_ipc.ExistentialError):
        sysv_ipc.Semaphore(~key)


@pytest.mark.parametrize(
    ("part", "works"),
    [
        ("messages", "bench-"),
        ("delay", "posix_msq_server"),
        ("texts", "others.py text"),
        ("semaphores", "others.py semaphore"),
        ("idle", "sysv_sem_server"),
    ],
)
def test_an_interrupted_bench_leaves_nothing(part, works):
    with running("--only", part, "--rounds", "1000") as bench:
        mine = (f"bench-{bench.pid}", str(2**20 + bench.pid * 256))

        def at_work() -> bool:
            assert bench.popen.poll() is None, bench.err
            return any(
                works in line and any(name in line for name in mine)
                for line in commands().splitlines()
            )

        until(at_work, f"{works} of {mine}", timeout=60)
        interrupt(bench)


def test_a_contestant_that_is_not_installed_is_left_out(tmp_path):
    for module in ("zmq", "redis"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('not installed')\n")
    env = {**ENV, "PYTHONPATH": str(tmp_path)}
    with running("--only", "messages", "--rounds", "1000", env=env) as bench:
        bench.wait_line("(zeromq is left out: ")
        bench.wait_line("(redis is left out: ")
        interrupt(bench)


def test_without_a_compiler(tmp_path):
    os.symlink("/bin/true", tmp_path / "true")
    with running(env={**ENV, "PATH": str(tmp_path)}) as bench:
        bench.wait_line("no C compiler")
        interrupt(bench)


def test_two_folders_of_scripts_side_by_side(tmp_path):
    folders = [f"before={SCRIPTS}", f"after={SCRIPTS}"]
    options = [option for folder in folders for option in ("--scripts", folder)]
    with running("markdown", "--only", "delay", "--rounds", "1", *options) as bench:
        assert bench.wait(60) == 0
    heads = next(line for line in bench.out if line.startswith("| POSIX queue"))
    assert "before (of C)" in heads
    assert "after (of C)" in heads
    nothing_left(bench.pid)


@pytest.mark.parametrize("python", ["/nonexistent", "/bin/false"])
def test_what_is_no_python(python):
    with running("--python", python) as bench:
        assert bench.wait(60) == 1
    assert len(bench.err) == 1
    assert bench.err[0].startswith(f"bench: {python}: not a Python with posix_ipc and sysv_ipc")


def test_make_bench_has_an_environment_for_each_python():
    """What `make` runs, without running it: no network is needed."""
    dry = subprocess.run(
        ["make", "-n", "bench", f"PYTHONS={sys.executable} python3", "ARGS=--rounds 1"],
        cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert dry.returncode == 0
    assert f"for python in {sys.executable} python3; do" in dry.stdout
    assert "--rounds 1" in dry.stdout
    assert Path(ROOT / "tests/bench/requirements.txt").exists()
