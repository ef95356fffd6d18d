"""Files are whole or not there, whatever interrupts a write; a lock ends with its process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nca_lib.errors import NCAError, OutputError
from nca_lib.files import check_writable, locked, sweep, write_atomically


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"file: cannot be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    wrong = {
        tmp_path: "is no file",
        tmp_path / "pipe": "is no file",
        tmp_path / "none" / "x": r"folder .*none does not exist",
        tmp_path / "file" / "x": r"folder .*file does not exist",
        tmp_path / ("x" * 300): "File name too long",
        tmp_path / "nul\0": "is no name of a file",
    }
    for path, message in wrong.items():
        with pytest.raises(OutputError, match=message) as caught:
            check_writable(path)
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, NCAError)
    check_writable(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "pipe"]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_atomically(tmp_path / "link", b"x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"x"


def test_what_interrupted_writes_left_is_swept_and_nobody_elses_partials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film.mkv.partial").write_text("half")
    write_atomically(tmp_path / "film.mkv", b"whole")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "unlink", lambda *given, **options: None)
        with pytest.raises(TypeError):
            write_atomically(tmp_path / "a.pt", "not bytes")  # type: ignore[arg-type]
    assert len(list(tmp_path.iterdir())) == 3
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["film.mkv", "film.mkv.partial"]


HOLDER = """
import sys, time
from nca_lib.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_by_host_and_id_until_the_first_is_gone(tmp_path: Path) -> None:
    lock = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        message = rf"run is in use by process {process.pid} on {os.uname()[1]}"
        with pytest.raises(OutputError, match=message), locked(lock):
            pass
        process.send_signal(signal.SIGKILL)
    assert lock.read_text()  # stale, and no obstacle
    with locked(lock):
        assert str(os.getpid()) in lock.read_text()
    assert lock.read_text() == ""
