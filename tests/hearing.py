"""Weights with which a network's answer depends on what it hears, for tests that compare two forms of one network.

`official.keyed_state` does for Transformers. Batch norms of drawn means and variances do not: their inputs are far
smaller, so what is heard is lost layer by layer, and a MobileNet gives all sounds the same logits to five digits. The
statistics of real inputs alone do not do for DyMN, whose drawn kernels differ so much between sounds that its maps grow
without bound. So networks of other kinds are trained for some steps, until they tell a few inputs apart.
"""

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tests.official import keyed_state
from workloads.config.architectures import AST, CED, EAT, PaSST, ViT, Wav2Vec2
from workloads.models.tagger import Tagger

TRANSFORMERS = (AST, CED, EAT, PaSST, ViT, Wav2Vec2)
NUM_INPUTS = 12
TAUGHT, MOST_STEPS = 0.1, 150  # cross-entropy at which training ends, as a share of that of equal probabilities
Network = TypeVar("Network", bound=nn.Module)


def hearing(tagger: Tagger) -> Tagger:
    """The tagger, newly built, with weights by which its logits of different sounds differ clearly; in eval mode."""
    if not isinstance(tagger.model.arch, TRANSFORMERS):
        x_BT = sounds(tagger.clip_seconds, tagger.clip_rate, kinds=len(tagger.tags))
        with torch.no_grad():
            mel_BMF = tagger.eval().front_end(x_BT)
        return taught(tagger, mel_BMF, kinds=len(tagger.tags))
    shapes = {name: list(tensor.shape) for name, tensor in tagger.state_dict().items() if name != "backbone.grid"}
    tagger.load_state_dict(keyed_state(shapes), strict=False)
    return tagger.eval()


def sounds(seconds: float, rate: int, *, kinds: int) -> Tensor:
    """x_BT of `NUM_INPUTS` tones over clicks and noise, of each kind in turn; kinds have bands of their own."""
    generator, time_T = np.random.default_rng(0), np.arange(round(seconds * rate)) / rate
    clips = []
    for number in range(NUM_INPUTS):
        pitch = 200 * 20 ** ((number % kinds + generator.uniform(0.2, 0.8)) / kinds)
        tone_T = np.sin(2 * np.pi * pitch * time_T) * (np.mod(time_T, 1) < generator.uniform(0.3, 1))
        clicks_T = np.mod(time_T, generator.uniform(0.2, 0.8)) < 0.01
        loudest = -0.5 if number // kinds % 2 else -1.0  # loud noise too: files of taggers are checked with it
        noise_T = 10 ** generator.uniform(loudest - 2, loudest) * generator.standard_normal(len(time_T))
        clips.append(generator.uniform(0.1, 0.6) * tone_T + 0.3 * clicks_T + noise_T)
    return torch.from_numpy(np.stack(clips)).float().clamp(-1, 1)


def mels(bands: int, frames: int, *, kinds: int) -> Tensor:
    """mel_BMF of `NUM_INPUTS` noises, normalised; of each kind in turn, which is louder in its own bands."""
    mel_BMF = torch.randn(NUM_INPUTS, bands, frames, generator=torch.Generator().manual_seed(0))
    for number, mel_MF in enumerate(mel_BMF):
        mel_MF.tensor_split(kinds)[number % kinds].add_(2)
    return mel_BMF


def taught(network: Network, inputs: Tensor, *, kinds: int) -> Network:
    """The network, trained until it tells apart inputs whose kinds take turns; in eval mode.

    Batch norms have the statistics of these inputs. Training ends by what is learned, not by a number of steps, so that
    a machine that rounds otherwise trains as well. Raises AssertionError where it learned too little.
    """
    kinds_B = torch.arange(len(inputs)) % kinds
    enough = TAUGHT * math.log(int(kinds_B.max()) + 1)
    norms = [module for module in network.eval().modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:  # alone in training mode: dropout stays out, and what is learned holds in eval mode
        norm.train().momentum = 1.0
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(MOST_STEPS):
        loss = F.cross_entropy(network(inputs), kinds_B)
        if loss < enough:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    with torch.no_grad():
        loss = F.cross_entropy(network.eval()(inputs), kinds_B)
    assert loss < 2 * enough, f"after {MOST_STEPS} steps or fewer the cross-entropy is {loss:.2f}"
    network.zero_grad()
    return network
