"""What a record of a teacher cache holds: the teacher's logits as fewer bytes, and back.

The files that hold the records are in teacher_cache.py; what is learned from them is in answers.py.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

KINDS = ("hard", "dense", "top_k")
DTYPES = ("float16", "float32")


class TeacherCacheError(UserError):
    """A cache that is damaged, unfinished or made for something else; the message names what differs."""


@dataclass(frozen=True)
class Layout:
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
            TeacherCacheError: A logit is not finite, or not in the layout's type.
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
        """Makes of records what a batch holds (`cached_answers.py` says what is done with it).

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
