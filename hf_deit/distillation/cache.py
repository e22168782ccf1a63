"""A teacher's stored answers: one record a view, found in constant time, checked before it is believed.

A folder holds `manifest.json` (what the answers are answers to, by whom, in which record format), and for each epoch of views
`epoch-00000.npy` with a record a position of sampling.py, and beside it `epoch-00000.json` with its SHA-256. A record's
place is (epoch of the view, position), which does not depend on batch size, workers or processes, so one cache serves them
all. `validation.npy` holds the answers to the validation images by index. NumPy files, memory-mapped.

What a record holds is in cache.py, writing in cache_writer.py, running the teacher in cache_builder.py, use in a
training in cached_teacher.py. Stored answers to replayed views: FKD (Shen & Xing, arXiv:2112.01528), TinyViT (Wu et al.,
arXiv:2207.10666).
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import TeacherCacheError
from ..fingerprints import changed_fields, differences, digest_of, file_digest

logger = logging.getLogger(__name__)

KINDS = ("hard", "dense", "top_k")
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class RecordFormat:
    """What a record holds.

    Args:
        kind: "hard": the class index, 2 bytes (4 above 65,536 classes). "dense": all logits. "top_k": the `top_k` largest
            logits, their indices, and the log-sum-exp of the rest, each divided by `tau`.
        num_labels: Number of classes.
        dtype: Of stored logits, "float32" (exact) or "float16".
        top_k: K, for "top_k" only.
        tau: The temperature that the rest was made for, for "top_k" only.

    Raises:
        TeacherCacheError: A field is not within its limits.
    """

    kind: str
    num_labels: int
    dtype: str = "float32"
    top_k: int | None = None
    tau: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.dtype not in DTYPES:
            raise TeacherCacheError(
                f"Answers of kind {self.kind!r} in {self.dtype!r}: choose of {', '.join(KINDS)} and of {', '.join(DTYPES)}."
            )
        if not isinstance(self.num_labels, int) or not 1 <= self.num_labels < 2**32:
            raise TeacherCacheError(f"num_labels={self.num_labels}: a whole number of classes from 1 to 2**32 - 1.")
        if self.kind != "top_k":
            if self.top_k is not None or self.tau is not None:
                raise TeacherCacheError(f"top_k={self.top_k}, tau={self.tau} with answers of kind {self.kind!r}.")
        elif not isinstance(self.top_k, int) or not 1 <= self.top_k < self.num_labels:
            raise TeacherCacheError(
                f"top_k={self.top_k} of {self.num_labels} classes: a whole number, at least 1 and below theirs; leave it out "
                "to store all logits."
            )
        elif self.tau is None or not 0 < self.tau < math.inf:
            raise TeacherCacheError(f"tau={self.tau}: top_k needs the temperature of the training, above 0 and finite.")

    @property
    def is_exact(self) -> bool:
        """Whether a training with these answers is the training with the live teacher."""
        return self.kind == "hard" or (self.kind == "dense" and self.dtype == "float32")

    @property
    def record(self) -> np.dtype:
        """The type of a record, little-endian."""
        index = "<u2" if self.num_labels <= 2**16 else "<u4"
        logit = np.dtype(self.dtype).newbyteorder("<")
        if self.kind == "hard":
            return np.dtype(index)
        if self.kind == "dense":
            return np.dtype((logit, (self.num_labels,)))
        return np.dtype([("logits", logit, (self.top_k,)), ("indices", index, (self.top_k,)), ("rest", "<f4")])

    def empty(self, count: int) -> np.ndarray:
        """Gives `count` records to be filled, `(count,)` or for dense `(count, num_labels)`."""
        return np.zeros(count, dtype=self.record)

    def encode(self, logits: Tensor) -> np.ndarray:
        """Makes records of the teacher's logits `(batch, num_labels)` float32.

        Raises:
            TeacherCacheError: A logit is not finite, or not in the type of the record format.
        """
        records = self.empty(len(logits))
        finite = logits.float().isfinite().all()
        if self.kind == "hard":
            records[:] = logits.argmax(dim=-1).cpu().numpy()
        elif self.kind == "dense":
            records[:] = _as_type(logits, self.dtype)
        else:
            # Sorted stably, so that the first index is the arg max also among equals.
            ordered, indices = logits.float().sort(dim=-1, descending=True, stable=True)
            rest = (ordered[:, self.top_k :] / self.tau).logsumexp(dim=-1)
            records["logits"] = _as_type(ordered[:, : self.top_k], self.dtype)
            records["indices"] = indices[:, : self.top_k].cpu().numpy()
            records["rest"] = rest.cpu().numpy()
            if finite and not rest.isfinite().all():
                raise TeacherCacheError(
                    f"The rest of the teacher's logits at tau={self.tau} is not finite in float32: take a larger distillation_tau."
                )
        stored = records["logits"] if self.kind == "top_k" else records
        if not finite or (self.kind != "hard" and not np.isfinite(stored).all()):
            largest = logits.float().abs().max().item()
            raise TeacherCacheError(
                f"The teacher's logits (largest: {largest:g}) are not finite in {self.dtype}: store float32, or mend the teacher."
            )
        return records

    def decode(self, records: np.ndarray) -> dict[str, Tensor]:
        """Makes of records what a batch holds (`cached_teacher.py` says what is done with it).

        Returns:
            `teacher_labels` `(batch,)` int64; or `teacher_logits` `(batch, num_labels)` float32; or `teacher_top_logits`
            `(batch, K)` float32 with `teacher_top_indices` `(batch, K)` int64 and `teacher_rest` `(batch,)` float32.
        """
        if self.kind == "hard":
            return {"teacher_labels": torch.from_numpy(records.astype(np.int64))}
        if self.kind == "dense":
            return {"teacher_logits": torch.from_numpy(records.astype(np.float32))}
        return {
            "teacher_top_logits": torch.from_numpy(records["logits"].astype(np.float32)),
            "teacher_top_indices": torch.from_numpy(records["indices"].astype(np.int64)),
            "teacher_rest": torch.from_numpy(records["rest"].astype(np.float32)),
        }


def _as_type(logits: Tensor, dtype: str) -> np.ndarray:
    return logits.to(getattr(torch, dtype)).cpu().numpy()


MANIFEST_FILE = "manifest.json"
VALIDATION = "validation"
FORMAT = "hf_deit teacher cache"
# Of the files and of what a view, a position and a mix are: a cache of another version answers other questions.
FORMAT_VERSION = 1
# Above this many bytes files are checked when a process first reads them, and not all before the first step.
CHECKED_AT_ONCE = 4 * 2**30
_MAPS_KEPT = 3
_DESCRIPTION = ("teacher", "layout", "views", "validation")
# What is told of the teacher; it is not in the description, and older caches have none.
TEACHER_FACTS = "teacher_facts"
# Where the two values of a field that differs are from, for `differences`.
CACHE_AND_NOW = ("in the cache", "now")


def epoch_name(epoch: int) -> str:
    """The name, without ending, of the files of an epoch of views."""
    return f"epoch-{epoch:05}"


def description_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What makes two caches the same: teacher, record format, views and validation images, as JSON has them."""
    return json.loads(json.dumps({name: manifest[name] for name in _DESCRIPTION}, default=str))


def cache_id(manifest: Mapping[str, Any]) -> str:
    """Stands in every file's sidecar, so that no file can be taken for another cache's."""
    return digest_of({"version": manifest["version"], **description_of(manifest)})


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file of the cache.

    Raises:
        TeacherCacheError: It is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TeacherCacheError(
            f"No teacher cache at {path.parent}: {path.name} is missing. `hf-deit cache-teacher --out` makes one."
        ) from error
    except NotADirectoryError as error:
        raise TeacherCacheError(
            f"No teacher cache at {path.parent}: that is no folder. Name the folder of a cache."
        ) from error
    except (ValueError, OSError) as error:
        raise TeacherCacheError(f"{path} is damaged ({error}): build the cache again.") from error
    checksum = content.pop("checksum", None) if isinstance(content, dict) else None
    if checksum != digest_of(content):
        raise TeacherCacheError(f"{path} is damaged or was edited: its checksum differs. Build the cache again.")
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads what the answers are answers to.

    Raises:
        TeacherCacheError: There is none, it is damaged, or of another format.
    """
    manifest = read_json(folder / MANIFEST_FILE)
    given = (manifest.get("format"), manifest.get("version"))
    if given != (FORMAT, FORMAT_VERSION):
        raise TeacherCacheError(
            f"{folder} has format {given[0]!r}, version {given[1]!r}, and this hf_deit reads {FORMAT!r}, version "
            f"{FORMAT_VERSION}: build the cache with this version."
        )
    return manifest


def is_finished(folder: Path, name: str) -> bool:
    """Whether a file of records and its sidecar are there; the sidecar is written last."""
    return (folder / f"{name}.npy").is_file() and (folder / f"{name}.json").is_file()


def finished_epochs(folder: Path) -> list[int]:
    """Gives the numbers of the epochs of views that are finished in a folder."""
    numbers = (path.stem.removeprefix("epoch-") for path in sorted(folder.glob("epoch-*.json")))
    return [int(number) for number in numbers if number.isdigit() and is_finished(folder, epoch_name(int(number)))]


def missing_epochs(finished: Sequence[int]) -> list[int]:
    """Gives the numbers before the last finished epoch of views that are not among them."""
    return sorted(set(range(max(finished, default=-1))) - set(finished))


def checked_sidecar(folder: Path, name: str, identity: str) -> dict[str, Any]:
    """Gives what stands beside a file of records.

    Raises:
        TeacherCacheError: It is another cache's than `identity`, or the file has not its size.
    """
    path = folder / f"{name}.npy"
    if not is_finished(folder, name):
        raise TeacherCacheError(f"{path} is missing: run hf-deit cache-teacher again.")
    sidecar = read_json(folder / f"{name}.json")
    if (sidecar["cache"], sidecar["name"]) != (identity, name):
        raise TeacherCacheError(
            f"{path} belongs to another cache than {folder / MANIFEST_FILE} describes, or to another epoch of views: "
            "files were brought together by hand. Build the cache again."
        )
    if path.stat().st_size != sidecar["bytes"]:
        raise TeacherCacheError(
            f"{path} has {path.stat().st_size} bytes and was written with {sidecar['bytes']}: it is cut off or was changed. "
            "Remove it and run hf-deit cache-teacher again."
        )
    return sidecar


class TeacherCache:
    """The stored answers of a folder, to be read.

    Args:
        folder: That `hf-deit cache-teacher` made. Epochs of views behind the first that is not finished do not count.

    Raises:
        TeacherCacheError: No cache, a damaged one, or one of which no epoch of views is finished.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.record_format = RecordFormat(**self.manifest["layout"])
        self._id = cache_id(self.manifest)
        self._maps: dict[str, np.ndarray] = {}
        finished = finished_epochs(self.folder)
        missing = missing_epochs(finished)
        self.epochs = missing[0] if missing else len(finished)
        if not self.epochs:
            raise TeacherCacheError(
                f"{self.folder} holds no finished epoch of views from 0 on: run hf-deit cache-teacher again, it goes on where "
                "it stopped; parts made elsewhere are brought together by hf-deit merge-teacher-caches."
            )
        if missing:
            logger.warning(
                "%s lacks epoch(s) of views %s: of the %d that are there the first %d count. Build them (hf-deit cache-teacher "
                "--first_view), or merge the part that has them.",
                *(self.folder, ", ".join(map(str, missing)), len(finished), self.epochs),
            )
        # Of each epoch of views, and last of the validation, whether the file was checked; shared with data workers.
        self._checked = torch.zeros(self.epochs + 1, dtype=torch.uint8).share_memory_()
        names = [epoch_name(epoch) for epoch in range(self.epochs)]
        if self.manifest["validation"] is not None:
            names.append(VALIDATION)
        self._check_files(names)

    @property
    def records_per_epoch(self) -> int:
        """Number of views of an epoch."""
        return int(self.manifest["views"]["records"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a worker maps the files anew

    def _check_files(self, names: Sequence[str]) -> None:
        total = sum((self.folder / f"{name}.npy").stat().st_size for name in names if is_finished(self.folder, name))
        for name in names:
            checked_sidecar(self.folder, name, self._id)
            if total <= CHECKED_AT_ONCE:
                self._check_digest(name)

    def check_epoch_file(self, epoch: int) -> None:
        """Checks an epoch's file, unless this or a worker process has; called before workers start, they need not."""
        if epoch >= self.epochs:
            raise TeacherCacheError(
                f"{self.folder} has {self.epochs} epoch(s) of views, and epoch {epoch} is asked for: extend it (hf-deit cache-teacher "
                f"--views {epoch + 1})."
            )
        if not self._checked[epoch]:
            self._check_digest(epoch_name(epoch))

    def check_validation_file(self) -> None:
        """Likewise of the validation's file."""
        if not self._checked[-1]:
            self._check_digest(VALIDATION)

    def _check_digest(self, name: str) -> None:
        path = self.folder / f"{name}.npy"
        if file_digest(path) != checked_sidecar(self.folder, name, self._id)["sha256"]:
            raise TeacherCacheError(
                f"{path} is damaged: its SHA-256 differs from the one written down. Remove it and run hf-deit cache-teacher again."
            )
        self._checked[-1 if name == VALIDATION else int(name.removeprefix("epoch-"))] = 1

    def _records(self, name: str) -> np.ndarray:
        if name not in self._maps:
            while len(self._maps) >= _MAPS_KEPT:  # a training goes from epoch to epoch: it does not come back soon
                del self._maps[next(iter(self._maps))]
            self._maps[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return self._maps[name]

    def outputs(self, epoch: int, positions: Sequence[int]) -> dict[str, Tensor]:
        """Gives the teacher's answers to views of one epoch of views, as `RecordFormat.decode`."""
        self.check_epoch_file(epoch)
        return self.record_format.decode(self._records(epoch_name(epoch))[list(positions)])

    def validation_outputs(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Gives the teacher's answers to validation images, as `RecordFormat.decode`."""
        self.check_validation_file()
        return self.record_format.decode(self._records(VALIDATION)[list(indices)])

    def check(self, part: str, present: Mapping[str, Any]) -> None:
        """Refuses a cache of other views or validation images.

        Args:
            part: "views" or "validation".
            present: What the manifest would hold there for the present run; fields only the cache has are not compared.

        Raises:
            TeacherCacheError: Something differs; each field is named with both values.
        """
        stored = {name: value for name, value in self.manifest[part].items() if name in present}
        changed = changed_fields({part: stored}, {part: present})
        if changed:
            raise TeacherCacheError(
                f"{self.folder} holds answers to other {part}:\n{differences(changed, *CACHE_AND_NOW)}\nSet them back, or build a cache for "
                "this recipe (hf-deit cache-teacher)."
            )

    def check_teacher(self, fingerprint: str) -> None:
        """Refuses a teacher that did not give these answers.

        Raises:
            TeacherCacheError: The fingerprints differ.
        """
        stored = self.manifest["teacher"]["fingerprint"]
        if stored != fingerprint:
            raise TeacherCacheError(
                f"{self.folder} holds the answers of another teacher:\n  teacher.fingerprint: {stored!r} in the cache, "
                f"{fingerprint!r} now\nIts weights, mean, std, size, class names or dtype differ. Give the teacher the cache "
                "was made of, none at all, or build a cache for this one."
            )

    def describe(self) -> dict[str, Any]:
        """Gives the teacher's `name`, `class` and `parameters` as far as they were kept, and what its answers hold."""
        teacher = {"name": None, "parameters": None, "class": self.manifest["teacher"].get("class")}
        teacher |= self.manifest.get(TEACHER_FACTS, {})
        record_format = {name: value for name, value in asdict(self.record_format).items() if name != "num_labels"}
        return {"teacher": teacher, "outputs": {**record_format, "view_epochs": self.epochs}}

    def summary(self) -> dict[str, Any]:
        """Return the record format, epochs of views, bytes a view and the teacher, to be shown."""
        return {
            **{name: value for name, value in asdict(self.record_format).items() if value is not None},
            "view_epochs": self.epochs,
            "records": self.epochs * self.records_per_epoch,
            "bytes_per_view": self.record_format.record.itemsize,
            "teacher_accuracy": self.manifest.get("teacher_accuracy"),
        }
