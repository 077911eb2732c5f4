"""What all twelve scripts promise: lines, options, exit status, signals, errors, traces."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tokenize

import pytest
from conftest import APIS, ENV, PAIRS, PRIMITIVES, ROOT, SCRIPTS, TITLE, Pair, until, waits_in

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
    for _ in range(5):
        with pair.server() as server:
            assert server.stop(number) == 0
        assert server.out[-1] == pair.end_line


def test_two_signals_are_a_clean_stop_too(pair):
    """Ctrl-C under make: the terminal sends one, and make another."""
    for _ in range(10):
        with pair.server() as server:
            server.popen.send_signal(signal.SIGINT)
            while server.popen.poll() is None:
                server.popen.send_signal(signal.SIGTERM)
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
    assert server.err == [f"{pair.script('server')}: {pair.thing}: {option} is {made}, not {given}"]


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
    assert text.index('"""', 3) < metadata.start() < text.index("import argparse")
    twin = f"{'sysv' if api == 'posix' else 'posix'}_{primitive}_{side}.py"
    assert twin in text.partition('"""\n\n#')[0], "says what to read next to it"
    assert len(text.splitlines()) <= (140 if api == "sysv" and primitive != "msq" else 138)
    common = (SCRIPTS / "common.py").read_text()
    assert len(common.splitlines()) <= 80
    assert "posix_ipc" not in common and "sysv_ipc" not in common


def test_no_object_of_the_other_primitives_is_touched():
    names = {path.name for path in SCRIPTS.glob("*.py")}
    assert names == {f"{script}.py" for script in ALL} | {"common.py"}
    for path in SCRIPTS.glob("*.py"):
        with tokenize.open(path) as file:
            assert "TODO" not in file.read()
    assert set(PRIMITIVES) == set(TITLE)
    requirements = (ROOT / "requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == ["posix-ipc", "sysv-ipc"]


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
    "primitive, side, options",
    [
        ("msq", "server", ["-c-1"]),
        ("msq", "server", ["--count", "x"]),
        ("msq", "client", ["-c-1"]),
        ("msq", "client", ["-i-1"]),
        ("msq", "client", ["-i", "nan"]),
        ("msq", "client", ["-i", "inf"]),
        ("shm", "server", ["-i-0.1"]),
        ("shm", "server", ["-c-1"]),
        ("shm", "server", ["--size", "0"]),
        ("shm", "server", ["--size=-1"]),
        ("shm", "client", ["--size", "0"]),
        ("sem", "server", ["-i-1"]),
        ("sem", "server", ["--value=-1"]),
        ("sem", "server", ["--value", "99999999999"]),
        ("sem", "client", ["-t-1"]),
        ("sem", "client", ["-t", "1", "-w"]),
        ("sem", "client", ["-r", "--", "true"]),
        ("sem", "server", ["--mode", "888"]),
        ("shm", "server", ["--mode", "1000"]),
    ],
)
@pytest.mark.parametrize("api", APIS)
def test_wrong_usage_makes_nothing(make_pair, api, primitive, side, options):
    pair = make_pair(api, primitive)
    done = pair.run(side, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert pair.run("server", "--clean").stdout.startswith("nothing to remove")


def test_keys_are_decimal_hexadecimal_or_octal(make_pair):
    pair = make_pair("sysv", "msq")
    with pair.server():
        for text in (hex(pair.key), oct(pair.key)):
            done = subprocess.run([*pair.argv("client", "-c0")[:2], "-k", text, "-c0"], env=ENV)
            assert done.returncode == 0
    assert pair.run("server", "--clean").stdout == f"removed {pair.key}\n"


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


def test_a_full_disk_is_one_line(pair):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            pair.argv("server"), stdout=full, stderr=subprocess.PIPE, text=True, env=ENV, timeout=20
        )
    assert done.stderr.startswith(f"{pair.script('server')}: {pair.thing}: No space left on device")
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
    """About one wake-up a second: counted as voluntary context switches over some seconds."""
    with pair.server("-i60") if pair.primitive != "msq" else pair.server() as server:
        server.wait_line("start")

        def switches() -> int:
            with open(f"/proc/{server.pid}/status") as file:
                return int(re.search(r"^voluntary_ctxt_switches:\s(\d+)", file.read(), re.M)[1])

        before = switches()
        time.sleep(4)  # the time is what is measured against
        assert switches() - before <= 8
