"""Words spoken by the program espeak-ng, where it is installed. Does not depend on clips.

Other versions of the program speak differently, so whoever stores what they say stores the version too.
"""

import io
import shutil
import subprocess
from functools import cache

import numpy as np
from torch import Tensor

from workloads.data.decode import BrokenClip, load_sound

PROGRAM = "espeak-ng"
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-029")
# Its voices are ACCENT+TIMBRE.
TIMBRES = ("m1", "m2", "m3", "m4", "m7", "f1", "f2", "f3", "f4", "f5")  # espeak-ng's variants of a voice
PITCHES, WORDS_A_MINUTE = (20, 80), (120, 190)  # from which a speaker's are drawn; espeak-ng's are 50 and 175
TIMEOUT_S = 30.0
AUDIBLE = 0.02  # of the peak: what is below it at both ends is silence


@cache
def espeak_version() -> str:
    """The program and its version, such as "espeak-ng 1.51"; ValueError where it is not installed.

    Asked once a process.
    """
    if shutil.which(PROGRAM) is None:
        raise ValueError(
            f"data.keywords = 'espeak': the program {PROGRAM} is not on the PATH; install it on every machine of the "
            f"run (apt-get install {PROGRAM}), or use --set data.keywords=formant, or recordings: "
            "--set data.keywords=folder --set data.root=DIR"
        )
    words = _run("--version").decode(errors="replace").split("Data at")[0].split()
    return f"{PROGRAM} {next((word for word in words if word[:1].isdigit()), 'of unknown version')}"


def speak(word: str, voice: str, generator: np.random.Generator, *, rate: int) -> Tensor:
    """A word in one of espeak-ng's voices, x_T float32 at `rate` Hz, without silence at its ends.

    The generator draws pitch and speed. Raises BrokenClip where nothing is to be heard, OSError where the
    program fails.
    """
    pitch, speed = (int(generator.integers(low, high + 1)) for low, high in (PITCHES, WORDS_A_MINUTE))
    said = _run("-v", voice, "-p", str(pitch), "-s", str(speed), "--stdout", "--", word)
    x_T = load_sound(io.BytesIO(said), rate=rate).x_T
    loud = (x_T.abs() > AUDIBLE * x_T.abs().max()).nonzero().flatten()
    if not len(loud):
        raise BrokenClip(f"{PROGRAM} says nothing for {word!r}")
    return x_T[int(loud[0]) : int(loud[-1]) + 1]


def _run(*arguments: str) -> bytes:
    try:
        return subprocess.run([PROGRAM, *arguments], capture_output=True, check=True, timeout=TIMEOUT_S).stdout
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()
        raise OSError(f"{PROGRAM} failed with exit code {error.returncode}: {said}") from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{PROGRAM} did not answer within {TIMEOUT_S:g} seconds") from None
