"""The names that Hugging Face's transformers gives the tensors of an AST, in those of the AST project.

transformers splits the product of queries, keys and values in three. Its version 5 has other names in memory than in
files; both are read. Does not depend on shapes.
"""

import re

import torch
from torch import Tensor

WHOLE = "audio_spectrogram_transformer."
AST_MARK = WHOLE + "embeddings.patch_embeddings.projection.weight"
QUERY_KEY_VALUE = ("query", "key", "value")
RULES = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "dist_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"layers\.(\d+)\.", r"blocks.\1."),
    (r"layernorm\.", "norm."),
)
OF_BLOCKS = (
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)
HEAD = (("classifier.layernorm.", "mlp_head.0."), ("classifier.dense.", "mlp_head.1."))


def ast_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of `ASTForAudioClassification` in the AST project's names; what is unknown keeps its name."""
    renamed = {_name(name): tensor for name, tensor in state.items()}
    if len(renamed) != len(state):
        raise ValueError("two tensors are named for the same part: this file is not the state dict of one network")
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in QUERY_KEY_VALUE]
        if all(part in renamed for part in parts):
            joined = torch.cat([renamed.pop(part) for part in parts])
            renamed[name.replace(".query.", ".qkv.")] = joined
    return renamed


def _name(name: str) -> str:
    for theirs, ours in HEAD:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    inner = name.removeprefix(WHOLE)
    for pattern, replacement in RULES:
        inner, found = re.subn(f"^{pattern}", replacement, inner)
        if found:
            break
    for pattern, replacement in OF_BLOCKS:
        inner = re.sub(pattern, replacement, inner)
    return f"v.{inner}" if name.startswith(WHOLE) else name
