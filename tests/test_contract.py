"""What all twelve scripts promise: lines, options, exit status, signals, errors, traces."""

import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import stat
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import (
    APIS,
    ENV,
    PAIRS,
    PATIENCE,
    PRIMITIVES,
    ROOT,
    SCRIPTS,
    SEM,
    TITLE,
    Pair,
    Process,
    capable,
    in_namespaces,
    needs,
    state,
    until,
    waits_in,
)

ALL = [f"{api}_{primitive}_{side}" for api, primitive in PAIRS for side in ("server", "client")]


def mode_of(pair: Pair) -> int:
    if pair.api == "posix" and pair.primitive == "msq":
        with pair.opened(write=False) as queue:
            return stat.S_IMODE(os.fstat(queue.mqd).st_mode)
    if pair.api == "posix":
        return stat.S_IMODE(pair.path.stat().st_mode)
    with pair.opened(mode=0o400) as thing:  # an ordinary user may not ask for more than it grants
        return thing.mode & 0o777


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_start_line_end_line_and_exit_status(pair, number):
    with pair.server() as server:
        assert server.stop(number) == 0
    assert server.out[0] == pair.start_line
    assert server.out[-1] == pair.end_line
    assert server.err == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_right_after_the_start_line_is_a_clean_stop(pair, number):
    for _ in range(3):
        with pair.server() as server:
            assert server.stop(number) == 0
        assert server.out[-1] == pair.end_line


def test_two_signals_are_a_clean_stop_too(pair):
    """Ctrl-C under make: the terminal sends one, and make another."""
    for number in (signal.SIGTERM, signal.SIGINT) * 3:
        with pair.server() as server:
            server.popen.send_signal(signal.SIGINT)
            while server.popen.poll() is None:
                server.popen.send_signal(number)
            assert server.wait() == 0
        assert server.out[-1] == pair.end_line


def test_clean_says_what_it_did(pair):
    with pair.server() as server:
        server.stop()
    assert pair.run("server", "--clean").stdout == f"removed {pair.thing}\n"
    again = pair.run("server", "--clean")
    assert (again.stdout, again.stderr, again.returncode) == (
        f"nothing to remove: {pair.thing}\n",
        "",
        0,
    )


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
def test_the_mode_is_exact_whatever_the_umask(pair, mode):
    if mode == 0o400 and pair.primitive == "sem" and pair.api == "posix":
        mode = 0o440
    with pair.server("--mode", f"{mode:o}", umask=0o077) as server:
        server.wait_line("start")
        assert mode_of(pair) == mode
    pair.remove_all()
    with pair.server(umask=0o777) as server:
        server.wait_line("start")
        assert mode_of(pair) == 0o600


def test_a_client_that_starts_first_makes_the_object(pair):
    options = ["-c1", "-i0"] if pair.primitive == "msq" else []
    assert pair.client(*options, stdin="first\n", umask=0o777).returncode == 0
    assert mode_of(pair) == 0o600
    with pair.server() as server:
        expected = {"msq": "{'count': 1}", "shm": "first", "sem": "semaphore: 1"}[pair.primitive]
        server.wait_line(expected)


def test_an_option_that_differs_is_said_in_one_line(pair):
    with pair.server("--mode", "640") as first:
        first.wait_line("start")
        with pair.server("--mode", "600") as second:
            second.wait_line("start")
            until(lambda: second.err)
            assert second.stop() == 0
    assert second.err == [f"{pair.script('server')}: {pair.thing}: --mode is 640, not 600"]
    assert first.err == []


@pytest.mark.parametrize(
    "primitive, option, made, given",
    [
        ("msq", "--max-messages", 4, 5),
        ("msq", "--max-message-size", 100, 101),
        ("shm", "--size", 4096, 8192),
        ("sem", "--value", 7, 8),
    ],
)
@pytest.mark.parametrize("api", APIS)
def test_each_attribute_counts_at_creation_and_is_compared_later(
    make_pair, api, primitive, option, made, given
):
    if primitive == "msq" and api == "sysv":
        option, made, given = "--mode", 600, 640
    pair = make_pair(api, primitive)
    with pair.server(option, made) as server:
        server.stop()
        assert server.err == []
    with pair.server(option, made) as server:
        server.stop()
        assert server.err == []
    with pair.server(option, given) as server:
        assert server.stop() == 0
    is_made = f"now {made}" if primitive == "sem" else made
    line = f"{option} is {is_made}, not {given}"
    assert server.err == [f"{pair.script('server')}: {pair.thing}: {line}"]


@pytest.mark.parametrize("script", ALL)
def test_help_has_an_example(script):
    done = subprocess.run(
        [sys.executable, SCRIPTS / f"{script}.py", "--help"],
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert done.returncode == 0
    assert f"{script}.py" in done.stdout.partition("Shows")[0].partition("\n\n")[2]
    assert done.stderr == ""
    options = re.split(r"\n(?=  -)", done.stdout.partition("\noptions:")[2])[1:]
    assert len(options) > 2
    for option in options:  # after two spaces, or in a line of its own: what it is for
        assert re.search(r"\S(  +|\n +)\w+ .*\w", option), option


@in_namespaces
def test_the_default_object(pair):
    """/test and 200, in namespaces where nobody else has them."""
    shm = "mount -t tmpfs -o mode=1777 tmpfs /dev/shm"
    server, client = (
        shlex.join([sys.executable, str(SCRIPTS / f"{pair.script(side)}.py")])
        for side in ("server", "client")
    )
    once = {"msq": "-c1 -i0", "shm": "", "sem": "-r"}[pair.primitive]
    clients = f"echo text | {client} {once}; {server} --clean"
    if pair.primitive == "sem":  # -r makes none
        clients = f"{client}; {clients}"
    done = subprocess.run(
        ["unshare", "--mount", "--ipc", "sh", "-ec", f"{shm}; {clients}; {server} --clean"],
        env=ENV, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    default = "/test" if pair.api == "posix" else "200"
    *_, removed, nothing = done.stdout.splitlines()
    assert (removed, nothing, done.stderr) == (
        f"removed {default}",
        f"nothing to remove: {default}",
        "",
    )


@pytest.mark.parametrize("script", ALL)
def test_a_script_copied_alone_with_common_runs(script, tmp_path):
    for name in (f"{script}.py", "common.py"):
        shutil.copy(SCRIPTS / name, tmp_path)
    other = {"posix": "sysv_ipc", "sysv": "posix_ipc"}[script.partition("_")[0]]
    (tmp_path / f"{other}.py").write_text("raise SystemExit('the other package was imported')")
    done = subprocess.run(
        [sys.executable, tmp_path / f"{script}.py", "--help"],
        cwd="/",
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", ALL)
def test_the_form_of_a_script(script):
    """A page: docstring, PEP 723 metadata with its own package, about 100 lines."""
    text = (SCRIPTS / f"{script}.py").read_text()
    api, primitive, side = script.split("_")
    package = {"posix": "posix-ipc", "sysv": "sysv-ipc"}[api]
    metadata = re.search(r"(?m)^# /// script$\n((?:^#.*$\n)+?)^# ///$", text)
    assert metadata and f'dependencies = ["{package}>=' in metadata.group(1)
    assert text.startswith('"""')
    assert text.index('"""', 3) < metadata.start() < text.index("\nimport ")
    twin = f"{'sysv' if api == 'posix' else 'posix'}_{primitive}_{side}.py"
    assert twin in text.partition('"""\n\n#')[0], "says what to read next to it"
    lines = text.splitlines()
    assert len(lines) <= 140
    first = next(number for number, line in enumerate(lines, 1) if f"{api}_ipc." in line)
    assert first <= 40, "a reader meets the IPC first"
    assert "\n# --- the command line\nimport " in text
    common = (SCRIPTS / "common.py").read_text()
    assert len(common.splitlines()) <= 100
    assert "posix_ipc" not in common and "sysv_ipc" not in common


def test_the_scripts_are_twelve():
    names = {path.name for path in SCRIPTS.glob("*.py")}
    assert names == {f"{script}.py" for script in ALL} | {"common.py"}
    requirements = (ROOT / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == ["posix-ipc", "sysv-ipc"]


@in_namespaces
def test_a_pair_makes_its_own_object_and_no_other(pair):
    """All IPC objects of a machine, which is made of namespaces, before and after."""
    server = shlex.join(pair.argv("server"))
    options = {"msq": "-c1 -q", "shm": "", "sem": ""}[pair.primitive]
    script = f"""
        mount -t tmpfs tmpfs /dev/shm; mkdir -p /dev/mqueue; mount -t mqueue mqueue /dev/mqueue
        objects() {{ cat /proc/sysvipc/* | wc -l; ls /dev/shm /dev/mqueue; }}
        objects >"$0/before"
        {server} >"$0/out" & until grep -qs start "$0/out"; do sleep 0.01; done
        echo text | {shlex.join(pair.argv("client"))} {options} >/dev/null
        ls /dev/shm | sed 's|^|/dev/shm/|'; ls /dev/mqueue | sed 's|^|/dev/mqueue/|'
        for kind in msg shm sem; do sed "1d; s/^ */$kind /" /proc/sysvipc/$kind; done
        kill $!; wait $!; {server} --clean
        objects >"$0/after"; diff "$0/before" "$0/after"
        """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["unshare", "--ipc", "--mount", "sh", "-ec", script, folder],
            capture_output=True, text=True, env=ENV, timeout=60,
        )  # fmt: skip
    assert (done.stderr, done.returncode) == ("", 0)
    lines = [" ".join(line.split()[:2]) for line in done.stdout.splitlines()]
    assert lines.pop() == f"removed {pair.thing}"
    name = pair.name[1:]
    assert (
        lines
        == {
            ("posix", "msq"): [f"/dev/mqueue/{name}"],
            ("posix", "shm"): [f"/dev/shm/{name}"],
            ("posix", "sem"): [f"/dev/shm/{SEM}{name}"],
            ("sysv", "msq"): [f"msg {pair.key}"],
            ("sysv", "shm"): [f"shm {pair.key}", f"sem {~pair.key}"],
            ("sysv", "sem"): [f"sem {pair.key}"],
        }[pair.api, pair.primitive]
    )


# "sem." stands before the name of a semaphore, and NAME_MAX is 255.
@pytest.mark.parametrize("primitive, longest", [("msq", 255), ("shm", 255), ("sem", 251)])
@pytest.mark.parametrize("letter", ["x", "\xeb"])
def test_the_longest_name(make_pair, primitive, longest, letter):
    room = longest - len(f"test-{os.getpid()}")
    name = f"/test-{os.getpid()}" + letter * (room // len(letter.encode()))
    name += "x" * (longest + 1 - len(name.encode()))
    pair = make_pair("posix", primitive, name=name)
    with pair.server() as server:
        server.wait_line(f"start {TITLE[primitive]} server: {name}")
        options = ["-c1"] if primitive == "msq" else []
        done = pair.client(*options, stdin="text\n")
        assert (done.returncode, done.stderr) == (0, "")
        assert server.stop() == 0
    assert pair.run("server", "--clean").stdout == f"removed {name}\n"
    for side in ("server", "client"):
        done = Pair("posix", primitive, name=f"{name}x").run(side)
        assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize("primitive", PRIMITIVES)
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_name_that_is_not_utf8(primitive, side):
    """It is refused, as posix_ipc would make the object, and could not remove it."""
    done = Pair("posix", primitive, name="/test-\udcff").run(side)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("-n/--name: invalid name value: '/test-\\udcff'\n")


@pytest.mark.parametrize(
    "primitive, option, line",
    [("sem", "--value", "--value is now 2, not 0")]
    + [(primitive, "--mode", "--mode is 600, not 0") for primitive in PRIMITIVES],
)
def test_a_nothing_that_differs_is_said(make_pair, api, primitive, option, line):
    """0 is a value like any other, and not an option that was left out."""
    pair = make_pair(api, primitive)
    with pair.server() as server:
        with pair.server(option, "0") as second:
            second.wait_line("start")
            assert second.stop() == 0
        assert server.stop() == 0
    assert second.err == [f"{pair.script('server')}: {pair.thing}: {line}"]


def test_a_mode_of_nothing(pair):
    """Whoever makes an object may use it, whatever its mode; the next one needs root."""
    if pair.api == "sysv" and not capable("CAP_IPC_OWNER"):
        pytest.skip("needs CAP_IPC_OWNER, as System V looks at the mode at every call (in a"
                    " container: --cap-add IPC_OWNER)")  # fmt: skip
    with pair.server("--mode", "0") as server:
        server.wait_line("start")
        if os.geteuid() == 0:
            assert mode_of(pair) == 0
        assert server.stop() == 0
    assert server.err == []


def test_systemd_is_told_when_the_object_is_there(pair, tmp_path):
    """By a datagram, READY=1, to a path or to an abstract address (unix(7))."""
    for address in (str(tmp_path / "notify"), f"@{pair.name[1:]}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(address.replace("@", "\0"))
            listener.settimeout(PATIENCE)
            with pair.server(env={**ENV, "NOTIFY_SOCKET": address}) as server:
                assert listener.recv(100) == b"READY=1"
                assert pair.exists()
                assert server.stop() == 0
        assert server.err == []
        pair.remove_all()


@pytest.mark.parametrize("address", ["/no/such/socket", "@nobody-listens", "nonsense", "@"])
def test_nobody_listens_for_the_start(make_pair, address):
    pair = make_pair("posix", "shm")
    with pair.server(env={**ENV, "NOTIFY_SOCKET": address}) as server:
        server.wait_line("start")
        assert server.stop() == 0
    assert server.err == []
    assert server.out[-1] == pair.end_line


@needs("strace")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_the_start_line_and_the_loop(pair, number):
    """strace(1) holds the server up after the write(2) of its start line."""
    hold = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=write:delay_exit=500000"]
    with Process([*hold, *pair.argv("server")]) as strace:
        until(lambda: strace.out, "the start line")
        server = int(Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text())
        os.kill(server, number)
        assert strace.wait(5) == 0
    assert strace.out[-1] == pair.end_line


@needs("strace")
def test_a_removal_right_after_the_start_line(pair):
    """strace(1) holds the server up; it knows which object it opened, whatever is there now."""
    hold = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=write:delay_exit=300000"]
    option = [] if pair.primitive == "msq" else ["-i60"]
    with Process([*hold, *pair.argv("server", *option)]) as strace:
        until(lambda: strace.out, "the start line")
        pair.remove()
        assert strace.wait(5) == 1
    assert len(strace.err) == 1
    assert strace.err[0].startswith(f"{pair.script('server')}: {pair.thing}: ")


def test_a_removal_and_another_object_right_after_the_start_line(pair):
    for _ in range(3):
        option = [] if pair.primitive == "msq" else ["-i60"]
        with pair.server(*option) as server:
            pair.remove()
            pair.client(*(["-c1"] if pair.primitive == "msq" else []), stdin="text\n")
            assert server.wait(5) == 1
        assert len(server.err) == 1
        pair.remove_all()


def test_json_and_a_closed_standard_error(msq):
    """What the server says of itself is nowhere then, and not among the messages."""
    shell = ["sh", "-c", 'exec "$@" 2>&-', "sh", *msq.argv("server", "--json", "-c2")]
    with Process(shell) as server:
        until(msq.exists, "the queue")
        msq.client("--stdin", "-q", stdin="1\n2\n")
        assert server.wait() == 0
    assert server.out == ["1", "2"]


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_standard_output_that_does_not_wait(msq, unbuffered):
    """Somebody who shares it made it non-blocking: node and ssh do. Every message is printed."""
    count = 2000
    environment = {**ENV, "PYTHONUNBUFFERED": "1"} if unbuffered else ENV
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    server = subprocess.Popen(
        msq.argv("server", f"-c{count}"), stdout=writer, stderr=subprocess.PIPE, env=environment
    )
    os.close(writer)
    with msq.start("client", "-i0", "-q", f"-c{count}") as client, open(reader) as lines:
        time.sleep(0.5)  # in which it fills the pipe, and cannot go on
        printed = [line.partition(" ")[2].rstrip() for line in lines]
        assert client.wait() == 0
    assert server.wait(PATIENCE) == 0
    assert server.stderr.read() == b""
    server.stderr.close()
    assert printed[1:-1] == [f"{{'count': {n + 1}}}" for n in range(count)]


BAD_NAMES = ["test", "", "/", "/a/b", "/" + "x" * 256, "//x"]
BAD_KEYS = ["0", "-1", "2147483648", "0x80000000", "99999999999999999999", "ten", "", "1.5", "010"]


@pytest.mark.parametrize("script", ALL)
def test_a_bad_name_or_key_is_wrong_usage(script):
    option, values = ("-n", BAD_NAMES) if script.startswith("posix") else ("-k", BAD_KEYS)
    for value in values:
        done = subprocess.run(
            [sys.executable, SCRIPTS / f"{script}.py", option, value],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=ENV,
        )
        assert done.returncode == 2, (value, done)
        assert done.stderr.splitlines()[-1].startswith(f"{script}: error: argument {option}/--")
        assert done.stdout == ""


@pytest.mark.parametrize(
    "primitive, side, options, line",
    [
        ("msq", "server", ["-c-1"], "argument -c/--count: -1 is not from 0 to 1000000000000"),
        ("msq", "server", ["-c", "1000000000001"], "argument -c/--count: 1000000000001 is not"),
        ("msq", "server", ["--count", "x"], "argument -c/--count: invalid "),
        ("msq", "client", ["-c-1"], "argument -c/--count: -1 is not from 0 to 1000000000000"),
        ("msq", "client", ["-i-1"], "argument -i/--interval: -1 is not from 0 to 1000000000"),
        ("msq", "client", ["-i", "nan"], "argument -i/--interval: nan is not from 0 to 1000000000"),
        ("msq", "client", ["-i", "inf"], "argument -i/--interval: inf is not from 0 to 1000000000"),
        ("shm", "server", ["-i-0.1"], "argument -i/--interval: -0.1 is not from 0 to 1000000000"),
        ("shm", "server", ["-c-1"], "argument -c/--count: -1 is not from 0 to 1000000000000"),
        ("shm", "server", ["--size", "0"], "argument --size: 0 is not from 1 to "),
        ("shm", "server", ["--size=-1"], "argument --size: -1 is not from 1 to "),
        ("shm", "client", ["--size", "0"], "argument --size: 0 is not from 1 to "),
        ("shm", "client", ["--size", f"{2**47 + 1}"], f"--size: {2**47 + 1} is not from 1 to "),
        ("sem", "server", ["-i-1"], "argument -i/--interval: -1 is not from 0 to 1000000000"),
        ("sem", "server", ["--value=-1"], "argument --value: -1 is not from 0 to "),
        ("sem", "server", ["--value", "99999999999"], "argument --value: 99999999999 is not from"),
        ("sem", "client", ["--value=-1"], "argument --value: -1 is not from 0 to "),
        ("sem", "client", ["--value", "2147483648"], "--value: 2147483648 is not from 0 to "),
        ("sem", "client", ["-t-1"], "argument -t/--timeout: -1 is not from 0 to 1000000000"),
        ("sem", "client", ["-t", "1", "-w"], "argument -w/--wait: not allowed with argument -t"),
        ("sem", "client", ["-r", "--", "true"], "-- wants a COMMAND, and only one"),
        ("sem", "client", ["--"], "-- wants a COMMAND, and only one"),
        ("sem", "client", ["-w", "echo", "-n", "hi"], "put -- before the command: -- echo"),
        ("sem", "client", ["-w", "echo", "--", "hi"], "put -- before the command: -- echo"),
        ("sem", "client", ["-w", "\x1b[31m"], "put -- before the command: -- \\x1b[31m"),
        ("sem", "server", ["--mode", "888"], "argument --mode: invalid "),
        ("shm", "server", ["--mode", "1000"], "argument --mode: 1000 is not from 0 to 777"),
        ("shm", "server", ["--mode=-1"], "argument --mode: -1 is not from 0 to 777"),
    ],
)
@pytest.mark.parametrize("api", APIS)
def test_wrong_usage_makes_nothing(make_pair, api, primitive, side, options, line):
    pair = make_pair(api, primitive)
    done = pair.run(side, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{pair.script(side)}: error: ")
    assert line in last
    assert not pair.exists()


@pytest.mark.parametrize(
    "pair_of, side, options, line",
    [
        (("posix", "msq"), "server", ["--max-messages", "0"], "0 is not from 1 to"),
        (("posix", "msq"), "server", ["--max-message-size", "0"], "0 is not from 1 to"),
        (("posix", "msq"), "client", ["-p", "32768"], "32768 is not from 0 to 32767"),
        (("sysv", "msq"), "server", ["--type", "2147483648"], "is not from -2147483647 to 2147"),
        (("sysv", "msq"), "client", ["--type", "2147483648"], "is not from 1 to 2147483647"),
        (("sysv", "sem"), "client", ["--value", "32768"], "32768 is not from 0 to 32767"),
        (("posix", "msq"), "client", ["-t-1"], "-1 is not from 0 to 1000000000"),
        (("sysv", "msq"), "client", ["--type", "0"], "0 is not from 1 to "),
        (("sysv", "sem"), "client", ["--by", "0"], "0 is not from 1 to 32767"),
        (("sysv", "sem"), "client", ["--by", "32768"], "32768 is not from 1 to 32767"),
        (("sysv", "sem"), "server", ["--value", "32768"], "32768 is not from 0 to 32767"),
        (("sysv", "sem"), "client", ["-r", "--zero"], "-- wants a COMMAND, and only one"),
        (
            ("sysv", "sem"),
            "client",
            ["--zero", "--", "true"],
            "-- wants a COMMAND, and only one",
        ),
    ],
)
def test_wrong_usage_of_what_one_api_has(make_pair, pair_of, side, options, line):
    pair = make_pair(*pair_of)
    done = pair.run(side, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert line in done.stderr.splitlines()[-1]
    assert pair.run("server", "--clean").stdout.startswith("nothing to remove")


def test_keys_are_decimal_hexadecimal_or_octal(make_pair):
    pair = make_pair("sysv", "msq")
    with pair.server():
        for text in (hex(pair.key), oct(pair.key)):
            done = subprocess.run([*pair.argv("client", "-c0")[:2], "-k", text, "-c0"], env=ENV)
            assert done.returncode == 0
    assert pair.run("server", "--clean").stdout == f"removed {pair.key}\n"


@pytest.mark.parametrize(
    "script, lacks, says",
    [
        ("posix_msq_server", "MESSAGE_QUEUES_SUPPORTED", "has no POSIX message queues"),
        ("posix_msq_client", "MESSAGE_QUEUES_SUPPORTED", "has no POSIX message queues"),
        ("posix_sem_server", "SEMAPHORE_VALUE_SUPPORTED", "does not tell the value"),
    ],
)
def test_what_macos_lacks_is_said_in_one_line(make_pair, script, lacks, says):
    """There the package itself says that it has not got it, which is all that can be had here."""
    pair = make_pair(*script.split("_")[:2])
    code = f"import posix_ipc, runpy; posix_ipc.{lacks} = False; "
    code += "runpy.run_path(sys.argv[0], {}, '__main__')"
    python, *argv = pair.argv(script.split("_")[2])
    command = [
        python,
        "-c",
        f"import sys; sys.argv = {argv}; sys.path[0] = {str(SCRIPTS)!r}; {code}",
    ]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{script}: {pair.name}: this system {says}")
    assert not pair.exists()


@pytest.mark.parametrize(
    "script, lacks",
    [
        ("sysv_msq_server", "timer_create"),
        ("sysv_shm_server", "semtimedop"),
        ("sysv_shm_client", "semtimedop"),
        ("sysv_sem_client", "semtimedop"),
    ],
)
def test_what_macos_lacks_of_system_v_is_said_in_one_line(make_pair, script, lacks):
    """Its C library has neither of the two calls, and no library without them can be had here."""
    pair = make_pair(*script.split("_")[:2])
    python, *argv = pair.argv(script.split("_")[2])
    code = (
        f"import sys; sys.argv = {argv}; sys.path[0] = {str(SCRIPTS)!r}\n"
        "import ctypes, runpy, types\n"
        "ctypes.CDLL = lambda name, **options: types.SimpleNamespace(usleep=int)\n"
        "runpy.run_path(sys.argv[0], {}, '__main__')"
    )
    done = subprocess.run(
        [python, "-c", code], env=ENV, input="text\n", capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith(f"{script}: {pair.key}: ")
    assert lacks in done.stderr
    assert script != "sysv_msq_server" or (done.stdout, pair.exists()) == ("", False)


def test_a_closed_pipe_ends_a_server_quietly(pair):
    """`server | head -1`: the next line that it prints ends it."""
    option = {"msq": [], "shm": ["-i0.1"], "sem": ["-i0.1"]}[pair.primitive]
    server = subprocess.Popen(
        pair.argv("server", *option), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
    )
    assert server.stdout.readline().decode() == f"{pair.start_line}\n"
    server.stdout.close()
    assert pair.client(*(["-c1"] if pair.primitive == "msq" else []), stdin="x\n").returncode == 0
    assert server.wait(20) == 128 + signal.SIGPIPE
    assert server.stderr.read() == b""
    server.stderr.close()


def test_standard_input_and_output_may_be_closed(pair):
    options = [["-c1"], ["--stdin"]] if pair.primitive == "msq" else [[]]
    for argv in (*(pair.argv("client", *some) for some in options), pair.argv("server", "--clean")):
        shell = ["sh", "-c", 'exec "$@" <&- >&-', "sh", *argv]
        done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, env=ENV, timeout=20)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("options", [[], ["--clean"]])
def test_a_full_disk_is_one_line(pair, options):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            pair.argv("server", *options),
            stdout=full, stderr=subprocess.PIPE, text=True, env=ENV, timeout=20,
        )  # fmt: skip
    told = f"{pair.script('server')}: {pair.thing}: No space left on device: not printed: "
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1
    assert done.returncode == 1


def test_unprintable_output_becomes_escapes(make_pair):
    pair = make_pair("posix", "msq")
    with pair.server(env={**ENV, "PYTHONIOENCODING": "ascii"}) as server:
        pair.client("--stdin", "-q", stdin='"Zoë"\n')
        server.wait_line(r"'Zo\xeb'")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_client_ends_by_the_signal(pair, number):
    options = {"msq": ["-i60"], "shm": [], "sem": ["-w"]}[pair.primitive]
    if pair.primitive == "sem":
        pair.client()
        pair.client()
    stdin = subprocess.PIPE
    with pair.start("client", *options, stdin=stdin) as client:
        if pair.primitive == "sem":
            until(lambda: waits_in(client.pid, "semop", "semtimedop", "futex"))
        else:
            until(lambda: client.out)
        status = client.stop(number)
    assert status in (-number, 128 + number)
    assert client.err == []


def test_an_idle_server_sleeps(pair):
    """About one wake-up a second: counted as voluntary context switches over some seconds, which on
    a busy machine may have others among them."""
    with pair.server() as server:
        server.wait_line("start")

        def switches() -> int:
            with open(f"/proc/{server.pid}/status") as file:
                return int(re.search(r"^voluntary_ctxt_switches:\s(\d+)", file.read(), re.M)[1])

        def switches_in_four_seconds() -> int:
            before = switches()
            time.sleep(4)  # the time is what is measured against
            return switches() - before

        assert any(switches_in_four_seconds() <= 6 for _ in range(3))


@pytest.mark.parametrize("moment", ["it sleeps", "its first line", "its first reading"])
def test_a_stop_waits_for_no_pause_of_a_server(pair, moment):
    """Nor does one that its line brings about; some of five may be held up by other processes."""
    options = [] if pair.primitive == "msq" else ["-i60"]
    took = []
    for _ in range(5):
        argv = pair.argv("server", *options)
        with subprocess.Popen(argv, stdout=subprocess.PIPE, env=ENV) as server:
            server.stdout.readline()
            if moment == "its first reading" and pair.primitive != "msq":
                server.stdout.readline()
            if moment == "it sleeps":
                until(lambda: state(server.pid) == "S")
            began = time.monotonic()
            server.terminate()
            assert server.wait(PATIENCE) == 0
            took.append(time.monotonic() - began)
    assert statistics.median(took) < 0.5


@needs("prlimit")
@pytest.mark.parametrize("primitive", ["msq", "shm"])
def test_a_line_for_which_there_is_no_memory(make_pair, api, primitive):
    pair = make_pair(api, primitive)
    argv = pair.argv("client", *(["--stdin"] if primitive == "msq" else []))
    shell = ["sh", "-c", 'head -c 300000000 /dev/zero | prlimit --as=200000000 "$@"', "sh", *argv]
    done = subprocess.run(shell, capture_output=True, text=True, env=ENV, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"{pair.script('client')}: {pair.thing}: Not enough memory\n"
