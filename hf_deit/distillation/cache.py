"""The file format of a teacher cache: the record format, and the classes and functions that check and read the files.

A cache is a folder:

- `manifest.json` describes the teacher, the views, the validation images and the record format.
- `epoch-00000.npy` holds one record for each position (`data/sampling.py`) of an epoch of views. A record is found by
  (epoch of views, position). This key does not depend on the batch size or on the number of workers and processes, so
  one cache serves all of these settings.
- `epoch-00000.features_0.npy` holds an extra array of the same records, here "features_0", if the record format has one.
  The arrays of guidance (guidance.py) are such arrays; the manifest then states under "guidance" what they hold.
- `epoch-00000.json`, the sidecar, holds the size and the SHA-256 of these files. It is written last.
- `validation.npy` and `validation.json` hold the teacher's outputs for the validation images, by index. They have no extra
  arrays.

The arrays are NumPy files and are memory-mapped. `cache_writer.py` writes a cache, `cache_builder.py` computes its
records with the teacher, and `cached_teacher.py` uses the cache in a training run. Storing the outputs for views that
can be rendered again follows FKD (Shen & Xing, arXiv:2112.01528) and TinyViT (Wu et al., arXiv:2207.10666).
"""

import copy
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TeacherCacheError
from ..fingerprints import changed_fields, differences, digest_of, file_digest
from ..losses import TEACHER_OUTPUTS, ProblemType

logger = logging.getLogger(__name__)

KINDS = ("hard", "dense", "top_k")
DTYPES = ("float16", "float32")
# The array that every record has: the teacher's logits in the form of `RecordFormat.kind`. The names of its files do
# not contain the name of the array.
OUTPUTS = "outputs"


@dataclass(frozen=True)
class ExtraArray:
    """An array that is stored for each view in addition to the teacher's logits.

    Args:
        name: Name of the array: lower-case letters, digits and underscores, beginning with a letter. It is part of the
            file name.
        shape: Shape of the entry of one view, for example `(tokens, width)`.
        dtype: "float32" or "float16".

    Raises:
        TeacherCacheError: If the value of a field is not allowed.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float16"

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name) or self.name == OUTPUTS:
            raise TeacherCacheError(
                f"The extra array has the name {self.name!r}: use lower-case letters, digits and underscores, begin "
                f"with a letter, and choose a name other than {OUTPUTS!r}."
            )
        if self.dtype not in DTYPES:
            raise TeacherCacheError(
                f"ExtraArray({self.name!r}, dtype={self.dtype!r}): choose one of {', '.join(DTYPES)}."
            )
        object.__setattr__(self, "shape", tuple(self.shape))  # a manifest, which is JSON, has a list
        if not self.shape or not all(isinstance(size, int) and size >= 1 for size in self.shape):
            raise TeacherCacheError(
                f"ExtraArray({self.name!r}, shape={self.shape}): the shape must have one or more positive integers."
            )


@dataclass(frozen=True)
class RecordFormat:
    """Description of what a cache stores for each view.

    Args:
        kind: "hard" stores the class index in 2 bytes (4 bytes for more than 65,536 classes); for multi-label data, it
            stores one bit per class. "dense" stores all logits. "top_k" stores the `top_k` largest logits, their
            indices, and the log-sum-exp of the other logits divided by `tau`; it is for single-label data only.
        num_labels: Number of classes.
        dtype: Type of the stored logits, "float32" (exact) or "float16".
        top_k: Number of logits to store; for "top_k" only.
        tau: Temperature of the log-sum-exp; for "top_k" only.
        extra_arrays: Arrays to store in addition to the logits, each in its own file.
        problem_type: Problem type of the data, single-label or multi-label.

    Raises:
        TeacherCacheError: If the value of a field is not allowed.
    """

    kind: str
    num_labels: int
    dtype: str = "float32"
    top_k: int | None = None
    tau: float | None = None
    extra_arrays: tuple[ExtraArray, ...] = ()
    problem_type: str = ProblemType.SINGLE_LABEL

    def __post_init__(self) -> None:
        if self.problem_type not in (ProblemType.SINGLE_LABEL, ProblemType.MULTI_LABEL):
            raise TeacherCacheError(
                f"The record format has problem_type={str(self.problem_type)!r}, but teacher outputs are stored for "
                f"{ProblemType.SINGLE_LABEL} and {ProblemType.MULTI_LABEL} only: train without a cache."
            )
        if self.kind not in KINDS:
            raise TeacherCacheError(f"RecordFormat(kind={self.kind!r}): choose one of {', '.join(KINDS)}.")
        if self.dtype not in DTYPES:
            raise TeacherCacheError(f"RecordFormat(dtype={self.dtype!r}): choose one of {', '.join(DTYPES)}.")
        if not isinstance(self.num_labels, int) or not 1 <= self.num_labels < 2**32:
            raise TeacherCacheError(
                f"RecordFormat(num_labels={self.num_labels}): give the number of classes, from 1 to 2**32 - 1."
            )
        if self.kind != "top_k":
            if self.top_k is not None or self.tau is not None:
                raise TeacherCacheError(
                    f"top_k={self.top_k} and tau={self.tau} are given with kind={self.kind!r}, but they are allowed "
                    "only with kind='top_k': leave both out."
                )
        elif self.is_multi_label:
            raise TeacherCacheError(
                f"top_k={self.top_k} with problem_type={str(self.problem_type)!r}: each class has a probability of its "
                "own, so the logits left out cannot be joined into one outcome. Leave top_k out to store all logits "
                "(--kind soft; --answer_dtype float16 halves them), or store the decisions (--kind hard)."
            )
        elif not isinstance(self.top_k, int) or not 1 <= self.top_k < self.num_labels:
            raise TeacherCacheError(
                f"top_k={self.top_k} is invalid for {self.num_labels} classes: give an integer from 1 to "
                f"{self.num_labels - 1}, or leave top_k out to store all logits."
            )
        elif self.tau is None or not 0 < self.tau < math.inf:
            raise TeacherCacheError(
                f"tau={self.tau} is invalid with kind='top_k': give the distillation_tau of the training run, a "
                "finite number above 0."
            )
        names = [array.name for array in self.extra_arrays]
        if len(set(names)) < len(names):
            raise TeacherCacheError(f"The extra arrays have the names {', '.join(names)}: give each a different name.")

    @classmethod
    def from_manifest(cls, fields: Mapping[str, Any]) -> "RecordFormat":
        """Return the record format of a manifest.

        Args:
            fields: The fields as `describe` returns them.
        """
        arrays = tuple(ExtraArray(**array) for array in fields.get("extra_arrays", ()))
        return cls(**{**fields, "extra_arrays": arrays})

    def describe(self) -> dict[str, Any]:
        """Return the fields for the manifest.

        `extra_arrays` is included only if the format has extra arrays, `problem_type` only for multi-label data.
        """
        fields = asdict(self)
        if not self.extra_arrays:
            del fields["extra_arrays"]
        if self.is_multi_label:
            fields["problem_type"] = str(self.problem_type)
        else:
            del fields["problem_type"]
        return fields

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have several classes."""
        return self.problem_type == ProblemType.MULTI_LABEL

    @property
    def is_exact(self) -> bool:
        """Whether training with these stored outputs is equal to training with the live teacher."""
        return self.kind == "hard" or (self.kind == "dense" and self.dtype == "float32")

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The little-endian type of the entry of one view in each array, by the name of the array."""
        extra = {array.name: np.dtype((_little_endian(array.dtype), array.shape)) for array in self.extra_arrays}
        return {OUTPUTS: self._outputs_dtype, **extra}

    @property
    def _outputs_dtype(self) -> np.dtype:
        index = "<u2" if self.num_labels <= 2**16 else "<u4"
        logit = _little_endian(self.dtype)
        if self.kind == "hard" and self.is_multi_label:
            return np.dtype((np.uint8, (-(-self.num_labels // 8),)))
        if self.kind == "hard":
            return np.dtype(index)
        if self.kind == "dense":
            return np.dtype((logit, (self.num_labels,)))
        return np.dtype([("logits", logit, (self.top_k,)), ("indices", index, (self.top_k,)), ("rest", "<f4")])

    def arrays_of(self, name: str) -> dict[str, np.dtype]:
        """Return the `dtypes` of the arrays that an epoch of views has, or that the validation images have.

        Args:
            name: Name of the epoch of views (`epoch_name`), or `VALIDATION`, which has no extra arrays.
        """
        return {OUTPUTS: self._outputs_dtype} if name == VALIDATION else self.dtypes

    @property
    def bytes_per_view(self) -> int:
        """Number of bytes that are stored for each view, summed over all arrays."""
        return sum(dtype.itemsize for dtype in self.dtypes.values())

    def encode(self, logits: Tensor, **extra: Tensor) -> dict[str, np.ndarray]:
        """Return the records of a batch.

        Args:
            logits: The teacher's logits, `(batch, num_labels)` float32.
            **extra: The extra arrays by name, each `(batch, *shape)`.

        Returns:
            The entries of each array, by the name of the array. The length of each is the batch size.

        Raises:
            TeacherCacheError: If a value is not finite in the stored type, or an extra array is missing, is unknown or
                has another shape than the record format.
        """
        records = {OUTPUTS: self._encode_logits(logits)}
        if set(extra) != {array.name for array in self.extra_arrays}:
            expected = ", ".join(array.name for array in self.extra_arrays) or "none"
            raise TeacherCacheError(
                f"The extra arrays {', '.join(extra) or 'none'} were given, but the record format has the extra arrays "
                f"{expected}. Give exactly these."
            )
        for array in self.extra_arrays:
            values = extra[array.name]
            if tuple(values.shape) != (len(logits), *array.shape):
                raise TeacherCacheError(
                    f"The extra array {array.name!r} has the shape {tuple(values.shape)}, but the record format "
                    f"requires {(len(logits), *array.shape)}."
                )
            records[array.name] = _as_type(values, array.dtype)
            if not np.isfinite(records[array.name]).all():
                raise TeacherCacheError(
                    f"The extra array {array.name!r} has values that are not finite in {array.dtype}: store float32, "
                    "or fix the teacher."
                )
        return records

    def _encode_logits(self, logits: Tensor) -> np.ndarray:
        records = np.zeros(len(logits), dtype=self._outputs_dtype)
        finite = logits.float().isfinite().all()
        if self.kind == "hard" and self.is_multi_label:
            records[:] = np.packbits((logits > 0).cpu().numpy(), axis=-1)
        elif self.kind == "hard":
            records[:] = logits.argmax(dim=-1).cpu().numpy()
        elif self.kind == "dense":
            records[:] = _as_type(logits, self.dtype)
        else:
            # The sort is stable, so the first index is the argmax even if several logits are equal.
            ordered, indices = logits.float().sort(dim=-1, descending=True, stable=True)
            rest = (ordered[:, self.top_k :] / self.tau).logsumexp(dim=-1)
            records["logits"] = _as_type(ordered[:, : self.top_k], self.dtype)
            records["indices"] = indices[:, : self.top_k].cpu().numpy()
            records["rest"] = rest.cpu().numpy()
            if finite and not rest.isfinite().all():
                raise TeacherCacheError(
                    f"The log-sum-exp of the teacher's smaller logits, divided by tau={self.tau}, is not finite in "
                    "float32: use a larger distillation_tau."
                )
        stored = records["logits"] if self.kind == "top_k" else records
        if not finite or (self.kind != "hard" and not np.isfinite(stored).all()):
            largest = logits.float().abs().max().item()
            raise TeacherCacheError(
                f"Some teacher logits are not finite in {self.dtype} (largest absolute value: {largest:g}): store "
                "float32, or fix the teacher."
            )
        return records

    def decode(self, records: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Return the tensors that are added to a batch for these records.

        Args:
            records: The entries of each array, as `encode` returns them.

        Returns:
            For "hard": `teacher_labels` `(batch,)` int64 or, for multi-label data, `(batch, num_labels)` bool. For
            "dense": `teacher_logits` `(batch, num_labels)` float32.
            For "top_k": `teacher_top_logits` `(batch, top_k)` float32, `teacher_top_indices` `(batch, top_k)` int64 and
            `teacher_rest` `(batch,)` float32. For each extra array among the records also `teacher_{name}`
            `(batch, *shape)` in its stored type: it is large, and is converted on the device.
        """
        extra = {
            f"teacher_{array.name}": torch.from_numpy(records[array.name].astype(np.dtype(array.dtype), copy=False))
            for array in self.extra_arrays
            if array.name in records
        }
        return self._decode_outputs(records[OUTPUTS]) | extra

    def _decode_outputs(self, records: np.ndarray) -> dict[str, Tensor]:
        if self.kind == "hard" and self.is_multi_label:
            bits = np.unpackbits(records, axis=-1, count=self.num_labels)
            return {"teacher_labels": torch.from_numpy(bits.astype(bool))}
        if self.kind == "hard":
            return {"teacher_labels": torch.from_numpy(records.astype(np.int64))}
        if self.kind == "dense":
            return {"teacher_logits": torch.from_numpy(records.astype(np.float32))}
        return {
            "teacher_top_logits": torch.from_numpy(records["logits"].astype(np.float32)),
            "teacher_top_indices": torch.from_numpy(records["indices"].astype(np.int64)),
            "teacher_rest": torch.from_numpy(records["rest"].astype(np.float32)),
        }


def _little_endian(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


def _as_type(values: Tensor, dtype: str) -> np.ndarray:
    return values.to(getattr(torch, dtype)).cpu().numpy()


MANIFEST_FILE = "manifest.json"
VALIDATION = "validation"
FORMAT = "hf_deit teacher cache"
# Version of the file format and of the definitions of a view, a position and a mix.
FORMAT_VERSION = 1
# The files of a cache with at most this many bytes are all checked when the cache is opened. Each file of a larger
# cache is checked when a process first reads it.
CHECKED_AT_ONCE = 4 * 2**30
_MAPS_KEPT = 3
_DESCRIPTION = ("teacher", "layout", "views", "validation")
# Key of the manifest that describes the extra arrays of guidance (`Guidance.describe`). Only caches with them have it.
GUIDANCE = "guidance"
# Key of the manifest for facts about the teacher that do not identify the cache. Older caches do not have it.
TEACHER_FACTS = "teacher_facts"
# Names of the two origins of a value in the output of `differences`.
CACHE_AND_NOW = ("in the cache", "now")


def epoch_name(epoch: int) -> str:
    """Return the file name of an epoch of views, without its ending."""
    return f"epoch-{epoch:05}"


def file_name(name: str, array: str = OUTPUTS) -> str:
    """Return the file name of one array.

    Args:
        name: Name of the epoch of views (`epoch_name`), or `VALIDATION`.
        array: Name of the array.
    """
    return f"{name}.npy" if array == OUTPUTS else f"{name}.{array}.npy"


def description_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a manifest that identifies a cache: teacher, record format, views and validation images.

    The values have the types that they have after being written to JSON and read again.
    """
    names = (*_DESCRIPTION, *((GUIDANCE,) if GUIDANCE in manifest else ()))
    return json.loads(json.dumps({name: manifest[name] for name in names}, default=str))


def cache_id(manifest: Mapping[str, Any]) -> str:
    """Return the digest that identifies a cache.

    Every sidecar holds it, so that a file of another cache is recognised.
    """
    return digest_of({"version": manifest["version"], **description_of(manifest)})


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a cache and check its checksum.

    Raises:
        TeacherCacheError: If the file is missing or damaged, or the system does not let it be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TeacherCacheError(
            f"No teacher cache at {path.parent}: {path.name} is missing. Build one with hf-deit cache-teacher --out."
        ) from error
    except NotADirectoryError as error:
        raise TeacherCacheError(
            f"No teacher cache at {path.parent}: this path is not a folder. Give the folder of a cache."
        ) from error
    except OSError as error:  # the file may well be undamaged
        raise TeacherCacheError(
            f"{path} cannot be read ({error.strerror or error}). Check the permissions of the file and of its folders, "
            "and that its disk is available."
        ) from error
    except ValueError as error:
        raise TeacherCacheError(f"{path} is damaged ({error}). Build the cache again.") from error
    checksum = content.pop("checksum", None) if isinstance(content, dict) else None
    if checksum != digest_of(content):
        raise TeacherCacheError(
            f"{path} is damaged or was edited: its content does not match its checksum. Build the cache again."
        )
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a cache.

    Raises:
        TeacherCacheError: If the manifest is missing, is damaged, or has another format or version.
    """
    manifest = read_json(folder / MANIFEST_FILE)
    found = (manifest.get("format"), manifest.get("version"))
    if found != (FORMAT, FORMAT_VERSION):
        raise TeacherCacheError(
            f"{folder} has the format {found[0]!r}, version {found[1]!r}, but this version of hf_deit reads "
            f"{FORMAT!r}, version {FORMAT_VERSION}. Build the cache again with this version of hf_deit."
        )
    return manifest


def is_finished(folder: Path, name: str) -> bool:
    """Return whether the files of an epoch of views, or of the validation images, are complete.

    They are complete if the sidecar and every array that it names exist, because the sidecar is written last. A sidecar
    that cannot be read names no arrays; `checked_sidecar` raises the error.
    """
    if not all((folder / file).is_file() for file in (file_name(name), f"{name}.json")):
        return False
    try:
        extra = read_json(folder / f"{name}.json").get("arrays", {})
    except TeacherCacheError:
        return True
    return all((folder / file_name(name, array)).is_file() for array in extra)


def finished_epochs(folder: Path) -> list[int]:
    """Return the numbers of the complete epochs of views in a folder."""
    numbers = (path.stem.removeprefix("epoch-") for path in sorted(folder.glob("epoch-*.json")))
    return [int(number) for number in numbers if number.isdigit() and is_finished(folder, epoch_name(int(number)))]


def missing_epochs(finished: Sequence[int]) -> list[int]:
    """Return the numbers of the incomplete epochs of views before the last complete one."""
    return sorted(set(range(max(finished, default=-1))) - set(finished))


def files_of(sidecar: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return `bytes` and `sha256` of each file that a sidecar describes, by file name."""
    stated = {OUTPUTS: sidecar, **sidecar.get("arrays", {})}
    return {
        file_name(sidecar["name"], array): {key: fields[key] for key in ("bytes", "sha256")}
        for array, fields in stated.items()
    }


def checked_sidecar(folder: Path, name: str, identity: str) -> dict[str, Any]:
    """Read a sidecar, and check that its files are part of this cache and have the stated size.

    Args:
        folder: Folder of the cache.
        name: Name of the epoch of views, or `VALIDATION`.
        identity: `cache_id` of the cache.

    Raises:
        TeacherCacheError: If a file is missing, has another size, or is part of another cache.
    """
    if not is_finished(folder, name):
        raise TeacherCacheError(
            f"{folder / name}.npy, its sidecar {name}.json, or an array that the sidecar names is missing: run the same "
            "hf-deit cache-teacher command again."
        )
    sidecar = read_json(folder / f"{name}.json")
    if (sidecar["cache"], sidecar["name"]) != (identity, name):
        raise TeacherCacheError(
            f"{folder / name}.npy is from another epoch of views, or from another cache than the one that "
            f"{folder / MANIFEST_FILE} describes: files were copied or renamed by hand. Build the cache again."
        )
    for file, stated in files_of(sidecar).items():
        found = (folder / file).stat().st_size if (folder / file).is_file() else 0
        if found != stated["bytes"]:
            raise damaged(folder / file, f"it has {found} bytes, but its sidecar states {stated['bytes']}")
    return sidecar


def damaged(path: Path, why: str) -> TeacherCacheError:
    """Return the error for a damaged file.

    Args:
        path: The damaged file.
        why: How the damage was found, as the end of a sentence.
    """
    return TeacherCacheError(
        f"{path} is damaged: {why}. Build this file again in another folder (hf-deit cache-teacher with --first_view "
        "and --views), then merge both folders into a new one (hf-deit merge-teacher-caches), which takes the "
        "undamaged file."
    )


class TeacherCache:
    """Reader of the stored teacher outputs in a folder.

    Args:
        folder: Folder that `hf-deit cache-teacher` wrote. The epochs of views before the first missing one are used.
        arrays: Names of the extra arrays to read; the content of the others is neither read nor checked. Default: all.

    Raises:
        TeacherCacheError: If the folder is not a cache, is damaged, or has no complete epoch of views 0.
    """

    def __init__(self, folder: str | Path, arrays: Sequence[str] | None = None):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.record_format = RecordFormat.from_manifest(self.manifest["layout"])
        known = [array.name for array in self.record_format.extra_arrays]
        self._read = {OUTPUTS, *(known if arrays is None else [name for name in known if name in arrays])}
        self._id = cache_id(self.manifest)
        self._maps: dict[str, dict[str, np.ndarray]] = {}
        finished = finished_epochs(self.folder)
        missing = missing_epochs(finished)
        self.epochs = missing[0] if missing else len(finished)
        if not self.epochs:
            raise TeacherCacheError(
                f"{self.folder} has no complete epoch of views 0. Run the same hf-deit cache-teacher command again to "
                "resume the build. If parts were built in several folders, merge them with hf-deit "
                "merge-teacher-caches."
            )
        if missing:
            logger.warning(
                "%s lacks epoch(s) of views %s: only the first %d of its %d complete epochs are used. Build the "
                "missing epochs (hf-deit cache-teacher --first_view), or merge the folder that has them (hf-deit "
                "merge-teacher-caches).",
                self.folder,
                ", ".join(map(str, missing)),
                self.epochs,
                len(finished),
            )
        # Whether the files of each epoch of views were checked; the last entry is that of the validation images. The
        # tensor is shared with the data workers.
        self._checked = torch.zeros(self.epochs + 1, dtype=torch.uint8).share_memory_()
        names = [epoch_name(epoch) for epoch in range(self.epochs)]
        if self.manifest["validation"] is not None:
            names.append(VALIDATION)
        self._check_files(names)

    @property
    def records_per_epoch(self) -> int:
        """Number of views in an epoch of views."""
        return int(self.manifest["views"]["records"])

    def reading(self, arrays: Sequence[str]) -> "TeacherCache":
        """Return a reader of the same files that reads only these extra arrays."""
        reader = copy.copy(self)
        reader._read, reader._maps = {OUTPUTS, *(name for name in self._read if name in arrays)}, {}
        return reader

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # each worker maps the files itself

    def _check_files(self, names: Sequence[str]) -> None:
        sidecars = [checked_sidecar(self.folder, name, self._id) for name in names]
        total = sum(stated["bytes"] for sidecar in sidecars for stated in self._files(sidecar).values())
        if total <= CHECKED_AT_ONCE:
            for name in names:
                self._check_digests(name)

    def _files(self, sidecar: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return `bytes` and `sha256` of the files of a sidecar that are read, by file name."""
        read = {file_name(sidecar["name"], array) for array in self._read}
        return {file: stated for file, stated in files_of(sidecar).items() if file in read}

    def check_epoch_file(self, epoch: int) -> None:
        """Check the files of an epoch of views, unless this process or a data worker has already checked them.

        The sampler calls this before the data workers start, so that they do not check the files again.

        Raises:
            TeacherCacheError: If the cache does not have this epoch, or a file is damaged.
        """
        if epoch >= self.epochs:
            raise TeacherCacheError(
                f"Epoch of views {epoch} is needed, but {self.folder} has only {self.epochs} epoch(s) of views, "
                f"counted from 0: extend the cache (hf-deit cache-teacher --views {epoch + 1})."
            )
        if not self._checked[epoch]:
            self._check_digests(epoch_name(epoch))

    def check_validation_file(self) -> None:
        """Check the files of the validation images, unless this process or a data worker has already checked them.

        Raises:
            TeacherCacheError: If a file is missing or damaged.
        """
        if not self._checked[-1]:
            self._check_digests(VALIDATION)

    def _check_digests(self, name: str) -> None:
        for file, stated in self._files(checked_sidecar(self.folder, name, self._id)).items():
            if file_digest(self.folder / file) != stated["sha256"]:
                raise damaged(self.folder / file, "its SHA-256 differs from the one in its sidecar")
        self._checked[-1 if name == VALIDATION else int(name.removeprefix("epoch-"))] = 1

    def _records(self, name: str, places: Sequence[int]) -> dict[str, np.ndarray]:
        if name not in self._maps:
            while len(self._maps) >= _MAPS_KEPT:  # training reads the epochs in order, so the oldest map is not needed
                del self._maps[next(iter(self._maps))]
            self._maps[name] = {
                array: np.load(self.folder / file_name(name, array), mmap_mode="r", allow_pickle=False)
                for array in self.record_format.arrays_of(name)
                if array in self._read
            }
        return {array: records[list(places)] for array, records in self._maps[name].items()}

    def outputs(self, epoch: int, positions: Sequence[int]) -> dict[str, Tensor]:
        """Return the teacher outputs for the views at these positions of an epoch, as `RecordFormat.decode` does."""
        self.check_epoch_file(epoch)
        return self._finite(self.record_format.decode(self._records(epoch_name(epoch), positions)))

    def validation_outputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return the teacher outputs for the validation images with these indices, as `RecordFormat.decode` does."""
        self.check_validation_file()
        return self._finite(self.record_format.decode(self._records(VALIDATION, indices)))

    def _finite(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return outputs unchanged, or raise an error: hard distillation would learn NaN as the first class."""
        for name in TEACHER_OUTPUTS:
            if name in outputs and not torch.isfinite(outputs[name]).all():
                teacher = self.manifest.get(TEACHER_FACTS, {}).get("name") or self.manifest["teacher"].get("class")
                raise TeacherCacheError(
                    f"{self.folder} holds {name} of the teacher {teacher} that are not finite (NaN or infinite), "
                    f"stored as {self.record_format.dtype}: build the cache again in another folder, with "
                    "teacher_dtype bfloat16 or float32."
                )
        return outputs

    def check(self, part: str, present: Mapping[str, Any]) -> None:
        """Check that the cache was built for these views or validation images.

        Args:
            part: "views" or "validation": the part of the manifest to compare.
            present: This part for the present run. Fields that only the cache has are ignored.

        Raises:
            TeacherCacheError: If a field differs. The message names each differing field with both values.
        """
        stored = {name: value for name, value in self.manifest[part].items() if name in present}
        changed = changed_fields({part: stored}, {part: present})
        if changed:
            raise TeacherCacheError(
                f"{self.folder} was built for other {part}:\n{differences(changed, *CACHE_AND_NOW)}\nSet these fields "
                "to the values in the cache, or build a cache for this recipe (hf-deit cache-teacher)."
            )

    def check_teacher(self, fingerprint: str) -> None:
        """Check that a teacher is the one whose outputs this cache holds.

        Args:
            fingerprint: `Teacher.fingerprint` of the teacher.

        Raises:
            TeacherCacheError: If the fingerprints differ.
        """
        stored = self.manifest["teacher"]["fingerprint"]
        if stored != fingerprint:
            raise TeacherCacheError(
                f"{self.folder} holds the outputs of another teacher:\n  teacher.fingerprint: {stored!r} in the "
                f"cache, {fingerprint!r} now\nThe weights, the mean, the std, the image size, the class names or the "
                "dtype differ. Give the teacher of the cache, leave the teacher out, or build a cache for this "
                "teacher."
            )

    def describe(self) -> dict[str, Any]:
        """Return a description of the teacher and of the stored outputs.

        Returns:
            A dictionary with two entries. `teacher` holds the name, the class and the number of parameters of the
            teacher; a value is None if the manifest does not state it. `outputs` holds the fields of the record format,
            except `num_labels`, and `view_epochs`, the number of epochs of views.
        """
        teacher = {"name": None, "parameters": None, "class": self.manifest["teacher"].get("class")}
        teacher |= self.manifest.get(TEACHER_FACTS, {})
        stored = {name: value for name, value in self.record_format.describe().items() if name != "num_labels"}
        if GUIDANCE in self.manifest:
            stored[GUIDANCE] = self.manifest[GUIDANCE]
        return {"teacher": teacher, "outputs": {**stored, "view_epochs": self.epochs}}

    def summary(self) -> dict[str, Any]:
        """Return the record format, the number of epochs and records, the bytes per view and the teacher's metric.

        The metric is the accuracy or, for multi-label data, the micro-averaged F1 on the validation images.
        """
        return {
            **{name: value for name, value in self.record_format.describe().items() if value is not None},
            "view_epochs": self.epochs,
            "records": self.epochs * self.records_per_epoch,
            "bytes_per_view": self.record_format.bytes_per_view,
            "teacher_accuracy": self.manifest.get("teacher_accuracy"),
            **{name: self.manifest[name] for name in ("teacher_f1_micro",) if name in self.manifest},
        }
