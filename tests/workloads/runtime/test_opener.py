"""Files are read whole up to a bound, and no more memory is asked for than they have bytes."""

import io

import pytest

from workloads.runtime.opener import read_bounded


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
