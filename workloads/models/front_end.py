"""From a file to a waveform and from waveforms to log-mels. Knows no clips, no augmentation and no models.

Axes: B batch, T samples, M mel bands, F frames.
"""

from abc import ABC, abstractmethod

import torch
import torchaudio
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks

from workloads.config.recipe import FRONT_ENDS

SHORTEST_SECONDS = 0.05  # what the longest analysis window needs


class LogMel(nn.Module, ABC):
    """Waveforms at `clip_rate` to natural-log mel spectra, not normalised.

    A front end is fixed: its filterbanks are buffers outside the state dict. `mean` and `std` are the kind's own
    normalisation, (mel - mean) / std; `mask_value` is what masked cells of the un-normalised mel hold.
    """

    kind: str
    bands: int
    hop: int
    mean: float
    std: float
    mask_value: float
    hann_W: Tensor
    banks_MK: Tensor

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__()
        self.clip_rate = clip_rate
        self.rate = FRONT_ENDS[self.kind]
        self.resample = torchaudio.transforms.Resample(clip_rate, self.rate)

    def frames(self, seconds: float) -> int:
        """How many frames a clip of so many seconds has."""
        if seconds < SHORTEST_SECONDS:
            raise ValueError(f"clip_seconds = {seconds}: a {self.kind} spectrum needs {SHORTEST_SECONDS} s or more")
        length = round(seconds * self.clip_rate)
        return self._frames(-(-length * self.rate // self.clip_rate))  # resampling rounds up

    def forward(self, x_BT: Tensor) -> Tensor:
        """x_BT at `clip_rate` to mel_BMF, both float32, also inside autocast: half precision spoils powers and logs."""
        with torch.autocast(x_BT.device.type, enabled=False):
            return self._log_mel(self.resample(x_BT.float()))

    @abstractmethod
    def _frames(self, length: int) -> int: ...

    @abstractmethod
    def _log_mel(self, x_BT: Tensor) -> Tensor: ...

    def _keep_out_of_state(self) -> None:
        """Make every buffer, torchaudio's too, absent from the state dict: constants are no weights."""
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)


class PlainLogMel(LogMel):
    """torchaudio's mel spectrogram, logged, with exactly one frame per hop; its subclasses only set the sizes."""

    n_fft: int
    window: int
    low: float
    high: float

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__(clip_rate=clip_rate)
        sizes = {"n_fft": self.n_fft, "win_length": self.window, "hop_length": self.hop}
        self.mel = torchaudio.transforms.MelSpectrogram(
            self.rate, **sizes, f_min=self.low, f_max=self.high, n_mels=self.bands
        )
        self._keep_out_of_state()

    def _frames(self, length: int) -> int:
        return length // self.hop

    def _log_mel(self, x_BT: Tensor) -> Tensor:
        # A centred transform has one frame more, centred on the end of the clip.
        return torch.log(self.mel(x_BT)[..., : self._frames(x_BT.shape[-1])] + 1e-5)


class LogMel64(PlainLogMel):
    """64 bands, 50 to 8000 Hz, at 16 kHz, exactly 100 frames per second: the light front end."""

    kind, bands, hop = "logmel64", 64, 160
    n_fft, window, low, high = 512, 400, 50.0, 8000.0
    mean, std, mask_value = -5.0, 4.0, -5.0


class LogMel40(PlainLogMel):
    """40 bands every 20 ms from windows of 40 ms: what keyword spotters on small devices hear (reference/tkd.md 5)."""

    kind, bands, hop = "logmel40", 40, 320
    n_fft, window, low, high = 1024, 640, 20.0, 7600.0
    mean, std, mask_value = -5.0, 4.0, -5.0


class Kaldi128(LogMel):
    """AST's and PSLA's front end: `torchaudio.compliance.kaldi.fbank`, for a batch (reference/cmkd.md 2.3).

    Settings as AST calls it: htk_compat, hanning, no dither, 25 ms every 10 ms, 128 bands from 20 Hz, mean of the
    waveform removed; fbank's own defaults remove each frame's mean and pre-emphasise by 0.97.
    """

    kind, bands, hop = "kaldi128", 128, 160
    mean, std, mask_value = -4.2677393, 2 * 4.5689974, 0.0
    window, n_fft = 400, 512

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__(clip_rate=clip_rate)
        self.register_buffer("hann_W", torch.hann_window(self.window, periodic=False))
        self.register_buffer("banks_MK", _kaldi_banks(self.n_fft, self.rate, low=20.0, high=0.0))
        self._keep_out_of_state()

    def _frames(self, length: int) -> int:
        return 1 + (length - self.window) // self.hop

    def _log_mel(self, x_BT: Tensor) -> Tensor:
        # In float64, or the last bit of the mean would depend on how many clips are in the batch.
        x_BT = x_BT - x_BT.mean(dim=1, keepdim=True, dtype=torch.float64).float()
        frames_BFW = x_BT.unfold(1, self.window, self.hop)
        frames_BFW = frames_BFW - frames_BFW.mean(dim=2, keepdim=True)
        before_BFW = torch.cat((frames_BFW[..., :1], frames_BFW[..., :-1]), dim=2)
        windowed_BFW = (frames_BFW - 0.97 * before_BFW) * self.hann_W
        power_BFK = torch.fft.rfft(windowed_BFW, n=self.n_fft).abs().square()
        mel_BMF = self.banks_MK @ power_BFK.transpose(1, 2)
        return mel_BMF.clamp(min=torch.finfo(torch.float32).eps).log()


class EfficientAT128(LogMel):
    """EfficientAT's and PaSST's front end, its evaluation filterbank (reference/efficientat.md section 3)."""

    kind, bands, hop = "efficientat128", 128, 320
    mean, std, mask_value = -4.5, 5.0, 0.0
    window, n_fft = 800, 1024

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__(clip_rate=clip_rate)
        self.register_buffer("hann_W", torch.hann_window(self.window, periodic=False))
        self.register_buffer("banks_MK", _kaldi_banks(self.n_fft, self.rate, low=0.0, high=15_000.0))
        self._keep_out_of_state()

    def _frames(self, length: int) -> int:
        return 1 + (length - 1) // self.hop  # pre-emphasis takes one sample

    def _log_mel(self, x_BT: Tensor) -> Tensor:
        emphasised_BT = x_BT[:, 1:] - 0.97 * x_BT[:, :-1]
        spectrum_BKF = torch.stft(
            emphasised_BT, self.n_fft, self.hop, self.window, self.hann_W, center=True, return_complex=True
        )
        return torch.log(self.banks_MK @ spectrum_BKF.abs().square() + 1e-5)


class CED64(LogMel):
    """CED's front end: 64 bands in decibels, nothing below 120 dB under the loudest cell (reference/ced.md 6.1).

    The floor is each clip's own. CED takes it from the batch, so that a clip's spectrum depends on its neighbours.
    """

    kind, bands, hop = "ced64", 64, 160
    mean, std, mask_value = 0.0, 1.0, 0.0

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__(clip_rate=clip_rate)
        self.mel = torchaudio.transforms.MelSpectrogram(
            self.rate, n_fft=512, win_length=512, hop_length=self.hop, f_min=0.0, f_max=8000.0, n_mels=self.bands
        )
        self.decibel = torchaudio.transforms.AmplitudeToDB(top_db=120)
        self._keep_out_of_state()

    def _frames(self, length: int) -> int:
        return 1 + length // self.hop

    def _log_mel(self, x_BT: Tensor) -> Tensor:
        return self.decibel(self.mel(x_BT).unsqueeze(1)).squeeze(1)  # with four axes the floor is per clip


def _kaldi_banks(n_fft: int, rate: int, *, low: float, high: float) -> Tensor:
    """Kaldi's 128 triangular bands over the n_fft // 2 + 1 bins; the last bin, Nyquist, belongs to none."""
    banks_MK, _ = get_mel_banks(128, n_fft, float(rate), low, high, 100.0, -500.0, 1.0)
    return nn.functional.pad(banks_MK, (0, 1))


KINDS: dict[str, type[LogMel]] = {end.kind: end for end in (LogMel64, Kaldi128, EfficientAT128, CED64, LogMel40)}


def build_front_end(kind: str, *, clip_rate: int) -> LogMel:
    """The front end of this kind for waveforms at `clip_rate` Hz."""
    if kind not in KINDS:
        raise ValueError(f"front_end.kind = {kind!r}: no such front end; known are {', '.join(KINDS)}")
    return KINDS[kind](clip_rate=clip_rate)
