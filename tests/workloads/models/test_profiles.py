"""Profiles over time: the folded rollout equals the product of whole attention matrices, energy is what it says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.attention import attention_maps
from workloads.config.architectures import AST, CED, MN, DyMN, EfficientNet, OnDevice, ViT
from workloads.config.recipe import FrontEnd, Model
from workloads.models.profiles import EPSILON, QUERIES_AT_ONCE, TimeGrid, outputs_and_profile, time_grid
from workloads.models.tagger import Tagger, build_tagger

VIT: dict[str, Any] = {"family": "vit", "dim": 12, "depth": 3, "heads": 2}
TOKEN, MEAN = ViT(**VIT, pool="token"), ViT(**VIT, pool="avg")
OVERLAPPING = ViT(**VIT, pool="token", patch=16, stride=10)
AST_TINY, CED_TINY = AST(family="ast", size="tiny"), CED(family="ced", size="tiny")


def tagger_of(arch: Any, *, seconds: float = 1.0, kind: str = "", seed: int = 0) -> Tagger:
    front_end = FrontEnd(kind=kind) if kind else FrontEnd()
    shape: dict[str, Any] = {"tags": ("a", "b"), "labels": "multi", "clip_seconds": seconds, "clip_rate": 16_000}
    return build_tagger(Model(arch=arch, front_end=front_end), name="one", seed=seed, **shape).eval()


def mel_of(tagger: Tagger, clips: int = 2) -> Tensor:
    shape = (clips, tagger.front_end.bands, tagger.num_frames)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def with_strong_attention(tagger: Tagger) -> Tagger:
    """Initial weights attend nearly evenly."""
    torch.manual_seed(2)
    for name, parameter in tagger.backbone.named_parameters():
        if name.endswith("qkv.weight"):
            nn.init.normal_(parameter, std=1.0 if parameter.shape[1] < 100 else 0.1)
    return tagger


def by_matrices(tagger: Tagger, mel_BMF: Tensor) -> Tensor:
    """The rollout as reference/tkd.md section 2 writes it: the product of (A + I) / 2, rows read, mel rows summed."""
    layout = tagger.backbone.token_layout
    assert layout is not None
    maps = attention_maps(tagger.backbone, tagger.normalise(mel_BMF))
    rollout_BLL = torch.eye(maps[0].shape[1], dtype=torch.float64)
    for attention_BLL in maps:
        rollout_BLL = (attention_BLL.double() + torch.eye(len(attention_BLL[0]))) / 2 @ rollout_BLL
    torch.testing.assert_close(rollout_BLL.sum(2), torch.ones(len(mel_BMF), len(maps[0][0])).double())
    row_BL = rollout_BLL[:, layout.read].mean(1)[:, layout.special :]
    p_BP = row_BL.unflatten(1, (layout.rows, -1)).sum(1)
    p_BP = p_BP / p_BP.sum(1, keepdim=True) + EPSILON
    return (p_BP / p_BP.sum(1, keepdim=True)).float()


@pytest.mark.parametrize(
    ("arch", "steps"), [(TOKEN, 6), (MEAN, 6), (OVERLAPPING, 9), (AST_TINY, 9), (CED_TINY, 6)], ids=str
)
def test_the_folded_rollout_is_that_of_whole_matrices(arch: Any, steps: int) -> None:
    tagger = with_strong_attention(tagger_of(arch))
    mel_BMF = mel_of(tagger)
    with torch.no_grad():
        outputs, p_BP = outputs_and_profile(tagger, mel_BMF)
        plain = tagger.outputs(mel_BMF)
    assert p_BP.shape == (2, steps) == outputs.sequence_BPD.shape[:2]
    assert p_BP.std() > 1e-3, "not even: the comparison says something"
    torch.testing.assert_close(p_BP, by_matrices(tagger, mel_BMF), rtol=0, atol=1e-5)
    assert all(torch.equal(mine, other) for mine, other in zip(outputs[:3], plain[:3], strict=True)), "it only listens"


class Largest(TorchDispatchMode):
    """The most numbers of a tensor that an operation within this context gives."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = found if isinstance(found, tuple | list) else (found,)
        self.numbers = max(self.numbers, *(one.numel() for one in given if isinstance(one, Tensor)), 0)
        return found


def test_no_whole_attention_is_computed() -> None:
    """264 patches and the class token, 4 heads: of a block only some rows of it are there at a time."""
    tagger = tagger_of(ViT(family="vit", dim=16, depth=2, heads=4, patch=5, stride=5), seconds=1.1)
    mel_BMF, tokens = mel_of(tagger, clips=1), 12 * 22 + 1
    assert tagger.backbone.token_layout == (1, 12, slice(0, 1))
    with torch.no_grad(), Largest() as largest:
        outputs_and_profile(tagger, mel_BMF)
    assert largest.numbers == 4 * QUERIES_AT_ONCE * tokens < 4 * tokens**2


def test_the_profile_of_a_training_forward_is_that_of_the_forward_which_trains() -> None:
    tagger = with_strong_attention(tagger_of(ViT(**VIT, pool="avg", dropout=0.5)))
    mel_BMF = mel_of(tagger)
    _, expected = outputs_and_profile(tagger, mel_BMF)
    tagger.train()
    torch.manual_seed(3)
    outputs, p_BP = outputs_and_profile(tagger, mel_BMF)
    torch.manual_seed(3)
    assert torch.equal(tagger(mel_BMF), outputs.logits_BC)
    assert not p_BP.requires_grad
    torch.testing.assert_close(p_BP.sum(1), torch.ones(2))
    assert (p_BP - expected).abs().max() > 1e-3, "dropout is in it"


def test_a_block_that_stochastic_depth_leaves_out_changes_nothing_for_its_clips() -> None:
    """In a training forward, by the matrices of the blocks that each clip kept; the others are the identity."""
    tagger = with_strong_attention(tagger_of(ViT(**VIT | {"depth": 4}, pool="avg", drop_path=0.8))).train()
    mel_BMF, maps, kept = mel_of(tagger, 8), list[Tensor](), list[Tensor]()
    blocks: Any = tagger.backbone.blocks
    for block in blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, weights_BHLL: maps.append(weights_BHLL.mean(1)))
        block.drop_path1.register_forward_hook(lambda _, __, x_BLD: kept.append(x_BLD.abs().amax((1, 2)) > 0))
    torch.manual_seed(4)
    with torch.no_grad():
        _, p_BP = outputs_and_profile(tagger, mel_BMF)
    kept_NB = torch.stack(kept)
    assert [0 < int(kept_B.sum()) < 8 for kept_B in kept_NB] == [False, True, True, True]
    same_LL = torch.eye(maps[0].shape[1], dtype=torch.float64)
    rollout_BLL = same_LL
    for attention_BLL, kept_B in zip(maps, kept_NB, strict=True):
        factor_BLL = torch.where(kept_B[:, None, None], (attention_BLL.double() + same_LL) / 2, same_LL)
        rollout_BLL = factor_BLL @ rollout_BLL
    expected_BP = rollout_BLL[:, 1:, 1:].mean(1).unflatten(1, (tagger.backbone.token_layout.rows, -1)).sum(1)
    expected_BP = expected_BP / expected_BP.sum(1, keepdim=True) + EPSILON
    torch.testing.assert_close(p_BP, (expected_BP / expected_BP.sum(1, keepdim=True)).float(), rtol=0, atol=1e-5)
    assert (p_BP - p_BP.mean(1, keepdim=True)).abs().max() > 1e-3


def test_even_attention_is_an_even_profile() -> None:
    tagger = tagger_of(MEAN)
    for name, parameter in tagger.backbone.named_parameters():
        if "qkv" in name:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        _, p_BP = outputs_and_profile(tagger, mel_of(tagger))
    torch.testing.assert_close(p_BP, torch.full((2, 6), 1 / 6))


def attends_to_itself_alone(tagger: Tagger) -> Tagger:
    """Queries and keys are the normalised tokens, all of one length, so each is nearest to itself: by far."""
    for block in tagger.backbone.blocks:
        nn.init.zeros_(block.attn.qkv.bias)
        with torch.no_grad():
            block.attn.qkv.weight[: 2 * VIT["dim"]] = 300 * torch.eye(VIT["dim"]).repeat(2, 1)
    return tagger


@pytest.mark.parametrize("token", [0, 4, 9, 23])
def test_attention_of_a_token_to_itself_is_one_hot_on_its_step(token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """reference/tkd.md 9.6: of four rows of six patches token 9 is the fourth of the second row."""
    tagger = attends_to_itself_alone(tagger_of(ViT(**VIT | {"heads": 1}, pool="avg")))
    layout = tagger.backbone.token_layout
    assert (layout.special, layout.rows) == (1, 4)
    monkeypatch.setattr(
        type(tagger.backbone), "token_layout", layout._replace(read=slice(1 + token, 2 + token)), raising=True
    )
    with torch.no_grad():
        _, p_BP = outputs_and_profile(tagger, mel_of(tagger))
    expected_P = (torch.arange(6) == token % 6).float() + EPSILON
    torch.testing.assert_close(p_BP, (expected_P / expected_P.sum()).expand(2, 6), rtol=0, atol=1e-6)


def test_a_class_token_that_attends_to_itself_alone_says_nothing_of_when() -> None:
    tagger = attends_to_itself_alone(tagger_of(ViT(**VIT | {"heads": 1}, pool="token")))
    with torch.no_grad():
        _, p_BP = outputs_and_profile(tagger, mel_of(tagger))
    torch.testing.assert_close(p_BP, torch.full((2, 6), 1 / 6))


@pytest.mark.parametrize(
    "rows", [(0.0, 0.0, 0.0, 0.0), (100.0, 0.0, 0.0, 0.0), (0.0, 0.0, 100.0, 0.0), (1.0, -2.0, 0.5, 3.0)]
)
def test_which_row_of_frequency_the_attention_is_in_does_not_change_the_profile(rows: tuple[float, ...]) -> None:
    """reference/tkd.md 9.6. Every token has the scores a_t + b_row; after a block a step has (1/6 + softmax(a)_t) / 2.

    100 on one row leaves nothing for the others.
    """
    share_P = torch.tensor([0.05, 0.1, 0.4, 0.2, 0.15, 0.1])
    tagger = tagger_of(ViT(**VIT | {"heads": 1, "depth": 1}, pool="avg"))
    net: Any = tagger.backbone
    scores_RP = torch.tensor(rows)[:, None] + share_P.log()
    for parameter in (*net.patch_embed.parameters(), *net.blocks[0].attn.parameters(), net.cls_token, net.pos_embed):
        nn.init.zeros_(parameter)
    net.blocks[0].norm1 = nn.Identity()
    with torch.no_grad():
        net.pos_embed[0, 1:, 0], net.pos_embed[0, 0, 0] = scores_RP.flatten(), -1e4
        net.blocks[0].attn.qkv.bias[0] = 1 / net.blocks[0].attn.scale  # the query: it reads the first feature
        net.blocks[0].attn.qkv.weight[VIT["dim"], 0] = 1.0  # of the key
        _, p_BP = outputs_and_profile(tagger, mel_of(tagger))
    torch.testing.assert_close(p_BP, ((1 / 6 + share_P) / 2).expand(2, 6), rtol=0, atol=1e-5)


def test_windows_of_a_long_clip_follow_each_other() -> None:
    tagger = with_strong_attention(tagger_of(CED_TINY, seconds=20.24))
    mel_BMF = mel_of(tagger)
    assert mel_BMF.shape[2] == 2 * 1012
    with torch.no_grad():
        _, p_BP = outputs_and_profile(tagger, mel_BMF)
        halves = [outputs_and_profile(tagger, half)[1] for half in mel_BMF.split(1012, dim=2)]
    torch.testing.assert_close(p_BP, torch.cat(halves, dim=1) / 2, rtol=0, atol=1e-6)


def test_energy_is_the_mean_square_of_a_step() -> None:
    tagger = tagger_of(MN(family="mn", width=0.1))
    with torch.no_grad():
        outputs, p_BP = outputs_and_profile(tagger, mel_of(tagger))
    energy_BP = outputs.sequence_BPD.square().mean(2)
    torch.testing.assert_close(p_BP, energy_BP / energy_BP.sum(1, keepdim=True), rtol=1e-4, atol=2 * EPSILON)


def test_attention_of_its_own_is_the_profile() -> None:
    tagger = tagger_of(OnDevice(family="ondevice", variant="mhatt_rnn"), kind="logmel40")
    with torch.no_grad():
        outputs, p_BP = outputs_and_profile(tagger, mel_of(tagger))
        weights_BHP = tagger.backbone.weights(outputs.sequence_BPD)
    torch.testing.assert_close(p_BP, weights_BHP.mean(1), rtol=0, atol=2 * EPSILON * p_BP.shape[1])


def test_steps_lie_where_their_patches_do() -> None:
    assert time_grid(tagger_of(AST_TINY), 9) == TimeGrid(0.03, 0.1, 9)  # patches of 16 frames, one every 10
    assert time_grid(tagger_of(CED_TINY), 6) == TimeGrid(0.0, 0.16, 6)
    two_windows = time_grid(tagger_of(CED_TINY, seconds=20.24), 126)
    assert two_windows.step * 63 == pytest.approx(10.12), "the second window begins with its first frame"


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        (MN(family="mn", width=0.1), ""),
        (MN(family="mn", width=0.1, strides=(2, 1, 2, 1)), ""),
        (DyMN(family="dymn", width=0.4), ""),
        (EfficientNet(family="efficientnet"), ""),
        (OnDevice(family="ondevice", variant="crnn"), "logmel40"),
        (OnDevice(family="ondevice", variant="tc_resnet"), "logmel40"),
    ],
    ids=str,
)
def test_steps_of_other_networks_lie_in_the_middle_of_what_they_hear(arch: Any, kind: str) -> None:
    """Of which frames a step within 8 s depends most, by gradients. One draw of weights prefers one side: a mean over
    several draws. Memory is cut off, and a little dependence on all frames, by gates and dynamic kernels, is left out.
    """
    distances = []
    for seed in range(6):
        tagger = tagger_of(arch, seconds=8.0, kind=kind, seed=seed)
        mel_BMF = mel_of(tagger, 1)
        mel_BMF.requires_grad_()
        sequence_BPD = recorded_before_memory(tagger, mel_BMF)
        steps = sequence_BPD.shape[1]
        grid, step = time_grid(tagger, steps), steps // 3
        (gradient_BMF,) = torch.autograd.grad(sequence_BPD[0, step].square().sum(), mel_BMF)
        weight_F = gradient_BMF[0].abs().sum(0).double()
        weight_F = (weight_F - 0.3 * weight_F.max()).clamp(min=0)
        middle = (weight_F * (torch.arange(len(weight_F)) + 0.5)).sum() / weight_F.sum()
        heard_s = middle.item() * tagger.front_end.hop / tagger.front_end.rate
        distances.append(heard_s - (grid.first + grid.step * (step + 0.5)))
    frame_s = tagger.front_end.hop / tagger.front_end.rate
    assert abs(sum(distances) / len(distances)) < max(0.25 * grid.step, frame_s)


def recorded_before_memory(tagger: Tagger, mel_BMF: Tensor) -> Tensor:
    """The sequence; of a recurrent network its input, since its states remember all that was before."""
    recorded: list[Tensor] = []
    for module in tagger.backbone.modules():
        if isinstance(module, nn.RNNBase):
            module.register_forward_pre_hook(lambda _, inputs: recorded.append(inputs[0]))
    sequence_BPD = tagger.outputs(mel_BMF).sequence_BPD
    return recorded[0] if recorded else sequence_BPD
