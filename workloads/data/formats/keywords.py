"""Keywords in noise: which words are said by whom, in which clip, and which recordings are taken. Opens no audio."""

from collections import defaultdict
from dataclasses import dataclass

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.espeak import ACCENTS, TIMBRES, espeak_version
from workloads.data.events import Event
from workloads.data.formant_words import FORMANT_WORDS
from workloads.data.formats.listing import is_audio, list_files
from workloads.data.formats.rows import FOLDS, TRAIN, VALIDATION, Metadata, assign_fold
from workloads.data.formats.speechcommands import LISTS, NOISE, SPEAKER_ENDS, published_split
from workloads.data.keywords import COLOURED, FOLDER, FORMANT, VERSION, NoisyKeyword, place
from workloads.runtime.opener import Opener
from workloads.runtime.rng import keyed_generator, keyed_seed
from workloads.runtime.text import name_some


@dataclass(frozen=True)
class Utterance:
    """One keyword of the set; `keyword` is the word, or the path of its recording."""

    clip_id: str
    word: str
    keyword: str
    fold: int
    speaker: str  # whose clips are in one part of the set
    voice: str = ""  # of espeak-ng


def read_keywords(data: Data, opener: Opener) -> Metadata:
    """The clips of format "keywords", each with the event of its keyword.

    Formant words are each their own speaker's, in folds 1 to 5. Spoken ones have espeak-ng's voices as speakers, and
    each fold two timbres of its own. Recorded ones are split as the lists beside them say, if there are any, else by
    speaker. Raises ValueError for words that are not known, where espeak-ng is not installed, and for a folder without
    recordings, or without noise that is asked for.
    """
    files = list_files(data, opener) if data.has_recordings else []
    noises = _noises(files, data)
    if data.keywords == "folder":
        has_lists = _has_lists(files, data)
        utterances, warnings = _recorded(files, published_split(data, opener) if has_lists else {}, data)
        source, val_fold = FOLDER, VALIDATION if has_lists else None
    else:
        utterances, warnings, val_fold = _said(data), (), None
        source = espeak_version() if data.keywords == "espeak" else FORMANT
    clips = [_clip(utterance, source, noises, data) for utterance in utterances]
    return Metadata(clips, val_fold=val_fold, warnings=warnings)


def _clip(said: Utterance, source: str, noises: list[str], data: Data) -> Clip:
    noise = COLOURED
    if noises:
        noise = noises[keyed_seed("keywords", data.synthetic_seed, said.clip_id, "recording") % len(noises)]
    made_of = NoisyKeyword(
        clip_id=said.clip_id,
        version=VERSION,
        seed=data.synthetic_seed,
        seconds=data.clip_seconds,
        low_db=data.snr_db[0],
        high_db=data.snr_db[1],
        source=source,
        voice=said.voice,
        keyword=said.keyword,
        noise=noise,
    )
    event = Event(said.word, *place(made_of))
    return Clip(said.clip_id, made_of.to_path(), (said.word,), said.fold, source=said.speaker, events=(event,))


def _said(data: Data) -> list[Utterance]:
    """Words in turn, so that every fold has each equally often."""
    words = data.words or tuple(FORMANT_WORDS)
    if data.keywords == "formant" and (unknown := [word for word in words if word not in FORMANT_WORDS]):
        raise ValueError(
            f"data.words: {name_some(unknown)} cannot be synthesised, only {', '.join(FORMANT_WORDS)}; have espeak-ng "
            "say them with --set data.keywords=espeak"
        )
    utterances = []
    for number in range(data.synthetic_clips):
        clip_id, fold, word = f"keyword-{number:06d}", 1 + number % FOLDS, words[number // FOLDS % len(words)]
        voice = _voice(clip_id, fold, data) if data.keywords == "espeak" else ""
        utterances.append(Utterance(clip_id, word, word, fold, speaker=voice or clip_id, voice=voice))
    return utterances


def _voice(clip_id: str, fold: int, data: Data) -> str:
    """One of espeak-ng's voices that speak in this fold."""
    voices = [f"{accent}+{timbre}" for timbre in TIMBRES[fold - 1 :: FOLDS] for accent in ACCENTS]
    return voices[keyed_seed("keywords", data.synthetic_seed, clip_id, "speaker") % len(voices)]


def _noises(files: list[str], data: Data) -> list[str]:
    """The recordings of noise; none where the noise is computed."""
    if data.noise == "coloured":
        return []
    noises = [path for path in files if path.startswith(f"{NOISE}/") and is_audio(path)]
    if not noises:
        raise ValueError(
            f"data.root = {data.root!r}: no audio in {NOISE}, which data.noise = 'recorded' takes; add it, or "
            "--set data.noise=coloured"
        )
    return noises


def _has_lists(files: list[str], data: Data) -> bool:
    missing = [name for name in LISTS if name not in files]
    if len(missing) == 1:
        raise ValueError(
            f"data.root = {data.root!r}: has no {missing[0]}, only the other list of a split; add it, or remove both"
        )
    if not missing:
        data.check_own_split("speechcommands")
    return not missing


def _recorded(files: list[str], listed: dict[str, int], data: Data) -> tuple[list[Utterance], tuple[str, ...]]:
    """`data.synthetic_clips` recordings, equally many of each word where it has so many, and a warning for others."""
    by_word: dict[str, list[str]] = defaultdict(list)
    for path in files:
        word, _, name = path.partition("/")
        if name and "/" not in name and word != NOISE and is_audio(path) and (not data.words or word in data.words):
            by_word[word].append(path)
    if missing := [word for word in data.words if word not in by_word]:
        raise ValueError(f"data.words: no recordings of {name_some(missing)} below data.root = {data.root!r}")
    if not by_word:
        raise ValueError(f"data.root = {data.root!r}: holds no WORD/FILE.wav; give a folder in Speech Commands' layout")
    each, more = divmod(data.synthetic_clips, len(by_word))
    taken = []
    for number, word in enumerate(sorted(by_word)):
        order = keyed_generator("keywords", data.synthetic_seed, word, "recordings").permutation(len(by_word[word]))
        taken += [by_word[word][index] for index in order[: each + (number < more)]]
    split = dict.fromkeys(taken, TRAIN) | listed if listed else {path: assign_fold(_speaker(path)) for path in taken}
    utterances = [Utterance(path, path.split("/")[0], path, split[path], _speaker(path)) for path in sorted(taken)]
    total = sum(map(len, by_word.values()))
    left_out = f"data.synthetic_clips = {data.synthetic_clips}: {len(taken):,} of {total:,} recordings are used"
    return utterances, (left_out,) if len(taken) < total else ()


def _speaker(path: str) -> str:
    """Who says it: named before _nohash_; else the recording is its own source."""
    speaker, ends, _ = path.split("/")[1].partition(SPEAKER_ENDS)
    return speaker if ends else path
