"""The storms of the tests again and again: `make soak MINUTES=10`, with a line of progress a pass.

At the end processes, descriptors, memory and IPC objects are what they were at the start.
"""

import collections
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import ENV, PAIRS, SCRIPTS, Pair, Process, until

HERE = Path(__file__).resolve().parent
STORMS = ["test_faults.py", "test_hostile.py", "test_peers.py", "test_limits.py", "test_users.py"]


def objects() -> set[str]:
    """Every IPC object of the machine (POSIX queues for root only, who may mount them)."""
    lines = subprocess.check_output(["ipcs"], text=True).splitlines()
    mount = ["unshare", "--mount", "sh", "-c", "mount -t mqueue mqueue /mnt && ls /mnt"]
    queues = subprocess.run(mount, capture_output=True, text=True).stdout.split()
    return (
        {" ".join(line.split()[:2]) for line in lines if line.startswith("0x")}
        | {f"/dev/shm/{name}" for name in os.listdir("/dev/shm")}
        | {f"/dev/mqueue/{name}" for name in queues}
    )


def processes() -> set[str]:
    """The scripts of this checkout that run."""
    found = subprocess.run(["pgrep", "-f", re.escape(str(SCRIPTS))], capture_output=True)
    return set(found.stdout.decode().split())


def use(server: Process) -> tuple[int, int]:
    """Descriptors, and KiB of memory."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return len(os.listdir(f"/proc/{server.pid}/fd")), int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def poke(pair: Pair) -> None:
    for _ in range(20):
        pair.client(
            *(["-c50", "-i0", "-q"] if pair.primitive == "msq" else []), stdin="text\n" * 50
        )
    if pair.primitive == "sem":
        for _ in range(2):
            pair.client("-r")


def main() -> int:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    end = time.monotonic() + minutes * 60
    figures: collections.Counter[str] = collections.Counter()
    before, running = objects(), processes()
    # Six servers that run all the time.
    pairs = [Pair(*pair) for pair in PAIRS]
    servers = [
        pair.start("server", *([] if pair.primitive == "msq" else ["-i0.1"])) for pair in pairs
    ]
    for pair, server in zip(pairs, servers, strict=True):
        server.wait_line("start")
        poke(pair)
    at_first = [use(server) for server in servers]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures"
        while time.monotonic() < end and not failed:
            path.write_text("")
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-n2",
                    *(str(HERE / name) for name in STORMS),
                ],
                env={**os.environ, "SOAK": "3", "SOAK_FIGURES": str(path)},
                capture_output=True,
                text=True,
            )
            for line in path.read_text().splitlines():
                figures.update(json.loads(line))
            figures["passes"] += 1
            failed = done.returncode != 0
            if failed:
                print(done.stdout)
            fuzz = subprocess.run(
                [sys.executable, str(HERE / "fuzz.py"), "20"], cwd=folder, env=ENV,
                capture_output=True, text=True,
            )  # fmt: skip
            if found := re.search(r"Done (\d+) runs", fuzz.stderr):
                figures["fuzzed"] += int(found[1])
            else:
                print(fuzz.stderr[-2000:])
                failed = "No module named 'atheris'" not in fuzz.stderr
            for pair in pairs:
                poke(pair)
            left = max(0, round((end - time.monotonic()) / 60))
            print(
                f"{left} minutes to go:", *(f"{key} {n}" for key, n in figures.items()), flush=True
            )
    for pair, server, (descriptors, memory) in zip(pairs, servers, at_first, strict=True):
        now = use(server)
        print(
            f"{pair.script('server')}: {descriptors} descriptors, {memory} KiB;",
            f"now {now[0]}, {now[1]} KiB",
        )
        failed |= now[0] != descriptors or now[1] > memory * 1.1 + 500
        failed |= server.stop() != 0
        pair.remove_all()
    with contextlib.suppress(AssertionError):  # what was killed a moment ago takes a moment to go
        until(lambda: not (objects() - before or processes() - running))
    for what, there in (("objects", objects() - before), ("processes", processes() - running)):
        print(f"{what} left behind: {' '.join(sorted(there)) or 'none'}")
        failed |= bool(there)
    print("FAILED" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
