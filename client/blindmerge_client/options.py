"""How an owner fine-tunes. No torch here: reading a configuration should not wait for it."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LoraOptions", "TrainingOptions"]


class LoraOptions(BaseModel):
    """Which factors an owner trains, in place of all weights; the head is always trained whole."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(default=8, description="width of A and B")
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=16.0, description="the product B A counts alpha / rank times"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="part of the inputs of A that training leaves out"
    )
    targets: tuple[str, ...] = Field(
        default=(),
        description="how the names of the adapted layers end; leave out for all linear layers of "
        "the transformer layers",
    )


class TrainingOptions(BaseModel):
    """How an owner fine-tunes the base."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="how often every text is seen"
    )
    # Strict pydantic takes an int for a float, though not a bool: `learning_rate = 1` is TOML's 1.
    learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=1e-4, description="the highest learning rate, reached after the warm-up"
    )
    batch_size: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=32, description="texts per step"
    )
    max_length: Annotated[int, Field(ge=4, le=65536)] = Field(
        default=64, description="tokens after which a text is cut, special tokens included"
    )
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.1, description="part of the steps in which the learning rate rises"
    )
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.01, description="AdamW's weight decay; biases and LayerNorms have none"
    )
    rows: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="only the first so many texts are used; leave out for all"
    )
    lora: LoraOptions | None = Field(
        default=None, description="train LoRA factors; leave out to train all weights"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=0, description="of the order of the texts and of dropout"
    )
