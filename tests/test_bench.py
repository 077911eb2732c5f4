"""`make bench` itself: what it leaves when it is interrupted, and what it does without cc."""

import os
import signal
import subprocess
import sys

import posix_ipc
import pytest
from conftest import ENV, ROOT, Process, needs, until

BENCH = [sys.executable, str(ROOT / "tests/bench/bench.py")]


def interrupt(bench: Process) -> None:
    """Ctrl-C goes to the whole group, as at a terminal."""
    os.killpg(bench.pid, signal.SIGINT)
    assert bench.wait(60) == 130
    assert bench.err == []
    name = f"bench-{bench.pid}"
    until(lambda: subprocess.run(["pgrep", "-f", name], capture_output=True).returncode == 1)
    assert [path for path in os.listdir("/dev/shm") if name in path] == []
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.MessageQueue(f"/{name}")


pytestmark = needs("ps", "pgrep")


def test_an_interrupted_bench_leaves_nothing():
    with Process(BENCH, start_new_session=True) as bench:
        bench.wait_line("medians of")
        until(lambda: f"bench-{bench.pid}" in commands())
        interrupt(bench)


def commands() -> str:
    return subprocess.check_output(["ps", "-eo", "args"], text=True)


def test_without_a_compiler(tmp_path):
    for name in ("cp", "true"):
        os.symlink(f"/bin/{name}", tmp_path / name)
    with Process(BENCH, start_new_session=True, env={**ENV, "PATH": str(tmp_path)}) as bench:
        bench.wait_line("no C compiler")
        interrupt(bench)
