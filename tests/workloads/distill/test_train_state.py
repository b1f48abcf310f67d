"""A model's optimizer step against torch's plain loop over the parameters."""

import pytest
import torch
from torch import Tensor

from workloads.distill.train_state import TrainState


def backward(state: TrainState, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    tagger = state.tagger.train()
    mel_BMF = torch.randn(2, tagger.front_end.bands, tagger.num_frames, generator=generator)
    tagger(mel_BMF).square().sum().backward()


@pytest.mark.parametrize("kind", ["adamw", "adam"])
@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_the_fused_step_is_the_plain_one(tiny, start, name, kind):
    settings = [f"models.{name}.optimizer.{key}" for key in (f"kind={kind}", "weight_decay=0.1", "warmup=0")]
    state: TrainState = start(tiny("mutual", *settings)).pool.train_state(name)
    own = list(state.tagger.parameters())
    plain: list[Tensor] = [p.detach().clone().requires_grad_() for p in own]
    plain_kind = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    optimizer = plain_kind(plain, lr=state.lr, weight_decay=0.1, foreach=False, fused=False)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = state.lr
        backward(state, step)
        for parameter, copied in zip(own, plain, strict=True):
            copied.grad = parameter.grad.clone()
        optimizer.step()
        state.step()
    for parameter, copied in zip(own, plain, strict=True):
        torch.testing.assert_close(parameter, copied, rtol=1e-5, atol=1e-7)
