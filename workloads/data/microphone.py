"""Sound from a microphone, by the optional package sounddevice (PortAudio).

Axes: T samples.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from workloads.data.sound_stream import BLOCK_SECONDS, SoundStream


class Microphone(SoundStream):
    """An open input device; its sound does not end. A context, which closes the device."""

    def __init__(self, stream: Any, rate: int) -> None:
        super().__init__(rate, self._read(stream, max(1, round(rate * BLOCK_SECONDS))))
        self.overflows = 0  # times that the device's buffer was full, and samples were lost

    @property
    def notes(self) -> tuple[str, ...]:
        lost = f"{self.overflows} times samples were lost, because they were not read in time"
        return (*super().notes, *((lost,) if self.overflows else ()))

    def _read(self, stream: Any, size: int) -> Iterator[Tensor]:
        with stream:
            while True:
                block_TD, overflowed = stream.read(size)
                self.overflows += overflowed
                yield torch.from_numpy(block_TD.mean(axis=1))


def open_microphone(rate: int, device: str = "") -> Microphone:
    """The first channel of the device with this name or number, or of the default one.

    Raises ValueError where the package, its library or the device is missing, or the device has no such rate.
    """
    sounddevice = _package()
    try:
        known = int(device) if device.isdigit() else device or None
        stream = sounddevice.InputStream(samplerate=rate, channels=1, dtype="float32", device=known)
    except (sounddevice.PortAudioError, ValueError) as error:
        inputs = [f"{entry['index']} {entry['name']}" for entry in sounddevice.query_devices() if _hears(entry)]
        there = f"the inputs are {', '.join(inputs)}" if inputs else "there is no input device here"
        what = f"microphone {device!r}" if device else "microphone"
        fix = f"; a device of another rate than {rate} Hz needs --rate" if inputs else ""
        raise ValueError(f"{what}: cannot be opened ({' '.join(str(error).split())}); {there}{fix}") from None
    return Microphone(stream, rate)


def _hears(entry: Any) -> bool:
    return bool(entry["max_input_channels"] > 0)


def _package() -> Any:
    try:
        import sounddevice
    except ModuleNotFoundError:
        raise ValueError(
            "a microphone needs the package sounddevice, which is not installed: pip install 'antiphon[mic]'"
        ) from None
    except OSError as error:  # its wheels for Linux come without the library
        raise ValueError(f"a microphone needs PortAudio ({error}); Debian: apt install libportaudio2") from None
    return sounddevice
