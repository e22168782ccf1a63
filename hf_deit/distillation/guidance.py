"""Spatial guidance: the student's patches learn from those of the teacher, besides or instead of the logits.

This module reads feature maps of chosen layers in the forward pass that computes the logits (`LayerReader`), and
defines what is compared and what is recorded of the teacher for each view (`Guidance`). A record is rounded to float16
also if the teacher is live, so that training with a live teacher and with a cache is the same. The formulas are in
`losses.py`. The projection of the student's features, which is trained, belongs to the trainer.

Papers: locality guidance, Li et al., arXiv:2207.10026; hints for thin networks, Romero et al., arXiv:1412.6550.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError, listed
from ..losses import GUIDANCE_LOSSES, GUIDED_BY_SIMILARITY, patch_similarities
from ..sizes import as_pair
from .cache import ExtraArray

# Type of the records. A live teacher's features are rounded to it too.
RECORD_DTYPE = torch.float16
# By default, the last layer whose grid has at least this share of the student's patches in height and in width.
_ABOUT = 0.75
# Largest number of tokens before the patches, if the patch size is known and if it is not. Five of them are a class token
# and four registers.
_MOST_PREFIX_TOKENS, _USUAL_PREFIX_TOKENS = 16, 5

Layer = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class MapShape:
    """Shape of the feature map of a layer for one image.

    Args:
        channels: Number of channels.
        grid: Number of patches `(height, width)`.
    """

    channels: int
    grid: tuple[int, int]

    @classmethod
    def of(cls, maps: Tensor) -> "MapShape":
        """Return the shape of maps `(batch, channels, height, width)`."""
        return cls(maps.shape[1], tuple(maps.shape[2:]))

    @property
    def patches(self) -> int:
        """Number of patches."""
        return math.prod(self.grid)

    def __str__(self) -> str:
        return f"{self.grid[0]}×{self.grid[1]} patches of {self.channels} channels"


# ---- reading layers ----


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = [output.get("last_hidden_state"), *output.values()]
    if isinstance(output, tuple | list):
        return next((value for value in output if isinstance(value, Tensor)), None)
    return None


def _patch_size(model: Any) -> tuple[int, int] | None:
    """Return the patch size of a transformers or timm network, `(height, width)` in pixels; None if it has none."""
    stated = getattr(getattr(model, "config", None), "patch_size", None)
    if stated is None:
        stated = getattr(getattr(model, "patch_embed", None), "patch_size", None)
    try:
        return None if stated is None else as_pair(stated)
    except (TypeError, ValueError):
        return None


def _grid_of_tokens(model: Any, tokens: int, size: tuple[int, int]) -> tuple[int, int] | None:
    """Return the grid `(height, width)` of the patches in a sequence of tokens; the tokens before them are left out.

    The patch size of the network decides if the sequence has so many patches. Otherwise, the grid has the same
    proportions as the image.
    """
    patch = _patch_size(model)
    if patch is not None:
        grid = size[0] // patch[0], size[1] // patch[1]
        if 0 < math.prod(grid) <= tokens <= math.prod(grid) + _MOST_PREFIX_TOKENS:
            return grid
    for prefix in range(_USUAL_PREFIX_TOKENS + 1):
        height = math.isqrt(max(0, tokens - prefix) * size[0] // size[1])
        if height and (tokens - prefix) % height == 0:
            grid = height, (tokens - prefix) // height
            if grid[0] * size[1] == grid[1] * size[0]:
                return grid
    return None


def as_map(value: Any, model: Any, size: tuple[int, int]) -> Tensor | None:
    """Return the output of a layer as a feature map; None if it has no grid of patches.

    Args:
        value: A map `(batch, channels, height, width)`; tokens `(batch, tokens, channels)`, whose patches form a grid
            row by row after the tokens that stand for no patch; or a container of it.
        model: The network of the layer.
        size: `(height, width)` of the network's input, in pixels.

    Returns:
        `(batch, channels, height, width)`.
    """
    value = _first_tensor(value)
    if value is None or not value.is_floating_point():
        return None
    if value.ndim == 4:
        return value.permute(0, 3, 1, 2) if getattr(model, "output_fmt", None) == "NHWC" else value
    grid = _grid_of_tokens(model, value.shape[1], size) if value.ndim == 3 else None
    if grid is None:
        return None
    return value[:, -math.prod(grid) :].transpose(1, 2).unflatten(2, grid)


class LayerReader:
    """Reader of the feature maps of chosen layers, in the forward pass that computes the logits.

    Args:
        model: The network.
        layers: Layers to read, each a module name in dotted form; or an index into the `hidden_states` of a
            transformers model or the `feature_info` of a timm network, as text or number (negative ones count from the
            end); or a function of the network's input that returns a map.
        owner: The network in a message, such as "The teacher (ResNet)".
        field: Name of the field that states the layers.

    Raises:
        UserError: If there is no module of this name, or an index is given for a network without indexed layers.
    """

    def __init__(self, model: Any, layers: Sequence[Layer | int], *, owner: str, field: str):
        self.model, self.owner, self.field = model, owner, field
        self.layers = [layer if callable(layer) else str(layer).strip() for layer in layers]
        modules = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
        self._modules: dict[str, nn.Module] = {}
        self._indices: dict[str, int] = {}
        self._found: dict[str, Any] = {}
        info = _timm_modules(model)
        self._counted: int | None = None  # length of the `feature_info` if an index into it is given
        for layer in self.layers:
            if callable(layer):
                continue
            if layer and layer in modules:
                self._modules[layer] = modules[layer]
            elif not _is_index(layer):
                raise UserError(f"{field}: {owner} has no module {layer!r}. {_modules_of(modules)}")
            elif info:
                if not -len(info) <= int(layer) < len(info):
                    raise UserError(
                        f"{field}={layer}: {owner} has {len(info)} layers, {-len(info)} to {len(info) - 1}."
                    )
                self._modules[layer], self._counted = modules[info[int(layer)]], len(info)
            elif not hasattr(model, "config"):
                raise UserError(
                    f"{field}={layer}: {owner} has no hidden states that an index can count. Give the name of a module. "
                    f"{_modules_of(modules)}"
                )
            else:
                self._indices[layer] = int(layer)

    def indexed(self, outputs: Any) -> int | None:
        """Return the number of layers that an index can count; None if no layer is given by an index."""
        return len(hidden_states_of(outputs)) if self._indices else self._counted

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments that the forward pass needs in addition to the pixels."""
        return {"output_hidden_states": True} if self._indices else {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record the outputs of the named modules during a forward pass in this context."""
        self._found = {}

        def hook_of(layer: str) -> Callable:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                self._found.setdefault(layer, output)  # of a module that is called several times, the first output

            return hook

        handles = [module.register_forward_hook(hook_of(layer)) for layer, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def maps(self, outputs: Any, pixels: Tensor) -> list[Tensor]:
        """Return the maps `(batch, channels, height, width)` of the layers, after a recorded forward pass.

        Args:
            outputs: What the network returned.
            pixels: Its input `(batch, channels, height, width)`.

        Raises:
            UserError: If a layer was not run, or its output is not a map with at least two patches.
        """
        found, self._found = self._found, {}
        return [self._map(layer, outputs, pixels, found) for layer in self.layers]

    def _map(self, layer: Layer, outputs: Any, pixels: Tensor, found: Mapping[str, Any]) -> Tensor:
        if callable(layer):
            value, name = layer(pixels), name_of(layer)
        elif layer in self._modules:
            value, name = found.get(layer), layer
        else:
            value, name = self._hidden_state(layer, outputs), layer
        maps = as_map(value, self.model, tuple(pixels.shape[-2:]))
        if maps is None or maps.shape[-2] * maps.shape[-1] < 2:
            shape = "nothing" if _first_tensor(value) is None else f"the shape {tuple(_first_tensor(value).shape)}"
            raise UserError(
                f"{self.field}={name}: this layer of {self.owner} gives {shape} for a view of {pixels.shape[-2]}×"
                f"{pixels.shape[-1]} pixels. Guidance needs a grid of at least two patches: tokens (batch, patches, "
                "channels) or a map (batch, channels, height, width). Choose another layer."
            )
        return maps

    def _hidden_state(self, layer: str, outputs: Any) -> Any:
        states = hidden_states_of(outputs)
        if not states:
            raise UserError(
                f"{self.field}={layer}: {self.owner} returns no hidden_states. Give the name of a module. "
                f"{_modules_of(dict(self.model.named_modules()))}"
            )
        index = self._indices[layer]
        if not -len(states) <= index < len(states):
            raise UserError(
                f"{self.field}={layer}: {self.owner} has {len(states)} hidden states, {-len(states)} to {len(states) - 1}."
            )
        return states[index]


def _is_index(layer: str) -> bool:
    return layer.removeprefix("-").isdecimal()


def counted_from_end(layer: str, count: int | None) -> str:
    """Return an index that counts from the start as one that counts from the end of `count` layers."""
    return str(int(layer) - count) if count is not None and layer.isdecimal() else layer


def name_of(layer: Layer) -> str:
    """Return the name of a layer for messages and descriptions. A function is named by its qualified name."""
    return layer if isinstance(layer, str) else getattr(layer, "__qualname__", type(layer).__qualname__)


def hidden_states_of(outputs: Any) -> Sequence[Tensor]:
    """Return the hidden states in the outputs of a transformers model, as maps where it has them; empty if there are none."""
    get = outputs.get if isinstance(outputs, Mapping) else lambda name: getattr(outputs, name, None)
    return get("reshaped_hidden_states") or get("hidden_states") or ()


def _timm_modules(model: Any) -> list[str]:
    """Return the names of the layers in the `feature_info` of a timm network; empty for another network."""
    info = getattr(model, "feature_info", None)
    if info is None or hasattr(model, "config"):
        return []
    entries = info if isinstance(info, list) else getattr(info, "info", [])
    names = [entry.get("module") for entry in entries if isinstance(entry, Mapping)]
    modules = dict(model.named_modules())
    return names if all(name in modules for name in names) else []


def _modules_of(modules: Mapping[str, nn.Module]) -> str:
    return f"It has {listed([name for name in modules if name])}." if len(modules) > 1 else "It has no modules."


def default_layer(model: Any, call: Callable[..., Any], pixels: Tensor, like: tuple[int, int] | None) -> str | None:
    """Return the layer that guidance uses by default; None if the network has none with a grid of patches.

    It is the last layer whose grid is about as fine as that of the student (or finer), and the last one if no layer is
    or `like` is None. The layers are the hidden states of a transformers model, the `feature_info` of a timm network,
    or else the modules whose output is a map.

    Args:
        model: The network.
        call: Function that runs the network on pixels, with further arguments of its forward pass.
        pixels: A view, as the network takes it.
        like: Grid of the student's patches.
    """
    size = tuple(pixels.shape[-2:])
    found: dict[str, Any] = {}
    if hasattr(model, "config"):
        with contextlib.suppress(TypeError):
            states = hidden_states_of(call(pixels, output_hidden_states=True))
            found = {str(index - len(states)): state for index, state in enumerate(states)}
    if not found and isinstance(model, nn.Module):
        named = _timm_modules(model)
        found = _outputs_of_modules(model, call, pixels)
        if named:
            found = {str(index - len(named)): found.get(name) for index, name in enumerate(named)}
    maps = {layer: as_map(value, model, size) for layer, value in found.items()}
    shapes = {layer: MapShape.of(value) for layer, value in maps.items() if value is not None}
    shapes = {layer: shape for layer, shape in shapes.items() if shape.patches > 1}
    if not shapes:
        return None
    if like is None:
        return list(shapes)[-1]
    fine = [
        layer
        for layer, shape in shapes.items()
        if all(own >= _ABOUT * wanted for own, wanted in zip(shape.grid, like, strict=True))
    ]
    return (fine or list(shapes))[-1]


def _outputs_of_modules(model: nn.Module, call: Callable[..., Any], pixels: Tensor) -> dict[str, Any]:
    """Return the outputs of the outermost modules that give a map, by name, in the order in which they are computed.

    The inside of a block is left out, but not that of an `nn.Sequential`.
    """
    found: dict[str, Any] = {}
    size = tuple(pixels.shape[-2:])

    def hook_of(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if as_map(output, model, size) is not None:
                found.pop(name, None)
                found[name] = output

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]
    try:
        call(pixels)
    finally:
        for handle in handles:
            handle.remove()
    blocks = [name for name in found if type(model.get_submodule(name)) not in (nn.Sequential, nn.ModuleList)]
    return {name: output for name, output in found.items() if not any(name.startswith(f"{block}.") for block in blocks)}


# ---- what is compared and recorded ----


def resize_grid(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize feature maps to another grid: bilinear to a finer grid, means of areas to a coarser one.

    Args:
        maps: `(batch, channels, height, width)` in float32.
        grid: `(height, width)`. Each side is treated by itself.

    Returns:
        `(batch, channels, *grid)`. The maps themselves if they have this grid.
    """
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    coarser = tuple(min(own, wanted) for own, wanted in zip(maps.shape[-2:], grid, strict=True))
    if tuple(maps.shape[-2:]) != coarser:
        maps = F.adaptive_avg_pool2d(maps, coarser)
    if coarser != tuple(grid):
        maps = F.interpolate(maps, size=tuple(grid), mode="bilinear", align_corners=False)
    return maps


def as_patches(maps: Tensor) -> Tensor:
    """Return feature maps `(batch, channels, height, width)` as patches `(batch, height × width, channels)`."""
    return maps.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class TeacherLayers:
    """The layers of the teacher, and the shapes of their maps for the views.

    Args:
        layers: Layers of the teacher. An index counts from the end.
        shapes: Shape of the map of each layer.
        indexed: Number of layers that an index can count; None if no layer is given by an index.
    """

    layers: tuple[Layer, ...]
    shapes: tuple[MapShape, ...]
    indexed: int | None = None

    @classmethod
    def from_description(cls, described: Mapping[str, Any]) -> "TeacherLayers":
        """Return the layers of a description that `Guidance.describe` made. A function is known by its name only."""
        shapes = (
            MapShape(channels, tuple(grid))
            for channels, grid in zip(described["channels"], described["teacher_grids"], strict=True)
        )
        return cls(tuple(described["layers"]), tuple(shapes), described.get("indexed"))

    def names(self, layers: Sequence[Layer]) -> list[str]:
        """Return the names of layers as `layers` has them: an index counts from the end."""
        return [counted_from_end(name_of(layer), self.indexed) for layer in layers]


@dataclass(frozen=True)
class Guidance:
    """Guidance of a student by a teacher: which layers are compared, how, and what is recorded of the teacher.

    Args:
        kind: "features" or "similarity", see `losses.GUIDANCE_LOSSES`.
        student: Shape of the map of each layer of the student.
        teacher: Layers of the teacher, one for each layer of the student.
    """

    kind: str
    student: tuple[MapShape, ...]
    teacher: TeacherLayers

    @property
    def records_similarities(self) -> tuple[bool, ...]:
        """Whether the record of each layer is the matrix of similarities, which is smaller than the features."""
        return tuple(
            self.kind in GUIDED_BY_SIMILARITY and ours.grid == grid and ours.patches <= theirs.channels
            for ours, theirs, grid in zip(self.student, self.teacher.shapes, self.record_grids, strict=True)
        )

    @property
    def record_grids(self) -> tuple[tuple[int, int], ...]:
        """Grid of the record of each layer: that of the teacher, or that of the student where it is coarser."""
        return tuple(
            tuple(min(own, wanted) for own, wanted in zip(theirs.grid, ours.grid, strict=True))
            for ours, theirs in zip(self.student, self.teacher.shapes, strict=True)
        )

    @property
    def arrays(self) -> tuple[ExtraArray, ...]:
        """The arrays of a teacher cache that hold the records."""
        dtype = str(RECORD_DTYPE).removeprefix("torch.")
        return tuple(
            ExtraArray(f"similarity_{index}", (math.prod(grid),) * 2, dtype)
            if as_similarities
            else ExtraArray(f"features_{index}", (*grid, theirs.channels), dtype)
            for index, (grid, theirs, as_similarities) in enumerate(
                zip(self.record_grids, self.teacher.shapes, self.records_similarities, strict=True)
            )
        )

    @property
    def projection_shapes(self) -> tuple[tuple[int, int], ...]:
        """Input and output channels of the projection of each layer; empty for a kind without projections."""
        if self.kind in GUIDED_BY_SIMILARITY:
            return ()
        return tuple(
            (ours.channels, theirs.channels) for ours, theirs in zip(self.student, self.teacher.shapes, strict=True)
        )

    def describe(self) -> dict[str, Any]:
        """Return what the records depend on, for the manifest of a cache and for the description of a run."""
        indexed = {} if self.teacher.indexed is None else {"indexed": self.teacher.indexed}
        return {
            "layers": [name_of(layer) for layer in self.teacher.layers],
            **indexed,
            "channels": [shape.channels for shape in self.teacher.shapes],
            "teacher_grids": [list(shape.grid) for shape in self.teacher.shapes],
            "grids": [list(grid) for grid in self.record_grids],
            "records": ["similarity" if flag else "features" for flag in self.records_similarities],
        }

    def records(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the records of the teacher's maps, by the name of the array.

        Args:
            maps: Map `(batch, channels, height, width)` of each layer of the teacher, in float32.
        """
        records = {}
        for array, grid, values in zip(self.arrays, self.record_grids, maps, strict=True):
            values = resize_grid(values, grid)
            is_matrix = array.name.startswith("similarity")
            values = patch_similarities(as_patches(values)) if is_matrix else values.permute(0, 2, 3, 1)
            records[array.name] = values.to(RECORD_DTYPE).contiguous()
        return records

    def loss(
        self,
        student_maps: Sequence[Tensor],
        teacher_outputs: Mapping[str, Tensor],
        projections: Sequence[Callable[[Tensor], Tensor]] = (),
    ) -> Tensor:
        """Compute the guidance loss of each image, as a mean over the pairs of layers and not weighted.

        Args:
            student_maps: Map `(batch, channels, height, width)` of each layer of the student.
            teacher_outputs: The records under the names of their arrays with the prefix `teacher_`.
            projections: Function for each layer that projects `(batch, patches, channels)` to the channels of the
                teacher; for kinds with projections.

        Returns:
            `(batch,)` in float32.
        """
        losses = []
        for index, (array, maps) in enumerate(zip(self.arrays, student_maps, strict=True)):
            record, patches = teacher_outputs[f"teacher_{array.name}"].float(), as_patches(maps)
            if not array.name.startswith("similarity"):
                record = as_patches(resize_grid(record.permute(0, 3, 1, 2), self.student[index].grid))
            if self.kind in GUIDED_BY_SIMILARITY:
                patches = patch_similarities(patches)
                record = record if array.name.startswith("similarity") else patch_similarities(record)
            else:
                patches = projections[index](patches)
            losses.append(GUIDANCE_LOSSES[self.kind](patches, record))
        return torch.stack(losses).mean(dim=0)
