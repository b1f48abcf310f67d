"""What is said of a recipe's precision before a run starts."""

import torch


def test_slow_bf16_is_warned_of_once(antiphon, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    for precision, warnings in (("bf16", 1), ("fp32", 0)):
        done = antiphon("run", "demo", "--dry-run", "--set", f"train.precision={precision}")
        assert done.code == 0
        assert done.err.count("warning: train.precision = 'bf16': this machine's CPU has no bf16") == warnings
