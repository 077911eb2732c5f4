"""The traps of scripts/README.md: its lines, wrong and right, run on objects of a test's own."""

import contextlib
import os
import random
import re
import subprocess
import sys
import textwrap

import posix_ipc
import pytest
import sysv_ipc
from conftest import ENV, Process, in_namespaces, needs, needs_shm, readme, until

README = readme()
IMPORTS = """\
import contextlib, fcntl, mmap, multiprocessing.shared_memory, os, posix_ipc, resource, signal
import sys, sysv_ipc, time
"""
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to be another user or in namespaces"
)


def lines(title: str, pair) -> tuple[str, str]:
    """The wrong and the right lines of a trap, with this test's name and key in them."""
    section = re.search(rf"(?ms)^### {re.escape(title)}\n(.*?)(?=^##)", README)[1]
    wrong, right = re.findall(r"(?s)```python\n(.*?)```", section)
    assert "# wrong" in wrong
    assert "# wrong" not in right
    return tuple(
        code.replace("200", str(pair.key))  # first, for the name may have a 200 in it
        .replace("/test", pair.name).replace('"test"', f'"{pair.name[1:]}"').replace("# wrong", "")
        for code in (wrong, right)
    )  # fmt: skip


def program(*code: str) -> list[str]:
    return [sys.executable, "-c", IMPORTS + "\n".join(code)]


def run(*code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        program(*code), capture_output=True, text=True, env=ENV, timeout=60, check=False
    )


def test_a_semaphore_that_is_reset(make_pair):
    pair = make_pair("sysv", "sem")
    wrong, right = lines("A client resets the semaphore", pair)
    for code, value in ((wrong, 2), (right, 5)):
        pair.remove()
        sysv_ipc.Semaphore(pair.key, sysv_ipc.IPC_CREX).release(delta=5)
        done = run(code, "print(sem.value)")
        assert (done.stdout, done.stderr) == (f"{value}\n", "")
    pair.remove()
    assert run(right, "print(sem.value)").stdout == "2\n"


@needs("strace")
@pytest.mark.parametrize("which", ["wrong", "right"])
def test_a_handler_that_loses_a_message(make_pair, which):
    """strace(1) holds the server up between mq_receive(3) and the next line."""
    pair = make_pair("posix", "msq")
    code = dict(zip(("wrong", "right"), lines("A handler loses a message", pair), strict=True))
    queue = posix_ipc.MessageQueue(pair.name, posix_ipc.O_CREX)
    start = f"queue = posix_ipc.MessageQueue({pair.name!r}); print(os.getpid(), flush=True)"
    inject = "inject=mq_timedreceive:delay_exit=700000"
    strace = ["strace", "-qq", "-o", "/dev/null", "-e", inject]
    with Process([*strace, *program(start, code[which])]) as server:
        until(lambda: server.out, "its pid")
        queue.send(b"one")
        until(lambda: queue.current_messages == 0, "the message is off the queue")
        subprocess.run(["kill", "-TERM", server.out[0]], check=True)
        server.wait()
        assert server.out[1:] == ([] if which == "wrong" else ["b'one'"])


def test_a_semaphore_that_nobody_gives_back(make_pair):
    posix, sysv = make_pair("posix", "sem"), make_pair("sysv", "sem")
    title = "Nobody gives the semaphore back"
    wrong, right = lines(title, posix)[0], lines(title, sysv)[1]
    sem = posix_ipc.Semaphore(posix.name, posix_ipc.O_CREX, initial_value=1)
    twin = sysv_ipc.Semaphore(sysv.key, sysv_ipc.IPC_CREX)
    twin.release()
    work = "def work():\n    print('at work', flush=True)\n    time.sleep(60)"
    for code, one in ((wrong, sem), (right, twin)):
        with Process(program(work, code)) as holder:
            holder.wait_line("at work")
            assert one.value == 0
            holder.popen.kill()
            holder.wait()
    until(lambda: twin.value == 1, "System V gives it back")
    assert sem.value == 0


def test_a_reader_that_sees_half_a_write(make_pair):
    pair = make_pair("posix", "shm")
    needs_shm(24)
    size = 2**22
    opening = f"""
        shm = posix_ipc.SharedMemory({pair.name!r})
        mapping = mmap.mmap(shm.fd, {size})
        """
    writer = """
        print("ready", flush=True)
        while True:
            for letter in (b"a", b"b"):
                text = letter * (len(mapping) - 1)
        """
    posix_ipc.SharedMemory(pair.name, posix_ipc.O_CREX, size=size)
    wrong, right = lines("A reader sees half a write", pair)
    read = "seen = set(mapping[:-1:4096])"
    lock, unlock = (f"fcntl.flock(shm.fd, fcntl.LOCK_{what})" for what in ("SH", "UN"))
    again = "while len(seen) < 2:"
    turns = "for _ in range(200):"
    for code, loop, readings, expected in (
        (wrong, again, [read], "2"),
        (right, turns, [lock, read, unlock, "assert len(seen) == 1"], "1"),
    ):
        write = textwrap.dedent(writer) + textwrap.indent(code, " " * 8)
        with Process(program(textwrap.dedent(opening), write)) as process:
            process.wait_line("ready")
            reader = "\n".join(["seen = set()", loop, *(f"    {line}" for line in readings)])
            done = run(textwrap.dedent(opening), reader, "print(len(seen))")
            assert (done.stdout, done.stderr) == (expected + "\n", "")


@as_root
def test_a_limit_reported_as_too_many_open_files(make_pair):
    pair = make_pair("posix", "msq")
    wrong, right = lines("Too many open files, and there are three", pair)
    wrong = wrong.replace("(65536, 65536)", "resource.getrlimit(resource.RLIMIT_NOFILE)")
    # As a user who has no other queues, for all of a user's count together.
    little = "resource.setrlimit(resource.RLIMIT_MSGQUEUE, (4096, 4096))\n"
    little += f"os.setuid({random.randrange(2**20, 2**30)})"
    done = run(little, wrong)
    assert "OSError: This process already has the maximum number of files open" in done.stderr
    assert run(little, right, "print(queue.max_messages)").stdout == "1\n"


@in_namespaces
def test_a_queue_without_its_window(make_pair):
    pair = make_pair("posix", "msq")
    posix_ipc.MessageQueue(pair.name, posix_ipc.O_CREX)
    inside = ["unshare", "--mount", "sh", "-c"]
    hide = 'if mountpoint -q /dev/mqueue; then umount /dev/mqueue; fi; exec "$@"'
    for code, found in zip(
        lines("`/dev/mqueue` is not mounted", pair), ("None", True), strict=True
    ):
        argv = program("queue = None", code, "print(queue and queue.name)")
        done = subprocess.run([*inside, hide, "sh", *argv], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"{pair.name if found is True else found}\n", "")
    pair.remove()
    assert run(code, "print(queue)").stdout == "None\n"


def test_an_unlinked_queue_lives_on(make_pair):
    pair = make_pair("posix", "msq")
    opening = f"queue = posix_ipc.MessageQueue({pair.name!r}, posix_ipc.O_CREAT)\nprint('ready')"
    wrong, right = lines("An unlinked object lives on", pair)
    with (
        Process([sys.executable, "-u", *program(opening, wrong)[1:]]) as waiting,
        Process([sys.executable, "-u", *program(opening, right)[1:]]) as watching,
    ):
        waiting.wait_line("ready")
        watching.wait_line("ready")
        posix_ipc.unlink_message_queue(pair.name)
        assert watching.wait() == 0
        # The name is free: a message to it goes to another queue.
        another = posix_ipc.MessageQueue(pair.name, posix_ipc.O_CREX, max_messages=1)
        another.send(b"to nobody")
        assert another.current_messages == 1
        assert waiting.popen.poll() is None


def test_a_resource_tracker_removes_what_others_use(make_pair):
    pair = make_pair("posix", "shm")
    wrong, right = lines("`multiprocessing` removes what others use", pair)
    for code, stays in ((right, True), (wrong, False)):
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.SharedMemory(pair.name, posix_ipc.O_CREX, size=4096)
        assert run(code).returncode == 0
        assert pair.path.exists() == stays


def test_one_key_for_two_files(make_pair, tmp_path):
    """On a tmpfs the numbers of inodes go up one by one, so the 16 bits soon come round."""
    wrong, right = lines("Two files, one key", make_pair("sysv", "msq"))
    folder = f"/dev/shm/test-ftok-{os.getpid()}"
    os.mkdir(folder)
    try:
        first, second = f"{folder}/first", f"{folder}/second"
        open(first, "w").close()
        wanted = os.stat(first).st_ino % 2**16
        for _ in range(2**20):
            open(second, "w").close()
            if os.stat(second).st_ino % 2**16 == wanted:
                break
            os.unlink(second)
        keys = []
        for path in (first, second):
            scope = {"sysv_ipc": sysv_ipc, "path": path}
            exec(wrong, scope)
            keys.append(scope["key"])
        assert keys[0] == keys[1]
        os.unlink(second)
        open(second, "w").close()
        exec(wrong, scope)
        assert scope["key"] != keys[1]
    finally:
        subprocess.run(["rm", "-r", folder], check=True)
    assert right.startswith("key = ")
