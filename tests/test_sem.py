"""The semaphore pairs: take, give back, wait, time out, hold for a command."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import posix_ipc
import pytest
import sysv_ipc
from conftest import APIS, ENV, SCRIPTS, Pair, Process, needs, state, until, waits_in, with_glibc


def value(pair: Pair) -> int:
    with pair.opened() as semaphore:
        return semaphore.value


def waiting(pid: int) -> bool:
    return waits_in(pid, "semop", "semtimedop", "futex")


def test_the_server_prints_changes(sem):
    with sem.server("-i0.02") as server:
        server.wait_line("semaphore: 2")
        assert sem.client().stdout == "semaphore: 1\n"
        server.wait_line("semaphore: 1")
        assert sem.client().stdout == "semaphore: 0\n"
        server.wait_line("semaphore: 0")
        assert sem.client("-r").stdout == "semaphore: 1\n"
        until(lambda: server.texts[-1] == "semaphore: 1")
        assert sem.client("--release").stdout == "semaphore: 2\n"
        until(lambda: server.texts[-1] == "semaphore: 2")
        server.stop()
    assert server.texts == [
        sem.start_line,
        *(f"semaphore: {n}" for n in (2, 1, 0, 1, 2)),
        sem.end_line,
    ]


@pytest.mark.parametrize("number", [0, 1, 7, 32767])
def test_the_value_of_a_new_one(sem, number):
    with sem.server("--value", number) as server:
        server.wait_line(f"semaphore: {number}")
        server.stop()
    assert server.out[0] == f"start semaphore server: {sem.thing} size: {number}"
    with sem.server() as server:  # opening it again does not reset it
        server.wait_line(f"semaphore: {number}")


@pytest.mark.parametrize("options", [[], ["-t0"], ["-t0.3"]])
def test_a_busy_semaphore(sem, options):
    sem.client()
    sem.client()
    done = sem.client(*options)
    assert done.stderr == f"{sem.script('client')}: {sem.thing}: Semaphore is busy\n"
    assert (done.returncode, done.stdout) == (1, "")
    assert value(sem) == 0


@pytest.mark.parametrize("options", [["-w"], ["-t60"]])
def test_a_wait_ends_when_one_is_given_back(sem, options):
    sem.client()
    sem.client()
    with sem.start("client", *options) as client:
        until(lambda: waiting(client.pid))
        sem.client("-r")
        assert client.wait() == 0
    assert client.out == ["semaphore: 0"]


def test_a_wait_survives_stop_and_continue(sem):
    """Ctrl-Z and fg: semop(2) fails with EINTR then, even without a handler (signal(7))."""
    sem.client()
    sem.client()
    with sem.start("client", "-w") as client:
        until(lambda: waiting(client.pid))
        client.popen.send_signal(signal.SIGSTOP)
        until(lambda: state(client.pid) == "T")
        client.popen.send_signal(signal.SIGCONT)
        until(lambda: waiting(client.pid))
        sem.client("-r")
        assert client.wait() == 0
    assert client.err == []


def test_release_never_creates(sem):
    done = sem.client("-r")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{sem.script('client')}: {sem.thing}: No semaphore exists")
    assert len(done.stderr.splitlines()) == 1
    assert sem.run("server", "--clean").stdout.startswith("nothing")


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_a_command_is_run_and_its_status_returned(sem, status):
    done = sem.client("--", "sh", "-c", f"echo out; echo err >&2; exit {status}")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", status)
    assert value(sem) == 2


def test_a_command_gets_its_arguments_as_they_stand(sem):
    done = sem.client("--", "printf", "%s|", "-r", "--", "-n", "x y")
    assert done.stdout == "-r|--|-n|x y|"


def test_the_command_is_run_while_one_is_held(sem):
    other = shlex.join(sem.argv("client"))
    done = sem.client("--", "sh", "-c", other)
    assert done.stdout == "semaphore: 0\n"
    assert value(sem) == 1


def test_a_command_that_does_not_exist(sem):
    done = sem.client("--", "no-such-command")
    assert done.stderr == f"{sem.script('client')}: no-such-command: No such file or directory\n"
    done = sem.client("--", "/dev")  # which nobody may run, root too
    assert done.stderr == f"{sem.script('client')}: /dev: Permission denied\n"
    assert done.returncode == 1
    assert value(sem) == 2


def test_a_command_when_it_is_busy(sem):
    sem.client()
    sem.client()
    done = sem.client("--", "echo", "ran")
    assert (done.returncode, done.stdout) == (1, "")


# Which process the client is, to its command: the System V one has become the command.
CLIENT = {"posix": "$PPID", "sysv": "$$"}
HELD_UP = ["strace", "-qq", "-o", "/dev/null", "-e"]
HELD_UP.append("inject=vfork,fork,clone,clone3:delay_exit=300000")


@pytest.mark.parametrize("held_up", [False, pytest.param(True, marks=needs("strace"))])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_to_the_command(sem, number, held_up):
    """Held up by strace(1), it comes when the command runs and the client does not know yet."""
    argv = sem.argv("client", "--", "sh", "-c", f"echo {CLIENT[sem.api]}; exec sleep 60")
    with Process([*HELD_UP * held_up, *argv]) as client:
        until(lambda: client.out, "its pid")
        os.kill(int(client.out[0]), number)
        assert client.wait() in (-number, 128 + number)
    assert value(sem) == 2


def test_a_command_may_take_its_time_after_sigterm(sem):
    script = "trap 'echo cleaned; exit 5' TERM; echo started; while :; do sleep 0.05; done"
    with sem.start("client", "--", "sh", "-c", script) as client:
        client.wait_line("started")
        assert client.stop() == 5
    assert client.out == ["started", "cleaned"]
    assert value(sem) == 2


@needs("nohup")
def test_nohup_is_respected(sem):
    script = f"echo started; kill -HUP {CLIENT[sem.api]}; sleep 0.2; echo still here"
    done = subprocess.run(
        ["nohup", *sem.argv("client", "--", "sh", "-c", script)],
        env=ENV,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stdout == "started\nstill here\n"
    assert done.returncode == 0


def test_signals_at_random_moments_never_leave_it_taken(sem):
    """From before the start of the command to after its end: it comes back, or was not taken."""
    with sem.server():
        for n in range(40):
            with sem.start("client", "--", "true") as client:
                time.sleep(n * 0.003)  # the moment is what the test varies
                assert client.stop() in (0, 143, -15)
        assert value(sem) == 2


@pytest.mark.parametrize("held_up", [False, pytest.param(True, marks=needs("strace"))])
def test_ctrl_c_at_a_terminal_reaches_the_command_once(sem, held_up):
    """Held up by strace(1), it comes when the command runs and the client does not know yet."""
    command = "trap 'echo got one' INT; echo ready; sleep 1; sleep 1; exit 3"
    argv = [*HELD_UP * held_up, *sem.argv("client", "--", "sh", "-c", command)]
    child = pexpect.spawn(argv[0], argv[1:], env=ENV, encoding="utf-8", timeout=20)
    child.expect_exact("ready")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.before.count("got one") == 1
    assert child.exitstatus == 3
    assert value(sem) == 2


def test_the_umask_of_the_command_is_the_callers(sem):
    assert sem.client("--", "sh", "-c", "umask", umask=0o027).stdout == "0027\n"


def test_at_most_two_at_once(sem):
    """A limit on how many run at once: 8 clients, each counts itself while it holds one."""
    directory = f"/tmp/test-holders-{os.getpid()}-{sem.key}"
    os.mkdir(directory)
    try:
        script = f"touch {directory}/$$; ls {directory} | wc -l; sleep 0.05; rm {directory}/$$"
        clients = [
            subprocess.Popen(
                sem.argv("client", "-w", "--", "sh", "-c", script),
                stdout=subprocess.PIPE,
                text=True,
                env=ENV,
            )
            for _ in range(8)
        ]
        counts = [int(client.communicate(timeout=60)[0]) for client in clients]
        assert max(counts) <= 2
        assert [client.returncode for client in clients] == [0] * 8
        assert value(sem) == 2
    finally:
        os.rmdir(directory)


@pytest.fixture
def sysv(make_pair) -> Pair:
    return make_pair("sysv", "sem")


def test_by(sysv):
    assert sysv.client("--by", 2).stdout == "semaphore: 0\n"
    assert sysv.client("-r", "--by", 5).stdout == "semaphore: 5\n"
    assert sysv.client("--by", 6).returncode == 1
    assert value(sysv) == 5
    done = sysv.client("--by", 3, "--", *sysv.argv("client", "-r"))
    assert done.stdout == "semaphore: 3\n"
    assert value(sysv) == 6
    assert sysv.client("--by", 0).returncode == 2


def test_zero(sysv):
    done = sysv.client("--zero")
    assert done.stderr == f"sysv_sem_client: {sysv.key}: Semaphore is busy\n"
    with sysv.start("client", "--zero", "-w") as client:
        until(lambda: waiting(client.pid))
        sysv.client("--by", 2)
        assert client.wait() == 0
    assert client.out == ["semaphore: 0"]
    assert value(sysv) == 0


def test_undo(sysv):
    assert sysv.client("--undo").stdout == "semaphore: 1\n"
    assert value(sysv) == 2
    assert sysv.client("-r", "--undo").stdout == "semaphore: 3\n"
    assert value(sysv) == 2


def test_a_value_over_the_maximum(sysv):
    sysv.client()
    done = sysv.client("-r", "--by", "32767")
    assert done.returncode == 1
    assert "SEMVMX" in done.stderr and len(done.stderr.splitlines()) == 1
    assert value(sysv) == 1


def test_a_posix_value_over_the_maximum(make_pair):
    pair = make_pair("posix", "sem")
    with pair.server("--value", 2**31 - 1):
        done = pair.client("-r")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "page", [f"{api}_sem_{side}" for api in APIS for side in ("server", "client")]
)
@pytest.mark.parametrize("number", [-1, 2**15, 2**31, 2**32 + 5, 2**40])
def test_no_semaphore_is_made_for_a_value_that_it_cannot_have(make_pair, page, number):
    """It would have another value than was asked for (POSIX), or none, for good (System V)."""
    api = page.partition("_")[0]
    if (api, number) == ("posix", 2**15):
        number = 2**31 + 1  # a POSIX semaphore has room for the other
    sem = make_pair(api, "sem")
    thing = sem.name if api == "posix" else sem.key
    code = (
        f"import {page} as script\n"
        f"try: script.open_semaphore({thing!r}, value={number})\n"
        f"except ValueError as error: print(error)\n"
    )
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    said = "Invalid parameter(s)" if page == "posix_sem_client" else f"the value {number} is not "
    assert (done.stdout.startswith(said), done.stderr) == (True, ""), done
    with pytest.raises((posix_ipc.ExistentialError, sysv_ipc.ExistentialError)):
        posix_ipc.Semaphore(thing) if api == "posix" else sysv_ipc.Semaphore(thing)


@with_glibc
def test_a_posix_semaphore_that_a_held_command_truncates(make_pair):
    """To give it back would be to write where the file has ended: SIGBUS."""
    sem = make_pair("posix", "sem")
    done = sem.client("--", "sh", "-c", f": > {sem.path}; exit 7")
    assert (done.returncode, done.stderr) == (7, "")


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_semaphore_of_a_name_without_a_slash(make_pair, side):
    """As shm_open(3) and sem_open(3) take it, which drop any that it begins with."""
    sem = make_pair("posix", "sem")
    code = f"""
import posix_sem_{side} as script
for name in ({sem.name[1:]!r}, {"/" + sem.name!r}):
    semaphore = script.open_semaphore(name, 0o640, 5)
    script.check(semaphore)
    print(semaphore.value)
"""
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("5\n5\n", "")
    assert sem.path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_symbolic_link_is_not_the_semaphore(make_pair, side):
    """sem_open(3) does not follow one, so that nobody else finds it there."""
    pair = make_pair("posix", "sem")
    argv = pair.argv(side, *(["-w"] if side == "client" else []), "--value", 0)
    with Process(argv) as process:
        until(pair.path.exists)
        until(lambda: waits_in(process.pid, "futex", "clock_nanosleep"))
        moved = pair.path.with_name(f"{pair.path.name}-moved")
        pair.path.rename(moved)
        try:
            pair.path.symlink_to(moved)
            assert process.wait(5) == 1
        finally:
            moved.unlink()
    assert "the semaphore was removed" in process.err[-1]


def test_the_server_says_that_it_was_removed(sem):
    with sem.server("-i60") as server:
        server.wait_line("semaphore: 2")
        sem.remove()
        assert server.wait(5) == 1
    assert server.err[0].startswith(f"{sem.script('server')}: {sem.thing}: ")
    assert "removed" in server.err[0] or "No semaphore exists" in server.err[0]


def test_a_holder_outlives_the_removal(sem):
    done = sem.client("--", "sh", "-c", f"{shlex.join(sem.argv('server', '--clean'))}; exit 6")
    assert done.returncode == 6
    assert done.stderr == ""


@pytest.mark.parametrize("size", [0, 1, 100])
def test_a_posix_semaphore_that_somebody_truncated(make_pair, size):
    pair = make_pair("posix", "sem")
    with pair.server("-i0.02") as server:
        server.wait_line("semaphore: 2")
        os.truncate(pair.path, size)
        assert server.wait(5) == 1
    words = {"server": "is not a semaphore", "client": "removed, or its file truncated"}
    assert len(server.err) == 1
    assert server.err[0].endswith(words["client"])
    if size == 0:
        for side in ("server", "client"):
            done = pair.run(side)
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert words[side] in done.stderr


def test_a_client_that_waits_for_a_semaphore_that_is_removed(sem):
    with sem.server("--value", "0") as server:
        server.wait_line("semaphore: 0")
    with sem.start("client", "-w") as client:
        until(lambda: waiting(client.pid))
        sem.remove()
        assert client.wait(5) == 1
    assert len(client.err) == 1
    assert "the semaphore was removed" in client.err[0]


def test_without_a_limit_it_waits_for_longer_than_any_step(sem):
    sem.client("--value", 0)
    began = time.monotonic()
    with sem.start("client", "-w") as client:
        until(lambda: waiting(client.pid))
        until(lambda: time.monotonic() > began + 2)
        assert client.popen.poll() is None
        sem.client("-r")
        assert client.wait() == 0


def test_a_time_limit_survives_stop_and_continue(sem):
    sem.client()
    sem.client()
    with sem.start("client", "-t60") as client:
        until(lambda: waiting(client.pid))
        client.popen.send_signal(signal.SIGSTOP)
        until(lambda: state(client.pid) == "T")
        client.popen.send_signal(signal.SIGCONT)
        until(lambda: waiting(client.pid))
        sem.client("-r")
        assert client.wait() == 0
    assert (client.out, client.err) == (["semaphore: 0"], [])


def test_a_time_limit_that_was_not_needed_ends_nothing(sem):
    """No alarm is left to the command, which the System V client becomes."""
    done = sem.client("-t", "0.2", "--", "sleep", "0.6")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_makes_it_with_the_value_that_is_given(sem):
    assert sem.client("--value", "5").stdout == "semaphore: 4\n"
    done = sem.client("--value", "7")
    assert done.stdout == "semaphore: 3\n"
    assert done.stderr == f"{sem.script('client')}: {sem.thing}: --value is now 4, not 7\n"


def test_a_client_makes_it_with_the_value_0(sem):
    done = sem.client("--value", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{sem.script('client')}: {sem.thing}: Semaphore is busy\n"
    assert value(sem) == 0


def test_the_start_line_shows_the_value_that_it_has(sem):
    sem.client()
    with sem.server() as server:
        server.wait_line("semaphore: 1")
    assert server.out[0] == f"start semaphore server: {sem.thing} size: 1"


def test_the_kernel_gives_back_what_a_command_held_that_was_killed(sysv):
    """The client has become the command, so there is one process to kill."""
    with sysv.start("client", "--", "sleep", "60") as client:
        until(lambda: sysv.exists() and value(sysv) == 1)
        until(lambda: Path(f"/proc/{client.pid}/comm").read_text() == "sleep\n")
        client.stop(signal.SIGKILL)
    assert value(sysv) == 2


def test_a_command_starts_as_its_caller_would_have_started_it(sem):
    """No signal ignored or blocked, no timer, nothing open but the three descriptors."""
    # But for the signals 32 and 33, which glibc keeps for itself and posix_spawn(3) ignores.
    show = "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -l"
    done = sem.client("--", "sh", "-c", show)
    blocked, ignored, descriptors = done.stdout.split("\n", 2)
    assert int(blocked.split()[1], 16) == 0
    # posix_spawn(3) of glibc ignores 32 and 33, which it keeps for itself.
    assert int(ignored.split()[1], 16) & ~(3 << 31) == 0
    assert descriptors == "4\n"  # three, and the folder that ls(1) looks at
    done = sem.client("--", "sh", "-c", "echo $WHERE", env={**ENV, "WHERE": "of the caller"})
    assert done.stdout == "of the caller\n"
    done = sem.client("--", "sleep", "2")  # longer than any time limit inside
    assert (done.returncode, done.stderr) == (0, "")
