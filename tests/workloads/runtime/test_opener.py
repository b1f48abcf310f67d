"""Files are read whole up to a bound, and no more memory is asked for than they have bytes."""

import io
from pathlib import Path

import pytest

from workloads.runtime.opener import LocalFiles, read_bounded


class Counting(io.BytesIO):
    """Remembers how many bytes were asked for."""

    asked = 0

    def read(self, size: int | None = -1) -> bytes:
        self.asked += size if size is not None and size >= 0 else 10**12
        return super().read(size)


@pytest.mark.parametrize(("size", "fits"), [(0, True), (10, True), (11, False), (100, False)])
def test_a_file_up_to_the_bound_is_read_whole(size: int, fits: bool) -> None:
    file = Counting(b"x" * size)
    assert read_bounded(file, 10) == (b"x" * size if fits else None)
    assert file.asked <= size + 1


def test_a_file_that_grows_while_it_is_read_is_none() -> None:
    file = io.BytesIO(b"x" * 5)
    file.seek = lambda *_: 4  # type: ignore[method-assign, assignment]
    assert read_bounded(file, 10) is None


def test_the_files_below_a_folder_are_listed_through_links_but_not_in_circles(tmp_path: Path) -> None:
    for path in ("b/c/2", "b/1", "a", ".hidden"):
        (tmp_path / "top" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "top" / path).write_bytes(b"")
    (tmp_path / "top" / "empty").mkdir()
    (tmp_path / "top" / "again").symlink_to(tmp_path / "top" / "b" / "c")
    (tmp_path / "top" / "b" / "up").symlink_to(tmp_path)
    assert LocalFiles().files_below(str(tmp_path / "top")) == [".hidden", "a", "again/2", "b/1", "b/c/2"]
    for missing in ("nowhere", "top/a"):
        with pytest.raises(OSError):  # noqa: PT011
            LocalFiles().files_below(str(tmp_path / missing))
