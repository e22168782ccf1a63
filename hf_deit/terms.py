"""Sums of loss terms on the device: averaged, gathered and looked at only when something is logged.

Reading a number from the device stops it, so a step only adds. The first non-finite loss is remembered with its step and
terms on the device too, and found when the sums are read.
"""

import torch
from accelerate import Accelerator
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """Training diverged; the message holds the step, the terms and the learning rate."""


class RunningTerms:
    """Adds up per-image terms of the training steps since the last reading.

    Args:
        device: Of the tensors to come.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._names: list[str] = []
        self._clear()

    def _clear(self) -> None:
        self._sums: Tensor | None = None
        self._images = 0
        self._bad_step = torch.full((), -1, dtype=torch.long, device=self.device)
        self._bad_terms: Tensor | None = None
        self._learning_rates: dict[int, float] = {}

    def add(self, terms: dict[str, Tensor], step: int, learning_rate: float) -> None:
        """Adds one batch, without waiting for the device.

        Args:
            terms: `(batch,)` for each name, the same names every time; the first is the loss.
            step: Number of the optimizer step.
            learning_rate: Of that step.
        """
        stacked = torch.stack([term.detach().float() for term in terms.values()])  # (terms, batch)
        sums = stacked.sum(dim=1)
        if self._sums is None:
            self._names = list(terms)
            self._sums, self._bad_terms = torch.zeros_like(sums), torch.zeros_like(sums)
        self._sums += sums
        self._images += stacked.shape[1]
        self._learning_rates[step] = learning_rate
        first_bad = ~torch.isfinite(sums[0]) & (self._bad_step < 0)
        self._bad_step = torch.where(first_bad, step, self._bad_step)
        self._bad_terms = torch.where(first_bad, sums / stacked.shape[1], self._bad_terms)

    def check(self, accelerator: Accelerator) -> None:
        """Looks for a non-finite loss in any process; call it in all of them.

        Raises:
            NonFiniteLossError: There was one since the last reading.
        """
        if self._sums is None:
            return
        record = torch.cat([self._bad_step.float()[None], self._bad_terms])
        for step, *terms in accelerator.gather(record[None]).tolist():
            if step >= 0:
                values = ", ".join(f"{name} {value:g}" for name, value in zip(self._names, terms, strict=True))
                rate = self._learning_rates.get(int(step), float("nan"))
                raise NonFiniteLossError(
                    f"The loss is not finite at step {int(step)}: {values}; learning rate {rate:g}. No checkpoint was written "
                    "since. Start a new run from the last one (--model CHECKPOINT, new output_dir) with a lower learning_rate, longer warmup_steps or max_grad_norm=1.0; "
                    "with fp16 use bf16."
                )

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Gives the mean of each term over all images of all processes since the last reading, and starts anew."""
        if self._sums is None:
            return {}
        totals = torch.cat([self._sums, self._sums.new_tensor([self._images])])
        totals = accelerator.gather(totals[None]).sum(dim=0)
        names = self._names
        self._clear()
        return dict(zip(names, (totals[:-1] / totals[-1]).tolist(), strict=True))
