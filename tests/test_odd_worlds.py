"""The command where the world around it is odd: disks, names, links, streams, signals, environments."""

from __future__ import annotations

import os
import pty
import re
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import GOLDEN, SLIM, SMALL_OPTIONS, photo
from support import slim_process as slim

import slimcodec

FILE = GOLDEN / "small-files" / "chelsea-97x41-q20.slim"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="signals, links and limits of POSIX"),
]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    photo("coffee", 40, 25).save(folder / "cup.png")
    return folder


# --- disks


def test_a_full_disk_leaves_no_half_file(photos: Path, tmp_path: Path) -> None:
    photo("rocket", 400, 300).save(photos / "rocket.png")
    limit = slimcodec.load(GOLDEN / "small", dtype="float32").encode(photos / "cup.png")

    def no_larger_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(limit), len(limit)))

    slims = tmp_path / "slims"
    result = slim("encode", photos, "-o", slims, *SMALL_OPTIONS, before=no_larger_files)
    assert result.status == 1 and len(result.lines) == 1
    assert f"cannot write {slims / 'rocket.slim'}: File too large" in result.lines[0]
    # no temporary file either
    assert sorted(os.listdir(slims)) == ["cup.slim"] and (slims / "cup.slim").read_bytes() == limit


@pytest.mark.parametrize(
    ("options", "reason"), [("ro", "Read-only file system"), ("size=4k", "No space left")]
)
def test_a_disk_that_takes_nothing(photos: Path, tmp_path: Path, options: str, reason: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o {options} none {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    # what is small enough to fit is taken by a file that leaves no room
    fill = f"(head -c 4096 /dev/zero > {disk}/filler) 2> /dev/null"
    run = " ".join([*SLIM, "encode", str(photos), "-o", str(disk), *SMALL_OPTIONS])
    script = f"{mount}; {fill}; {run}; echo status $?; ls -A {disk}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert "status 1" in done.stdout and done.stderr.count("\n") == 1
    assert f"cannot write {disk / 'cup.slim'}: {reason}" in done.stderr
    assert "cup.slim\n" not in done.stdout and ".tmp" not in done.stdout
    assert names(photos) == ["cup.png"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    "command", [("encode", "{photos}", "-o", "{out}", *SMALL_OPTIONS), ("info", str(FILE), "--json")]
)
def test_a_summary_that_cannot_be_written(photos: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    arguments = [word.format(photos=photos, out=tmp_path / "out") for word in command]
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*SLIM, *arguments], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["slim: No space left on device"]


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*SLIM, "info", str(FILE)], stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert done.returncode == 1 and done.stderr.decode().splitlines() in (["slim: Broken pipe"], [])


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_are_closed(photos: Path, tmp_path: Path, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for stream in closed:
            os.close(stream)

    result = slim("encode", photos, "-o", tmp_path / "slims", *SMALL_OPTIONS, before=close)
    assert result.status == 0 and names(tmp_path / "slims") == ["cup.slim"]


# --- names and links


def test_names_of_every_kind(photos: Path, tmp_path: Path) -> None:
    picture = (photos / "cup.png").read_bytes()
    kinds = [
        "ünïcödé 猫 🐈",
        "two\nlines",
        "x" * 250,
        "-q",
        "a.b.c",
        " space ",
        os.fsdecode(b"latin-\xff"),
        "\x1b[31mred",
    ]
    for kind in kinds:
        (photos / f"{kind}.png").write_bytes(picture)
    # 255 bytes, the most that a name may have, which .slim makes one more
    (photos / f"{'y' * 251}.png").write_bytes(picture)
    slims = tmp_path / "slims"
    result = slim("encode", photos, "-o", slims, *SMALL_OPTIONS)
    assert sorted(os.listdir(slims)) == sorted(f"{kind}.slim" for kind in (*kinds, "cup"))
    assert result.status == 1 and len(result.lines) == 1 and "File name too long" in result.lines[0]
    assert "\x1b" not in result.out.decode() + result.lines[0]
    assert slim("verify", slims, *SMALL_OPTIONS[:2]).status == 0


def test_a_name_that_no_file_can_have(photos: Path) -> None:
    result = slim("encode", "z" * 5000, photos / "cup.png", *SMALL_OPTIONS)
    assert result.status == 1 and len(result.lines) == 1 and "no such file" in result.lines[0]
    assert names(photos) == ["cup.png", "cup.slim"]
    result = slim("encode", photos / "cup.png", "-o", "z" * 5000, *SMALL_OPTIONS)
    assert result.status == 1 and len(result.lines) == 1 and "File name too long" in result.lines[0]


def test_links_that_lead_back(photos: Path, tmp_path: Path) -> None:
    for loop in ("one", "two"):
        (photos / loop).symlink_to(photos, target_is_directory=True)
    (photos / "itself.png").symlink_to(photos / "itself.png")
    (photos / "dead.png").symlink_to(photos / "gone.png")
    (photos / "other.png").symlink_to(photos / "cup.png")
    for number, pattern in enumerate((photos, photos / "**", photos / "**" / "*.png")):
        out = tmp_path / str(number)
        result = slim("encode", pattern, "-o", out, *SMALL_OPTIONS)
        assert result.status == 1 and len(result.lines) == 2, result.lines
        assert any("itself.png: Too many levels of symbolic links" in line for line in result.lines)
        assert any("dead.png: No such file or directory" in line for line in result.lines)
        assert names(out) == ["cup.slim", "other.slim"]
    assert slim("encode", photos / "itself.png", *SMALL_OPTIONS).status == 1


@pytest.mark.parametrize("command", ["encode", "decode", "info", "verify"])
def test_an_empty_folder_is_a_line(tmp_path: Path, command: str) -> None:
    result = slim(command, tmp_path)
    assert result.status == 1 and len(result.lines) == 1 and "file in this folder" in result.lines[0]
    assert not os.listdir(tmp_path)


# --- signals


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.6])
def test_an_interrupt_at_the_start(photos: Path, tmp_path: Path, seconds: float) -> None:
    for number in range(300):
        (photos / f"{number}.png").write_bytes((photos / "cup.png").read_bytes())
    slims = tmp_path / "slims"
    process = subprocess.Popen(
        [*SLIM, "encode", str(photos), "-o", str(slims), *SMALL_OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # python itself dies of a signal before the command has been read
    wait_for(lambda: b"slimcodec" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)
    assert all(slimcodec.inspect(path).width == 40 for path in slims.glob("*"))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def processes_of_session(leader: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="lists processes as Linux tells them")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_killed_command(photos: Path, tmp_path: Path, number: int) -> None:
    for copy in range(200):
        (photos / f"{copy}.png").write_bytes((photos / "cup.png").read_bytes())
    slims, quiet = tmp_path / "slims", subprocess.DEVNULL
    command = [*SLIM, "encode", str(photos), "-o", str(slims), "--jobs", "2", *SMALL_OPTIONS]
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
    wait_for(lambda: bool(list(slims.glob("*.slim"))))
    process.send_signal(number)
    assert process.wait() == -number
    wait_for(lambda: not processes_of_session(process.pid))


# --- environments


PLAIN = {
    name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
}


@pytest.mark.parametrize("home", [None, "/nonexistent/home"])
def test_no_home(photos: Path, tmp_path: Path, home: str | None) -> None:
    env = PLAIN | ({"HOME": home} if home else {})
    assert slim("encode", photos, "-o", tmp_path, *SMALL_OPTIONS, env=env)[0] == 0
    assert slim("decode", tmp_path / "cup.slim", *SMALL_OPTIONS, env=env).status == 0
    assert not Path("/nonexistent").exists()


@pytest.mark.parametrize(
    "locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_locale_c(photos: Path, tmp_path: Path, locale: dict[str, str]) -> None:
    env, caption = PLAIN | locale, "ein Fuß im Café"
    (photos / "cup.png").rename(photos / "чашка.png")
    slims = tmp_path / "slims"
    result = slim("encode", photos, "-o", slims, "--caption", caption, *SMALL_OPTIONS, env=env)
    assert (result.status, result.lines) == (0, []) and os.listdir(slims) == ["чашка.slim"]
    assert slimcodec.inspect(slims / "чашка.slim").caption == caption
    assert slim("info", slims, env=env).status == 0
    assert slim("encode", photos / "кот.png", *SMALL_OPTIONS, env=env).status == 1
    assert slim("encode", env=env).status == 2
    assert slim("decode", slims, *SMALL_OPTIONS, env=env).status == 0


@pytest.mark.parametrize("setting", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_terminal_without_colours(photos: Path, tmp_path: Path, setting: dict[str, str]) -> None:
    (photos / "bad.png").touch()
    leader, terminal = pty.openpty()
    command = [*SLIM, "encode", str(photos), "-o", str(tmp_path / "slims"), *SMALL_OPTIONS]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=PLAIN | setting)
    os.close(terminal)
    shown = b""
    while select.select([leader], [], [], 120)[0]:
        try:
            shown += os.read(leader, 4096)
        except OSError:  # Linux says so at the end
            break
    os.close(leader)
    assert process.wait() == 1 and b"1 file: " in shown
    # beside a bar, lines are broken to the width of the terminal
    assert b"bad.png:thefileisempty" in b"".join(shown.split())
    assert not re.search(rb"\x1b\[[0-9;]*m", shown)
    assert (b"\x1b" in shown) == (setting["TERM"] != "dumb")
