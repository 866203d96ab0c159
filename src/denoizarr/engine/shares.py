"""A share of a step's batches, for job arrays without Dask: every n-th batch, from the i-th on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from denoizarr.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Share:
    """Share ``number`` of ``count``, counted from 1, as the job arrays of every scheduler can.

    Attributes
    ----------
    number, count : int

    Raises
    ------
    BadRequest
        There is no such share.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise BadRequest(
                "there is no such share",
                where="blocks",
                got=f"{self.number}/{self.count}",
                expected=f"1/n to n/n, such as 1/{max(self.count, 1)}",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the share of a text such as "3/10"."""
        match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        if match is None:
            raise BadRequest("not a share", where="blocks", got=repr(text), expected="i/n, such as 1/10")
        return cls(int(match[1]), int(match[2]))

    def batches(self, n_batches: int) -> range:
        """Return the batches of this share: neighbours in none, so that all shares take about as long."""
        return range(self.number - 1, n_batches, self.count)
