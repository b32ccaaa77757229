"Where something may be written, and that what is written is whole."

import json, os, signal, subprocess, sys
import pytest
from hypothesis import given, strategies as st
from pathlib import Path

from fastedit.core import (
    FastEditError,
    OptionError,
    TwiceError,
    atomic_write,
    check_output,
    clear_leftovers,
    held_by_me,
    legible,
    read_once,
    read_value,
)


@pytest.mark.parametrize("n", [1, 200, 251, 255])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, n):
    p = tmp_path / ("ä" * (n // 2) + "x" * (n % 2))
    assert len(os.fsencode(p.name)) == n
    check_output(p)
    atomic_write(p, b"a")
    atomic_write(p, b"b")
    assert p.read_bytes() == b"b" and os.listdir(tmp_path) == [p.name]


@pytest.mark.parametrize(
    "name", ["x" * 256, "ä" * 128, "x" * 300 + "/a.png", "sub/" + "x" * 256, "x/" * 2100 + "a.png"]
)
def test_a_longer_one_is_refused_in_words(tmp_path, name):
    with pytest.raises(OptionError, match="shorter|long"):
        check_output(tmp_path / name)
    assert not os.listdir(tmp_path)


def test_a_link_is_written_through_and_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "a.png").symlink_to("real/b.png")
    (tmp_path / "c.png").symlink_to("a.png")
    for data in (b"1", b"2"):  # first dangling, then not
        check_output(tmp_path / "c.png", (".png",))
        atomic_write(tmp_path / "c.png", data)
        assert (
            (tmp_path / "real" / "b.png").read_bytes() == data
            and (tmp_path / "a.png").is_symlink()
            and (tmp_path / "c.png").is_symlink()
        )
    assert os.listdir(tmp_path / "real") == ["b.png"]
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").symlink_to("real")
    for bad in ("loop", "folder"):
        with pytest.raises(OptionError):
            check_output(tmp_path / bad)
        with pytest.raises(FastEditError):
            atomic_write(tmp_path / bad, b"")


def test_places_that_take_no_file(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    (tmp_path / "folder").mkdir()
    for bad in ("file/a", "folder", "file/sub/a"):
        with pytest.raises(OptionError):
            check_output(tmp_path / bad)
    with pytest.raises(OptionError, match="zero byte"):
        check_output("a\0b")
    with pytest.raises(OptionError, match=".png"):
        check_output(tmp_path / "a.doc", (".png",))
    if Path("/proc/self").is_dir():
        with pytest.raises(OptionError, match="takes no files"):
            check_output("/proc/a.png")  # permission bits would say yes to root
    assert check_output(tmp_path / "new" / "deep" / "a.png") and not (tmp_path / "new").exists()


def test_inputs_are_never_overwritten(tmp_path):
    p = tmp_path / "a.png"
    p.write_bytes(b"1")
    (tmp_path / "link.png").symlink_to(p)
    os.link(p, tmp_path / "hard.png")
    for out in (p, tmp_path / "link.png", tmp_path / "hard.png", tmp_path / "." / "a.png"):
        with pytest.raises(OptionError, match="the picture itself"):
            check_output(out, inputs=dict(picture=p, mask=None))
    check_output(tmp_path / "b.png", inputs=dict(picture=p, mask=tmp_path / "none.png"))


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    fd = os.open(tmp_path / "pipe", os.O_RDWR)
    check_output(tmp_path / "pipe")
    atomic_write(tmp_path / "pipe", b"abc")
    assert os.read(fd, 9) == b"abc" and (tmp_path / "pipe").is_fifo()
    os.close(fd)
    check_output("/dev/null")
    atomic_write("/dev/null", b"abc")
    assert Path("/dev/null").is_char_device()


def test_a_write_protected_file_is_refused_before(tmp_path, monkeypatch):
    p = tmp_path / "a.png"
    p.write_bytes(b"1")
    monkeypatch.setattr(os, "access", lambda *a: False)
    with pytest.raises(OptionError, match="write-protected"):
        check_output(p)


def test_what_a_terminal_passed_on_as_bytes_is_read():
    assert [legible(t) for t in ("", "a", "café ☕", "caf\udcc3\udca9")] == [
        "",
        "a",
        "café ☕",
        "café",
    ]
    assert legible("a\udcff") == "a\udcff" and legible("a\udcff", "replace") == "a\ufffd"


# --- what killed runs leave


def test_leftovers_of_killed_runs_go_and_nothing_else(tmp_path):
    "Files of other names, links, folders, and what a living process is writing stay."
    left = tmp_path / ".fastedit-0123456789ab.tmp"
    left.write_bytes(b"half")
    (tmp_path / ".fastedit-00000000000a.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for name in (
        ".fastedit-notes.tmp",
        "a.tmp",
        ".abcdefgh.tmp",
        "x.fastedit-0123456789ab.tmp",
        ".fastedit-0123456789ab.tmp.bak",
    ):
        (tmp_path / name).touch()
    (tmp_path / ".fastedit-00000000000b.tmp").symlink_to("notes.txt")
    held = os.open(tmp_path / ".fastedit-00000000000c.tmp", os.O_RDWR | os.O_CREAT)
    assert held_by_me(held)
    before = set(os.listdir(tmp_path))
    assert clear_leftovers(
        tmp_path, tmp_path / "nowhere", tmp_path / "notes.txt"
    ) == 1 and before - set(os.listdir(tmp_path)) == {left.name}
    os.close(held)
    assert clear_leftovers(tmp_path) == 1 and (tmp_path / "notes.txt").read_text() == "mine"


def test_a_killed_writer_leaves_what_the_next_start_clears(tmp_path):
    code = (
        "import os, signal\nfrom fastedit import writing\n"
        "writing.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "writing.atomic_write('x.bin', b'whole')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL and len(os.listdir(tmp_path)) == 1
    assert clear_leftovers(tmp_path) == 1 and not os.listdir(tmp_path)


def test_a_new_file_has_the_permissions_that_the_user_wants(tmp_path):
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


# --- JSON in which nothing is said twice


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
    max_leaves=8,
)


@given(plain, st.sampled_from([None, 1]), st.booleans())
def test_json_is_read_as_python_reads_it(value, indent, as_bytes):
    text = json.dumps(value, indent=indent)
    assert read_once(text.encode("utf-16") if as_bytes else text) == value


@given(st.dictionaries(st.text(), plain, min_size=1, max_size=4), st.data())
def test_a_name_said_twice_is_found_with_its_line(table, data):
    name = data.draw(st.sampled_from(sorted(table)))
    outer = json.dumps({"above": [1, "{"], "in": table}, indent=1)[: -len("\n }\n}")]
    text = f"{outer},\n  {json.dumps(name)}: 1\n }}\n}}"
    with pytest.raises(TwiceError) as e:
        read_once(text)
    assert e.value.name == name and e.value.line == text.count("\n") - 1


def test_a_name_written_in_two_ways_is_one_name():
    with pytest.raises(TwiceError, match="the name 'a' stands twice in one object: keep"):
        read_once(b'{"a": 1, "\\u0061": 2}')


def test_a_value_with_a_name_twice_is_no_text():
    with pytest.raises(OptionError, match="'eta' stands twice"):
        read_value('{"eta": 0.5, "eta": 1}')
