"""What is written beside a user's path overwrites no file that somebody's link points to."""

import os
import secrets

import pytest
import torch

from orchestrator.reports.html_page import write_page
from orchestrator.storage import object_store, published_folders
from workloads.runtime import checkpoint
from workloads.runtime.atomic_files import replace_text, replacing


@pytest.fixture
def victim(tmp_path):
    """A file of the user's elsewhere, to which planted links point."""
    path = tmp_path / "victim"
    path.write_text("mine")
    return path


def test_a_page_follows_no_link_under_its_name_or_one_that_can_be_guessed(tmp_path, victim):
    out = tmp_path / "report.html"
    for name in ("report.html", "report.html.tmp", "report.html.part", ".report.html"):
        (tmp_path / name).symlink_to(victim)
    write_page("<p>é</p>", out)
    assert victim.read_text() == "mine"
    assert out.read_text(encoding="utf-8") == "<p>é</p>"
    assert not out.is_symlink()


def test_a_name_that_exists_is_not_opened(tmp_path, victim, monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", lambda _: "guessed")
    (tmp_path / ".guessed.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_text(tmp_path / "out", "theirs")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_a_published_part_follows_no_link(tmp_path, victim):
    folder = checkpoint.write(tmp_path / "tagger", tensors={"cnn": {"w": torch.ones(1)}}, state={"step": 7})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "state.json").symlink_to(victim)
    published_folders.publish(folder, str(tmp_path / "out"))
    assert victim.read_text() == "mine"
    assert checkpoint.read_state(tmp_path / "out") == {"step": 7}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "COMMITTED.json",
        "cnn.safetensors",
        "state.json",
    ]


def test_a_new_file_has_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        replace_text(tmp_path / "out", "")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o640


def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path):
    (tmp_path / "out").write_text("old")

    def write_half():
        with replacing(tmp_path / "out") as file:
            file.write(b"new")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out", "old")]


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "outcome.json").mkdir()
    with pytest.raises(ValueError, match=r"outcome.json: is a folder, where a file .* is to be written; move it away"):
        object_store.put_text(str(tmp_path / "outcome.json"), "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
