"""What a job costs at most: requests, bytes, hours and money, step by step, before any of it is spent.

::

    job_requests   how often which store is asked, and for how many bytes      upper bounds
    core_seconds   how long cores or GPUs work                                 a guess, within a factor of two
    prices         what that costs                                             an example, or one's own
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from denoizarr.errors import BadRequest
from denoizarr.report.words import byte_size

from .job_requests import StepRequests
from .prices import PriceTable
from .requests import NONE, Requests

_GB = 10**9


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a step asks of its stores, and how long cores or GPUs work at it.

    Attributes
    ----------
    requests : StepRequests
    core_seconds, gpu_seconds : float
        Summed over all that work.
    """

    requests: StepRequests
    core_seconds: float = 0.0
    gpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step costs.

    Attributes
    ----------
    name : str
        As in the table of steps of a run.
    is_certain : bool
        False for what is done only where the images call for it; counted all the same.
    input : Requests
        Of images, targets and masks.
    output : Requests
        Of the run folder and all in it.
    core_hours, gpu_hours : float
    requests_money, egress_money, compute_money : float
        In the currency of the prices; of stores on local disks nothing.
    """

    name: str
    is_certain: bool
    input: Requests
    output: Requests
    core_hours: float
    gpu_hours: float
    requests_money: float
    egress_money: float
    compute_money: float

    @property
    def requests(self) -> Requests:
        """Of all stores."""
        return self.input + self.output

    @property
    def money(self) -> float:
        """All together."""
        return self.requests_money + self.egress_money + self.compute_money


@dataclass(frozen=True, slots=True)
class JobCost:
    """What a whole job costs.

    Attributes
    ----------
    steps : tuple of StepCost
        In order.
    stored_bytes : int
        Of the results, uncompressed: a bound.
    storage_months : float
        For how long they are counted.
    storage_money : float
    money : float
        All together.
    prices : PriceTable
    is_free_to_ask : bool
        Nothing lies in a bucket, so requests, egress and storage cost nothing.
    """

    steps: tuple[StepCost, ...]
    stored_bytes: int
    storage_months: float
    storage_money: float
    money: float
    prices: PriceTable
    is_free_to_ask: bool

    @property
    def requests(self) -> Requests:
        """Of all steps."""
        return sum((step.requests for step in self.steps), NONE)

    @property
    def core_hours(self) -> float:
        """Of all steps."""
        return sum(step.core_hours for step in self.steps)

    @property
    def gpu_hours(self) -> float:
        """Of all steps."""
        return sum(step.gpu_hours for step in self.steps)

    def largest(self) -> tuple[str, float]:
        """Return the item that costs most, in words, and what it costs."""
        items = [("storage", self.storage_money)]
        for step in self.steps:
            hours = "GPU hours" if step.gpu_hours else "core hours"
            items += [
                (f"{hours} of {step.name}", step.compute_money),
                (f"requests of {step.name}", step.requests_money),
                (f"egress of {step.name}", step.egress_money),
            ]
        return max(items, key=lambda item: item[1])

    def check(self, max_cost: float) -> None:
        """Refuse a job that may cost more.

        Raises
        ------
        BadRequest
        """
        if self.money > max_cost:
            name, money = self.largest()
            currency = self.prices.currency
            raise BadRequest(
                "the job may cost more than it is allowed to",
                where="max_cost",
                got=f"{self.money:.4g} {currency}, most of it {name} ({money:.4g})",
                expected=f"at most {max_cost:g} {currency}",
                remedy="allow more, or see `denoizarr plan` for what costs what",
            )

    def to_json(self) -> dict[str, Any]:
        """Return the cost as JSON-able data, with the sums."""
        return {
            **asdict(self),
            "requests": asdict(self.requests),
            "core_hours": self.core_hours,
            "gpu_hours": self.gpu_hours,
        }

    def in_words(self) -> str:
        """Return a table for people."""
        with_gpu = self.gpu_hours > 0
        head = ["step", "requests", "read", "written", "core h", *(["GPU h"] if with_gpu else [])]
        rows = [[*head, self.prices.currency]]
        for step in self.steps:
            hours = [step.core_hours, *([step.gpu_hours] if with_gpu else [])]
            rows.append(_row(step.name, step.requests, hours, step.money))
        blank = [""] * (len(head) - 4)
        rows.append(["kept", "", "", byte_size(self.stored_bytes), *blank, f"{self.storage_money:.4f}"])
        hours = [self.core_hours, *([self.gpu_hours] if with_gpu else [])]
        rows.append(_row("at most", self.requests, hours, self.money))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        free = "; local paths cost nothing to ask or to keep" if self.is_free_to_ask else ""
        months = f"kept for {self.storage_months:g} month{'s' if self.storage_months != 1 else ''}"
        return "\n".join([*lines, f"prices: {self.prices.source}; {months}{free}"])


def cost_of(
    work: Sequence[StepWork],
    prices: PriceTable,
    *,
    stored_bytes: int,
    storage_months: float,
    input_is_charged: bool,
    output_is_charged: bool,
) -> JobCost:
    """Price the steps of a job.

    Parameters
    ----------
    work : sequence of StepWork
    prices : PriceTable
    stored_bytes : int
        That stay in the run folder.
    storage_months : float
    input_is_charged, output_is_charged : bool
        Whether the images, and the run folder, lie where requests and bytes are charged for.
    """
    steps = []
    for one in work:
        asked = one.requests
        charged = [(asked.input, input_is_charged), (asked.output, output_is_charged)]
        steps.append(
            StepCost(
                asked.name,
                asked.is_certain,
                asked.input,
                asked.output,
                one.core_seconds / 3600,
                one.gpu_seconds / 3600,
                sum(_requests_money(some, prices) for some, is_charged in charged if is_charged),
                sum(
                    some.bytes_read / _GB * prices.egress_per_gb for some, is_charged in charged if is_charged
                ),
                one.core_seconds / 3600 * prices.core_hour + one.gpu_seconds / 3600 * prices.gpu_hour,
            )
        )
    storage = stored_bytes / _GB * prices.storage_per_gb_month * storage_months if output_is_charged else 0.0
    return JobCost(
        tuple(steps),
        stored_bytes,
        storage_months,
        storage,
        sum(step.money for step in steps) + storage,
        prices,
        not (input_is_charged or output_is_charged),
    )


def _requests_money(requests: Requests, prices: PriceTable) -> float:
    each = (
        (requests.gets, prices.get_per_1000),
        (requests.heads, prices.head_per_1000),
        (requests.puts, prices.put_per_1000),
        (requests.lists, prices.list_per_1000),
        (requests.deletes, prices.delete_per_1000),
    )
    return sum(count * price for count, price in each) / 1000


def _row(name: str, requests: Requests, hours: Sequence[float], money: float) -> list[str]:
    return [
        name,
        f"{requests.total:,}",
        byte_size(requests.bytes_read),
        byte_size(requests.bytes_written),
        *(f"{some:.3f}" for some in hours),
        f"{money:.4f}",
    ]
