"""Image classifiers: ViT, and the vision tower of CLIP.

The patch embedding is a convolution whose steps are as wide as its window: a linear layer over
unfolded patches. The tokens that stand for the whole image, and positions, are averaged.
"""

from blindmerge.manifest.rules import Architecture, GroupRule, Part, patches, sequences

__all__ = ["CLIP", "VIT"]


def _patch_embedding(name: str) -> tuple[GroupRule, ...]:
    return (GroupRule(name, "unfolded-patches", (name,)),)


CLIP = Architecture(
    tasks=("image-classification",),
    first=Part(
        "vision_model",
        _patch_embedding("embeddings.patch_embedding"),
        r"embeddings\.(class_embedding|position_embedding\.weight)|pre_layrnorm\.(weight|bias)",
    ),
    layers=(
        Part(
            "vision_model.encoder.layers",
            (
                patches("self_attn", *(f"self_attn.{part}_proj" for part in "qkv")),
                patches("self_attn.out_proj"),
                patches("mlp.fc1"),
                patches("mlp.fc2"),
            ),
            r"layer_norm[12]\.(weight|bias)",
        ),
    ),
    # The classifier does not see this norm, which is of the token for the whole image.
    head=Part("", sequences("classifier"), r"vision_model\.post_layernorm\.(weight|bias)"),
)
VIT = Architecture(
    tasks=("image-classification",),
    first=Part(
        "vit.embeddings",
        _patch_embedding("patch_embeddings.projection"),
        r"cls_token|position_embeddings",
    ),
    layers=(
        Part(
            "vit.encoder.layer",
            (
                patches(
                    "attention.attention",
                    *(f"attention.attention.{part}" for part in ("query", "key", "value")),
                ),
                patches("attention.output.dense"),
                patches("intermediate.dense"),
                patches("output.dense"),
            ),
            r"layernorm_(before|after)\.(weight|bias)",
            module="vit.layers",
            renamed={
                "attention.attention.query": "attention.q_proj",
                "attention.attention.key": "attention.k_proj",
                "attention.attention.value": "attention.v_proj",
                "attention.output.dense": "attention.o_proj",
                "intermediate.dense": "mlp.fc1",
                "output.dense": "mlp.fc2",
            },
        ),
    ),
    head=Part("", sequences("classifier"), r"vit\.layernorm\.(weight|bias)"),
)
