"""The Makefile, as its user runs it: from a clone, in a folder with a space in its name."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pexpect
import pytest
from conftest import ENV, PAIRS, ROOT, TITLE, Pair, needs, until

NAMES = ["-".join(pair) for pair in PAIRS]


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
    (ROOT / ".venv" / ".setup").touch()
    return folder


def make(checkout: Path, *args: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *args],
        cwd=checkout,
        env=ENV,
        text=True,
        capture_output=True,
        timeout=60,
        **{"stdin": subprocess.DEVNULL, **options},
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
    pair = make_pair("posix", "sem")
    env = {**ENV, "NAME": "host", "KEY": "x", "COUNT": "x", "INTERVAL": "x", "ARGS": "--nonsense"}
    done = subprocess.run(
        ["make", "posix-sem-client", *variables(pair)],
        cwd=checkout, env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("semaphore: 1\n", "")


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
        stdin=None, input="text\n",
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
        *(["ARGS=-c 2"] if primitive == "msq" else []), stdin=None, input="text\n",
    )  # fmt: skip
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == pair.start_line
    assert lines[-1] == pair.end_line
    shown = {"msq": "{'count': 2}", "shm": "text", "sem": "semaphore: 1"}[primitive]
    assert any(line[2:3] == ":" and line.endswith(shown) for line in lines)
    assert running(pair) == []


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
            assert f"{pair.key:#010x}" in done.stdout
        elif pair.primitive != "msq" or Path("/dev/mqueue", pair.name[1:]).exists():
            assert pair.name[1:] in done.stdout
        else:
            assert "mount -t mqueue" in done.stdout


def left_by_the_demo(output: str) -> list[str]:
    """What there is of the objects whose names and keys it printed."""
    there = subprocess.check_output(["ipcs"], text=True) + " ".join(os.listdir("/dev/shm"))
    names = set(re.findall(r"-n /(\S+)", output))
    keys = {f"{int(key):#010x}" for key in re.findall(r"-k (\d+)", output)}
    assert names
    return [thing for thing in names | keys if thing in there]


def test_the_demo(checkout):
    done = make(checkout, "demo")
    assert done.returncode == 0
    for api, primitive in PAIRS:
        for side in ("server", "client"):
            assert f"python {api}_{primitive}_{side}.py" in done.stdout
    assert len(done.stderr.splitlines()) == 2
    assert all(line.endswith(": Semaphore is busy") for line in done.stderr.splitlines())
    assert left_by_the_demo(done.stdout) == []

    def without_times(text: str) -> list[str]:
        text = re.sub(r"(?m)^\d\d:\d\d:\d\d\.\d{6}", "TIME", text)
        return [line.rstrip() for line in re.sub(r"/demo-\d+", "/demo", text).splitlines()]

    shown = re.search(r"(?s)\$ make demo\n(.*?)```", (ROOT / "README.md").read_text())[1]
    assert set(without_times(shown)) <= set(without_times(done.stdout))


@pytest.mark.parametrize("moment", ["posix_msq_client", "posix_shm_client", "sysv_sem_client"])
def test_an_interrupted_demo_leaves_nothing(checkout, moment):
    child = pexpect.spawn(
        "make", ["demo"], cwd=str(checkout), env=ENV, encoding="utf-8", timeout=60
    )
    child.expect_exact(f"{moment}.py")
    output = child.before
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert left_by_the_demo(output + child.before) == []


def test_setup_in_a_new_clone(checkout, tmp_path):
    """No environment, a folder with a space, and twelve targets that all want it at once."""
    folder = tmp_path / "new clone"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(checkout / name, folder)
    shutil.copytree(checkout / "scripts", folder / "scripts")
    done = subprocess.run(
        ["make", "-j8", "clean", "NAME=/test-none", "KEY=123454321"],
        cwd=folder, env={**ENV, "PIP_NO_INPUT": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert done.stdout.count("nothing to remove") == 6
    assert make(folder, "distclean").returncode == 0
    assert not (folder / ".venv").exists()
