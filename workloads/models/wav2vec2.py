"""wav2vec 2.0 as a tagger: torchaudio's convolutions and Transformer over the samples of a clip at 16 kHz, and a head
that reads the first context vector (reference/tkd.md sections 2 and 5).

There is no class token: the first row of the attention rollout says which moments the head listens to. Layers are not
dropped in training, because workers average the gradients of all of them. Does not depend on front ends or training.

Axes: B clips, M bands (one), F samples, P context vectors, one every 20 ms, D features of one.
"""

import re
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchaudio.models import wav2vec2_model

from workloads.config.architectures import POSITION_GROUPS, Wav2Vec2
from workloads.models.attention import OnBlock, hook_torchaudio_blocks
from workloads.models.backbone import Backbone, Outputs, TokenLayout
from workloads.models.fit import fit_head

KERNELS_AND_STRIDES = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
STEP, HEARD = 320, 400  # samples from one context vector to the next, and those that the convolutions of one hear
POSITION_KERNEL = 128
HEAD = ("head.weight", "head.bias")
# around the network in fine-tuned ones; fairseq's head for letters (CTC) lies in the outer one alone
WRAPPER = re.compile(r"^(w2v_encoder\.(w2v_model\.)?|w2v_model\.|wav2vec2\.)")
# Parts of training without labels, and the heads of other tasks: nothing here reads them.
UNUSED = re.compile(
    r"(mask_emb|masked_spec_embed|quantizer|project_q|project_hid|final_proj|target_glu|aux|lm_head|proj|projector"
    r"|classifier)(\.|$)"
)
# Names of fairseq and of transformers -> torchaudio's, which are ours; of each tensor the first that fits is taken.
RENAMED = tuple(
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
        (r"^feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
        (r"^post_extract_proj\.", r"encoder.feature_projection.projection."),
        (r"^layer_norm\.", r"encoder.feature_projection.layer_norm."),
        (r"^feature_projection\.", r"encoder.feature_projection."),
        (r"^encoder\.pos_conv\.0\.", r"encoder.transformer.pos_conv_embed.conv."),
        (r"^encoder\.pos_conv_embed\.", r"encoder.transformer.pos_conv_embed."),
        (r"^encoder\.layer_norm\.", r"encoder.transformer.layer_norm."),
        (r"^encoder\.layers\.(\d+)\.self_attn\.", r"encoder.transformer.layers.\1.attention."),
        (r"^encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.transformer.layers.\1.layer_norm."),
        (r"^encoder\.layers\.(\d+)\.fc1\.", r"encoder.transformer.layers.\1.feed_forward.intermediate_dense."),
        (r"^encoder\.layers\.(\d+)\.fc2\.", r"encoder.transformer.layers.\1.feed_forward.output_dense."),
        (r"^encoder\.layers\.", r"encoder.transformer.layers."),
    )
)
WEIGHT_NORM = {".weight_g": ".parametrizations.weight.original0", ".weight_v": ".parametrizations.weight.original1"}


class WaveformTransformer(Backbone):
    """Samples of a clip (B, 1, F) to logits_BC of its first context vector."""

    def __init__(self, arch: Wav2Vec2, *, num_classes: int) -> None:
        super().__init__()
        has_layer_norms = arch.norm == "layer"
        network = wav2vec2_model(
            extractor_mode=f"{arch.norm}_norm",
            extractor_conv_layer_config=[(arch.channels, kernel, stride) for kernel, stride in KERNELS_AND_STRIDES],
            extractor_conv_bias=has_layer_norms,
            encoder_embed_dim=arch.dim,
            encoder_projection_dropout=arch.dropout,
            encoder_pos_conv_kernel=POSITION_KERNEL,
            encoder_pos_conv_groups=POSITION_GROUPS,
            encoder_num_layers=arch.depth,
            encoder_num_heads=arch.heads,
            encoder_attention_dropout=arch.dropout,
            encoder_ff_interm_features=4 * arch.dim,
            encoder_ff_interm_dropout=arch.dropout,
            encoder_dropout=arch.dropout,
            encoder_layer_norm_first=has_layer_norms,
            encoder_layer_drop=0.0,
            aux_num_out=None,
        )
        self.feature_extractor, self.encoder = network.feature_extractor, network.encoder
        self.feature_extractor.requires_grad_(not arch.freeze_features)
        self.head = nn.Linear(arch.dim, num_classes)

    @property
    def token_layout(self) -> TokenLayout:
        return TokenLayout(special=0, rows=1, read=slice(0, 1))

    def hook_attention(self, on_block: OnBlock) -> list[RemovableHandle]:
        return hook_torchaudio_blocks(self, on_block)

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        """The convolutions of step k hear HEARD samples from STEP k on: the step is around their middle."""
        return (HEARD - STEP) / 2, STEP

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        features_BPX, _ = self.feature_extractor(mel_BMF[:, 0], None)
        context_BPD = self.encoder(features_BPX, None)
        embedding_BD = context_BPD[:, 0]
        return Outputs(self.head(embedding_BD), embedding_BD, context_BPD)


def build(arch: Wav2Vec2, *, bands: int, frames: int, num_classes: int) -> WaveformTransformer:
    """Build the network for any number of samples; ValueError for fewer than make one context vector."""
    assert bands == 1, "families.py lets waveforms alone reach this family"
    if frames < HEARD:
        raise ValueError(f"{frames} samples: its convolutions need {HEARD} (25 ms) or more; use longer clips")
    return WaveformTransformer(arch, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: WaveformTransformer, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a state dict in our own key names, torchaudio's, fairseq's or transformers', pretrained or fine-tuned.

    The head is dropped where its classes differ or there is none; heads of other tasks and the parts of training
    without labels are left out, and named as dropped. Anything else that does not fit is a ValueError naming it.
    """
    weights, unused = our_names(state)
    weights, dropped = fit_head(weights, model, head=HEAD, other_classes=other_classes)
    return weights, (*unused, *dropped)


def our_names(state: dict[str, Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The network's tensors by our names, and the names of those that nothing here reads.

    ValueError where two are named for the same part.
    """
    weights: dict[str, Tensor] = {}
    unused: list[str] = []
    for name, tensor in state.items():
        own = WRAPPER.sub("", name)
        if UNUSED.match(own):
            unused.append(name)
            continue
        own = _our_name(own)
        if own in weights:
            raise ValueError(f"{name}: two tensors are named for {own}: this is not the state dict of one network")
        weights[own] = tensor
    return weights, tuple(unused)


def _our_name(name: str) -> str:
    for theirs, ours in RENAMED:
        if theirs.match(name):
            name = theirs.sub(ours, name)
            break
    ending = f".{name.rsplit('.', 1)[-1]}"
    return name.removesuffix(ending) + WEIGHT_NORM[ending] if ending in WEIGHT_NORM else name
