"""Places where a thing is often tried first, and that lack much. `make test-bare` goes to all.

    python tests/places.py [PLACE ...] -- [OPTION OF PYTEST ...]

Each is made by namespaces, on a machine that has everything: nothing of the machine is changed, and
what is left in the place when its tests have ended is an error.
"""

import contextlib
import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

# What docker and podman leave to root in a container.
CONTAINER = (
    "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,net_raw,"
    "sys_chroot,mknod,audit_write,setfcap"
)
# What a small image lacks, such as python:3-slim.
EXTRAS = (
    "strace gcc cc systemctl systemd-analyze /lib/systemd/systemd /lib/systemd/systemd-journald "
    "mosquitto mosquitto_pub mosquitto_sub redis-server redis-cli ip ss ps pgrep time"
)
UTIL_LINUX = "ipcs ipcmk ipcrm prlimit nohup unshare nsenter setpriv flock umount mountpoint mount"


class Place(NamedTuple):
    about: str
    hidden: str = ""  # programs that are not there
    capabilities: str = ""  # those that root has; none named: all
    shm: str = "64m"  # the size of /dev/shm, which is 64 MiB in a container
    sysctls: str = "rw"  # whether /proc/sys can be written
    # In a chroot nobody can make a user namespace (user_namespaces(7)), whatever the kernel allows.
    chroot: bool = False


PLACES = {
    "container": Place("a container as it comes", EXTRAS, CONTAINER, sysctls="ro", chroot=True),
    "writable": Place("a container whose /proc/sys can be written", EXTRAS, CONTAINER, chroot=True),
    "no-userns": Place("no user namespaces", chroot=True),
    "small-shm": Place("/dev/shm of 1 MiB", shm="1m"),
    "no-util-linux": Place("no util-linux, no nohup", UTIL_LINUX),
}


# Run when the tests have ended: no object, no process and no changed setting may be left.
SETTINGS = (
    "cat /proc/sys/fs/protected_* /proc/sys/kernel/sem /proc/sys/kernel/msg* /proc/sys/fs/mqueue/*"
)
LOOK = f"""\
sleep 1
left() {{ echo "left behind: $*" >&2; status=1; }}
for path in /dev/shm/* /dev/mqueue/*; do [ ! -e "$path" ] || left "$path"; done
for table in msg shm sem; do
    sed 1d /proc/sysvipc/$table >/tmp/.left.$$
    while read -r line; do left "$table $line"; done </tmp/.left.$$
done
rm -f /tmp/.left.$$
for path in /proc/[0-9]*; do
    read -r process <"$path/stat" 2>/dev/null || continue
    case $process in "1 "* | *") Z "*) ;; *) left "process $process" ;; esac
done
[ "$settings" = "$({SETTINGS})" ] || left 'a changed setting in /proc/sys'
exit $status
"""


def files(programs: str) -> list[str]:
    """Where these programs lie, under whatever names, in the same order."""
    found = [
        os.path.realpath(path)
        for program in programs.split()
        for folder in os.get_exec_path()
        if (path := shutil.which(program, path=folder))
    ]
    return list(dict.fromkeys(found))


def enter(name: str, command: list[str]) -> list[str]:
    """The command that runs another one in that place."""
    place = PLACES[name]
    script = [
        f"settings=$({SETTINGS})",
        f"mount -t tmpfs -o size={place.shm},mode=1777 tmpfs /dev/shm",
        "mkdir -p /dev/mqueue; mount -t mqueue mqueue /dev/mqueue",
        f"mount --bind /proc/sys /proc/sys; mount -o remount,bind,{place.sysctls} /proc/sys",
    ]
    if place.capabilities:
        bounding = "-all,+" + place.capabilities.replace(",", ",+")
        command = ["setpriv", "--inh-caps=-all", f"--bounding-set={bounding}", *command]
    # What is no regular file is no program to a shell.
    script += [f"mount --bind /dev/null {shlex.quote(path)}" for path in files(place.hidden)]
    if place.chroot:
        script.append("mount -t tmpfs tmpfs /mnt; mkdir /mnt/root; mount --rbind / /mnt/root")
        command = ["chroot", "/mnt/root", "env", "-C", os.getcwd(), "CHROOT=1", *command]
    script += [f"status=0; {shlex.join(command)} || status=$?", LOOK]
    flags = "--mount --ipc --pid --fork --mount-proc --kill-child"
    return ["unshare", *flags.split(), "sh", "-ec", "\n".join(script)]


def main() -> None:
    dashes = sys.argv.index("--")
    names = sys.argv[1:dashes] or list(PLACES)
    options = sys.argv[dashes + 1 :]
    if os.geteuid() != 0:
        sys.exit("make test-bare: only root can make these places (sudo make test-bare)")
    for name in names:
        if name not in PLACES:
            sys.exit(f"make test-bare: PLACE={name} is none of {', '.join(PLACES)}")
    # The kernel counts a user's queues over the whole machine, so that other places have a part.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (resource.RLIM_INFINITY,) * 2)
    environment = {key: value for key, value in os.environ.items() if key != "CI"}  # may skip
    tests = [sys.executable, "-m", "pytest", "-q", "-n", "4", "--dist", "loadgroup", "tests"]
    failed = []
    for name in names:
        print(f"==== {name}: {PLACES[name].about}", flush=True)
        start = time.monotonic()
        command = enter(name, [*tests, *options])
        if subprocess.run(command, cwd=ROOT, env=environment).returncode != 0:
            failed.append(name)
        print(f"==== {name}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"make test-bare: failed in {', '.join(failed)}")


if __name__ == "__main__":
    main()
