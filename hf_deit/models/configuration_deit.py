"""Configurations of the two students, and the validation of all their fields.

`DeiTConfig` (`model_type` deit) describes the distilled student, `ViTConfig` (`model_type` vit) the plain student. Both
extend the configurations of stock transformers by two fields. Stock transformers keeps these fields and ignores them,
so the files also load without this package. The networks are in modeling_deit.py.

Paper: Touvron et al., arXiv:2012.12877, Table 1 (sizes) and section 6 (defaults); LayerScale: arXiv:2103.17239.
"""

import math
from collections.abc import Iterable
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import DeiTConfig as StockDeiTConfig
from transformers import ViTConfig as StockViTConfig
from transformers.activations import ACT2FN

from ..errors import UserError
from ..losses import ProblemType
from ..sizes import as_pair

PRESETS = {
    "tiny": {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


def patch_grid(config: StockDeiTConfig | StockViTConfig) -> tuple[int, int]:
    """Return the number of patches `(rows, columns)` of an image of `config.image_size` pixels."""
    (height, width), (patch_height, patch_width) = as_pair(config.image_size), as_pair(config.patch_size)
    return height // patch_height, width // patch_width


def check_size(name: str, value: Any) -> None:
    """Check that a size is a positive number of pixels or a `(height, width)` pair of them.

    Raises:
        UserError: The value is neither a positive number nor a pair of positive numbers.
    """
    pair = list(value) if isinstance(value, Iterable) else [value, value]
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise UserError(
            f"{name}={value!r}: it must be a positive number of pixels or a (height, width) pair of them, "
            f"for example {name}={16 if name == 'patch_size' else 224}."
        )


def _check_patches(config: StockDeiTConfig | StockViTConfig) -> None:
    check_size("image_size", config.image_size)
    check_size("patch_size", config.patch_size)
    for side, image, patch in zip(
        ("height", "width"), as_pair(config.image_size), as_pair(config.patch_size), strict=True
    ):
        if image % patch:
            lower = max(image // patch, 1) * patch
            raise ValueError(
                f"patch_size={config.patch_size} does not divide image_size={config.image_size}: the {side} of {image} "
                f"pixels leaves a remainder of {image % patch}. Use a {side} of {lower} or {lower + patch}, or another "
                "patch_size."
            )


def validate_config(config: StockDeiTConfig | StockViTConfig) -> None:
    """Check all fields that a model is built from.

    The configurations call this function when they are created. The models call it again when they are built, because
    fields may have been changed in between.

    Args:
        config: A configuration of this package or of stock transformers. Stock configurations lack `drop_path_rate` and
            `layer_scale_init_value`; the values 0 and None are then used.

    Raises:
        ValueError: A field is out of range. The message states the value, what is allowed, and how to fix it.
    """
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: it must be at least 1.")
    if config.hidden_size % config.num_attention_heads:
        heads = [n for n in range(1, config.hidden_size + 1) if config.hidden_size % n == 0]
        nearest = sorted(heads, key=lambda n: abs(n - config.num_attention_heads))[:2]
        raise ValueError(
            f"num_attention_heads={config.num_attention_heads} does not divide hidden_size={config.hidden_size}. "
            f"Use {nearest[0]} or {nearest[1]} heads, or a hidden_size that is a multiple of the heads."
        )
    _check_patches(config)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate"):
        rate = getattr(config, name, 0.0)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{name}={rate}: it must be in [0, 1). Use 0.0 to switch it off.")
    for name, default in (("layer_norm_eps", "1e-6"), ("initializer_range", "0.02")):
        if not 0.0 < getattr(config, name) < math.inf:
            raise ValueError(
                f"{name}={getattr(config, name)}: it must be finite and above 0. DeiT's value is {default}."
            )
    gamma = getattr(config, "layer_scale_init_value", None)
    if gamma is not None and not 0.0 < gamma < math.inf:
        raise ValueError(
            f"layer_scale_init_value={gamma}: it must be finite and above 0 (DeiT III: 1e-4), or None for no "
            "LayerScale."
        )
    for name in ("hidden_act", "pooler_act"):
        if getattr(config, name) not in ACT2FN:
            raise ValueError(
                f"{name}={getattr(config, name)!r}: this activation is unknown. The official activation is 'gelu'."
            )
    if config.pooler_output_size < 1:
        raise ValueError(f"pooler_output_size={config.pooler_output_size}: it must be at least 1.")
    if getattr(config, "problem_type", None) not in (None, *ProblemType):
        raise ValueError(f"problem_type={config.problem_type!r}: choose one of {', '.join(ProblemType)}, or None.")


class _StudentConfig:
    """Base of the two configurations: validation, comparison by content, and presets."""

    def __post_init__(self, **kwargs):
        # JSON has no tuples. A pair is read as a list, and would not equal the pair in the original configuration.
        for name in ("image_size", "patch_size"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, tuple(getattr(self, name)))
        num_labels = kwargs.get("num_labels")
        if num_labels is not None and (type(num_labels) is not int or num_labels < 0):
            raise ValueError(
                f"num_labels={num_labels!r}: it must be a whole number of at least 1, or 0 for a model without heads."
            )
        super().__post_init__(**kwargs)
        validate_config(self)

    def to_dict(self) -> dict[str, Any]:
        content = super().to_dict()
        if content.get("architectures"):
            # The classes of the backbones have their own names (HfDeiTModel). Files contain the stock names.
            content["architectures"] = [name.removeprefix("Hf") for name in content["architectures"]]
        return content

    def _content(self) -> dict[str, Any]:
        return {
            key: value
            for key, value in self.to_dict().items()
            if key not in ("transformers_version", "_name_or_path", "architectures", "dtype")
        }

    @classmethod
    def from_preset(cls, name: str, **overrides: Any):
        """Build a configuration of the size Ti, S or B of the paper (Table 1).

        Args:
            name: "tiny", "small" or "base".
            **overrides: Other fields, for example `image_size=64, patch_size=8, num_labels=10`.

        Raises:
            ValueError: The preset is unknown, or a field is out of range.
        """
        if name not in PRESETS:
            raise ValueError(
                f"The preset {name!r} is unknown. Choose one of {', '.join(PRESETS)} (Ti, S and B of the paper)."
            )
        return cls(**{**PRESETS[name], **overrides})


@strict
class DeiTConfig(_StudentConfig, StockDeiTConfig):
    """Configuration of the distilled student (class and distillation token, two heads).

    It has all fields of `transformers.DeiTConfig`, with the defaults of the official code, and the following fields.

    Args:
        drop_path_rate: Probability in [0, 1) that a residual branch of the last layer is dropped in training. The
            probability increases linearly over the layers, from 0 in the first layer.
        layer_scale_init_value: Initial value of gamma in LayerScale. None builds a model without LayerScale.

    Raises:
        ValueError: A field is out of range (see `validate_config`).
        huggingface_hub.errors.StrictDataclassFieldValidationError: A field has the wrong type.
    """

    layer_norm_eps: float = 1e-6
    drop_path_rate: float | int = 0.0
    layer_scale_init_value: float | int | None = None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._content() == other._content()


@strict
class ViTConfig(_StudentConfig, StockViTConfig):
    """Configuration of the plain student (class token, one head): the paper's DeiT without distillation.

    The Hub stores this model as `model_type: vit`. It has the same additional fields and errors as `DeiTConfig`, and
    otherwise the fields of `transformers.ViTConfig`.
    """

    layer_norm_eps: float = 1e-6
    drop_path_rate: float | int = 0.0
    layer_scale_init_value: float | int | None = None

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._content() == other._content()
