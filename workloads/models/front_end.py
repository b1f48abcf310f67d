"""The front ends: from waveforms to log-mels, or to the waveforms that some networks hear. Does not depend on clips,
augmentation or networks.

A clip may be shorter than the waveforms of its batch, which are padded with zeros. How a family hears the padding is as
its authors do: most front ends as silence, Kaldi's not at all. `sound_BT` tells sound (True) from padding; None: no
waveform is padded.

Axes: B clips, T samples, W samples of an analysis window, K frequency bins, M mel bands, F frames.
"""

from abc import ABC, abstractmethod
from fractions import Fraction

import torch
import torchaudio
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks

from workloads.config.recipe import FRONT_ENDS, FrontEnd
from workloads.runtime.precision import full_float32

MAX_RATIO = 1000  # of two rates, in lowest terms: all usual ones are below
MIN_SECONDS = 0.05  # what the longest analysis window needs
SAMPLES_AT_ONCE = 2**18  # of waveforms on a CPU: their spectra take about 4 MB


class LogMel(nn.Module, ABC):
    """Waveforms at `clip_rate` to natural-log mel spectra, not normalised.

    A front end has nothing to train: its filterbanks are buffers outside the state dict. `mean` and `std` are the
    kind's default normalisation, (mel - mean) / std; `mask_value` is what masked cells of the un-normalised mel hold.
    """

    kind: str
    bands: int
    hop: int
    mean: float
    std: float
    mask_value: float
    hears_padding = True  # of a short clip, as silence; else its frames are computed without it
    reach: tuple[int, int] | None = None  # samples at `rate` before and after f x hop that frame f needs; None: all

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__()
        self.clip_rate = clip_rate
        self.rate = FRONT_ENDS[self.kind]
        self.resample = torchaudio.transforms.Resample(clip_rate, self.rate)

    def frames(self, seconds: float) -> int:
        """Number of frames of a clip of `seconds`; ValueError where it is shorter than MIN_SECONDS."""
        if seconds < MIN_SECONDS:
            raise ValueError(f"clip_seconds = {seconds:g}: a spectrum of {self.kind} needs {MIN_SECONDS} s or more")
        length = round(seconds * self.clip_rate)
        return self._frames(-(-length * self.rate // self.clip_rate))  # resampling rounds up

    def input_frames(self, settings: FrontEnd, seconds: float) -> int:
        """Number of frames that a network is built for: the recipe's, or as many as a clip of `seconds` has.

        ValueError as in `frames`, also where the recipe sets their number: the clip's own are computed first.
        """
        own = self.frames(seconds)
        return settings.frames or own

    def mean_and_std(self, settings: FrontEnd) -> tuple[float, float]:
        """The normalisation of a network's input: the recipe's mean and std, each by default this kind's."""
        mean = self.mean if settings.mean is None else settings.mean
        std = self.std if settings.std is None else settings.std
        return mean, std

    def fit_frames(self, mel_BMF: Tensor, settings: FrontEnd) -> Tensor:
        """Padded with the mask value, or cut, to the recipe's number of frames where it has one."""
        if not settings.frames:
            return mel_BMF
        missing = settings.frames - mel_BMF.shape[-1]  # a negative number cuts
        return nn.functional.pad(mel_BMF, (0, missing), value=self.mask_value)

    def forward(self, x_BT: Tensor, sound_BT: Tensor | None = None) -> Tensor:
        """x_BT at `clip_rate` to mel_BMF, both float32.

        Also inside autocast and with TF32 on: both are too coarse for powers and logarithms.
        """
        at_once = self._clips_at_once(x_BT)
        with full_float32(x_BT.device):
            if not at_once:
                return self._log_mel(self.resample(x_BT.float()), sound_BT)
            sounds = [None] * len(x_BT) if sound_BT is None else sound_BT.split(at_once)
            return torch.cat(
                [
                    self._log_mel(self.resample(part_BT.float()), sound)
                    for part_BT, sound in zip(x_BT.split(at_once), sounds, strict=False)
                ]
            )

    def _clips_at_once(self, x_BT: Tensor) -> int:
        """On a CPU as many clips as its cache holds spectra of: 10 s clips take a half to a quarter of the time then
        (`make bench`), with the same bits; 0: all. An exported graph has no loop over clips."""
        if x_BT.device.type != "cpu" or torch.compiler.is_compiling() or torch.compiler.is_exporting():
            return 0
        at_once = max(1, SAMPLES_AT_ONCE // x_BT.shape[1])
        return at_once if at_once < len(x_BT) else 0

    @abstractmethod
    def _frames(self, length: int) -> int: ...

    @abstractmethod
    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        """x_BT at `rate`; sound_BT still at `clip_rate`."""

    def _at_rate(self, sound_BT: Tensor, length: int) -> Tensor:
        """Which samples at `rate` are sound, from which are at `clip_rate`."""
        index_T = torch.arange(length, device=sound_BT.device) * self.clip_rate // self.rate
        return sound_BT[:, index_T.clamp(max=sound_BT.shape[1] - 1)]

    def _keep_out_of_state(self) -> None:
        """Remove every buffer, torchaudio's too, from the state dict, because constants are not weights."""
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)


class PlainLogMel(LogMel):
    """The logarithm of torchaudio's mel spectrogram, exactly one frame per hop; subclasses only set the sizes."""

    n_fft: int
    window: int
    low: float
    high: float

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__(clip_rate=clip_rate)
        self.reach = (self.n_fft // 2, self.n_fft // 2)
        sizes = {"n_fft": self.n_fft, "win_length": self.window, "hop_length": self.hop}
        self.mel = torchaudio.transforms.MelSpectrogram(
            self.rate, **sizes, f_min=self.low, f_max=self.high, n_mels=self.bands
        )
        self._keep_out_of_state()

    def _frames(self, length: int) -> int:
        return length // self.hop

    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        # A centred transform has one more frame, centred on the end of the clip.
        return torch.log(self.mel(x_BT)[..., : self._frames(x_BT.shape[-1])] + 1e-5)


class LogMel64(PlainLogMel):
    """64 bands, 50 to 8000 Hz, at 16 kHz, exactly 100 frames per second: the cheap front end."""

    kind, bands, hop = "logmel64", 64, 160
    n_fft, window, low, high = 512, 400, 50.0, 8000.0
    mean, std, mask_value = -5.0, 4.0, -5.0


class LogMel40(PlainLogMel):
    """40 bands every 20 ms from windows of 40 ms: for keyword spotters on small devices (reference/tkd.md 5)."""

    kind, bands, hop = "logmel40", 40, 320
    n_fft, window, low, high = 1024, 640, 20.0, 7600.0
    mean, std, mask_value = -5.0, 4.0, -5.0


class LogMel64At8k(LogMel64):
    """`logmel64` for telephone speech and other sound at 8 kHz: 64 bands up to 4 kHz, 100 frames per second.

    The spectrum is padded to 512 samples, as at 16 kHz: with 256 some of the lowest bands would lie between two bins.
    """

    kind, hop = "logmel64_8k", 80
    window, high = 200, 4000.0


class LogMel40At8k(LogMel40):
    """`logmel40` for sound at 8 kHz: 40 bands up to 3.8 kHz every 20 ms from windows of 40 ms."""

    kind, hop = "logmel40_8k", 160
    n_fft, window, high = 512, 320, 3800.0


class KaldiLogMel(LogMel):
    """A log-mel over Kaldi's 128 triangular bands between `low` and `high` Hz (`high` = 0: the Nyquist frequency)."""

    n_fft: int
    window: int
    low: float
    high: float
    hann_W: Tensor
    banks_MK: Tensor

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__(clip_rate=clip_rate)
        banks_MK, _ = get_mel_banks(128, self.n_fft, float(self.rate), self.low, self.high, 100.0, -500.0, 1.0)
        self.register_buffer("hann_W", torch.hann_window(self.window, periodic=False))
        self.register_buffer("banks_MK", nn.functional.pad(banks_MK, (0, 1)))  # the last bin, Nyquist, is in no band
        self._keep_out_of_state()

    def _emphasised_power(self, x_BT: Tensor) -> Tensor:
        """The power power_BMF of the bands after a pre-emphasis by 0.97; frames are centred on multiples of the hop."""
        emphasised_BT = x_BT[:, 1:] - 0.97 * x_BT[:, :-1]
        spectrum_BKF = torch.stft(
            emphasised_BT, self.n_fft, self.hop, self.window, self.hann_W, center=True, return_complex=True
        )
        return self.banks_MK @ spectrum_BKF.abs().square()


class Kaldi128(KaldiLogMel):
    """AST's and PSLA's front end: `torchaudio.compliance.kaldi.fbank`, for a batch (reference/cmkd.md 2.3).

    Called with AST's settings: htk_compat, hanning, no dither, 25 ms every 10 ms, 128 bands from 20 Hz, mean of the
    waveform removed; fbank's own defaults remove each frame's mean and pre-emphasise by 0.97. A short clip is padded as
    AST's and PSLA's are: its frames are computed without padding, and the missing ones hold `PADDING`.
    """

    PADDING = 0.0  # of the log-mel before normalisation
    hears_padding = False
    reach = (0, 400)  # a frame's own mean is removed, so that of the waveform does not matter

    kind, bands, hop = "kaldi128", 128, 160
    n_fft, window, low, high = 512, 400, 20.0, 0.0
    mean, std, mask_value = -4.2677393, 2 * 4.5689974, 0.0

    def _frames(self, length: int) -> int:
        return 1 + (length - self.window) // self.hop

    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        if sound_BT is None:
            return self._fbank(x_BT - x_BT.mean(dim=1, keepdim=True, dtype=torch.float64).float())
        sound_BT = self._at_rate(sound_BT, x_BT.shape[1])
        samples_B1 = sound_BT.sum(dim=1, keepdim=True).clamp(min=1)
        mean_B1 = ((x_BT * sound_BT).sum(dim=1, keepdim=True, dtype=torch.float64) / samples_B1).float()
        without_padding_BF = sound_BT.unfold(1, self.window, self.hop).all(dim=2)
        return self._fbank(x_BT - mean_B1).masked_fill(~without_padding_BF[:, None], self.PADDING)

    def _fbank(self, x_BT: Tensor) -> Tensor:
        # The mean above is in float64, because the last bit of a float32 one depends on the number of clips in a batch.
        frames_BFW = x_BT.unfold(1, self.window, self.hop)
        frames_BFW = frames_BFW - frames_BFW.mean(dim=2, keepdim=True)
        previous_BFW = torch.cat((frames_BFW[..., :1], frames_BFW[..., :-1]), dim=2)
        windowed_BFW = (frames_BFW - 0.97 * previous_BFW) * self.hann_W
        power_BFK = torch.fft.rfft(windowed_BFW, n=self.n_fft).abs().square()
        mel_BMF = self.banks_MK @ power_BFK.transpose(1, 2)
        return mel_BMF.clamp(min=torch.finfo(torch.float32).eps).log()


class EfficientAT128(KaldiLogMel):
    """EfficientAT's and PaSST's front end, its evaluation filterbank (reference/efficientat.md section 3)."""

    reach = (512, 513)  # pre-emphasis takes one sample
    kind, bands, hop = "efficientat128", 128, 320
    n_fft, window, low, high = 1024, 800, 0.0, 15_000.0
    mean, std, mask_value = -4.5, 5.0, 0.0

    def _frames(self, length: int) -> int:
        return 1 + (length - 1) // self.hop  # pre-emphasis takes one sample

    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        return torch.log(self._emphasised_power(x_BT) + 1e-5)


class PretrainedSED128(EfficientAT128):
    """PretrainedSED's front end of FrameMN and fPaSST, its evaluation filterbank (reference/frames.md section 4)."""

    reach = (256, 257)  # pre-emphasis takes one sample
    kind, hop = "pretrainedsed128", 160
    n_fft, window, high = 512, 400, 7_000.0

    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        return torch.log(self._emphasised_power(x_BT).clamp(min=1e-7))


class CED64(LogMel):
    """CED's front end: 64 bands in decibels, clamped at 120 dB below the loudest cell (reference/ced.md 6.1).

    The floor is computed per clip. CED computes it per batch, so that a clip's spectrum depends on its neighbours.
    """

    reach = None  # the loudest cell may be anywhere
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

    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        return self.decibel(self.mel(x_BT).unsqueeze(1)).squeeze(1)  # with four axes the floor is per clip


class Waveform(LogMel):
    """No log-mel, but the samples themselves as one band, for networks that hear waveforms (wav2vec 2.0).

    A time mask is silence; there is no mel scale for the other masks.
    """

    kind, bands, hop = "waveform16k", 1, 1
    mean, std, mask_value = 0.0, 1.0, 0.0

    def __init__(self, *, clip_rate: int) -> None:
        super().__init__(clip_rate=clip_rate)
        self._keep_out_of_state()

    def _frames(self, length: int) -> int:
        return length

    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        return x_BT.unsqueeze(1)


class NormalisedWaveform(Waveform):
    """Each clip with mean 0 and variance 1, as wav2vec 2.0 of LV-60K and XLSR hear it: (x - mean) / sqrt(var + 1e-5).

    Both are of its sound; padding is 0.
    """

    kind, hears_padding = "waveform16k_norm", False
    EPSILON = 1e-5

    def _log_mel(self, x_BT: Tensor, sound_BT: Tensor | None) -> Tensor:
        sound_BT = torch.ones_like(x_BT) if sound_BT is None else self._at_rate(sound_BT, x_BT.shape[1]).float()
        samples_B1 = sound_BT.sum(dim=1, keepdim=True).clamp(min=1)
        mean_B1 = (x_BT * sound_BT).sum(dim=1, keepdim=True, dtype=torch.float64) / samples_B1
        centred_BT = (x_BT - mean_B1.float()) * sound_BT
        variance_B1 = centred_BT.square().sum(dim=1, keepdim=True, dtype=torch.float64) / samples_B1
        return (centred_BT * (variance_B1 + self.EPSILON).rsqrt().float()).unsqueeze(1)


KINDS: dict[str, type[LogMel]] = {
    cls.kind: cls
    for cls in (
        *(LogMel64, Kaldi128, EfficientAT128, PretrainedSED128, CED64, LogMel40),
        *(LogMel64At8k, LogMel40At8k, Waveform, NormalisedWaveform),
    )
}


def build_front_end(kind: str, *, clip_rate: int) -> LogMel:
    """The front end of this kind for waveforms at `clip_rate` Hz."""
    if kind not in KINDS:
        raise ValueError(f"front_end.kind = {kind!r}: no such front end; known are {', '.join(KINDS)}")
    terms = Fraction(clip_rate, FRONT_ENDS[kind])
    if max(terms.numerator, terms.denominator) > MAX_RATIO:  # the resampling kernel grows with their product
        raise ValueError(
            f"clip_rate = {clip_rate}: its ratio to the {FRONT_ENDS[kind]} Hz of {kind} is {terms}, and must be one of "
            f"whole numbers up to {MAX_RATIO}, as that of every usual rate is"
        )
    return KINDS[kind](clip_rate=clip_rate)
