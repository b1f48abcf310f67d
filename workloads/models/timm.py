"""timm's networks by name: CNNs and Transformers over one channel, for whatever size they take.

The network and its head are timm's; here are the size, the sequence, and weights of images. Does not depend on front
ends or training.

Axes: B clips, M mel bands, F frames, D channels, C tags, P steps in time.
"""

import difflib
import re
from functools import lru_cache
from typing import Any

import timm
import torch
from torch import Tensor, nn

from workloads.config.architectures import Timm
from workloads.models.backbone import Backbone, Outputs
from workloads.models.fit import fit_head
from workloads.models.patches import GRID, POSITIONS, adapt_patches
from workloads.models.timm_features import Features, find_features, first_step, last_stride

NET = "net."
UNKNOWN_ARGUMENT = re.compile(r"unexpected keyword argument(?:\(s\): \[)? ?'(\w+)'")  # of Python and of timm
REFUSALS = (RuntimeError, ValueError, AssertionError, TypeError, LookupError, AttributeError, ArithmeticError)
TRIED_CLASSES = 2
MULTIPLES = (16, 32, 64, 224, 256)  # of frames, one of which most networks of windows take


class UnknownToTimm(ValueError):
    """A name or an argument that timm does not know."""


class TimmNetwork(Backbone):
    """mel_BMF (normalised, of the size the network was built for) to logits_BC.

    The embedding is the input of timm's linear classifier; of networks whose classifier is something else, such as the
    two of a distilled DeiT, the mean of the last map. `grid` is stored with the weights of networks that have a
    position for each patch, as in `vit.py`.
    """

    grid: Tensor

    def __init__(self, arch: Timm, features: Features, *, bands: int, frames: int, num_classes: int) -> None:
        super().__init__()
        self.arch, self.features, self.size = arch, features, (bands, frames)
        self.net: Any = create(arch, self.size, num_classes)
        self.special_positions = self._special_positions()
        self.has_positions = self.special_positions is not None
        if self.has_positions:
            self.register_buffer(GRID, torch.tensor(features.grid, dtype=torch.float32))

    def _special_positions(self) -> int | None:
        """How many positions stand before those of patches; None where not each patch has a position of its own."""
        positions = getattr(self.net, POSITIONS, None)
        if not torch.is_tensor(positions) or positions.ndim != 3 or self.features.axes != "BLD":
            return None
        special = positions.shape[1] - self.features.grid[0] * self.features.grid[1]
        return special if special in (0, self.features.special) else None

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the classifier's tensors, weights first."""
        own, modules = self.state_dict(), _names(self.net.pretrained_cfg.get("classifier"))
        return tuple(name for module in modules for name in own if name.startswith(f"{NET}{module}."))

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        stride = last_stride(self.net)
        if stride is None or steps not in (frames // stride, -(-frames // stride)):
            return 0.0, frames / steps
        return first_step(self.net, stride), stride

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        features = self.net.forward_features(mel_BMF.unsqueeze(1))
        sequence_BPD = self.features.over_time(features)
        if not self.features.linear_head:
            return Outputs(self.net.forward_head(features), sequence_BPD.mean(1), sequence_BPD)
        # once through what comes before the classifier: it may hold a batch norm
        embedding_BD = self.net.forward_head(features, pre_logits=True)
        return Outputs(self.net.get_classifier()(embedding_BD), embedding_BD, sequence_BPD)


def build(arch: Timm, *, bands: int, frames: int, num_classes: int) -> TimmNetwork:
    """Build the network for `bands` x `frames`; ValueError where timm knows no such one, or it does not take them."""
    features = _features(arch, (bands, frames))
    return TimmNetwork(arch, features, bands=bands, frames=frames, num_classes=num_classes)


def create(arch: Timm, size: tuple[int, int], num_classes: int, **loading: Any) -> nn.Module:
    """timm's network for `size`; ValueError where it has none of this name, or the network refuses an argument.

    Not all of timm's networks take a size, dropout or stochastic depth: what is 0 or follows from the clips is left out
    where it is unknown to them.
    """
    require_known(arch.name)
    options: dict[str, Any] = {"in_chans": 1, "num_classes": num_classes, "img_size": size, **arch.args}
    options |= {"drop_rate": arch.dropout, "drop_path_rate": arch.drop_path}
    names = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}
    while True:
        try:
            return timm.create_model(arch.name, **loading, **options)
        except TypeError as error:
            unknown = UNKNOWN_ARGUMENT.search(str(error))
            if unknown is None:  # of a known argument with a value of another type
                raise
            key = unknown[1]
            if key != "img_size" and not (key in names and options[key] == 0.0):
                raise UnknownToTimm(f"arch.{names.get(key, f'args.{key}')}: timm's {arch.name}: {error}") from None
            del options[key]


def require_known(name: str) -> None:
    """ValueError, with the nearest names, where timm has no network of this name."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4)
        hint = f"near are {', '.join(near)}" if near else "`antiphon models --timm 'convnext*'` lists its networks"
        raise UnknownToTimm(f"name = {name!r}: timm has no such network; {hint}")


@lru_cache(maxsize=4096)
def _features(arch: Timm, size: tuple[int, int]) -> Features:
    """The layout of the network's last map; ValueError where it does not take `size`, with a length that it takes."""
    try:
        return _try(arch, size)
    except UnknownToTimm:
        raise
    except REFUSALS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
    bands, frames = size
    longer = sorted({-(-frames // multiple) * multiple for multiple in MULTIPLES} - {frames})
    fits = next((length for length in longer if _takes(arch, (bands, length))), None)
    others = "other args, another network" if arch.args else "another network"
    fix = f"set front_end.frames = {fits}" if fits else f"use {others} or front end"
    given = f" with args = {arch.args}" if arch.args else ""
    raise ValueError(f"timm's {arch.name}{given} takes no {bands} bands x {frames} frames ({reason}); {fix}")


def _takes(arch: Timm, size: tuple[int, int]) -> bool:
    try:
        return bool(_try(arch, size))
    except REFUSALS:
        return False


def _try(arch: Timm, size: tuple[int, int]) -> Features:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # what is drawn must not depend on the cache above
        return find_features(create(arch, size, TRIED_CLASSES), size, TRIED_CLASSES)


def adapt_weights(
    state: dict[str, Tensor], model: TimmNetwork, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit weights of timm's, such as those of images, or one of our own state dicts to the model.

    timm itself sums the stem to one channel and resizes its positions, of square images. Ours may be of other clip
    lengths where a network has a position for each patch. The head is dropped when its classes differ.
    """
    is_ours = any(name.startswith(NET) for name in state)
    weights = _of_other_length(state, model) if is_ours else _of_images(state, model)
    return fit_head(weights, model, head=model.head, other_classes=other_classes)


def _of_other_length(state: dict[str, Tensor], model: TimmNetwork) -> dict[str, Tensor]:
    """One of our own state dicts with its positions on the model's grid."""
    if model.special_positions is None or NET + POSITIONS not in state or GRID not in state:
        return state
    positions = {POSITIONS: state[NET + POSITIONS], GRID: state[GRID]}
    special = model.special_positions
    resized = adapt_patches(positions, model.features.grid, num_special=special, num_kept=special)
    return state | {NET + POSITIONS: resized[POSITIONS], GRID: model.grid}


def _of_images(state: dict[str, Tensor], model: TimmNetwork) -> dict[str, Tensor]:
    """A state dict of timm's, as timm loads it into this network; with the head of its own classes, if it has one."""
    config = model.net.pretrained_cfg
    stem = next((f"{name}.weight" for name in _names(config.get("first_conv"))), "")
    own = model.net.state_dict()
    same_stem = stem in own and stem in state and own[stem].shape == state[stem].shape
    head = next((f"{name}.weight" for name in _names(config.get("classifier"))), "")
    classes = len(state[head]) if head in state and state[head].ndim else 0
    channels = 1 if same_stem else config["input_size"][0]
    overlay = {"state_dict": dict(state), "num_classes": classes, "label_offset": 0, "custom_load": False}
    overlay["input_size"] = (channels, *config["input_size"][1:])
    try:
        with torch.random.fork_rng(devices=[]):  # its first weights, all replaced, are drawn
            net = create(model.arch, model.size, classes, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, KeyError) as error:
        problems = " ".join(str(error).split())
        raise ValueError(f"these weights do not fit timm's {model.arch.name}: {problems[:400]}") from None
    grid = {GRID: model.grid} if model.special_positions is not None else {}
    return {NET + name: tensor for name, tensor in net.state_dict().items()} | grid


def _names(listed: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of modules, of which timm lists one as a string."""
    return (listed,) if isinstance(listed, str) else tuple(listed or ())
