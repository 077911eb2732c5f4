"""The units in systemd/ under a real `systemd --user`, of an ordinary user, in namespaces."""

import atexit
import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import conftest
import pytest
from conftest import APIS, ENV, PRIMITIVES, ROOT, in_namespaces, in_no_chroot, missing, readme
from test_pages import programs

pytestmark = [pytest.mark.xdist_group("systemd"), in_namespaces]
another = pytest.mark.xdist_group("another")  # with a manager of its own: half of the time

UID = 1500
until = functools.partial(conftest.until, pause=0.1)  # each look is a process or two
SERVICES = [f"ipc-{api}-{primitive}-server" for api in APIS for primitive in PRIMITIVES]
SHORT = {f"ipc-{primitive}-server": f"ipc-posix-{primitive}-server" for primitive in PRIMITIVES}


@functools.cache
def environment() -> Path:
    """What `make setup` makes with the system's Python, but for its pip, which takes longest."""
    folder = Path(tempfile.mkdtemp(prefix="test-systemd-"))
    atexit.register(shutil.rmtree, folder)
    venv = folder / ".venv"
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "-q"]
    subprocess.run([*pip, "-r", str(ROOT / "requirements.txt")], env=ENV, check=True)
    shutil.copy(ROOT / "requirements.txt", venv / ".setup")
    return venv


class Manager:
    """A user manager, the checkout that is installed in it, and commands inside its namespaces."""

    def __init__(self, folder: Path, *chroot: str) -> None:
        self.home = folder / "home"
        self.checkout = folder / "a check=out"  # env(1) takes a word with = for a variable
        self.config = self.home / ".config/systemd/user"
        self.units = self.home / ".local/share/systemd/user"
        for name in ("scripts", "systemd", "tests"):
            shutil.copytree(
                ROOT / name, self.checkout / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in ("Makefile", "requirements.txt"):
            shutil.copy(ROOT / name, self.checkout)
        shutil.copytree(environment(), self.checkout / ".venv", symlinks=True)
        self.config.mkdir(parents=True)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, UID, UID, follow_symlinks=False)
        flags = "--mount --pid --ipc --cgroup --fork --mount-proc --kill-child"
        self.unshare = subprocess.Popen(
            [
                "unshare",
                *flags.split(),
                ROOT / "tests/user_manager.sh",
                str(UID),
                self.home,
                *chroot,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: self.inside() is not None, "the namespaces")
        started = {"running", "degraded"}
        until(lambda: self.systemctl("is-system-running").stdout.strip() in started, "the manager")

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
        log = "\n".join(self.log()[-40:])
        assert done.returncode == 0, f"{args}: {done.stderr}\n{log}"

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        lines = self.systemctl("show", unit, "-p", ",".join(properties)).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def state(self, unit: str) -> str:
        return self.show(unit, "ActiveState")["ActiveState"]

    def pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID")["MainPID"])

    def log(self, unit: str = "") -> list[str]:
        """The real journal, the lines of one unit or all.

        journald learns the unit from the cgroup of the process, which one that ends soon has left
        by then. Its SyslogIdentifier= comes with the line.
        """
        of_unit = [f"_SYSTEMD_USER_UNIT={unit}.service", "+", f"SYSLOG_IDENTIFIER={unit}"]
        args = of_unit if unit else []
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


def may_make_user_namespaces() -> bool:
    """Whether an ordinary user may, as the sandbox of the units needs it."""
    become = ["setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups"]
    return (
        subprocess.run([*become, "unshare", "--user", "true"], capture_output=True).returncode == 0
    )


@contextlib.contextmanager
def a_manager(name: str, *chroot: str) -> Iterator[Manager]:
    for program in ("systemd", "systemd-journald"):
        if not shutil.which(f"/lib/systemd/{program}"):
            pytest.skip(f"needs systemd: apt-get install systemd ({program})")
    for program in ("/usr/bin/python3", "pgrep", "make"):
        if absent := missing(program):
            pytest.skip(absent)
    folder = Path("/tmp") / f"test-{name}-{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        started = Manager(folder, *chroot)
        try:
            yield started
        finally:
            started.end()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    if not may_make_user_namespaces():
        pytest.skip("needs user namespaces for ordinary users: user_namespaces(7)")
    with a_manager("systemd") as started:
        yield started


@pytest.fixture
def installed(manager: Manager) -> Iterator[Manager]:
    done = manager.run("make", "systemd-install")
    assert done.returncode == 0, done
    yield manager
    manager.systemctl("stop", "ipc-posix-msq-server.socket", "ipc-servers.target", *SERVICES)
    for path in manager.home.glob(".config/ipc-*.env"):
        path.unlink()
    for path in manager.config.glob("ipc-*.d"):
        shutil.rmtree(path)
    manager.systemctl("daemon-reload")
    manager.run("sh", "-c", "rm -f /dev/mqueue/* /dev/shm/*; ipcrm -a")  # all are of this manager
    manager.systemctl("reset-failed")


def text_of(unit: str) -> str:
    return "semaphore: 1" if "-sem-" in unit else "a text from outside"


def test_the_files_are_valid_as_they_stand(manager):
    kinds = (".service", ".socket", ".target")
    files = [str(path) for path in (manager.checkout / "systemd").iterdir() if path.suffix in kinds]
    # Without --man it asks for the man pages that Documentation= names, and they need not be there.
    done = manager.run("systemd-analyze", "--user", "--man=no", "verify", *files)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    for path in (ROOT / "systemd").rglob("*"):
        if path.is_file():
            assert not re.search(r"@\w+@|/home/|/root/|TODO", path.read_text()), path


@another
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


@another
@pytest.mark.parametrize("unit", SERVICES)
def test_kill_9_and_removal_are_followed_by_a_restart(installed, unit):
    installed.do("start", unit)
    first = installed.pid(unit)
    installed.systemctl("kill", "--signal=KILL", f"{unit}.service")
    until(lambda: installed.pid(unit) not in (0, first) and installed.state(unit) == "active")
    second = installed.pid(unit)
    installed.remove(unit)
    until(lambda: installed.pid(unit) not in (0, second) and installed.state(unit) == "active")
    third = installed.pid(unit)
    installed.systemctl("kill", "--signal=HUP", f"{unit}.service")
    until(lambda: installed.pid(unit) not in (0, third) and installed.state(unit) == "active")
    assert installed.mode(unit) == "600"
    assert installed.show(unit, "NRestarts")["NRestarts"] == "3"


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


def words(manager: Manager, unit: str) -> list[str]:
    """The command line of the process that a service runs, after its script."""
    found = (process_of(manager, unit) / "cmdline").read_bytes().decode().split("\0")
    return found[2:-1]


def test_settings(installed):
    settings(installed, "IPC_NAME=/an other\nIPC_KEY=0x12d\nIPC_ARGS=--mode 640\n")
    installed.do("start", "ipc-servers.target")
    for unit in SERVICES:  # each of them has each
        option = ["--name", "/an other"] if "-posix-" in unit else ["--key", "0x12d"]
        changes = ["--changes"] if "-shm-" in unit else []
        assert words(installed, unit) == [*option, *changes, "--mode", "640"]
    assert "an other" in os.listdir(f"/proc/{installed.inside()}/root/dev/shm")
    assert re.search(r"^0x0000012d \d+ +\S+ +640", installed.run("ipcs", "-q").stdout, re.M)
    assert installed.run("stat", "-c", "%a", "/dev/shm/an other").stdout == "640\n"
    for unit in SERVICES:
        _, api, primitive, _ = unit.split("-")
        option = ["-n", "/an other"] if api == "posix" else ["-k", "301"]
        installed.systemctl("stop", unit)
        assert installed.python(f"{api}_{primitive}_server", *option, "--clean").returncode == 0


def edit(manager: Manager, unit: str, *lines: str) -> None:
    """What `systemctl --user edit` would leave."""
    path = manager.config / f"{unit}.service.d/override.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[Service]\n" + "".join(f"{line}\n" for line in lines))
    manager.do("daemon-reload")


def test_settings_of_one_service(installed):
    """Its own file comes after that for all, and an edit has to empty the list of files first."""
    unit, other = "ipc-sysv-sem-server", "ipc-posix-sem-server"
    settings(installed, "IPC_NAME=/test\nIPC_ARGS=--value 7\n")
    (installed.home / f".config/{unit}.env").write_text("IPC_ARGS=--value 5\n")
    installed.do("start", unit, other)
    assert words(installed, unit) == ["--key", "200", "--value", "5"]
    assert words(installed, other) == ["--name", "/test", "--value", "7"]
    edit(installed, unit, "EnvironmentFile=", "Environment=IPC_ARGS=--value=3")
    installed.do("restart", unit)
    assert words(installed, unit) == ["--key", "200", "--value=3"]


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


SETTINGS = {
    "Type": "notify", "NotifyAccess": "main", "Restart": "on-failure", "RestartUSec": "1s",
    "RestartPreventExitStatus": "2", "StartLimitIntervalUSec": "1min", "StartLimitBurst": "10",
    "TimeoutStopUSec": "10s", "LockPersonality": "yes", "MemoryDenyWriteExecute": "yes",
    "SystemCallErrorNumber": "1", "SystemCallArchitectures": "native", "TasksMax": "4",
    "MemoryMax": str(128 * 2**20), "UMask": "0077", "KeyringMode": "private",
    "RestrictRealtime": "yes", "RestrictSUIDSGID": "yes", "RestrictAddressFamilies": "AF_UNIX",
    "ProtectClock": "yes", "ProtectHostname": "yes", "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes", "ProtectKernelTunables": "yes", "ProtectControlGroups": "yes",
    "PrivateUsers": "yes", "PrivateDevices": "yes", "PrivateMounts": "yes", "PrivateNetwork": "yes",
    "ProtectSystem": "strict", "ProtectHome": "read-only", "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "", "PartOf": "ipc-servers.target",
}  # fmt: skip


@pytest.mark.parametrize("unit", SERVICES)
def test_each_setting_is_the_managers_too(installed, unit):
    """What would be missed by nobody before the day on which it is needed."""
    shown = installed.show(unit, *SETTINGS, "SyslogIdentifier", "RestrictNamespaces", "Restart",
                           "IPAddressDeny", "SystemCallFilter")  # fmt: skip
    assert {name: shown.get(name, "missing") for name in SETTINGS} == SETTINGS
    assert shown["SyslogIdentifier"] == unit
    assert shown["RestrictNamespaces"] == "yes"
    assert set(shown["IPAddressDeny"].split()) == {"0.0.0.0/0", "::/0"}
    calls = shown["SystemCallFilter"].split()
    assert {"read", "msgrcv", "mq_timedreceive"} <= set(calls)
    assert not {"setpriority", "chown", "mount", "reboot", "setuid"} & set(calls)


def test_what_the_sandbox_refuses(installed):
    """A program in the place of the server tries: memory that is written and then executed, a
    personality, a priority and another user, and is told EPERM each time. (By EACCES the kernel
    itself refuses the memory, which systemd asks it to from version 254 on: prctl(2).)"""
    program = (
        "import ctypes, errno, mmap, os, threading\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def tried(what, *call):\n"
        "    ctypes.set_errno(0)\n"
        "    print('tried', what, libc.syscall(*call), errno.errorcode.get(ctypes.get_errno()), "
        "flush=True)\n"
        "tried('personality', 135, 0x0040000)\n"
        "tried('mprotect', 9, 0, 4096, 7, 0x22, -1, 0)\n"
        "tried('setpriority', 141, 0, 0, 5)\n"
        "tried('setuid', 105, 0)\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("needs the numbers of system calls on this machine")
    unit = "ipc-sysv-sem-server"
    (installed.checkout / "try.py").write_text(program)
    python = f"'{installed.checkout}/.venv/bin/python' '{installed.checkout}/try.py'"
    once = ["Type=oneshot", "Restart=no", "RestartForceExitStatus="]
    edit(installed, unit, *once, "ExecStart=", f"ExecStart={python}")
    before = len(installed.log(unit))
    installed.systemctl("start", unit)
    until(
        lambda: "tried setuid" in "\n".join(installed.log(unit)[before:]), f"{installed.log(unit)}"
    )
    tried = [line for line in installed.log(unit)[before:] if line.startswith("tried")]
    assert [line.replace("EACCES", "EPERM") for line in tried] == [
        "tried personality -1 EPERM", "tried mprotect -1 EPERM", "tried setpriority -1 EPERM",
        "tried setuid -1 EPERM",
    ]  # fmt: skip


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
    queue = "import posix_ipc; q = posix_ipc.MessageQueue('/test'); print(q.max_messages, "
    shown = installed.run(".venv/bin/python", "-c", f"{queue}q.max_message_size)").stdout
    assert shown == "10 8192\n"
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


@pytest.mark.parametrize("at_work", [False, True])
def test_the_socket_after_its_queue_was_removed(installed, at_work):
    """systemd listens to one that has no name any more; a restart of the socket makes another, but
    not beside a service that runs: that is stopped first."""
    socket, unit = "ipc-posix-msq-server.socket", "ipc-posix-msq-server"
    installed.do("start", socket)
    if at_work:
        installed.client(unit, "before")
        until(lambda: installed.state(unit) == "active")
    installed.remove(unit)
    if at_work:
        until(lambda: installed.show(unit, "NRestarts")["NRestarts"] == "1")
        until(lambda: installed.state(unit) == "active")
    installed.do("stop", f"{unit}.service")
    installed.do("restart", socket)
    installed.client(unit, "after all")
    until(lambda: installed.state(unit) == "active")
    until(lambda: "after all" in "\n".join(installed.log(unit)))


def test_a_file_takes_every_message_of_a_flood(installed):
    """Which journald, with a limit on the lines of all services of a user, does not."""
    unit = "ipc-posix-msq-server"
    path = installed.home / "messages.log"
    edit(installed, unit, f"StandardOutput=append:{path}")
    installed.do("start", unit)
    numbers = "".join(f"{n}\n" for n in range(50_000))
    assert installed.python("posix_msq_client", "--stdin", "-q", input=numbers).returncode == 0
    installed.do("stop", unit)
    lines = path.read_text().splitlines()
    path.unlink()
    assert [line.split()[1] for line in lines[1:-1]] == numbers.split()


@pytest.mark.parametrize(
    "unit", ["ipc-servers.target", "ipc-posix-msq-server.socket", *SERVICES, *SHORT]
)
def test_a_unit_can_be_enabled_again_after_disable(installed, unit):
    """disable removes the link to a unit in ~/.config/systemd/user: it is not installed there."""
    for _ in range(2):
        installed.do("enable", unit)
        wants = "sockets" if unit.endswith("socket") else "default"
        name = unit if "." in unit else f"{SHORT.get(unit, unit)}.service"
        assert name in installed.show(f"{wants}.target", "Wants")["Wants"].split()
        installed.do("disable", unit)
        assert name not in installed.show(f"{wants}.target", "Wants")["Wants"].split()
    assert installed.show(unit, "LoadState")["LoadState"] == "loaded"


def test_a_service_of_ones_own_program(installed):
    """The unit of the page, with the two programs of the guide, beside the units that are ours."""
    page = (ROOT / "systemd/README.md").read_text()
    unit = re.search(r"^```ini\n(\[Unit\]\n.*?)^```$", page, re.S | re.M)[1]
    mine, file = installed.checkout / "mine", installed.config / "jobs.service"
    shutil.copytree(installed.checkout / "scripts", mine)
    for program in programs():
        if program.path in ("mine/worker.py", "mine/ask.py"):
            (installed.checkout / program.path).write_text(program.text)
    file.write_text(unit.replace("%h/ipc", str(installed.checkout)))
    installed.do("daemon-reload")
    try:
        for _ in range(2):
            installed.do("start", "jobs")  # it returns when the queue is there
            asked = installed.run(".venv/bin/python", "mine/ask.py", "Makefile")
            assert asked.stdout == f"{{'bytes': {(ROOT / 'Makefile').stat().st_size}}}\n", asked
            installed.do("stop", "jobs")
            ended = installed.show("jobs", "Result", "ExecMainStatus", "Type")
            assert ended == {"Result": "success", "ExecMainStatus": "0", "Type": "notify"}
        assert "waiting for jobs" in installed.log("jobs")
    finally:
        installed.systemctl("stop", "jobs")
        installed.run("make", "posix-msq-clean", "NAME=/jobs")
        file.unlink()
        shutil.rmtree(mine)
        installed.do("daemon-reload")


def test_a_drop_in_of_the_users_has_the_last_word(installed):
    """Of all drop-ins the one whose name sorts last wins; a number is the usual beginning."""
    drop_in = installed.config / f"{SERVICES[0]}.service.d/10-memory.conf"
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nMemoryMax=1G\n")
    installed.do("daemon-reload")
    try:
        assert installed.show(SERVICES[0], "MemoryMax") == {"MemoryMax": str(2**30)}
    finally:
        shutil.rmtree(drop_in.parent)
        installed.do("daemon-reload")


def test_a_checkout_that_moves(installed):
    """To a folder that systemd takes for no program's. What was enabled is so from there."""
    before, after = installed.checkout, installed.checkout.parent / 'it\'s a "check\\out"'
    installed.do("enable", "ipc-servers.target", SERVICES[0])
    before.rename(after)
    installed.checkout = after
    try:
        assert installed.run("make", "systemd-install").returncode == 0
        installed.do("restart", "ipc-servers.target")
        for unit in SERVICES:
            cwd = installed.run("readlink", f"/proc/{installed.pid(unit)}/cwd", user=0)
            assert cwd.stdout == f"{after}\n"
        installed.do("disable", "ipc-servers.target", SERVICES[0])
        installed.do("stop", "ipc-servers.target")
    finally:
        after.rename(before)
        installed.checkout = before
        assert installed.run("make", "systemd-install").returncode == 0


def test_the_drop_in_is_for_our_units_alone(installed):
    other = installed.config / "ipc-of-somebody-else.service"
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_text("[Service]\nType=oneshot\nExecStart=/bin/false\n")
    installed.do("daemon-reload")
    try:
        shown = installed.show(other.name, "DropInPaths", "PrivateUsers")
        assert shown == {"DropInPaths": "", "PrivateUsers": "no"}
        # Nor does an uninstall touch it: it has failed, and stays so.
        installed.systemctl("start", other.name)
        assert installed.state(other.name) == "failed"
        assert installed.run("make", "systemd-uninstall").returncode == 0
        assert installed.state(other.name) == "failed"
    finally:
        other.unlink()


def tree(manager: Manager) -> list[tuple[str, str]]:
    return sorted(
        (str(path.relative_to(manager.home)), os.readlink(path) if path.is_symlink() else "")
        for path in manager.home.rglob("*")
        if path.is_symlink() or path.is_file() or path.name.startswith("ipc-")
    )


@pytest.mark.parametrize("target", ["systemd-install", "systemd-no-sandbox"])
def test_install_twice_changes_nothing_and_uninstall_leaves_nothing(manager, target):
    """From a home in which nothing is; CDPATH would lead `cd systemd` elsewhere."""
    manager.run("make", "systemd-uninstall")
    assert tree(manager) == []
    elsewhere = manager.home.parent / "elsewhere"
    (elsewhere / "systemd").mkdir(parents=True, exist_ok=True)
    cdpath = ["env", f"CDPATH={elsewhere}"]
    assert manager.run(*cdpath, "make", target).returncode == 0
    first = tree(manager)
    links = [(path, link) for path, link in first if link]
    both = 2 if target == "systemd-no-sandbox" else 1
    assert len(links) == len(SERVICES) + 2 + len(SHORT) + 2 * both
    for path, _ in links:
        assert (manager.home / path).exists(), "a link to nothing"
    # Once they had names that sorted after those of the user's.
    for folder in manager.units.glob("ipc-*-.service.d"):
        (folder / "common.conf").symlink_to(manager.checkout / "systemd/common.conf")
    assert manager.run(*cdpath, "make", target).returncode == 0
    assert tree(manager) == first
    manager.do("start", "ipc-servers.target")
    pids = [manager.pid(unit) for unit in SERVICES]
    assert all(pids)
    # One that has failed is forgotten too, and so is what was enabled.
    manager.do("enable", "ipc-servers.target", *SERVICES, "ipc-posix-msq-server.socket")
    settings(manager, "IPC_ARGS=--no-such-option\n")
    manager.systemctl("restart", SERVICES[0])
    (manager.home / ".config/ipc-servers.env").unlink()
    assert manager.state(SERVICES[0]) == "failed"
    manager.do("start", "ipc-posix-msq-server.socket")
    own = manager.units / "ipc-posix-.service.d/10-common.conf"  # the user's, and stays
    own.write_text("[Service]\n")
    done = manager.run("make", "systemd-uninstall")
    assert done.returncode == 0, done
    assert manager.show("ipc-posix-msq-server.socket", "ActiveState")["ActiveState"] == "inactive"
    own.unlink()
    own.parent.rmdir()
    assert tree(manager) == []
    for unit in SERVICES:
        shown = manager.show(unit, "LoadState", "ActiveState", "MainPID")
        assert shown == {"LoadState": "not-found", "ActiveState": "inactive", "MainPID": "0"}
    assert manager.run("make", "systemd-uninstall").returncode == 0
    manager.run("make", "clean")


@pytest.mark.parametrize("target", ["systemd-install", "systemd-no-sandbox", "systemd-uninstall"])
def test_without_a_user_manager(manager, target):
    done = manager.run("env", "-u", "XDG_RUNTIME_DIR", "make", target)
    assert done.returncode == 2  # of make; the recipe's is 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(lines) == 1
    assert lines[0].startswith("systemctl --user reaches no manager: log in as yourself")
    assert "make PAIR-server" in lines[0]
    assert "Error 1" in done.stderr


@another
@in_no_chroot
def test_without_user_namespaces():
    """The services fail with a status that the page names, and start without the sandbox."""
    with a_manager("no-sandbox", "chroot") as manager:
        assert manager.run("make", "systemd-install").returncode == 0
        unit = SERVICES[0]
        manager.systemctl("start", unit)
        status = manager.show(unit, "ExecMainStatus")["ExecMainStatus"]
        assert status in ("217", "218", "219", "226")
        assert re.search(rf"\b{status}\b", readme())
        manager.systemctl("stop", *SERVICES)
        manager.systemctl("reset-failed")
        assert manager.run("make", "systemd-no-sandbox").returncode == 0
        manager.do("start", "ipc-servers.target")
        # One may be on its way yet: on a busy machine it was "activating" once.
        until(lambda: [manager.state(unit) for unit in SERVICES] == ["active"] * 6, "all six")
        manager.client(unit, "a text")
        until(lambda: "a text" in "\n".join(manager.log(unit)))
        # What needs no namespace still holds.
        assert manager.show(unit, "MemoryMax", "NoNewPrivileges", "Type") == {
            "MemoryMax": str(128 * 2**20), "NoNewPrivileges": "yes", "Type": "notify",
        }  # fmt: skip
        assert manager.run("make", "systemd-uninstall").returncode == 0
        assert tree(manager) == []
