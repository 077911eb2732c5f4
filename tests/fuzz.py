"""Coverage-guided fuzzing, with atheris, of what a server does with bytes that it did not make.

    python tests/fuzz.py [SECONDS]

`make soak` runs it; hypothesis does the short form, through real queues, in test_hostile.py.
"""

import contextlib
import importlib
import io
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
with atheris.instrument_imports():
    queues = [importlib.import_module(f"{api}_msq_server") for api in ("posix", "sysv")]
    segments = [importlib.import_module(f"{api}_shm_server") for api in ("posix", "sysv")]


def one_input(data: bytes) -> None:
    for server in queues:
        for as_json in (False, True):
            out = io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
                server.show(data, as_json)
            text = out.getvalue()
            assert text.endswith("\n") and text[:-1].isprintable(), ascii(text)
    for server in segments:
        text = server.printable(data.partition(b"\0")[0].decode(errors="backslashreplace"))
        assert text.isprintable(), ascii(text)


if __name__ == "__main__":
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=8192"], one_input)
    atheris.Fuzz()
