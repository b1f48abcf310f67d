"""An AST tagger in the form of Hugging Face's hub: what `ASTForAudioClassification` and its feature extractor read.

Names of tensors are those that transformers writes to files, of any version. Does not depend on transformers, nor on
files.
"""

from typing import Any

import torch
from torch import Tensor

from workloads.config.architectures import AST
from workloads.models.ast import DEPTH, PATCH, SIZES
from workloads.models.patches import GRID
from workloads.models.tagger import Tagger

WHOLE = "audio_spectrogram_transformer."
EMBEDDINGS = {
    "cls_token": "cls_token",
    "dist_token": "distillation_token",
    "pos_embed": "position_embeddings",
    "patch_embed.proj.weight": "patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "patch_embeddings.projection.bias",
}
OF_BLOCKS = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
HEADS = {"norm.": WHOLE + "layernorm.", "mlp_head.0.": "classifier.layernorm.", "mlp_head.1.": "classifier.dense."}
QKV, QUERY_KEY_VALUE = "attn.qkv.", ("query", "key", "value")
PROBLEMS = {"single": "single_label_classification", "multi": "multi_label_classification"}
MOST_DIFFERENCE = 1e-3  # of a logit
NORM_EPS = 1e-6  # of timm's blocks; the head's, 1e-5, has no setting of its own there


def why_no_class(tagger: Tagger) -> str:
    """Why transformers has no class for a tagger; empty where it has one."""
    arch = tagger.model.arch
    if not isinstance(arch, AST):
        return f"family {arch.family} has no class in transformers"
    if arch.frame_pool != "none":
        return f"frame_pool = {arch.frame_pool!r}: transformers' AST reads its special tokens alone"
    if tagger.model.front_end.kind != "kaldi128":
        return f"front_end.kind = {tagger.model.front_end.kind!r}: transformers' AST hears kaldi128 only"
    return ""


def hub_weights(tagger: Tagger) -> dict[str, Tensor]:
    """The tagger's weights in transformers' names; of its products of queries, keys and values three each."""
    state = {name.removeprefix("backbone."): tensor for name, tensor in tagger.state_dict().items()}
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name != GRID:
            named |= _named(name, tensor)
    return {name: tensor.contiguous().clone() for name, tensor in named.items()}


def _named(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if name in EMBEDDINGS:
        return {f"{WHOLE}embeddings.{EMBEDDINGS[name]}": tensor}
    for ours, theirs in HEADS.items():
        if name.startswith(ours):
            return {theirs + name.removeprefix(ours): tensor}
    _, number, inner = name.split(".", 2)  # blocks.N.
    layer = f"{WHOLE}encoder.layer.{number}."
    if inner.startswith(QKV):
        parts = zip(QUERY_KEY_VALUE, tensor.chunk(3), strict=True)
        return {f"{layer}attention.attention.{part}.{inner.removeprefix(QKV)}": third for part, third in parts}
    ours, _, kind = inner.rpartition(".")
    return {f"{layer}{OF_BLOCKS[ours]}.{kind}": tensor}


def hub_config(tagger: Tagger, *, long_clips: str) -> dict[str, Any]:
    """config.json."""
    arch = tagger.model.arch
    assert isinstance(arch, AST), "why_no_class was asked"
    dim, heads = SIZES[arch.size]
    return {
        "architectures": ["ASTForAudioClassification"],
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": dim,
        "intermediate_size": 4 * dim,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": heads,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": NORM_EPS,
        "patch_size": PATCH,
        "frequency_stride": arch.stride,
        "time_stride": arch.stride,
        "max_length": tagger.num_frames,
        "clip_seconds": tagger.clip_seconds,  # for `antiphon models import`: frames are padded, so do not say it
        "long_clips": long_clips,  # for it too
        "num_mel_bins": tagger.front_end.bands,
        "problem_type": PROBLEMS[tagger.labels],
        "id2label": {str(number): tag for number, tag in enumerate(tagger.tags)},
        "label2id": {tag: number for number, tag in enumerate(tagger.tags)},
        "torch_dtype": "float32",
    }


def hub_preprocessor(tagger: Tagger) -> dict[str, Any]:
    """preprocessor_config.json; transformers divides by twice its `std`."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": tagger.front_end.rate,
        "num_mel_bins": tagger.front_end.bands,
        "max_length": tagger.num_frames,
        "do_normalize": True,
        "mean": tagger.mean,
        "std": tagger.std / 2,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def difference_from_transformers(tagger: Tagger, folder: str) -> float:
    """The largest difference between the folder's logits by transformers and the tagger's, of full and short clips.

    Of waveforms, through transformers' own feature extractor. ValueError where it exceeds MOST_DIFFERENCE.
    """
    from transformers import ASTFeatureExtractor, ASTForAudioClassification

    model = ASTForAudioClassification.from_pretrained(folder).eval()
    extractor = ASTFeatureExtractor.from_pretrained(folder)
    length = round(tagger.clip_seconds * tagger.clip_rate)
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for samples in (length, length // 2):
        x_T = 0.1 * torch.randn(samples, generator=generator)
        heard_T = tagger.front_end.resample(x_T.unsqueeze(0))[0]
        inputs = extractor(heard_T.numpy(), sampling_rate=tagger.front_end.rate, return_tensors="pt")
        padded_BT = torch.nn.functional.pad(x_T, (0, length - samples)).unsqueeze(0)
        with torch.no_grad():
            theirs_BC = model(**inputs).logits
            ours_BC = tagger.tag(padded_BT, (torch.arange(length) < samples).unsqueeze(0))
        largest = max(largest, (theirs_BC - ours_BC).abs().max().item())
    if largest > MOST_DIFFERENCE:
        raise ValueError(
            f"--to hub: transformers' logits differ from this tagger's by {largest:.2g}, more than {MOST_DIFFERENCE}; "
            "the folder is not written"
        )
    return largest
