"""The Makefile, as its user runs it: from a clone, in a folder with a space in its name."""

import contextlib
import functools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import posix_ipc
import pytest
from conftest import (
    APIS,
    ENV,
    PAIRS,
    ROOT,
    TITLE,
    Pair,
    Process,
    in_namespaces,
    needs,
    readme,
    rounds,
    until,
)  # fmt: skip

NAMES = ["-".join(pair) for pair in PAIRS]
# What each target has, besides PYTHON and VENV.
QUEUE, SEGMENT = {"COUNT", "INTERVAL", "ARGS"}, {"COUNT", "INTERVAL", "ARGS"}
HAS = {
    "msq-server": {"COUNT", "ARGS"}, "msq-client": QUEUE, "msq": QUEUE,
    "shm-server": SEGMENT, "shm-client": {"ARGS"}, "shm": SEGMENT,
    "sem-server": {"INTERVAL", "ARGS"}, "sem-client": {"ARGS"}, "sem": {"INTERVAL", "ARGS"},
    "msq-clean": set(), "shm-clean": set(), "sem-clean": set(),
}  # fmt: skip
VALUES = {
    "NAME": "/a name", "KEY": "0x12d", "COUNT": "7", "INTERVAL": "0.25", "ARGS": "--mode 640",
}  # fmt: skip
OPTIONS = {"NAME": "-n", "KEY": "-k", "COUNT": "-c", "INTERVAL": "-i"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would clone, with the environment that is there already."""
    folder = tmp_path_factory.mktemp("a folder") / "with spaces"
    folder.mkdir()
    for name in ("Makefile", "README.md", "requirements.txt", "scripts", "tests", "systemd"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What a first setup needs, and no environment."""
    folder = tmp_path / "new clone"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return folder


def make(checkout: Path, *args: str, **options) -> subprocess.CompletedProcess[str]:
    defaults = {"env": ENV, "timeout": 60, "stdin": subprocess.DEVNULL}
    if "input" in options:
        del defaults["stdin"]
    return subprocess.run(
        ["make", *args], cwd=checkout, text=True, capture_output=True, **{**defaults, **options}
    )


def variables(pair: Pair) -> list[str]:
    return [f"NAME={pair.name}" if pair.api == "posix" else f"KEY={pair.key}"]


def running(pair: Pair) -> list[str]:
    """The processes that have to do with this object."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if pair.thing in command and "_" + pair.primitive + "_" in command:
            found.append(command)
    return found


def test_make_alone_lists_targets_and_variables(checkout):
    done = make(checkout)
    assert done.returncode == 0
    targets = "PAIR-server PAIR-client PAIR-clean clean status demo setup test lint bench soak"
    more = "systemd-install systemd-uninstall distclean NAME KEY COUNT INTERVAL ARGS PYTHON VENV"
    for word in f"{targets} {more}".split():
        assert word in done.stdout, word
    assert make(checkout, "help").stdout == done.stdout


def test_what_help_names_exists(checkout):
    for line in make(checkout).stdout.splitlines():
        if line.lstrip().startswith("make ") and "PAIR" not in line:
            target = line.split()[1]
            assert make(checkout, "-n", target).returncode == 0, target


def test_tab_completion_finds_the_targets(checkout):
    """bash-completion reads the database that `make -npq` prints."""
    database = make(checkout, "-npq").stdout.splitlines()
    for pair in NAMES:
        for end in ("", "-server", "-client", "-clean"):
            assert any(line.startswith(f"{pair}{end}:") for line in database)


def test_variables_come_from_the_command_line_only(checkout, make_pair):
    """Some environments set NAME, or ARGS, for reasons of their own."""
    names = [*VALUES, "PYTHON", "VENV", "MINUTES", "FORMAT", "FILE", "PLACE", "PYTHONS"]
    env = {**ENV, **dict.fromkeys(names, "from-outside")}
    for target in [f"{pair}-{side}" for pair in NAMES for side in ("server", "client")]:
        assert "from-outside" not in make(checkout, "-n", target, env=env).stdout, target
    for target in ("setup", "test", "bench", "soak", "mutants", "test-bare", *NAMES):
        assert "from-outside" not in make(checkout, "-n", target, env=env).stdout, target
    pair = make_pair("posix", "sem")
    done = make(checkout, "posix-sem-client", *variables(pair), env=env)
    assert (done.stdout, done.stderr) == ("semaphore: 1\n", "")


@pytest.fixture(scope="module")
def stubs(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Makefile whose scripts say what they were called with, as they have nothing to do."""
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(checkout / name, folder)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    (folder / "scripts").mkdir()
    for script in (ROOT / "scripts").glob("*_*.py"):
        stub = f"import json, sys\nprint(json.dumps([{script.name!r}, *sys.argv[1:]]))"
        (folder / "scripts" / script.name).write_text(stub)
    return folder


@pytest.mark.parametrize("side", ["server", "client"])
def test_each_variable_becomes_its_option(stubs, pair, side):
    target = f"{pair.api}-{pair.primitive}-{side}"
    name = "NAME" if pair.api == "posix" else "KEY"
    given = [name, *sorted(HAS[f"{pair.primitive}-{side}"])]
    done = make(stubs, target, *(f"{variable}={VALUES[variable]}" for variable in given))
    script, *argv = json.loads(done.stdout)
    assert script == f"{target.replace('-', '_')}.py"
    pairs = list(zip(argv[::2], argv[1::2], strict=True))
    expected = [(OPTIONS[v], VALUES[v]) for v in given if v != "ARGS"] + [("--mode", "640")]
    assert sorted(pairs) == sorted(expected)
    assert pairs[-1] == ("--mode", "640")  # so that ARGS has the last word
    script, *argv = json.loads(make(stubs, target).stdout)
    assert argv == []


@pytest.mark.parametrize("value", ["/it's", '/a "b" $$HOME `id`; exit 3 #', "/ünï"])
def test_a_value_reaches_the_script_as_it_stands(stubs, value):
    for target in ("posix-shm-server", "posix-shm-clean"):
        done = make(stubs, target, f"NAME={value}")
        assert json.loads(done.stdout)[1:3] == ["-n", value.replace("$$", "$")]


@pytest.mark.parametrize("target", [f"{pair}{end}" for pair in NAMES for end in
                                    ("", "-server", "-client", "-clean")])  # fmt: skip
def test_a_variable_that_a_target_does_not_have_is_an_error(checkout, target):
    api, _, rest = target.partition("-")
    has = HAS[rest] | {"NAME" if api == "posix" else "KEY", "PYTHON", "VENV"}
    for variable in (*VALUES, "args", "MINUTES"):
        done = make(checkout, "-n", target, f"{variable}=1")
        if variable in has:
            assert done.returncode == 0, done
        else:
            assert (done.returncode, done.stdout) == (2, "")
            says = f"make {target} has no variable {variable}: it has {' '.join(sorted(has))}"
            assert says in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_a_wrong_target_is_told_where_they_are_listed(checkout):
    done = make(checkout, "posix-mqs-server")
    assert done.returncode == 2
    assert "no target posix-mqs-server: make alone lists them" in done.stderr.splitlines()[0]
    for target in ("tests", "systemd", "scripts"):  # make would take such a folder for made
        done = make(checkout, target)
        assert (done.returncode, f"no target {target}:" in done.stderr) == (2, True)
    make(checkout, "x`touch run`")
    assert not (checkout / "run").exists()


@pytest.mark.parametrize("target, variables", [
    ("mutants", ["FILE", "ARGS"]), ("test", ["ARGS"]), ("test-bare", ["PLACE", "ARGS"]),
    ("test-musl", ["ARGS"]), ("bench", ["FORMAT", "PYTHONS", "ARGS"]), ("soak", ["MINUTES"]),
])  # fmt: skip
def test_what_the_targets_of_developers_have(checkout, target, variables):
    done = make(checkout, "-n", target, *(f"{name}=some-{name}" for name in variables))
    assert done.returncode == 0, done.stderr
    for name in variables:
        assert f"some-{name}" in done.stdout


def test_every_target_that_needs_an_environment_makes_one(clone):
    sides = ["", "-server", "-client", "-clean"]
    targets = [f"{pair}{side}" for pair in NAMES for side in sides]
    targets += ["clean", "demo", "systemd-install", "systemd-no-sandbox", "lint", "test", "soak"]
    targets += ["test-bare", "test-musl", "mutants", "bench"]
    for target in targets:
        assert "setting up" in make(clone, "-n", target).stdout, target


@pytest.mark.parametrize("target, variable, has", [
    ("demo", "NAME", "PYTHON VENV"), ("clean", "COUNT", "KEY NAME PYTHON VENV"),
    ("test", "arg", "ARGS PYTHON VENV"), ("bench", "COUNT", None), ("help", "NAME", "PYTHON VENV"),
    ("systemd-install", "VENV", "PYTHON"), ("soak", "MINUTE", "MINUTES PYTHON VENV"),
])  # fmt: skip
def test_nor_has_another_target(checkout, target, variable, has):
    done = make(checkout, target, f"{variable}=1")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"make {target} has no variable {variable}: it has {has or ''}" in done.stderr


@needs("pgrep")
@pytest.mark.parametrize("primitive", TITLE)
def test_server_and_client_targets(checkout, api, primitive, make_pair):
    pair = make_pair(api, primitive)
    options = {"msq": ["COUNT=2"], "shm": ["COUNT=3", "INTERVAL=0.1"], "sem": ["INTERVAL=0.1"]}
    client = {"msq": ["COUNT=2", "INTERVAL=0.1", "ARGS=-q"], "shm": [], "sem": ["ARGS=-t 0"]}
    server = subprocess.Popen(
        ["make", f"{api}-{primitive}-server", *variables(pair), *options[primitive]],
        cwd=checkout, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout.readline() == f"{pair.start_line}\n"
    done = make(
        checkout, f"{api}-{primitive}-client", *variables(pair), *client[primitive],
        input="text\n",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    if primitive == "sem":
        os.kill(int(subprocess.check_output(["pgrep", "-P", str(server.pid)])), signal.SIGINT)
    out, err = server.communicate(timeout=20)
    assert out.splitlines()[-1] == pair.end_line
    assert (server.returncode, err) == (0, "")
    done = make(checkout, f"{api}-{primitive}-clean", *variables(pair))
    assert done.stdout == f"removed {pair.thing}\n"


@pytest.mark.parametrize("primitive", TITLE)
def test_a_pair(checkout, api, primitive, make_pair):
    pair = make_pair(api, primitive)
    done = make(
        checkout, f"{api}-{primitive}", *variables(pair), "INTERVAL=0.1",
        *(["ARGS=-c 2"] if primitive == "msq" else []), input="text\n",
    )  # fmt: skip
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == pair.start_line
    assert lines[-1] == pair.end_line
    shown = {"msq": "{'count': 2}", "shm": "text", "sem": "semaphore: 1"}[primitive]
    assert any(line[2:3] == ":" and line.endswith(shown) for line in lines)
    if primitive != "sem":  # whose client prints the value too, that it left
        assert len([line for line in lines if line.endswith(shown)]) == 1
    assert running(pair) == []


@pytest.mark.parametrize("interval", [[], ["INTERVAL="]])
def test_a_pair_without_standard_input(checkout, interval, make_pair):
    pair = make_pair("sysv", "sem")
    command = ["make", "sysv-sem", *variables(pair), *interval]
    done = subprocess.run(
        ["sh", "-c", '"$@" <&-', "sh", *command],
        cwd=checkout, env=ENV, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == pair.end_line


@pytest.mark.parametrize(("api", "interval"), [("posix", []), ("sysv", ["INTERVAL=2"])])
def test_a_pair_shows_what_came_last(checkout, api, interval, make_pair):
    """The client ends before the server has looked again."""
    pair = make_pair(api, "shm")
    done = make(checkout, f"{api}-shm", *variables(pair), *interval, input="text\n")
    assert [line.endswith(" text") for line in done.stdout.splitlines()].count(True) == 1, done


@pytest.mark.parametrize("primitive", TITLE)
def test_ctrl_c_in_a_pair_ends_both(checkout, api, primitive, make_pair):
    pair = make_pair(api, primitive)
    if primitive == "sem":
        pair.client()
        pair.client()
    child = pexpect.spawn(
        "make",
        [f"{api}-{primitive}", *variables(pair), *(["ARGS=-w"] if primitive == "sem" else [])],
        cwd=str(checkout), env=ENV, encoding="utf-8", timeout=20,
    )  # fmt: skip
    child.expect_exact(
        {"msq": "{'count': 1}", "shm": "Please enter", "sem": "semaphore: 0"}[primitive]
    )
    until(lambda: len(running(pair)) >= 2)
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    until(lambda: running(pair) == [])
    assert pair.end_line in child.before
    assert "Traceback" not in child.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("primitive", TITLE)
def test_a_pair_that_is_killed_leaves_no_process(checkout, primitive, number, make_pair):
    """TERM to make alone, as from kill(1); the others to all, as from a terminal."""
    pair = make_pair("posix", primitive)
    waits = ["ARGS=-w"] if primitive == "sem" else []
    command = ["make", f"posix-{primitive}", *variables(pair), *waits]
    with Process(command, cwd=checkout, stdin=subprocess.PIPE) as process:
        process.wait_line("start ")
        until(lambda: len(running(pair)) >= 2 or primitive == "sem")
        send = os.kill if number == signal.SIGTERM else os.killpg
        send(process.pid, number)
        assert process.wait() != 0
    until(lambda: running(pair) == [])


def test_a_pair_whose_server_fails_starts_no_client(checkout, make_pair):
    pair = make_pair("sysv", "sem")
    done = make(checkout, "sysv-sem", "KEY=0")
    assert done.returncode == 2
    assert "semaphore:" not in done.stdout
    assert done.stderr.count("error:") == 1, done.stderr
    assert running(pair) == []


@pytest.mark.parametrize("api", APIS)
def test_a_segment_pair_whose_server_ends_first(checkout, make_pair, api):
    """Its client would read on, and write for nobody."""
    pair = make_pair(api, "shm")
    command = ["make", f"{api}-shm", *variables(pair)]
    with Process(command, cwd=checkout, stdin=subprocess.PIPE) as process:
        process.wait_line("start ")
        until(lambda: len(running(pair)) >= 2)
        pair.remove()
        assert process.wait(15) == 2
    assert any("the segment was removed" in line for line in process.err)
    assert any("Error 1" in line for line in process.err)


@pytest.mark.parametrize("api", APIS)
def test_a_pair_whose_server_ends_first(checkout, make_pair, api):
    """As in `make posix-msq | head`: the client would fill the queue, and wait for ever."""
    argv = ["make", f"{api}-msq", *variables(make_pair(api, "msq")), "COUNT=3000", "INTERVAL=0"]
    shell = ["sh", "-c", f"{shlex.join(argv)} | head -n 3"]
    with Process(shell, cwd=checkout) as process:
        assert process.wait(20) == 0
    assert len(process.out) == 3
    assert any("Error 141" in line for line in process.err)


def test_the_status_of_a_pair_is_that_of_its_client(checkout, make_pair):
    pair = make_pair("sysv", "sem")
    assert make(checkout, "sysv-sem", *variables(pair), "ARGS=--by 9").returncode != 0
    assert running(pair) == []


def test_clean_with_many_jobs(checkout, make_pair):
    pairs = [make_pair(*pair) for pair in PAIRS]
    for pair in pairs:
        pair.name, pair.key = pairs[0].name, pairs[0].key
        pair.option = ["-n", pair.name] if pair.api == "posix" else ["-k", str(pair.key)]
        pair.client(*(["-c1"] if pair.primitive == "msq" else []))
    done = make(checkout, "-j", "clean", f"NAME={pairs[0].name}", f"KEY={pairs[0].key}")
    assert sorted(done.stdout.splitlines()) == sorted(
        [f"removed {pairs[0].name}"] * 3 + [f"removed {pairs[0].key}"] * 3
    )


def test_status_shows_every_object(checkout, make_pair):
    pairs = [make_pair(*pair) for pair in PAIRS]
    for pair in pairs:
        pair.client(*(["-c1"] if pair.primitive == "msq" else []))
    done = make(checkout, "status")
    assert done.returncode == 0
    for pair in pairs:
        if pair.api == "sysv":
            key = f"{pair.key:#010x}" if shutil.which("ipcs") else str(pair.key)
            assert key in done.stdout
        elif pair.primitive != "msq" or Path("/dev/mqueue", pair.name[1:]).exists():
            assert pair.name[1:] in done.stdout
        else:
            assert "mount -t mqueue" in done.stdout


def left_by_the_demo(output: str) -> list[str]:
    """What there is of the objects whose names and keys it printed, and of its processes."""
    there = " ".join(os.listdir("/dev/shm"))
    used = {line.split()[0] for kind in ("msg", "shm", "sem")
            for line in Path("/proc/sysvipc", kind).read_text().splitlines()}  # fmt: skip
    names = set(re.findall(r"(demo-\d+)", output))
    keys = set(re.findall(r"-k (\d+)", output))
    keys |= {str(1_000_000 + int(name.removeprefix("demo-"))) for name in names}
    found = [name for name in names if name in there]
    for name in names:
        with contextlib.suppress(posix_ipc.ExistentialError):  # it is none, mounted or not
            posix_ipc.MessageQueue(f"/{name}").close()
            found.append(name)
    found += [key for key in keys if {key, str(~int(key))} & used]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        found += [word for word in words if word.strip("/") in names or word in keys]
    return found


def nothing_left(output: str) -> bool:
    return left_by_the_demo(output) == []


def test_the_demo(checkout):
    done = make(checkout, "demo")
    assert done.returncode == 0
    for api, primitive in PAIRS:
        for side in ("server", "client"):
            assert f"python {api}_{primitive}_{side}.py" in done.stdout
    assert len(done.stderr.splitlines()) == 2
    assert all(line.endswith(": Semaphore is busy") for line in done.stderr.splitlines())
    assert re.search(r"demo-\d+", done.stdout)
    assert left_by_the_demo(done.stdout) == []

    def without_times(text: str) -> list[str]:
        text = re.sub(r"(?m)^\d\d:\d\d:\d\d\.\d{6}", "TIME", text)
        return [line.rstrip() for line in re.sub(r"/demo-\d+", "/demo", text).splitlines()]

    shown = re.search(r"(?s)\$ make demo\n(.*?)```", readme())[1]
    assert set(without_times(shown)) <= set(without_times(done.stdout))


def end_by(how: str, process: subprocess.Popen[bytes]) -> None:
    if how == "TERM to make":
        process.terminate()
    elif how == "a closed pipe":
        process.stdout.close()
    elif how == "INT, held down":
        for _ in range(40):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.03)
    else:
        os.killpg(
            process.pid, {"INT": signal.SIGINT, "HUP": signal.SIGHUP, "QUIT": signal.SIGQUIT}[how]
        )


@pytest.mark.parametrize(
    "how", ["INT", "INT, held down", "HUP", "QUIT", "TERM to make", "a closed pipe"]
)
def test_a_demo_that_is_ended_at_any_moment_leaves_nothing(checkout, how):
    """From its first line on, and at the start of a server, where it once left most."""
    for _ in range(rounds(2)):
        process = subprocess.Popen(
            ["make", "demo"], cwd=checkout, env=ENV, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        output = b""
        for _ in range(random.randrange(5, 40)):  # the fifth names the object
            output += process.stdout.readline()
        time.sleep(random.random() / 4)
        end_by(how, process)
        end = time.monotonic()
        if not process.stdout.closed:
            output += process.stdout.read()
        process.wait(30)
        if how != "a closed pipe":  # which it meets when it prints the next time
            assert time.monotonic() - end < 10  # two seconds, where nothing else runs
        process.stdout.close()
        assert b"demo-" in output
        assert left_by_the_demo(output.decode()) == [], f"{how} {output!r}"


@needs("strace")
def test_a_second_ctrl_c_before_the_demo_cleans_up(checkout, tmp_path):
    """It comes when the shell opens /dev/null for that, which strace(1) makes slow."""
    log = tmp_path / "log"
    slow = "inject=openat:delay_enter=300000"
    trace = ["strace", "-o", str(log), "-P", "/dev/null", "-e", "trace=openat", "-e", slow]
    env = {**ENV, "PYTHON": sys.executable}
    with Process([*trace, "sh", "tests/demo.sh"], cwd=checkout, env=env) as demo:
        demo.wait_line("start message queue server")  # while the shell waits for `sleep 0.4`
        shell, seen = children(demo.pid)[0], log.read_text().count("openat(")
        os.kill(shell, signal.SIGINT)
        until(lambda: log.read_text().count("openat(") > seen)
        os.kill(shell, signal.SIGINT)
        demo.wait(30)
        assert left_by_the_demo("\n".join(demo.out)) == [], log.read_text()


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):  # it has ended
        return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    return []


def with_children(pid: int) -> list[int]:
    """Its children that have some. Those with which strace(1) tries ptrace(2) have none."""
    return [child for child in children(pid) if children(child)]


@needs("strace")
@pytest.mark.parametrize("late", [
    ["-e", "inject=/^(clone|clone3|fork)$:delay_exit=500000:when=1"],
    ["-f", "-e", "inject=rt_sigaction:delay_enter=1060000:when=1"],
])  # fmt: skip
def test_a_pair_that_is_ended_while_it_starts(checkout, make_pair, late):
    """The shell has started the server and has not yet been told its number, or the server is still
    a copy of the shell, which notes the signal, that comes after `sleep 1`, and forgets it."""
    pair = make_pair("sysv", "msq")
    done = make(checkout, "-n", "sysv-msq", f"KEY={pair.key}")
    recipe = done.stdout[done.stdout.index("exec 3<&0") :]
    strace = subprocess.Popen(
        ["strace", "-qo", "/dev/null", "-e", "trace=process,signal", *late, "sh", "-c", recipe],
        cwd=checkout, env=ENV, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started = functools.partial(with_children, strace.pid)
    try:
        until(started)
        os.kill(started()[0], signal.SIGTERM)
        assert strace.wait(20) in (143, -signal.SIGTERM)  # strace ends as the shell does
    finally:
        with pytest.raises(ProcessLookupError):
            os.killpg(strace.pid, signal.SIGKILL)


def ended(child: pexpect.spawn) -> bool:
    return not child.isalive()


def test_the_terminal_of_a_demo_is_closed(checkout):
    for _ in range(rounds(2)):
        child = pexpect.spawn("make", ["demo"], cwd=str(checkout), env=ENV, encoding="utf-8")
        child.expect_exact(random.choice([f"{api}_{p}_server.py" for api, p in PAIRS]))
        output = child.before + child.after + child.read_nonblocking(1000, 5)
        child.ptyproc.fileobj.close()  # the kernel sends SIGHUP to what ran in the foreground
        child.closed = child.ptyproc.closed = True  # or pexpect ends what does not end in 0.1 s
        until(functools.partial(ended, child), "the end of make")
        until(functools.partial(nothing_left, output), output)


def test_the_demo_in_other_circumstances(checkout, tmp_path):
    """CDPATH, which makes `cd` go elsewhere; an environment in another place; no ipcs."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "scripts").mkdir()
    venv = tmp_path / "it's an environment"
    venv.symlink_to(ROOT / ".venv")
    env = {**ENV, "CDPATH": str(tmp_path), "PATH": path_of(tmp_path / "bin")}
    done = make(checkout, "demo", f"VENV={venv}", env=env)
    assert done.returncode == 0, done
    assert len(done.stderr.splitlines()) == 2
    assert re.search(r"\$ grep \d+ /proc", done.stdout)
    assert len(re.findall("(?m)^end ", done.stdout)) == 6
    assert left_by_the_demo(done.stdout) == []


def path_of(folder: Path, *more: str) -> str:
    """A PATH with the little that POSIX asks for: no ipcs, no mountpoint, no flock."""
    folder.mkdir()
    programs = "sh bash cat cp cmp dirname echo env grep head id ls make mkdir printf rm rmdir sed"
    for program in (*programs.split(), "sleep", "touch", "tr", *more):
        if found := shutil.which(program):
            (folder / program).symlink_to(found)
    return str(folder)


def test_status_without_ipcs(checkout, make_pair, tmp_path):
    pair = make_pair("sysv", "shm")
    pair.client()
    done = make(checkout, "status", env={**ENV, "PATH": path_of(tmp_path / "bin")})
    assert (done.returncode, done.stderr) == (0, "")
    assert "no ipcs (Debian: apt-get install util-linux)" in done.stdout
    assert re.search(rf"(?m)^ *{pair.key} .* 600 ", done.stdout)
    assert re.search(rf"(?m)^ *{~pair.key} ", done.stdout)


@in_namespaces
@pytest.mark.parametrize("mounted", [True, False])
def test_status_with_and_without_dev_mqueue(checkout, mounted):
    mount = "mkdir -p /dev/mqueue; mount -t mqueue mqueue /dev/mqueue"
    script = mount if mounted else f"{mount}; while umount /dev/mqueue 2>/dev/null; do :; done"
    done = subprocess.run(
        ["unshare", "--mount", "--ipc", "sh", "-ec", f"{script}; exec make status"],
        cwd=checkout, env=ENV, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert ("sudo mount -t mqueue mqueue /dev/mqueue" in done.stdout) != mounted


@pytest.mark.parametrize("given, targets", [
    ("VENV=", ["setup", "help", "distclean"]), ("NAME=", ["posix-msq-clean", "clean"]),
    ("KEY= ", ["sysv-sem-clean"]),
])  # fmt: skip
def test_an_empty_variable_is_not_the_default(checkout, given, targets):
    """It is one of the shell that is not set: /test would go, or /bin/python be made anew."""
    for target in targets:
        done = make(checkout, target, given)
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{given.partition('=')[0]} is empty" in done.stderr
    assert make(checkout, "test", "ARGS=", "-n").returncode == 0


def test_clean_goes_on_after_what_it_may_not_remove(checkout, make_pair):
    """make would stop at the first; and distclean removes what is no object all the same."""
    posix, sysv = make_pair("posix", "sem"), make_pair("sysv", "sem")
    posix.path.mkdir()
    sysv.client()
    done = make(checkout, "clean", f"NAME={posix.name}", f"KEY={sysv.key}")
    assert (done.returncode, f"removed {sysv.key}" in done.stdout) == (2, True)
    assert done.stderr.count("posix_sem_server: ") == 1
    (checkout / ".mypy_cache").mkdir(exist_ok=True)
    make(checkout, "distclean", f"NAME={posix.name}", f"KEY={sysv.key}")
    posix.path.rmdir()
    (checkout / ".venv").symlink_to(ROOT / ".venv")  # it was a link, and is removed too
    assert not (checkout / ".mypy_cache").exists()


def test_no_environment_is_made_in_a_folder_of_other_things(checkout, tmp_path):
    """distclean would remove them with it."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project/thesis").write_text("of years")
    done = make(checkout, "setup", f"VENV={tmp_path}/project")
    assert (done.returncode, done.stdout) == (2, "")
    assert "not empty, and no environment" in done.stderr
    assert [path.name for path in (tmp_path / "project").iterdir()] == ["thesis"]


def test_distclean_removes_the_objects_and_no_folder_that_is_no_environment(stubs, tmp_path):
    done = make(stubs, "distclean", "NAME=/n", "KEY=5", f"VENV={ROOT / '.venv'}", "-n")
    assert done.returncode == 0
    (tmp_path / "file").touch()
    make(stubs, "distclean", f"VENV={tmp_path}")
    assert (tmp_path / "file").exists()


CACHES = ["scripts/__pycache__", "tests/__pycache__", "tests/bench/__pycache__"]


def test_two_setups_at_once_and_what_mends_one(clone, tmp_path, monkeypatch):
    """All on one environment, since each costs seconds: what is broken is what the next mends."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setitem(ENV, "TMPDIR", str(tmp_path / "tmp"))  # a pip that is killed leaves files
    venv = tmp_path / "it's elsewhere"
    options = ["NAME=/test-none", "KEY=123454321", f"VENV={venv}"]

    def works(*more: str, setups: int | None = 1) -> None:
        """Six targets that all want it at once."""
        done = make(clone, "-j8", "clean", *options, *more, timeout=300)
        assert (done.returncode, done.stdout.count("nothing to remove")) == (0, 6), done.stderr
        assert setups is None or done.stderr.count("setting up") == setups, done.stderr

    def interrupted(moment: str) -> None:
        process = subprocess.Popen(
            ["make", "setup", *options[2:]], cwd=clone, env=ENV, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: list(venv.glob(moment)) or process.poll() is not None, timeout=120)
        assert process.poll() is None, "it was not interrupted"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    # A first setup is interrupted while it installs pip itself.
    interrupted("lib/python*/site-packages/pip/_internal")
    both = [
        subprocess.Popen(
            ["make", "setup", *options[2:]], cwd=clone, env=ENV,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert b"".join(err for _, err in outputs).count(b"setting up") == 1
    works(setups=0)
    # Its Python is gone, as after an upgrade of the system, and what mends it is interrupted while
    # it installs a package.
    for name in ("python", "python3"):
        (venv / "bin" / name).unlink()
        (venv / "bin" / name).symlink_to("/nowhere/python3")
    for path in venv.glob("lib/python*/site-packages/*_ipc*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    interrupted("lib/python*/site-packages/posix_ipc*")
    works(setups=None)  # the kill may have come when all was there
    # What requirements.txt asks for has changed, and pip has been killed just before the last file.
    for path in venv.glob("lib/python*/site-packages/posix_ipc*/RECORD"):
        path.unlink()
    with open(clone / "requirements.txt", "a") as file:
        file.write("iniconfig\n")
    # What else is there stays, whatever its name.
    [packages] = venv.glob("lib/python*/site-packages")
    for path in packages.glob("pip-*/INSTALLER"):
        path.unlink()
    others = [packages / name for name in ("pipx", "pip_tools", "other_ipc")]
    for path in others:
        path.mkdir()
    works()
    assert all(path.exists() for path in others)
    assert list(venv.glob("lib/python*/site-packages/iniconfig"))
    works(setups=0)
    # All of it goes, and what the tools have left.
    for folder in (".mypy_cache", ".hypothesis", *CACHES):
        (clone / folder).mkdir(parents=True, exist_ok=True)
    before = {path.name for path in clone.iterdir()} - {".mypy_cache", ".hypothesis"}
    for _ in range(2):  # at the second time there is nothing to remove, and nothing is made for it
        assert make(clone, "distclean", *options).returncode == 0
        assert {path.name for path in clone.iterdir()} == before
        assert not any((clone / folder).exists() for folder in CACHES)
        assert not venv.exists()


@pytest.fixture
def other_python(tmp_path: Path) -> Path:
    """A program that runs this Python in another folder of modules, or as another version."""
    (tmp_path / "modules").mkdir()
    program = tmp_path / "python3.x"
    program.write_text(
        f"#!/bin/sh\nPYTHONPATH={shlex.quote(str(tmp_path / 'modules'))} "
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("lacks, line", [
    ("venv", "has no venv: install it (Debian: apt-get install python3-venv)"),
    ("ensurepip", "has no pip to give to .venv: install it (Debian: apt-get install python3-venv)"),
])  # fmt: skip
def test_a_python_without_venv_or_pip_is_refused(clone, other_python, lacks, line):
    module = other_python.parent / "modules" / f"{lacks}.py"
    module.write_text(f"raise ImportError('No module named {lacks}')")
    done = make(clone, "demo", f"PYTHON={other_python}")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"{other_python} {line}"
    assert len(done.stderr.splitlines()) == 2  # the other is make's own
    assert not (clone / ".venv").exists()


def test_a_link_to_a_python_that_is_gone_goes(clone, tmp_path):
    """Without pyvenv.cfg too, as where somebody has copied a part of an environment."""
    (clone / ".venv/bin").mkdir(parents=True)
    for name in ("python", "python3"):
        (clone / ".venv/bin" / name).symlink_to("/nowhere/python3")
    quick = tmp_path / "python3.x"  # pip is not what this is about
    quick.write_text(
        '#!/bin/sh\n[ "$1 $2" != "-m venv" ] || set -- "$@" --without-pip\n'
        f'exec {shlex.quote(sys.executable)} "$@"\n'
    )
    quick.chmod(0o755)
    done = make(clone, "setup", f"PYTHON={quick}")
    assert subprocess.run([clone / ".venv/bin/python", "-c", ""]).returncode == 0
    # Without pip, the packages cannot be had: that is said, and this is not set up for the next.
    assert "the two packages could not be installed" in done.stderr
    assert not (clone / ".venv/.setup").exists()


def test_a_python_that_is_too_old_or_not_there_is_refused(clone, other_python):
    old = other_python.parent / "modules" / "sitecustomize.py"
    old.write_text("import sys\nsys.version_info = (3, 9, 18, 'final', 0)")
    done = make(clone, "posix-msq-server", f"PYTHON={other_python}")
    assert done.returncode == 2
    assert (
        " is too old, 3.10 is needed: name a newer one, such as make PYTHON=python3.12"
        in (done.stderr.splitlines()[0])
    )
    assert len(done.stderr.splitlines()) == 2
    done = make(clone, "setup", "PYTHON=python3.nothing")
    assert done.stderr.startswith("cannot run python3.nothing: install Python 3.10 or newer")
    assert len(done.stderr.splitlines()) == 2
    assert not (clone / ".venv").exists()


@needs("bash")
@pytest.mark.parametrize("fails", ["lint", "test", "test-bare", "nothing"])
def test_ci_runs_everything_and_is_red_when_a_part_fails(tmp_path, fails):
    """.ci/run itself, with a make that notes what it was asked for, and packages that are there."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci")
    path = path_of(tmp_path / "bin", "date")
    (tmp_path / "bin/make").unlink()
    for name, text in {
        "make": f'echo "$* CI=$CI" >>{tmp_path}/asked; [ "$1" != {fails} ]',
        "apt-get": "exit 1", "dpkg-query": "echo install ok installed",
    }.items():  # fmt: skip
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    mermaid = tmp_path / "cache/mermaid-cli/node_modules/.bin/mmdc"  # so it installs none
    mermaid.parent.mkdir(parents=True)
    mermaid.symlink_to("/bin/true")
    env = {k: v for k, v in ENV.items() if k != "CI"}
    env |= {"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([tmp_path / ".ci/run"], env=env, capture_output=True, text=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    everything = ["lint CI=true", "test CI=true", "test-bare PLACE=container CI=true"]
    assert asked == everything[: {"lint": 1, "test": 2}.get(fails, 3)]
    assert (done.returncode == 0) == (fails == "nothing"), done


def test_a_skip_is_red_in_ci_and_a_sentence_elsewhere(tmp_path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.parametrize('n', range(12))\n"
        "@pytest.mark.skip(reason='needs a thing')\ndef test_it(n): pass\n"
    )
    env = {k: v for k, v in ENV.items() if k not in ("CI", "USES", "PYTEST_XDIST_WORKER")}
    pytest_in = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(pytest_in, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert "12 tests were not run" in done.stdout
    assert "a thing (12)" in done.stdout
    done = subprocess.run(
        pytest_in, cwd=tmp_path, env={**env, "CI": "true"}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.search("12 (failed|errors)", done.stdout)


def test_no_test_at_all_is_red(checkout):
    done = make(checkout, "test", "ARGS=-k no_test_has_this_name -p no:xdist -o addopts=")
    assert done.returncode != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_the_shell_of_a_pair_alone_is_told_to_end(checkout, make_pair, number):
    pair = make_pair("posix", "sem")
    command = ["make", "posix-sem", *variables(pair), "ARGS=-- sleep 30"]
    with Process(command, cwd=checkout) as process:
        until(lambda: len(running(pair)) >= 2)
        os.kill(children(process.pid)[0], number)
        assert process.wait(15) != 0
        until(lambda: running(pair) == [], timeout=5)


@pytest.mark.parametrize("failing", ["ruff check .", "ruff format --check .", "mypy", "shellcheck"])
def test_what_a_tool_finds_is_the_end_of_lint(stubs, failing, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("python", "ruff", "mypy", "shellcheck"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\ncase "{name} $*" in "{failing}"*) exit 1; esac\n')
        program.chmod(0o755)
    (stubs / "tests").mkdir(exist_ok=True)
    for name, copy in (("", ".setup"), ("tests/", ".setup-tests")):
        (stubs / f"{name}requirements.txt").touch()
        shutil.copy(stubs / f"{name}requirements.txt", tmp_path / copy)
    assert make(stubs, "lint", f"VENV={tmp_path}").returncode == 2
