"""Data sets without files, for tests of splits and labels."""

from workloads.data.clips import Clip, Dataset


def make_dataset(*, labels: str, sources: int = 60, per_source: int = 3, tags: int = 4) -> Dataset:
    """Each source has clips of one tag; with several tags a clip, also of others."""
    names = [f"tag{number}" for number in range(tags)]
    clips = []
    for source in range(sources):
        for take in range(per_source):
            own = (names[source % tags],) if labels == "single" else (names[source % tags], names[take % tags])
            clips.append(Clip(f"{source:02}-{take}", f"{source}-{take}.wav", own, 1 + source % 5, f"s{source:02}"))
    return Dataset(tuple(clips), tuple(names), labels)
