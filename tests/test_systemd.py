"""The units in systemd/ under a real `systemd --user`, of an ordinary user, in namespaces."""

import contextlib
import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import conftest
import pytest
from conftest import APIS, PRIMITIVES, ROOT

pytestmark = pytest.mark.xdist_group("systemd")

UID = 1500
until = functools.partial(conftest.until, pause=0.1)  # each look is a process or two
SERVICES = [f"ipc-{api}-{primitive}-server" for api in APIS for primitive in PRIMITIVES]
SHORT = {f"ipc-{primitive}-server": f"ipc-posix-{primitive}-server" for primitive in PRIMITIVES}


class Manager:
    """A user manager, the checkout that is installed in it, and commands inside its namespaces."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.checkout = folder / "a check out"
        self.units = self.home / ".config/systemd/user"
        for name in ("scripts", "systemd", "tests"):
            shutil.copytree(
                ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in ("Makefile", "requirements.txt"):
            shutil.copy(ROOT / name, self.checkout)
        subprocess.run(
            ["make", "--silent", "setup", "PYTHON=/usr/bin/python3"], cwd=self.checkout, check=True
        )
        self.home.mkdir()
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
        flags = "--mount --pid --ipc --cgroup --fork --mount-proc --kill-child"
        self.unshare = subprocess.Popen(
            ["unshare", *flags.split(), ROOT / "tests/user_manager.sh", str(UID), self.home],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: self.inside() is not None, "the namespaces")
        until(lambda: self.run("systemctl", "--user", "is-system-running").stdout, "the manager")
        until(lambda: "starting" not in self.systemctl("is-system-running").stdout, "its start")

    def inside(self) -> str | None:
        found = subprocess.run(
            ["pgrep", "-P", str(self.unshare.pid)], capture_output=True, text=True
        ).stdout.strip()
        return found or None

    def run(self, *argv: object, user: int = UID, **options) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "-t", self.inside(), "--mount", "--pid", "--ipc", "--cgroup"]
        become = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
        environment = [
            "env", "-i", "-C", str(self.checkout), f"HOME={self.home}",
            f"XDG_RUNTIME_DIR=/run/user/{UID}",
            "PATH=/usr/bin:/bin", "LANG=C.UTF-8",
        ]  # fmt: skip
        return subprocess.run(
            [*enter, *become, *environment, *map(str, argv)],
            **{
                "capture_output": True,
                "text": True,
                "timeout": 60,
                "cwd": self.checkout,
                **options,
            },
        )

    def systemctl(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", "--user", *args)

    def do(self, *args: str) -> None:
        done = self.systemctl(*args)
        assert done.returncode == 0, (args, done, self.log())

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        lines = self.systemctl("show", unit, "-p", ",".join(properties)).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def state(self, unit: str) -> str:
        return self.show(unit, "ActiveState")["ActiveState"]

    def pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID")["MainPID"])

    def log(self, unit: str = "") -> list[str]:
        """The real journal, the lines of one unit or all."""
        args = [f"_SYSTEMD_USER_UNIT={unit}.service"] if unit else []
        done = self.run("journalctl", "-D", "/run/log/journal", "-o", "cat", *args, user=0)
        return done.stdout.splitlines()

    def python(self, script: str, *args: object, **options) -> subprocess.CompletedProcess[str]:
        return self.run(".venv/bin/python", f"scripts/{script}.py", *args, **options)

    def client(self, unit: str, text: str) -> None:
        """Let a client outside the sandbox have an effect that the log will show."""
        _, api, primitive, _ = unit.split("-")
        args = ["--stdin", "-q"] if primitive == "msq" else []
        stdin = {"msq": f'"{text}"\n', "shm": f"{text}\n", "sem": ""}[primitive]
        done = self.python(f"{api}_{primitive}_client", *args, input=stdin)
        assert (done.returncode, done.stderr) == (0, "")

    def remove(self, unit: str) -> None:
        _, api, primitive, _ = unit.split("-")
        program = {
            "posix-msq": "posix_ipc.unlink_message_queue('/test')",
            "posix-shm": "posix_ipc.unlink_shared_memory('/test')",
            "posix-sem": "posix_ipc.unlink_semaphore('/test')",
            "sysv-msq": "sysv_ipc.MessageQueue(200).remove()",
            "sysv-shm": "sysv_ipc.SharedMemory(200).remove()",
            "sysv-sem": "sysv_ipc.Semaphore(200).remove()",
        }[f"{api}-{primitive}"]
        done = self.run(".venv/bin/python", "-c", f"import posix_ipc, sysv_ipc; {program}")
        assert done.returncode == 0, done

    def mode(self, unit: str) -> str:
        _, api, primitive, _ = unit.split("-")
        if api == "posix":
            path = {"msq": "/dev/mqueue/test", "shm": "/dev/shm/test", "sem": "/dev/shm/sem.test"}
            return self.run("stat", "-c", "%a", path[primitive]).stdout.strip()
        lines = self.run("ipcs", {"msq": "-q", "shm": "-m", "sem": "-s"}[primitive]).stdout
        return re.search(r"^0x000000c8 \d+ +\S+ +(\d+)", lines, re.M)[1]

    def end(self) -> None:
        self.unshare.stdin.close()
        try:
            self.unshare.wait(20)
        except subprocess.TimeoutExpired:
            self.unshare.kill()
            raise


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to make namespaces and to become an ordinary user")
    programs = [
        "/lib/systemd/systemd",
        "/lib/systemd/systemd-journald",
        "/usr/bin/python3",
        "pgrep",
    ]
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs {program}")
    folder = Path("/tmp") / f"test-systemd-{os.getpid()}"
    folder.mkdir(mode=0o755)
    started = Manager(folder)
    yield started
    started.end()
    shutil.rmtree(folder)


@pytest.fixture
def installed(manager: Manager) -> Iterator[Manager]:
    done = manager.run("make", "systemd-install")
    assert done.returncode == 0, done
    yield manager
    manager.systemctl("stop", "ipc-posix-msq-server.socket", "ipc-servers.target", *SERVICES)
    with contextlib.suppress(FileNotFoundError):
        os.remove(manager.home / ".config/ipc-servers.env")
    manager.run("make", "clean")
    manager.systemctl("reset-failed")


def text_of(unit: str) -> str:
    return "semaphore: 1" if "-sem-" in unit else "a text from outside"


def test_the_files_are_valid_as_they_stand(manager):
    files = [str(path) for path in (manager.checkout / "systemd").iterdir() if path.suffix != ".d"]
    done = manager.run("systemd-analyze", "--user", "verify", *files)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    for path in (ROOT / "systemd").rglob("*"):
        if path.is_file():
            assert not re.search(r"@\w+@|/home/|/root/|TODO", path.read_text()), path


@pytest.mark.parametrize("name", [*SERVICES, *SHORT])
def test_a_service(installed, name):
    unit = SHORT.get(name, name)
    installed.do("start", name)  # returns when the object is there
    assert installed.mode(unit) == "600"
    assert installed.state(name) == "active"
    assert installed.show(name, "Id")["Id"] == f"{unit}.service"  # an alias, and no second unit
    log = len(installed.log(unit))
    installed.client(unit, text_of(unit))
    until(lambda: text_of(unit) in "\n".join(installed.log(unit)[log:]), f"{installed.log(unit)}")
    installed.do("stop", name)
    show = installed.show(name, "Result", "ExecMainStatus", "ActiveState")
    assert show == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
    assert installed.log(unit)[-1].startswith("end ")


@pytest.mark.parametrize("unit", SERVICES)
def test_kill_9_and_removal_are_followed_by_a_restart(installed, unit):
    installed.do("start", unit)
    first = installed.pid(unit)
    installed.systemctl("kill", "--signal=KILL", f"{unit}.service")
    until(lambda: installed.pid(unit) not in (0, first) and installed.state(unit) == "active")
    second = installed.pid(unit)
    installed.remove(unit)
    until(lambda: installed.pid(unit) not in (0, second) and installed.state(unit) == "active")
    assert installed.mode(unit) == "600"
    assert installed.show(unit, "NRestarts")["NRestarts"] == "2"


def test_the_target_starts_and_stops_all_six_and_comes_after_them(installed):
    installed.do("start", "ipc-servers.target")
    assert [installed.state(unit) for unit in SERVICES] == ["active"] * 6
    times = [
        int(installed.show(unit, "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"])
        for unit in [*SERVICES, "ipc-servers.target"]
    ]
    assert max(times) == times[-1]
    installed.do("stop", "ipc-servers.target")
    until(lambda: [installed.state(unit) for unit in SERVICES] == ["inactive"] * 6)


def test_boot(installed):
    """Enabled, the target comes with default.target, as at the first login or with linger."""
    installed.do("enable", "ipc-servers.target")
    wants = installed.show("default.target", "Wants")["Wants"].split()
    assert "ipc-servers.target" in wants
    installed.do("start", "default.target")
    until(lambda: [installed.state(unit) for unit in SERVICES] == ["active"] * 6)
    done = installed.run("make", "systemd-uninstall")
    assert done.returncode == 0, done
    assert "ipc-servers.target" not in installed.show("default.target", "Wants")["Wants"].split()


def test_no_message_is_lost_by_a_stop(installed):
    unit = "ipc-posix-msq-server"
    count = 0
    for _ in range(3):
        installed.do("start", unit)
        for _ in range(3):
            count += 1
            installed.client(unit, f"number {count}")
        installed.do("stop", unit)
    installed.client(unit, "number 10")
    installed.do("start", unit)
    until(lambda: "number 10" in "\n".join(installed.log(unit)))
    numbers = re.findall(r"'number (\d+)'", "\n".join(installed.log(unit)))
    assert numbers == [str(n) for n in range(1, 11)]


def test_shared_memory_prints_changes_only(installed):
    unit = "ipc-sysv-shm-server"
    installed.do("start", unit)
    installed.client(unit, "only once")
    until(lambda: "only once" in "\n".join(installed.log(unit)))
    before = len(installed.log(unit))
    installed.client(unit, "and then")
    until(lambda: "and then" in "\n".join(installed.log(unit)))
    assert len(installed.log(unit)) == before + 1


def settings(manager: Manager, text: str) -> None:
    path = manager.home / ".config/ipc-servers.env"
    path.write_text(text)


def test_settings(installed):
    settings(installed, "IPC_NAME=/other\nIPC_KEY=0x12d\nIPC_ARGS=--mode 640\n")
    installed.do("start", "ipc-servers.target")
    assert "other" in os.listdir(f"/proc/{installed.inside()}/root/dev/shm")
    assert re.search(r"^0x0000012d \d+ +\S+ +640", installed.run("ipcs", "-q").stdout, re.M)
    assert installed.run("stat", "-c", "%a", "/dev/shm/other").stdout == "640\n"
    for unit in SERVICES:
        _, api, primitive, _ = unit.split("-")
        option = ["-n", "/other"] if api == "posix" else ["-k", "301"]
        installed.systemctl("stop", unit)
        assert installed.python(f"{api}_{primitive}_server", *option, "--clean").returncode == 0


@pytest.mark.parametrize(
    "unit, text, line",
    [
        ("ipc-posix-sem-server", "IPC_NAME=no name", "'no name' is not a slash"),
        ("ipc-posix-shm-server", "IPC_NAME=/a/b", "'/a/b' is not a slash"),
        ("ipc-sysv-msq-server", "IPC_KEY=0", "0 is not from 1 to 2147483647"),
        ("ipc-sysv-shm-server", "IPC_KEY=99999999999", "99999999999 is not from 1"),
        ("ipc-sysv-sem-server", "IPC_ARGS=--no-such-option", "unrecognized arguments"),
    ],
)
def test_bad_settings_fail_with_a_line_and_are_not_tried_again(installed, unit, text, line):
    settings(installed, f"{text}\n")
    before = len(installed.log(unit))
    assert installed.systemctl("start", unit).returncode != 0
    show = installed.show(unit, "ActiveState", "NRestarts", "ExecMainStatus")
    assert show == {"ActiveState": "failed", "NRestarts": "0", "ExecMainStatus": "2"}
    until(lambda: len(installed.log(unit)) > before)
    errors = [entry for entry in installed.log(unit)[before:] if "error:" in entry]
    assert len(errors) == 1
    assert line in errors[0]


def test_a_server_that_fails_over_and_over_is_given_up(installed):
    """Root's object: the reason is in the journal, and after ten starts it is left alone.

    In the user namespace of the sandbox root is nobody, uid 65534 (user_namespaces(7)).
    """
    unit = "ipc-sysv-msq-server"
    done = installed.python("sysv_msq_server", "-c0", "--mode", "666", user=0)
    assert done.returncode == 0, done
    try:
        installed.systemctl("start", unit)
        until(lambda: installed.state(unit) == "failed", timeout=60)
        assert any("belongs to uid" in line for line in installed.log(unit))
        assert int(installed.show(unit, "NRestarts")["NRestarts"]) >= 9
    finally:
        installed.python("sysv_msq_server", "--clean", user=0)


def process_of(manager: Manager, unit: str) -> Path:
    """The folder in /proc, as it is seen outside, of the process that a service runs."""
    space = os.readlink(f"/proc/{manager.inside()}/ns/pid")
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            ours = os.readlink(path.parent / "ns/pid") == space
            if ours and path.read_text().rstrip().endswith(f"/{unit}.service"):
                return path.parent
    raise AssertionError(f"{unit} has no process")


def test_the_sandbox_of_a_running_process(installed):
    """Seen on the process: a setting that was dropped without a word would not be here."""
    installed.do("start", "ipc-servers.target")
    mine = Path(f"/proc/{installed.inside()}")
    for unit in SERVICES:
        process = process_of(installed, unit)
        status = (process / "status").read_text()
        assert re.search(r"^NoNewPrivs:\s1$", status, re.M)
        assert re.search(r"^CapBnd:\s0000000000000000$", status, re.M)
        assert re.search(r"^CapEff:\s0000000000000000$", status, re.M)
        assert re.search(r"^Seccomp:\s2$", status, re.M)
        for name in ("user", "net", "mnt", "uts"):
            other = os.readlink(mine / "ns" / name)
            assert os.readlink(process / "ns" / name) != other, (unit, name)
        assert os.readlink(process / "ns/ipc") == os.readlink(mine / "ns/ipc")
        mounts = {
            fields[4]: fields[5].split(",")
            for fields in (
                line.split() for line in (process / "mountinfo").read_text().splitlines()
            )
        }
        for path in ("/", "/proc/sys", "/sys/fs/cgroup"):
            assert "ro" in mounts[path], (unit, path)
        assert "rw" in mounts["/dev/shm"]
        assert "/dev" in mounts
        interfaces = (process / "net/dev").read_text().splitlines()[2:]
        assert all(line.split(":")[0].strip() in {"lo", "sit0", "tunl0"} for line in interfaces)


def test_the_exposure(installed):
    for unit in SERVICES:
        done = installed.systemctl("cat", unit)
        assert "PrivateUsers=yes" in done.stdout
        done = installed.run(
            "systemd-analyze", "--user", "security", "--offline=yes",
            f"{installed.units}/{unit}.service",
        )  # fmt: skip
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
        assert found and float(found[1]) <= 1.0, done


def test_the_socket(installed):
    """systemd makes the queue, the first message starts the server, a stop leaves both."""
    socket, unit = "ipc-posix-msq-server.socket", "ipc-posix-msq-server"
    installed.do("start", socket)
    assert installed.mode(unit) == "600"
    assert installed.state(unit) == "inactive"
    before = len(installed.log(unit))
    installed.client(unit, "the first")
    until(lambda: "the first" in "\n".join(installed.log(unit)[before:]))
    until(lambda: installed.state(unit) == "active")
    installed.do("stop", socket, unit)
    installed.client(unit, "the second")
    queue = installed.run("cat", "/dev/mqueue/test").stdout
    assert int(re.search(r"QSIZE:(\d+)", queue)[1]) == len('"the second"')
    installed.do("start", unit)
    until(lambda: "the second" in "\n".join(installed.log(unit)[before:]))


def test_install_twice_changes_nothing_and_uninstall_leaves_nothing(manager):
    def tree() -> list[tuple[str, str]]:
        return sorted(
            (str(path), os.readlink(path) if path.is_symlink() else "")
            for path in manager.home.rglob("*")
        )

    manager.run("make", "systemd-uninstall")
    before = tree()
    assert manager.run("make", "systemd-install").returncode == 0
    first = tree()
    assert first != before
    assert manager.run("make", "systemd-install").returncode == 0
    assert tree() == first
    manager.do("start", "ipc-servers.target")
    done = manager.run("make", "systemd-uninstall")
    assert done.returncode == 0, done
    left = [entry for entry in tree() if entry not in before]
    assert left == []
    for unit in SERVICES:
        assert manager.show(unit, "LoadState")["LoadState"] == "not-found"
    assert manager.run("make", "systemd-uninstall").returncode == 0
    manager.run("make", "clean")


@pytest.mark.parametrize("target", ["systemd-install", "systemd-uninstall"])
def test_without_a_user_manager(manager, target):
    done = manager.run("env", "-u", "XDG_RUNTIME_DIR", "make", target)
    assert done.returncode == 2  # of make; the recipe's is 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert lines == ["no systemd user manager can be reached: systemctl --user does not work here"]
    assert "Error 1" in done.stderr
