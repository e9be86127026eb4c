import pytest

from cbd_fast.files import PARTIAL_SUFFIX, whole_folder, write_whole


def test_write_whole_replaces(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_whole_folder_appears_at_the_end(tmp_path):
    path = tmp_path / "out"
    with whole_folder(path) as folder:
        (folder / "a").write_text("a")
        assert not path.exists()
    assert [entry.name for entry in path.iterdir()] == ["a"]


def test_whole_folder_leaves_nothing_after_an_error(tmp_path):
    def fail():
        with whole_folder(tmp_path / "new" / "deep" / "out") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not list(tmp_path.iterdir())


def test_whole_folder_replaces_what_a_kill_left(tmp_path):
    left = tmp_path / f"out{PARTIAL_SUFFIX}"
    left.mkdir()
    (left / "half").write_text("half")
    with whole_folder(tmp_path / "out") as folder:
        assert not list(folder.iterdir())
