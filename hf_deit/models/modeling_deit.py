"""The networks of the two students, from top to bottom: embeddings → layers → backbone → heads → output.

Both students consist of the same blocks. The distilled student (`DeiTForImageClassificationWithTeacher`) has a class
token and a distillation token, with a linear head for each. The plain student (`ViTForImageClassification`) has a class
token and one head. The names of the classes and parameters and the `model_type` are those of stock transformers, so
that saved files load there without this package. Fields are validated in configuration_deit.py. Training losses with a
teacher are in losses.py.

Paper: Touvron et al., arXiv:2012.12877 (distillation token: section 4, initialisation and drop path: section 6);
LayerScale: arXiv:2103.17239, as DeiT III (arXiv:2204.07118) uses it.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..losses import supervised_loss
from ..sizes import as_pair
from .configuration_deit import DeiTConfig, ViTConfig, patch_grid, validate_config
from .state_dicts import fold_layer_scale, refuse_layer_scale, rename_hub_key, rename_hub_keys, require_layer_scale

StudentConfig = DeiTConfig | ViTConfig


class DeiTPatchEmbeddings(nn.Module):
    """Projection of the patches of images `(batch, num_channels, height, width)` to vectors of `hidden_size`."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        patch_size = as_pair(config.patch_size)
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"pixel_values has {pixel_values.shape[1]} channels (shape {tuple(pixel_values.shape)}), but the model "
                f"takes {self.num_channels}. Convert the images, or build the model with "
                f"num_channels={pixel_values.shape[1]}."
            )
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # (batch, patches, hidden_size)


class DeiTEmbeddings(nn.Module):
    """Patch embeddings with the class token, the distillation token (distilled student) and position embeddings."""

    def __init__(self, config: StudentConfig, distilled: bool):
        super().__init__()
        self.image_size = as_pair(config.image_size)
        self.patch_size = as_pair(config.patch_size)
        self.grid = patch_grid(config)
        self.num_tokens = 2 if distilled else 1
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        if distilled:
            self.distillation_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.patch_embeddings = DeiTPatchEmbeddings(config)
        num_positions = self.grid[0] * self.grid[1] + self.num_tokens
        self.position_embeddings = nn.Parameter(torch.empty(1, num_positions, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def interpolate_pos_encoding(self, height: int, width: int) -> torch.Tensor:
        """Interpolate the position embeddings of the patches (bicubic) to images of `height` × `width` pixels."""
        rows, columns = height // self.patch_size[0], width // self.patch_size[1]
        if (rows, columns) == self.grid:
            return self.position_embeddings
        tokens, patches = self.position_embeddings.tensor_split([self.num_tokens], dim=1)
        patches = patches.reshape(1, *self.grid, -1).permute(0, 3, 1, 2)  # (1, hidden_size, rows, columns)
        patches = nn.functional.interpolate(patches, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([tokens, patches.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}, but it must be (batch, channels, height, "
                "width). For a single image, use pixel_values[None]."
            )
        batch_size, _, height, width = pixel_values.shape
        if not interpolate_pos_encoding and (height, width) != self.image_size:
            raise ValueError(
                f"The images have {height}×{width} pixels, but the model was built for "
                f"{self.image_size[0]}×{self.image_size[1]}. Resize the images, or pass interpolate_pos_encoding=True."
            )
        if height < self.patch_size[0] or width < self.patch_size[1]:
            raise ValueError(
                f"The images have {height}×{width} pixels, but a patch has {self.patch_size[0]}×{self.patch_size[1]}. "
                "The images must be at least as large as a patch. Resize them."
            )
        patches = self.patch_embeddings(pixel_values)
        tokens = [self.cls_token.expand(batch_size, -1, -1)]
        if self.num_tokens == 2:
            tokens.append(self.distillation_token.expand(batch_size, -1, -1))
        embeddings = torch.cat([*tokens, patches], dim=1)
        positions = (
            self.interpolate_pos_encoding(height, width) if interpolate_pos_encoding else self.position_embeddings
        )
        return self.dropout(embeddings + positions)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute softmax attention on `(batch, heads, tokens, head_dim)`, and return the output and the attention weights.

    Other attention implementations do not return the weights.
    """
    attn_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    return torch.matmul(attn_weights, value).transpose(1, 2).contiguous(), attn_weights


class DeiTAttention(nn.Module):
    """Multi-head self-attention with the attention interface of transformers (eager, sdpa, flash, flex)."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from the first `num_queries` tokens, by default from all, to all tokens of `(batch, tokens, hidden_size)`."""
        queries = hidden_states[:, :num_queries]
        query, key, value = (
            # (batch, heads, tokens, head_dim)
            projection(states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in (
                (self.q_proj, queries),
                (self.k_proj, hidden_states),
                (self.v_proj, hidden_states),
            )
        )
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attn_output.flatten(2)), attn_weights


class DeiTMLP(nn.Module):
    """Two linear layers with an activation between them (exact GELU by default)."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class DeiTDropPath(nn.Module):
    """Drop path (stochastic depth, arXiv:1603.09382): in training, each image loses the branch with `drop_prob`."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return branch
        keep_prob = 1.0 - self.drop_prob
        mask = branch.new_empty((branch.shape[0], 1, 1)).bernoulli_(keep_prob)
        return branch * (mask / keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


class DeiTLayerScale(nn.Module):
    """Product of a residual branch and a learned gamma per channel."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), float(config.layer_scale_init_value)))

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        return branch * self.lambda1


class DeiTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block, with the probability `drop_prob` that one of its branches is dropped."""

    def __init__(self, config: StudentConfig, drop_prob: float):
        super().__init__()
        scaled = getattr(config, "layer_scale_init_value", None) is not None
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = DeiTAttention(config)
        self.layer_scale1 = DeiTLayerScale(config) if scaled else nn.Identity()
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DeiTMLP(config)
        self.layer_scale2 = DeiTLayerScale(config) if scaled else nn.Identity()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DeiTDropPath(drop_prob)

    def forward(self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs: Any) -> torch.Tensor:
        """Return the new states of the first `num_queries` tokens of `(batch, tokens, hidden_size)`, by default of all."""
        if num_queries is not None:
            kwargs["num_queries"] = num_queries
        branch, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states[:, :num_queries] + self.drop_path(self.layer_scale1(self.dropout(branch)))
        branch = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.layer_scale2(self.dropout(branch)))


class DeiTPooler(nn.Module):
    """Dense layer on the class token, for the backbone without heads. The students do not use it."""

    def __init__(self, config: StudentConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.pooler_output_size)
        self.activation = ACT2FN[config.pooler_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(hidden_states[:, 0]))


class StudentPreTrainedModel(PreTrainedModel):
    """Base class of both students: initialisation, and files in the format of stock transformers."""

    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["DeiTEmbeddings", "DeiTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DeiTLayer, "attentions": DeiTAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a module as the official code does.

        Weights have a truncated normal distribution (std `initializer_range`, 0.02 by default) and biases are 0.
        LayerNorm has the weight 1 and the bias 0.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # The official code keeps the default initialisation of PyTorch for the patch projection. It is repeated
            # here because a model that is built on the meta device has no initial values.
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, DeiTEmbeddings):
            init.trunc_normal_(module.cls_token, std=std)
            init.trunc_normal_(module.position_embeddings, std=std)
            if module.num_tokens == 2:
                init.trunc_normal_(module.distillation_token, std=std)
        elif isinstance(module, DeiTLayerScale):
            init.constant_(module.lambda1, self.config.layer_scale_init_value)

    # Tells the trainer that `load_state_dict` also accepts the parameter names in files, so that resuming restores all
    # weights.
    renames_hub_keys = True

    @property
    def has_layer_scale(self) -> bool:
        # A stock configuration lacks the field. A model that is built by an auto class may have a stock configuration.
        return getattr(self.config, "layer_scale_init_value", None) is not None

    def folded(self, state_dict: dict[str, torch.Tensor] | None = None):
        """Return a copy without LayerScale that computes the same logits.

        Each gamma is multiplied into the projection before it.

        Args:
            state_dict: Weights to fold. Default: the weights of the model.
        """
        config = type(self.config).from_dict({**self.config.to_dict(), "layer_scale_init_value": None})
        copy = self._like(config).to(self.dtype).train(self.training)
        weights = self.state_dict() if state_dict is None else state_dict
        copy.load_state_dict(fold_layer_scale({rename_hub_key(key): weight for key, weight in weights.items()}))
        return copy

    def _like(self, config: StudentConfig):
        return type(self)(config)

    def _label_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.config.num_labels == 0:
            raise ValueError(
                "The model has no heads (num_labels=0), so it has no loss on labels. Build it with num_labels above 0."
            )
        return supervised_loss(logits, labels, self.config.problem_type).mean()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any):
        """Load a model like `PreTrainedModel.from_pretrained`, from files of this package or of transformers 4 and 5.

        Raises:
            ValueError: The configuration has LayerScale but the file lacks its gamma, or the file contains gamma but
                the configuration has no LayerScale.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        require_layer_scale(key for key in sorted(info["missing_keys"]) if "layer_scale" in key)
        refuse_layer_scale(key for key in sorted(info["unexpected_keys"]) if "layer_scale" in key)
        return (model, info) if output_loading_info else model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        fold_layer_scale: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save the model like `PreTrainedModel.save_pretrained`, in a format that stock transformers loads.

        Args:
            fold_layer_scale: True multiplies the gamma of LayerScale into the projection before it, so that stock
                transformers, which has no LayerScale, computes the same logits. The file then contains no gamma, and
                its configuration has `layer_scale_init_value=None`. False keeps gamma, so that training can continue.
            state_dict: Weights to save. Default: the weights of the model.
            push_to_hub: Also upload the folder.

        Raises:
            ValueError: `push_to_hub` is True for a model with LayerScale, and `fold_layer_scale` is False.
        """
        if self.has_layer_scale and fold_layer_scale:
            model = self.folded(state_dict)
            model.save_pretrained(save_directory, *args, push_to_hub=push_to_hub, **kwargs)
            return
        if self.has_layer_scale and push_to_hub:
            raise ValueError(_REFUSE_UNFOLDED)
        super().save_pretrained(save_directory, *args, state_dict=state_dict, push_to_hub=push_to_hub, **kwargs)

    def push_to_hub(self, *args: Any, fold_layer_scale: bool = True, **kwargs: Any) -> str:
        """Upload the model like `PreTrainedModel.push_to_hub`, with LayerScale folded (see `save_pretrained`).

        Raises:
            ValueError: The model has LayerScale, and `fold_layer_scale` is False.
        """
        if not self.has_layer_scale:
            return super().push_to_hub(*args, **kwargs)
        if not fold_layer_scale:
            raise ValueError(_REFUSE_UNFOLDED)
        return self.folded().push_to_hub(*args, **kwargs)


_REFUSE_UNFOLDED = (
    "This model has LayerScale, which stock transformers does not support: it would load the file and compute "
    "different logits. Publish the folded model (fold_layer_scale=True), and keep an unfolded copy on disk to continue "
    "training."
)


class DeiTPreTrainedModel(StudentPreTrainedModel):
    """Base class of the distilled student (`model_type: deit` in files)."""

    config: DeiTConfig
    base_model_prefix = "deit"


class ViTPreTrainedModel(StudentPreTrainedModel):
    """Base class of the plain student (`model_type: vit` in files)."""

    config: ViTConfig
    base_model_prefix = "vit"


class _Backbone(nn.Module):
    """Embeddings, layers and the final norm of both students. Only the distillation token differs."""

    distilled: bool
    # True: compute the patches of the last layer even if nothing reads them. The logits then round in one way only.
    always_reads_patches = False

    def __init__(self, config: StudentConfig, add_pooling_layer: bool = False):
        super().__init__(config)
        validate_config(config)  # again, because fields may have been changed after the configuration was created
        rates = torch.linspace(
            0, getattr(config, "drop_path_rate", 0.0), config.num_hidden_layers, device="cpu"
        ).tolist()
        self.embeddings = DeiTEmbeddings(config, distilled=self.distilled)
        self.layers = nn.ModuleList([DeiTLayer(config, drop_prob=rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = DeiTPooler(config) if add_pooling_layer else None
        self.register_load_state_dict_pre_hook(rename_hub_keys)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        only_special_tokens: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Compute the hidden states of images.

        Args:
            pixel_values: `(batch, num_channels, height, width)`, normalised as by the image processor.
            interpolate_pos_encoding: Accept images of another size than `config.image_size`, and interpolate the
                position embeddings.
            only_special_tokens: Compute the last layer for the class token and the distillation token only. Their states are
                the same, and the states of the patches are left out. Heads need no more.

        Returns:
            `last_hidden_state` `(batch, tokens, hidden_size)` after the final norm: the class token, the distillation
            token if the model has one, and the patches row by row. `pooler_output` `(batch, pooler_output_size)` if the
            model was built with a pooler. On request, `hidden_states` and (with eager attention) `attentions`.
        """
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values, interpolate_pos_encoding=bool(interpolate_pos_encoding))
        *layers, last_layer = self.layers
        for layer in layers:
            hidden_states = layer(hidden_states, **kwargs)
        if only_special_tokens:
            kwargs["num_queries"] = self.embeddings.num_tokens
        hidden_states = last_layer(hidden_states, **kwargs)
        sequence_output = self.layernorm(hidden_states)
        pooled = self.pooler(sequence_output) if self.pooler is not None else None
        return BaseModelOutputWithPooling(last_hidden_state=sequence_output, pooler_output=pooled)

    def _like(self, config: StudentConfig):
        return type(self)(config, add_pooling_layer=self.pooler is not None)

    def patches_are_read(self, outputs: Mapping[str, Any]) -> bool:
        """Return whether anything but the heads needs the patches of the last layer.

        That is so if hidden states or attentions are requested, if a hook reads a module of the last layer or one after it, or
        if dropout draws random numbers for each patch: without the patches, the other numbers would change.

        Args:
            outputs: Further arguments of the model, such as `output_hidden_states`.
        """
        config = self.config
        if self.always_reads_patches or any(
            outputs.get(name, getattr(config, name, False)) for name in ("output_hidden_states", "output_attentions")
        ):
            return True
        if config._attn_implementation not in ("eager", "sdpa"):  # others were not compared
            return True
        if self.training and (config.hidden_dropout_prob > 0 or config.attention_probs_dropout_prob > 0):
            return True
        last_layer = self.layers[-1]
        if type(last_layer) is not DeiTLayer or type(last_layer.attention) is not DeiTAttention:
            return True
        modules = (self, self.layernorm, *last_layer.modules())
        hooks = (getattr(module, name) for module in modules for name in _HOOKS)
        return any(getattr(hook, "__name__", None) != _RECORDING_HOOK for part in hooks for hook in part.values())


# Name of the hooks that transformers keeps on all layers once hidden states or attentions were requested. They are idle in
# a call that requests none.
_RECORDING_HOOK = "output_capturing_hook"
# Where a module keeps its hooks. Hooks of all modules, such as those of profilers and of the operation counter, see what is computed.
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


# The backbones need class names that differ from those of stock transformers. transformers looks up its table of
# renamed parameters by the class name alone, and uses the table for classes outside the library only if they are
# registered. With the stock names, the registration would also change the stock DeiT and ViT in the same process.
class HfDeiTModel(_Backbone, DeiTPreTrainedModel):
    """The distilled student without its heads."""

    distilled = True


class HfViTModel(_Backbone, ViTPreTrainedModel):
    """The plain student without its head."""

    distilled = False


for _ours, _stock in (("HfDeiTModel", "DeiTModel"), ("HfViTModel", "ViTModel")):
    register_checkpoint_conversion_mapping(_ours, get_checkpoint_conversion_mapping(_stock), overwrite=True)


@dataclass
class DeiTForImageClassificationWithTeacherOutput(ModelOutput):
    """Output of the distilled student.

    Args:
        loss: Scalar, the mean of the losses of both heads on the labels. None without labels.
        logits: `(batch, num_labels)`, the mean of the logits of both heads, used for predictions.
        cls_logits: `(batch, num_labels)` of the class head, which learns from the labels.
        distillation_logits: `(batch, num_labels)` of the distillation head, which learns from the teacher.
        hidden_states: On request, `(batch, tokens, hidden_size)` for the embeddings and for each layer.
        attentions: On request and with eager attention, `(batch, heads, tokens, tokens)` for each layer.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cls_logits: torch.Tensor | None = None
    distillation_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def _head(config: StudentConfig) -> nn.Module:
    return nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()


class DeiTForImageClassificationWithTeacher(DeiTPreTrainedModel):
    """Distilled student with two heads. Stock transformers loads its files with its class of the same name."""

    def __init__(self, config: DeiTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.deit = HfDeiTModel(config)
        self.cls_classifier = _head(config)
        self.distillation_classifier = _head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> DeiTForImageClassificationWithTeacherOutput:
        """Classify images with both heads.

        Args:
            pixel_values: `(batch, num_channels, height, width)`, normalised as by the image processor.
            labels: Class indices `(batch,)`, or soft labels `(batch, num_labels)`. With another `config.problem_type`:
                0 and 1 `(batch, num_labels)` for multi-label classification; numbers `(batch, num_labels)` or, with one
                output, `(batch,)` for regression. Both heads learn from the labels. To train with a teacher, use
                `DistillationTrainer`.
            interpolate_pos_encoding: Accept images of another size than `config.image_size`.

        Raises:
            ValueError: The shape of the images or labels is invalid.
        """
        outputs = self.deit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            only_special_tokens=not self.deit.patches_are_read(kwargs),
            **kwargs,
        )
        cls_logits = self.cls_classifier(outputs.last_hidden_state[:, 0])
        distillation_logits = self.distillation_classifier(outputs.last_hidden_state[:, 1])
        loss = None
        if labels is not None:
            loss = (self._label_loss(cls_logits, labels) + self._label_loss(distillation_logits, labels)) / 2
        return DeiTForImageClassificationWithTeacherOutput(
            loss=loss,
            logits=(cls_logits + distillation_logits) / 2,
            cls_logits=cls_logits,
            distillation_logits=distillation_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ViTForImageClassification(ViTPreTrainedModel):
    """Plain student with one head. Its files have `model_type: vit`, like the plain DeiT of the paper on the Hub."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = HfViTModel(config)
        self.classifier = _head(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Classify images. For arguments and errors, see `DeiTForImageClassificationWithTeacher.forward`."""
        outputs = self.vit(
            pixel_values,
            interpolate_pos_encoding=interpolate_pos_encoding,
            only_special_tokens=not self.vit.patches_are_read(kwargs),
            **kwargs,
        )
        logits = self.classifier(outputs.last_hidden_state[:, 0])
        loss = None if labels is None else self._label_loss(logits, labels)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def register_auto_classes() -> None:
    """Make `AutoModelForImageClassification` return the trainable classes of this package, in this process.

    Importing the package does not do this, because it changes the classes that other code in the process receives. The
    saved files are the same with and without registration, and `AutoModelForImageClassification.from_pretrained` also
    loads them for inference without it. A checkpoint of the stock class `DeiTForImageClassification`, which has one
    head, is still loaded with that class.
    """
    from transformers import AutoModelForImageClassification
    from transformers import DeiTConfig as StockDeiTConfig
    from transformers import DeiTForImageClassification as StockOneHead
    from transformers import ViTConfig as StockViTConfig

    # AutoModelForImageClassification.register accepts one class per configuration, and before transformers 5.18 it
    # silently ignores configurations of the library. Its table accepts several classes per configuration:
    # `architectures` in the configuration selects one of them, and the first one is the default.
    registered = AutoModelForImageClassification._model_mapping._extra_content
    registered[StockDeiTConfig] = (DeiTForImageClassificationWithTeacher, StockOneHead)
    registered[StockViTConfig] = ViTForImageClassification
    registered[DeiTConfig] = DeiTForImageClassificationWithTeacher
    registered[ViTConfig] = ViTForImageClassification


# Public name of the backbone. The name of the class itself must differ from the stock name (see above).
DeiTModel = HfDeiTModel
