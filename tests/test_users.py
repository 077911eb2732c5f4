"""Other users: two uids and root. Modes keep out and let in; a squatter's object is refused."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sysv_ipc
from conftest import (
    ENV,
    PAIRS,
    SCRIPTS,
    Pair,
    Process,
    as_user,
    in_namespaces,
    needs,
    readme,
    state,
    until,
)

pytestmark = in_namespaces  # which needs the capabilities that let root become others

ALICE, BOB = 64501, 64502
PROTECTED = Path("/proc/sys/fs/protected_regular")


@contextlib.contextmanager
def protected_regular(value: str) -> Iterator[None]:
    """Set it for the whole machine: one test at a time, and put back whatever ends the test.

    A shell does it, which is a session of its own, when its standard input comes to an end.
    """
    program = """
        exec 9<"$1"; flock 9
        before=$(cat "$1"); echo "$2" >"$1"; echo set; cat; echo "$before" >"$1"
        """
    setter = subprocess.Popen(
        ["sh", "-c", program, "sh", PROTECTED, value],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    with setter:
        assert setter.stdout.readline() == b"set\n"
        yield


@pytest.fixture(scope="module")
def scripts() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="test-users-"))
    no_cache = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SCRIPTS, folder, ignore=no_cache, dirs_exist_ok=True)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def argv_of(scripts):
    def argv(pair: Pair, uid: int, side: str, *args: object) -> list[str]:
        return as_user(uid, pair.argv(side, *args), scripts)

    return argv


@pytest.fixture
def run_as(argv_of):
    def run(pair: Pair, uid: int, side: str, *args: object, stdin: str = "text\n"):
        return subprocess.run(
            argv_of(pair, uid, side, *args),
            input=stdin, capture_output=True, text=True, timeout=20, env=ENV, cwd="/",
        )  # fmt: skip

    return run


def once(pair: Pair) -> list[str]:
    return ["-c1"] if pair.primitive == "msq" else []


def test_mode_600_keeps_another_user_out(pair, run_as):
    assert run_as(pair, ALICE, "client", *once(pair)).returncode == 0
    for side in ("server", "client"):
        done = run_as(pair, BOB, side, *once(pair))
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "ermission" in done.stderr
        assert ("ls -l /dev/" if pair.api == "posix" else "`ipcs") in done.stderr
        shown = "/test" if pair.api == "posix" else "200"
        assert (
            done.stderr.strip().replace(pair.thing, shown).replace("server", "client") in readme()
        )
    done = run_as(pair, BOB, "server", "--clean")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert run_as(pair, ALICE, "server", "--clean").stdout == f"removed {pair.thing}\n"


def test_clean_removes_what_its_owner_may_not_open(pair, run_as):
    """To attach a System V segment is to read it, so it is removed by its id."""
    options = [] if pair.primitive == "sem" else ["-c0"]
    run_as(pair, ALICE, "server", "--mode", "000", *options)
    assert pair.exists()
    done = run_as(pair, ALICE, "server", "--clean")
    assert (done.returncode, done.stdout) == (0, f"removed {pair.thing}\n")
    assert not pair.exists()


@pytest.mark.parametrize("protected", ["0", "2"])
def test_mode_666_lets_another_user_in(pair, argv_of, run_as, protected):
    """Whatever fs.protected_regular says of O_CREAT in a sticky directory."""
    if not os.access(PROTECTED, os.W_OK):
        pytest.skip(f"needs {PROTECTED}, writable")
    with protected_regular(protected):
        options = [] if pair.primitive == "msq" else ["-i0.05"]
        argv = argv_of(pair, ALICE, "server", "--mode", "666", *options)
        with Process(argv, cwd="/") as server:
            server.wait_line("start")
            done = run_as(pair, BOB, "client", *once(pair))
            assert (done.returncode, done.stderr) == (0, "")
            shown = {"msq": "{'count': 1}", "shm": "text", "sem": "semaphore: 1"}
            server.wait_line(shown[pair.primitive])
            assert server.stop() == 0


def test_a_queue_that_others_may_only_send_to(make_pair, api, argv_of, run_as):
    pair = make_pair(api, "msq")
    with Process(argv_of(pair, ALICE, "server", "--mode", "622"), cwd="/") as server:
        server.wait_line("start")
        done = run_as(pair, BOB, "client", "-c1")
        assert (done.returncode, done.stderr) == (0, "")
        server.wait_line("{'count': 1}")


@pytest.mark.parametrize("victim", [0, BOB])
def test_a_squatted_name_is_refused(pair, argv_of, run_as, victim):
    """Another user made it first, and let everybody in: a server of ours must not use it."""
    with Process(argv_of(pair, ALICE, "server", "--mode", "666"), cwd="/") as squatter:
        squatter.wait_line("start")
        squatter.stop()
    done = run_as(pair, victim, "server")
    assert done.returncode == 1
    not_ours = f"not to uid {victim}" if pair.api == "posix" else f"made by uid {ALICE}"
    assert done.stderr == (
        f"{pair.script('server')}: {pair.thing}: belongs to uid {ALICE}, {not_ours}\n"
    )


@pytest.mark.parametrize("primitive", ["msq", "shm", "sem"])
def test_a_gift_is_refused_too(make_pair, primitive, run_as):
    """A creator who gives a System V object away (IPC_SET) can still remove and change it."""
    pair = make_pair("sysv", primitive)
    program = (
        "import os, sys, sysv_ipc; os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]));"
        f"thing = sysv_ipc.{pair.kind.__name__}(int(sys.argv[2]), sysv_ipc.IPC_CREX, mode=0o666);"
        "thing.release() if hasattr(thing, 'release') else None; thing.uid = int(sys.argv[3])"
    )
    argv = [sys.executable, "-c", program, str(ALICE), str(pair.key), str(BOB)]
    subprocess.run(argv, check=True, env=ENV, cwd="/")
    done = run_as(pair, BOB, "server")
    assert done.returncode == 1
    assert f"belongs to uid {BOB}, made by uid {ALICE}" in done.stderr


GIFTS = pytest.mark.parametrize("giver, owner", [(0, ALICE), (ALICE, BOB)], ids=["to", "by"])


def given(kind: str, giver: int, owner: int, key: int) -> None:
    """A System V object of mode 666 that has been given away by IPC_SET."""
    code = (
        "import os, sys, sysv_ipc; giver, owner, key = map(int, sys.argv[1:]); os.setuid(giver);"
        f"sysv_ipc.{kind}(key, sysv_ipc.IPC_CREX, mode=0o666).uid = owner"
    )
    argv = [sys.executable, "-c", code, str(giver), str(owner), str(key)]
    subprocess.run(argv, check=True, env=ENV, cwd="/")


@GIFTS
def test_a_segment_that_was_given_away_is_another_users(make_pair, run_as, giver, owner):
    """So is its lock: ours would keep its creator out, who keeps all rights to the segment."""
    pair = make_pair("sysv", "shm")
    given("SharedMemory", giver, owner, pair.key)
    done = run_as(pair, ALICE, "client", stdin="text\n")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    with pytest.raises(sysv_ipc.ExistentialError):
        sysv_ipc.Semaphore(~pair.key)


@GIFTS
def test_a_lock_that_was_given_away_is_another_users(make_pair, run_as, giver, owner):
    """Its creator can still remove it, so the segment is for him to make."""
    pair = make_pair("sysv", "shm")
    given("Semaphore", giver, owner, ~pair.key)
    done = run_as(pair, ALICE, "client", stdin="text\n")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert not pair.exists()


@pytest.mark.parametrize("pair_of", PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_the_mode_becomes_000_under_both(make_pair, pair_of, argv_of, run_as):
    """POSIX looks at the mode when an object is opened, System V at every call."""
    pair = make_pair(*pair_of)
    options = [] if pair.primitive == "msq" else ["-i0.05"]
    with Process(argv_of(pair, ALICE, "server", *options), cwd="/") as server:
        server.wait_line("start")
        change_mode(pair, 0)
        if pair.api == "sysv":
            assert server.wait(10) == 1
            assert len(server.err) == 1
            assert "ermission" in server.err[0]
        else:
            assert run_as(pair, ALICE, "client", *once(pair)).returncode == 1
            assert server.stop() == 0


def change_mode(pair: Pair, mode: int) -> None:
    if pair.api == "posix" and pair.primitive != "msq":
        pair.path.chmod(mode)
        return
    with pair.opened() as thing:
        if pair.api == "sysv":
            thing.mode = mode
        else:
            os.fchmod(thing.mqd, mode)


def test_the_owner_is_never_taken_from_a_client(pair, run_as):
    """A client uses what its mode lets it use, whoever the owner is: root does."""
    assert run_as(pair, ALICE, "client", *once(pair)).returncode == 0
    done = run_as(pair, 0, "client", *once(pair))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("mode", ["400", "600"])
def test_an_ordinary_user_starts_a_server_twice(pair, mode, argv_of):
    """With mode 400 too, which lets the owner read and no more: that is all that a server does."""
    if (pair.api, pair.primitive) == ("posix", "sem"):
        mode = "600"  # for sem_open(3) opens it for writing too
    for _ in range(2):
        with Process(argv_of(pair, ALICE, "server", "--mode", mode), cwd="/") as server:
            server.wait_line("start")
            assert server.stop() == 0
        assert server.err == []


@pytest.mark.parametrize("side", ["server", "client"])
def test_who_was_not_let_in_leaves_nothing(make_pair, side, run_as):
    """A segment of Alice's that has no lock yet: Bob's script makes none that would be his."""
    pair = make_pair("sysv", "shm")
    program = (
        "import os, sys, sysv_ipc; os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]));"
        "sysv_ipc.SharedMemory(int(sys.argv[2]), sysv_ipc.IPC_CREX, mode=0o600, size=4096)"
    )
    argv = [sys.executable, "-c", program, str(ALICE), str(pair.key)]
    subprocess.run(argv, check=True, env=ENV, cwd="/")
    assert run_as(pair, BOB, side).returncode == 1
    assert not pair.lock.exists()
    assert run_as(pair, ALICE, "client").returncode == 0
    assert run_as(pair, ALICE, "server", "--clean").stdout == f"removed {pair.thing}\n"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666])
def test_another_users_lock(make_pair, mode, run_as):
    """Bob made it before: a server of Alice's that used it could be held up by him for ever."""
    pair = make_pair("sysv", "shm")
    program = (
        "import os, sys, sysv_ipc; os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]));"
        f"sysv_ipc.Semaphore(int(sys.argv[2]), sysv_ipc.IPC_CREX, mode={mode}).release()"
    )
    argv = [sys.executable, "-c", program, str(BOB), str(pair.lock.key)]
    subprocess.run(argv, check=True, env=ENV, cwd="/")
    done = run_as(pair, ALICE, "server", "-c1")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"sysv_shm_server: {pair.key}: ")
    assert ("ermission" if mode == 0o600 else f"belongs to uid {BOB}") in done.stderr


def test_a_client_that_is_root_leaves_another_users_lock_as_it_is(make_pair):
    pair = make_pair("sysv", "shm")
    sysv_ipc.SharedMemory(pair.key, sysv_ipc.IPC_CREX, 0o600, 4096)
    program = (
        f"import os, sysv_ipc; os.setgid({BOB}); os.setuid({BOB});"
        f"sysv_ipc.Semaphore({pair.lock.key}, sysv_ipc.IPC_CREX, mode=0o640).release()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENV, cwd="/")
    assert pair.client(stdin="text\n").returncode == 0
    lock = sysv_ipc.Semaphore(pair.lock.key)
    assert (lock.uid, lock.mode & 0o777, lock.value) == (BOB, 0o640, 1)


def test_a_segment_that_others_may_write_has_a_lock_that_they_may_take(make_pair, api, run_as):
    pair = make_pair(api, "shm")
    assert run_as(pair, ALICE, "server", "--mode", "666", "-c1").returncode == 0
    done = run_as(pair, BOB, "client", stdin="from Bob\n")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_as(pair, ALICE, "server", "-c1")
    assert done.stdout.splitlines()[1].endswith("from Bob")


@needs("setpriv")
def test_a_command_that_cannot_be_signalled_keeps_the_semaphore(make_pair):
    """It changed its user, as sudo(8) does; root without CAP_KILL stands for an ordinary user."""
    pair = make_pair("posix", "sem")
    command = ["setpriv", f"--reuid={ALICE}", "--clear-groups", "sh", "-c", "echo $$; sleep 2"]
    argv = ["setpriv", "--bounding-set=-kill", *pair.argv("client", "--", *command)]
    with Process(argv, cwd="/") as client, contextlib.ExitStack() as stack:
        until(lambda: client.out, "its pid")
        client.popen.send_signal(signal.SIGTERM)
        semaphore = stack.enter_context(pair.opened())
        while state(int(client.out[0])) not in "ZX":
            assert semaphore.value == 1
            time.sleep(0.02)
        client.wait()
        assert semaphore.value == 2
    assert client.err == []


@pytest.mark.parametrize("what", ["MessageQueue", "SharedMemory", "Semaphore", "lock"])
def test_what_root_gave_away_is_refused_too(make_pair, what):
    """Its owner may change its mode, remove it, and hold its lock, whoever made it."""
    primitive = {"MessageQueue": "msq", "Semaphore": "sem"}.get(what, "shm")
    pair = make_pair("sysv", primitive)
    kind, key = ("Semaphore", ~pair.key) if what == "lock" else (what, pair.key)
    program = (
        f"import sysv_ipc; thing = sysv_ipc.{kind}({key}, sysv_ipc.IPC_CREX, mode=0o600);"
        f"thing.release() if hasattr(thing, 'release') else None; thing.uid = {ALICE}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENV)
    done = pair.run("server", timeout=10)
    assert done.returncode == 1
    assert f"belongs to uid {ALICE}, made by uid 0" in done.stderr


@pytest.mark.parametrize("what", ["lock", "segment"])
def test_nothing_is_made_beside_what_is_refused(make_pair, what, run_as):
    """A lock that Alice made and gave to Bob; a segment of hers, which has no lock yet."""
    pair = make_pair("sysv", "shm")
    kind, key = ("Semaphore", ~pair.key) if what == "lock" else ("SharedMemory", pair.key)
    program = (
        f"import os, sysv_ipc; os.setuid({ALICE});"
        f"thing = sysv_ipc.{kind}({key}, sysv_ipc.IPC_CREX, mode=0o666);"
        f"{f'thing.release(); thing.uid = {BOB}' if what == 'lock' else ''}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENV, cwd="/")
    done = run_as(pair, BOB, "server")
    assert (done.returncode, f"made by uid {ALICE}" in done.stderr) == (1, True)
    assert not (pair if what == "lock" else pair.lock).exists()


def test_anothers_semaphore_without_a_value_is_refused_as_anothers(make_pair, run_as):
    """At once, and nobody is advised to remove what is not theirs."""
    pair = make_pair("sysv", "sem")
    program = (
        f"import os, sysv_ipc; os.setuid({ALICE});"
        f"sysv_ipc.Semaphore({pair.key}, sysv_ipc.IPC_CREX, mode=0o666)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=ENV, cwd="/")
    done = run_as(pair, BOB, "server")
    assert (done.returncode, f"belongs to uid {ALICE}" in done.stderr) == (1, True)


def test_anothers_fifo_that_may_be_read_only_keeps_no_server_waiting(make_pair, run_as):
    pair = make_pair("posix", "shm")
    os.mkfifo(pair.path)
    pair.path.chmod(0o644)
    done = run_as(pair, ALICE, "server")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


def test_another_user_takes_half_a_second_to_size_a_segment(make_pair):
    pair = make_pair("posix", "shm")
    pair.path.touch(0o666)
    os.chown(pair.path, ALICE, ALICE)
    with pair.start("client", stdin=subprocess.PIPE) as client:
        client.type("text\n")
        time.sleep(0.6)
        os.truncate(pair.path, 4096)
        client.stdin.close()
        assert client.wait() == 0
    assert client.err == []


def test_what_is_wrong_is_said_to_who_may_only_send(make_pair, argv_of, run_as):
    """Who may not read a queue is not told its limits: the reason is that of msgsnd(2)."""
    pair = make_pair("sysv", "msq")
    with pair.server("--mode", "622"):
        pass
    done = run_as(pair, ALICE, "client", "--stdin", "-q", stdin=f'"{"x" * 9000}"\n')
    assert (done.returncode, "kernel.msgmax" in done.stderr) == (1, True), done
    done = run_as(pair, ALICE, "client", "--no-wait", "-i0", "-c3000", "-q")
    assert (done.returncode, "queue is full" in done.stderr) == (1, True), done


@pytest.mark.parametrize("primitive", ["msq", "shm"])
def test_a_server_needs_no_option_for_what_it_may_only_read(make_pair, api, primitive, run_as):
    """An ordinary user's object of mode 400: root may write to it all the same."""
    pair = make_pair(api, primitive)
    count = "-c0" if primitive == "msq" else "-c1"
    for options in (["--mode", "400"], []):
        done = run_as(pair, ALICE, "server", count, *options)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_client_of_root_sizes_no_other_users_file(make_pair):
    """Root may do anything with it; but it is for its owner to give it a size and a mode."""
    pair = make_pair("posix", "shm")
    pair.path.touch()
    pair.path.chmod(0o640)
    os.chown(pair.path, ALICE, ALICE)
    done = pair.client(stdin="text\n")
    assert (done.returncode, "the text does not fit" in done.stderr) == (1, True)
    there = pair.path.stat()
    assert (there.st_size, there.st_mode & 0o777, there.st_uid) == (0, 0o640, ALICE)


@pytest.mark.parametrize("side", ["server", "client"])
def test_it_is_the_effective_uid_that_owns(pair, side):
    """As of a program with the set-user-ID bit, or one that gives up root's rights for a while."""
    api, primitive = pair.api, pair.primitive
    function = {"msq": "open_queue", "shm": "open_segment", "sem": "open_semaphore"}[primitive]
    thing = repr(pair.name if api == "posix" else pair.key)
    code = f"""
import os, {pair.script(side)} as script
os.seteuid({ALICE})
for _ in range(2):
    script.{function}({thing})
"""
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if (api, primitive) == ("posix", "shm"):
        assert pair.path.stat().st_size == 4096
    elif primitive == "shm":
        assert sysv_ipc.Semaphore(~pair.key).value == 1


@pytest.mark.parametrize("primitive", ["shm", "sem"])
@pytest.mark.parametrize("side", ["server", "client"])
def test_the_real_uid_owns_nothing(make_pair, primitive, side):
    """A program of Alice's with root's set-user-ID bit, and an object of Bob's for Bob alone."""
    pair = make_pair("posix", primitive)
    with pair.server():
        pass
    os.chown(pair.path, BOB, BOB)
    function = {"shm": "open_segment", "sem": "open_semaphore"}[primitive]
    code = f"""
import os, {pair.script(side)} as script
os.setresuid({ALICE}, 0, 0)
script.{function}({pair.name!r})
"""
    env = {**ENV, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20)
    if side == "server":
        assert done.stderr.endswith(f"PermissionError: belongs to uid {BOB}, not to uid 0\n")
    else:
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("primitive", ["shm", "sem"])
def test_whose_it_is_is_told_to_who_may_only_read_it(make_pair, primitive, run_as):
    pair = make_pair("posix", primitive)
    assert run_as(pair, ALICE, "client").returncode == 0
    pair.path.chmod(0o644)
    done = run_as(pair, BOB, "server")
    assert (done.returncode, f"belongs to uid {ALICE}" in done.stderr) == (1, True)


@needs("strace")
@pytest.mark.parametrize("primitive", ["shm", "sem"])
def test_a_server_does_not_open_what_another_user_has(make_pair, primitive, tmp_path):
    """Its owner could swap it meanwhile, or hold a lease on it, which keeps open(2) waiting."""
    pair, log = make_pair("posix", primitive), tmp_path / "log"
    with pair.server("--mode", "666"):
        pass
    os.chown(pair.path, ALICE, ALICE)
    strace = ["strace", "-f", "-q", "-o", str(log), "-e", "trace=%file"]
    done = subprocess.run([*strace, *pair.argv("server")], env=ENV, capture_output=True, text=True)
    assert (done.returncode, f"belongs to uid {ALICE}" in done.stderr) == (1, True)
    looks = [line for line in log.read_text().splitlines() if pair.path.name in line]
    assert any("stat" in line for line in looks)
    assert not [line for line in looks if "open" in line]
