"""Nothing is left half-written, and nothing that is not ours is written over."""

import os
from pathlib import Path

import pytest

from ozaki.storage import write_atomically, write_folder_atomically


class Broken(Exception):
    pass


def half(path: Path) -> None:
    (path / "part" if path.is_dir() else path).write_text("half")
    raise Broken


def is_marked(folder: Path) -> bool:
    return (folder / "mark").exists()


def filled(text: str):
    def fill(folder: Path) -> None:
        (folder / "mark").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text(text)

    return fill


def test_file_is_written_and_replaced_only_when_told(tmp_path: Path):
    path = tmp_path / "new" / "a.txt"
    assert write_atomically(path, lambda p: p.write_text("one") and None) == path
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_atomically(path, lambda p: p.write_text("two") and None)
    assert path.read_text() == "one"
    write_atomically(path, lambda p: p.write_text("two") and None, overwrite=True)
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_failed_file_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "a.txt"
    with pytest.raises(Broken):
        write_atomically(path, half)
    assert not path.exists()
    path.write_text("old")
    with pytest.raises(Broken):
        write_atomically(path, half, overwrite=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_file_does_not_replace_a_folder(tmp_path: Path):
    with pytest.raises(FileExistsError, match="is a folder"):
        write_atomically(tmp_path, lambda p: None, overwrite=True)


def test_folder_is_written_and_replaced_only_when_told(tmp_path: Path):
    path = tmp_path / "new" / "folder"
    write_folder_atomically(path, filled("one"), ours=is_marked)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_folder_atomically(path, filled("two"), ours=is_marked)
    assert (path / "mark").read_text() == "one"
    write_folder_atomically(path, filled("two"), ours=is_marked, overwrite=True)
    assert (path / "deep" / "file").read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["folder"]


def test_empty_folder_is_free(tmp_path: Path):
    write_folder_atomically(tmp_path / "e", lambda p: None, ours=is_marked)
    write_folder_atomically(tmp_path / "e", filled("one"), ours=is_marked)
    assert is_marked(tmp_path / "e")


def test_failed_folder_leaves_the_old_one(tmp_path: Path):
    path = tmp_path / "folder"
    write_folder_atomically(path, filled("one"), ours=is_marked)
    with pytest.raises(Broken):
        write_folder_atomically(path, half, ours=is_marked, overwrite=True)
    assert (path / "mark").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_failed_second_rename_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "folder"
    write_folder_atomically(path, filled("one"), ours=is_marked)
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise Broken
        replace(source, target)

    monkeypatch.setattr("ozaki.storage.os.replace", failing)
    with pytest.raises(Broken):
        write_folder_atomically(path, filled("two"), ours=is_marked, overwrite=True)
    assert (path / "mark").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_work_of_others_is_left_alone(tmp_path: Path, overwrite: bool):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(FileExistsError, match="left alone"):
        write_folder_atomically(tmp_path, filled("one"), ours=is_marked, overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file"):
        write_folder_atomically(
            tmp_path / "thesis.tex", filled("one"), ours=is_marked, overwrite=overwrite
        )
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_a_link_keeps_its_place(tmp_path: Path):
    real = tmp_path / "real"
    write_folder_atomically(real, filled("one"), ours=is_marked)
    link = tmp_path / "link"
    link.symlink_to(real)
    write_folder_atomically(link, filled("two"), ours=is_marked, overwrite=True)
    assert link.is_symlink()
    assert (real / "mark").read_text() == "two"
