"""The kernel's limits: each gives one line that names the cure. Root sets them in namespaces."""

import json
import shlex
import subprocess
import sys

import pytest
from conftest import ENV, SCRIPTS, Pair, in_namespaces, needs, readme


def refused(done: subprocess.CompletedProcess[str], pair: Pair, side: str, *words: str) -> None:
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"{pair.script(side)}: {pair.thing}: ")
    for word in words:
        assert word in done.stderr, done.stderr
    # A reader who searches the README for the line finds it.
    reason = done.stderr.partition(f"{pair.thing}: ")[2].strip().replace(pair.thing, "200")
    ends = ("`", " ``", "\n")  # of code, of code that ends with a ` itself, of a console
    assert any(f": {reason}{end}" in readme() for end in ends), reason


def within(flags: str, *script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in namespaces of its own, where the limits can be set."""
    return subprocess.run(
        ["unshare", *flags.split(), "sh", "-ec", "\n".join(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENV,
        stdin=subprocess.DEVNULL,
    )


def command(pair: Pair, side: str, *args: object) -> str:
    return shlex.join(pair.argv(side, *args))


@needs("prlimit")
@pytest.mark.parametrize("side", ["server", "client"])
def test_rlimit_msgqueue(make_pair, side):
    pair = make_pair("posix", "msq")
    done = subprocess.run(
        ["prlimit", "--msgqueue=1000", *pair.argv(side)], capture_output=True, text=True, env=ENV,
        timeout=20,
    )  # fmt: skip
    refused(done, pair, side, "RLIMIT_MSGQUEUE", "files open")


def test_msg_max(make_pair):
    pair = make_pair("posix", "msq")
    refused(
        pair.run("server", "--max-messages", 100_000),
        pair, "server", "fs.mqueue.msg_max", "Invalid",
    )  # fmt: skip
    refused(
        pair.run("server", "--max-message-size", 2**30), pair, "server", "fs.mqueue.msgsize_max"
    )
    assert pair.run("server", "--clean").stdout.startswith("nothing")


@in_namespaces
@needs("setpriv")
def test_a_lowered_msg_max(make_pair):
    """CAP_SYS_RESOURCE would let the client make its queue all the same."""
    pair = make_pair("posix", "msq")
    done = within(
        "--ipc",
        "echo 5 > /proc/sys/fs/mqueue/msg_max",
        "exec setpriv --bounding-set -sys_resource " + command(pair, "client"),
    )
    refused(done, pair, "client", "fs.mqueue.msg_max", "Invalid")


@in_namespaces
@pytest.mark.parametrize("primitive", ["shm", "sem"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_no_dev_shm(make_pair, primitive, side):
    pair = make_pair("posix", primitive)
    done = within("--mount", "mount -t tmpfs tmpfs /dev", "exec " + command(pair, side))
    if primitive == "shm":
        refused(done, pair, side, "No such file or directory: removed, or no /dev/shm")
    else:
        refused(done, pair, side, "exists with the specified name")
        assert {"server": "is /dev/shm there?", "client": "`ls /dev/shm`"}[side] in done.stderr


@in_namespaces
@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("primitive", ["shm", "sem"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_no_proc(make_pair, primitive, side, there):
    """The POSIX scripts need it, to make a segment and to know their semaphore: they say so."""
    pair = make_pair("posix", primitive)
    if there:
        assert pair.run("client", stdin="text\n").returncode == 0
    options = ["--count", 1] if (primitive, side) == ("shm", "server") else []
    done = within("--mount", "mount -t tmpfs tmpfs /proc", "exec " + command(pair, side, *options))
    if there and primitive == "shm":  # what is there is opened without
        assert (done.returncode, done.stderr) == (0, ""), done
    else:
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
        assert "No such file or directory" in done.stderr
        assert ("or there is no /proc" in done.stderr) == ((primitive, side) == ("sem", "server"))


@in_namespaces
def test_queues_max(make_pair):
    """It does not hold for those who have CAP_SYS_RESOURCE, so the test gives that up."""
    pair = make_pair("posix", "msq")
    for side in ("server", "client"):
        done = within(
            "--ipc",
            "echo 0 > /proc/sys/fs/mqueue/queues_max",
            f"setpriv --bounding-set -sys_resource {command(pair, side)}",
        )
        refused(done, pair, side, "fs.mqueue.queues_max")


@in_namespaces
def test_msgmni(make_pair):
    pair = make_pair("sysv", "msq")
    for side in ("server", "client"):
        done = within("--ipc", "echo 0 > /proc/sys/kernel/msgmni", command(pair, side))
        refused(done, pair, side, "kernel.msgmni")


@in_namespaces
def test_msgmnb(make_pair):
    pair = make_pair("sysv", "msq")
    client = command(pair, "client", "-i0", "-q", "--no-wait")
    done = within("--ipc", "echo 40 > /proc/sys/kernel/msgmnb", client)
    refused(done, pair, "client", "queue is full", "kernel.msgmnb")
    line = shlex.quote(json.dumps("x" * 100))
    done = within(
        "--ipc", "echo 40 > /proc/sys/kernel/msgmnb",
        f"echo {line} | {command(pair, 'client', '--stdin', '-q')}",
    )  # fmt: skip
    refused(done, pair, "client", "kernel.msgmnb", "102 bytes")


def test_msgmax(make_pair):
    pair = make_pair("sysv", "msq")
    done = pair.client("--stdin", stdin=json.dumps("x" * 8192) + "\n")
    refused(done, pair, "client", "kernel.msgmax")


@in_namespaces
def test_a_raised_msgmax(make_pair):
    """A message of a size that the package would leave in the queue for good."""
    pair = make_pair("sysv", "msq")
    done = within(
        "--ipc",
        "echo 100000 > /proc/sys/kernel/msgmax; echo 200000 > /proc/sys/kernel/msgmnb",
        "(printf '\"'; head -c 90000 /dev/zero | tr '\\0' x; printf '\"') | "
        + command(pair, "client", "--stdin", "-q"),
        f"{command(pair, 'server', '-c1', '--json')} | wc -c",
    )
    assert (done.returncode, done.stdout.strip()) == (0, "90003")


@in_namespaces
@pytest.mark.parametrize("side", ["server", "client"])
def test_shmall_and_shmmni(make_pair, side):
    pair = make_pair("sysv", "shm")
    done = within(
        "--ipc", "echo 10 > /proc/sys/kernel/shmall", command(pair, side, "--size", 10**6)
    )
    refused(done, pair, side, "shmall")
    done = within("--ipc", "echo 0 > /proc/sys/kernel/shmmni", command(pair, side))
    refused(done, pair, side, "kernel.shmmni")


@in_namespaces
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("limits", ["250 32000 32 0", "0 32000 32 128"])
def test_kernel_sem(make_pair, side, limits):
    pair = make_pair("sysv", "sem")
    done = within("--ipc", f"echo {limits} > /proc/sys/kernel/sem", command(pair, side))
    refused(done, pair, side, "kernel.sem")


@in_namespaces
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_segment_whose_lock_cannot_be_made_stays_attached_to_nobody(side):
    """A program that tries again would attach it once more each time."""
    program = (
        "import contextlib, sysv_ipc; from sysv_shm_{} import open_segment\n"
        "for _ in range(3):\n"
        "    with contextlib.suppress(OSError): open_segment(200)\n"
        "print(sysv_ipc.SharedMemory(200).number_attached)"
    )
    done = within(
        "--ipc",
        "echo 250 32000 32 0 > /proc/sys/kernel/sem",
        f"cd {shlex.quote(str(SCRIPTS))}",
        shlex.join([sys.executable, "-c", program.format(side)]),
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


@in_namespaces
@pytest.mark.parametrize("side", ["server", "client"])
def test_dev_shm_is_full(make_pair, side):
    pair = make_pair("posix", "shm")
    small = "mount -t tmpfs -o size=64k,mode=1777 tmpfs /dev/shm"
    done = within("--mount", small, command(pair, side, "--size", 10**6))
    refused(done, pair, side, "No space left", "`df`")
    sem = make_pair("posix", "sem")
    no_file = "mount -t tmpfs -o nr_inodes=1,mode=1777 tmpfs /dev/shm"
    done = within("--mount", no_file, command(sem, side))
    refused(done, sem, side, "No space left", *(["`df`, and `df -i`"] if side == "server" else []))
    # A segment that is there was reserved whole, so a full file system does not matter to it.
    done = within(
        "--mount", small,
        f"echo before | {command(pair, 'client', '--size', 8192)}",
        "head -c 100000 /dev/zero > /dev/shm/rest 2>/dev/null || true",
        f"echo after | {command(pair, 'client')}",
        command(pair, "server", "-c1"),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "after" in done.stdout
    # One that C made by ftruncate(2) has holes: the text that is there stays whole.
    done = within(
        "--mount", small,
        f"truncate -s 40000 /dev/shm{pair.name}",
        f"echo before | {command(pair, 'client')}",
        "head -c 100000 /dev/zero > /dev/shm/rest 2>/dev/null || true",
        f"head -c 30000 /dev/zero | tr '\\0' x | {command(pair, 'client')} || true",
        command(pair, "server", "-c1"),
    )  # fmt: skip
    assert "before" in done.stdout, done
    assert "No space left" in done.stderr


@in_namespaces
@needs("setpriv")
@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize(
    "lack", ["size=64k,mode=1777", "size=64k,nr_inodes=3,mode=1777", "uid=1500,mode=755"]
)
def test_a_semaphore_is_there_and_no_other_can_be_made(make_pair, side, lack):
    """To make one takes a file more in /dev/shm: no room, no inode, or no right to write there."""
    pair = make_pair("posix", "sem")
    weak = "exec setpriv --bounding-set -dac_override,-dac_read_search "  # root as anybody else
    done = within(
        "--mount", f"mount -t tmpfs -o {lack} tmpfs /dev/shm",
        command(pair, "client", "--value", 7),
        "head -c 100000 /dev/zero > /dev/shm/rest 2>/dev/null || true",
        weak + f"timeout -s INT 2 {command(pair, side)}",
    )  # fmt: skip
    assert f"semaphore: {6 if side == 'server' else 5}\n" in done.stdout, done
    other = within(
        "--mount", f"mount -t tmpfs -o {lack} tmpfs /dev/shm",
        "head -c 100000 /dev/zero > /dev/shm/rest 2>/dev/null || true; touch /dev/shm/b || true",
        weak + command(pair, side),
    )  # fmt: skip
    assert other.returncode == 1, "there was room all the same"


def test_the_maximum_of_a_semaphore(make_pair):
    pair = make_pair("sysv", "sem")
    pair.client()
    refused(pair.client("-r", "--by", 32767), pair, "client", "SEMVMX", "32767")
    assert pair.run("server", "--value", 32768).returncode == 2


@in_namespaces
@pytest.mark.parametrize("side", ["server", "client"])
def test_shmmax(make_pair, side):
    """Nothing is left of it, not even the lock."""
    pair = make_pair("sysv", "shm")
    done = within(
        "--ipc", "echo 10000 > /proc/sys/kernel/shmmax",
        f"{command(pair, side, '--size', 10001)} || status=$?",
        "sed -s 1d /proc/sysvipc/shm /proc/sysvipc/sem; exit $status",
    )  # fmt: skip
    assert done.stdout == ""
    refused(done, pair, side, "kernel.shmmax")


@in_namespaces
@pytest.mark.parametrize("side", ["server", "client"])
def test_what_has_no_room_is_left_to_its_maker(make_pair, side):
    """An empty segment is somebody's who is about to size it: it is not removed."""
    pair = make_pair("posix", "shm")
    small = "mount -t tmpfs -o size=64k,mode=1777 tmpfs /dev/shm"
    done = within(
        "--mount", small, f"touch /dev/shm{pair.name}",
        f"{command(pair, side, '--size', 10**6)} 2>/dev/null && exit 9",
        f"test -e /dev/shm{pair.name}",
        f"echo text | {command(pair, 'client', '--size', 5000)}",
        command(pair, "server", "-c1"), f"stat -c %s /dev/shm{pair.name}",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2].endswith(" text")
    assert done.stdout.splitlines()[-1] == "5000"


@in_namespaces
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_message_over_16_mib(make_pair, when):
    """It lies there before the server starts, or comes while the server waits."""
    pair = make_pair("sysv", "msq")
    server = command(pair, "server", "-c1", "--json")
    client = "printf '\"%017000000d\"' 0 | " + command(pair, "client", "--stdin", "-q")
    made = "until [ $(wc -l < /proc/sysvipc/msg) -gt 1 ]; do sleep 0.01; done"  # by the server
    done = within(
        "--ipc",
        "echo 20000000 | tee /proc/sys/kernel/msgmax > /proc/sys/kernel/msgmnb",
        f"{client}; {server}" if when == "before" else f"({made}; {client}) & {server}",
    )
    assert (done.returncode, len(done.stdout)) == (0, 17000003)
    assert done.stderr == pair.start_line + "\n" + pair.end_line + "\n"


@in_namespaces
def test_a_queue_whose_size_was_lowered_under_a_long_message(make_pair):
    """msg_qbytes less than what is in the queue: the server takes it nevertheless."""
    pair = make_pair("sysv", "msq")
    change = "import sys, sysv_ipc; sysv_ipc.MessageQueue(int(sys.argv[1])).max_size = 10"
    done = within(
        "--ipc",
        f"""printf '"%0500d"' 0 | {command(pair, "client", "--stdin", "-q")}""",
        shlex.join([sys.executable, "-c", change, str(pair.key)]),
        command(pair, "server", "-c1", "--json"),
    )
    assert (done.returncode, done.stdout) == (0, f'"{0:0500d}"\n')
