"""Too many unusable clips: the message says why, where the files were looked for, and what to set."""

from pathlib import Path

import pytest

from workloads.config.data import Data
from workloads.data.cache import QuarantinedClip
from workloads.data.quarantine import check_quarantined_share
from workloads.runtime.opener import NOT_FOUND, LocalFiles


def unusable(count: int, reason: str) -> list[QuarantinedClip]:
    return [QuarantinedClip(f"c{number}", f"wav/{number}.wav", reason) for number in range(count)]


def test_few_quarantined_clips_are_accepted_and_many_are_refused_with_reasons_and_the_share_to_set() -> None:
    check_quarantined_share(unusable(5, "cut short"), 100, Data(), LocalFiles())
    check_quarantined_share([], 100, Data(max_broken_share=0.0), LocalFiles())
    rule = (
        r"5 of 99 clips \(5.1%\).*5.0%: wav/0.wav: cut short; wav/1.wav.*wav/2.wav: cut short\. Repair or remove them, "
        r"or accept that with --set data.max_broken_share=0.06$"
    )
    with pytest.raises(ValueError, match=rule):
        check_quarantined_share(unusable(5, "cut short"), 99, Data(), LocalFiles())
    check_quarantined_share(unusable(5, "cut short"), 99, Data(max_broken_share=0.06), LocalFiles())


def test_where_all_clips_are_broken_no_share_would_do() -> None:
    with pytest.raises(ValueError, match=r"Repair or remove them$"):
        check_quarantined_share(unusable(9, "cut short"), 9, Data(), LocalFiles())


def test_where_most_clips_are_not_found_the_root_that_has_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = Data(format="manifest", manifest="words/clips.csv")
    looked_for = (
        f"51 of 100 clips are not found; the first was looked for at {tmp_path}/wav/0.wav. Paths are relative to "
    )
    with pytest.raises(ValueError, match="not found") as nowhere:
        check_quarantined_share(unusable(51, NOT_FOUND), 100, data, LocalFiles())
    rule = f"data.root = '' ({tmp_path}); give the folder that holds 'wav': --set data.root=DIR"
    assert str(nowhere.value) == looked_for + rule
    (tmp_path / "words" / "wav").mkdir(parents=True)
    (tmp_path / "words" / "wav" / "0.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"; it is there with --set data.root=words$"):
        check_quarantined_share(unusable(51, NOT_FOUND), 100, data, LocalFiles())
