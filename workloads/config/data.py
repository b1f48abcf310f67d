"""The settings of a run's clips: where they are, how they are split, how long one is. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

from workloads.config.checked import Checked

MAX_CLIP_SECONDS = 3600
MAX_RATE = 192_000  # Hz
MAX_SLICES = 1000  # of the training folds
MAX_SYNTHETIC_CLIPS = 100_000
MAX_SNR_DB = 100.0
COMPUTED = ("synthetic", "keywords")  # formats whose clips are computed when they are needed: no file holds one
KEYWORD_SECONDS = 1.0  # of a recorded or spoken keyword, as Speech Commands has them
# Data formats whose published split is used: each names its test clips (fold 1), some their validation clips too.
OWN_TEST = ("audioset", "fsd50k", "openmic", "speechcommands")
OWN_VALIDATION = ("fsd50k", "speechcommands")
SEVERAL_TAGS = ("audioset", "fsd50k", "openmic")  # formats whose clips may have more than one


@dataclass(frozen=True, kw_only=True)
class Data(Checked):
    """Which clips, how they are split into train, validation and test, and where the decoded ones are cached."""

    format: Literal[
        "synthetic",
        "manifest",
        "folders",
        "packed",
        "audioset",
        "esc50",
        "fsd50k",
        "keywords",
        "openmic",
        "speechcommands",
        "urbansound8k",
    ] = "synthetic"
    root: str = ""  # folder URI; paths in the metadata are relative to it
    manifest: str = ""  # CSV or Parquet URI, for format = "manifest"
    events: str = ""  # CSV, TSV or Parquet URI: when the tags of clips sound (docs/data.md)
    audioset_train: Literal["balanced", "unbalanced", "both"] = "balanced"  # AudioSet's tables of training clips
    anywhere: bool = False  # the manifest's paths may lead out of the root; it then names any file of this machine
    labels: Literal["single", "multi"] = "single"
    clip_seconds: float = 5.0  # the window in which models hear clips
    # Hz at which clips are cached and cut: for teachers and students of a store who need different ones. 0: the highest
    # that a model needs; lower ones are refused.
    rate: int = 0
    # What is heard of a clip that is longer, wherever a model is scored or used: all of it in windows, whose
    # probabilities are averaged, or its start only. Training cuts a window anywhere in it, for every view anew.
    long_clips: Literal["windows", "start"] = "windows"
    test_fold: int = 1
    train_folds: tuple[int, ...] = ()  # the training folds; none named: all but the test fold
    val_share: float = 0.1  # of the training folds, in whole source recordings
    val_slice: int = 0  # which of the 1 / val_share slices is the validation set
    split_seed: int = 0
    labelled_share: float = 1.0  # of the labelled training clips, in whole recordings: the others lose their labels
    unlabelled: Literal["hear", "leave_out"] = "hear"  # whether clips without labels are among the training clips
    sampling: Literal["uniform", "balanced"] = "uniform"
    max_broken_share: float = 0.05  # more quarantined clips than this stops the run
    cache: str = "~/.cache/antiphon/clips"  # local folder of decoded clips or fetched archives, for all runs of a node
    cache_gb: float = 20.0
    synthetic_clips: int = 400  # of the computed formats; of recorded keywords so many are taken
    synthetic_seed: int = 0
    # format = "keywords": each clip is one keyword in clip_seconds of noise (docs/data.md)
    keywords: Literal["formant", "espeak", "folder"] = "formant"  # synthesised, spoken by espeak-ng, below data.root
    words: tuple[str, ...] = ()  # none named: ten of Speech Commands; of a folder all that it has
    noise: Literal["coloured", "recorded"] = "coloured"  # recorded: data.root/_background_noise_
    snr_db: tuple[float, float] = (-5.0, 10.0)  # the range from which each clip draws its ratio, over the keyword

    def __post_init__(self) -> None:
        self._require(self.clip_seconds > 0, "clip_seconds", "must be above 0 seconds")
        self._require_at_most(MAX_CLIP_SECONDS, "clip_seconds")
        self._require_non_negative("rate")
        self._require_at_most(MAX_RATE, "rate")
        object.__setattr__(self, "train_folds", tuple(sorted(self.train_folds)))  # their order means nothing
        self._require(len(set(self.train_folds)) == len(self.train_folds), "train_folds", "names a fold twice")
        rule = f"has the test fold {self.test_fold}, of which no model may learn; take it out"
        self._require(self.test_fold not in self.train_folds, "train_folds", rule)
        least = 1 / MAX_SLICES
        self._require(least <= self.val_share <= 0.5, "val_share", f"must be {least:g} to 0.5 of the training folds")
        slices = round(1 / self.val_share)
        self._require(0 <= self.val_slice < slices, "val_slice", f"must be 0 to {slices - 1} at this val_share")
        self.check_own_split(self.format)
        self._require(0 < self.labelled_share <= 1, "labelled_share", "must be above 0 and at most 1")
        self._require(0 <= self.max_broken_share < 1, "max_broken_share", "must be a share, 0 up to 1")
        self._require_positive("cache_gb")
        self._require(0 <= self.split_seed < 2**32, "split_seed", "must be 0 to 2^32 - 1")  # scikit-learn's rule
        self._require(
            not self.events or self.format not in COMPUTED, "events", f"clips of {self.format} know when they sound"
        )
        if self.format in COMPUTED:
            self._require(self.synthetic_clips >= 50, "synthetic_clips", "must be at least 50, ten per fold")
            self._require_at_most(MAX_SYNTHETIC_CLIPS, "synthetic_clips")
        if self.format == "keywords":
            self._check_keywords()
        elif self.format == "manifest":
            self._require(bool(self.manifest), "manifest", "format manifest needs --set data.manifest=FILE")
        elif self.format != "synthetic":
            needs = f"format {self.format} needs the data set's folder: --set data.root=DIR"
            self._require(bool(self.root), "root", needs)

    def _check_keywords(self) -> None:
        """The settings of format "keywords"; whether the words are known is seen when they are looked up."""
        self._require(self.labels == "single", "labels", "a clip of keywords has one: --set data.labels=single")
        rule = f"a keyword of {KEYWORD_SECONDS:g} second must fit into the clip"
        self._require(self.clip_seconds >= KEYWORD_SECONDS, "clip_seconds", rule)
        self._require(len(set(self.words)) == len(self.words), "words", "names a word twice")
        self._require(all(word.strip() for word in self.words), "words", "names a blank word, which nobody can say")
        low, high = self.snr_db
        rule = f"must be a range of decibels, the lower end first, within -{MAX_SNR_DB:g} to {MAX_SNR_DB:g}"
        self._require(-MAX_SNR_DB <= low <= high <= MAX_SNR_DB, "snr_db", rule)
        what = "keywords = 'folder'" if self.keywords == "folder" else "noise = 'recorded'"
        rule = f"{what} needs a folder: --set data.root=DIR"
        self._require(bool(self.root) or not self.has_recordings, "root", rule)

    def check_own_split(self, format: str) -> None:
        """Where a data set of this format says which clips test or validate, no setting says it too."""
        own = f"format {format} names its"
        if format in OWN_TEST:
            self._require(self.test_fold == 1, "test_fold", f"{own} test clips, they are fold 1")
            self._require(self.train_folds == (), "train_folds", f"{own} training clips: leave it out")
        if format in OWN_VALIDATION:
            for name, default in (("val_share", Data.val_share), ("val_slice", Data.val_slice)):
                self._require(
                    getattr(self, name) == default, name, f"{own} validation clips: --set data.{name}={default:g}"
                )
        if format in SEVERAL_TAGS:
            self._require(
                self.labels == "multi", "labels", f"clips of {format} have several tags: --set data.labels=multi"
            )

    @property
    def has_recordings(self) -> bool:
        """Whether clips of keywords are made of files below the root."""
        return self.keywords == "folder" or self.noise == "recorded"

    @property
    def num_val_slices(self) -> int:
        """How many validation slices there are to choose from; one where the data set names its validation clips."""
        return 1 if self.format in OWN_VALIDATION else round(1 / self.val_share)
