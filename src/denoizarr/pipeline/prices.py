"""What requests, bytes and hours cost: a small table that is shipped as an example, or one's own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from denoizarr.errors import ConfigError, ImageNotFound
from denoizarr.stores import locations

from .config_errors import yaml_problem

_TEXTS = ("source", "currency")


@dataclass(frozen=True, slots=True)
class PriceTable:
    """Prices in one currency.

    Attributes
    ----------
    source : str
        Where they come from, and when.
    currency : str
    get_per_1000, head_per_1000, put_per_1000, list_per_1000, delete_per_1000 : float
        Of a thousand requests.
    egress_per_gb : float
        Of 10**9 bytes that leave the store.
    storage_per_gb_month : float
    core_hour, gpu_hour : float
        Of one core, and of one GPU.
    """

    source: str
    currency: str
    get_per_1000: float
    head_per_1000: float
    put_per_1000: float
    list_per_1000: float
    delete_per_1000: float
    egress_per_gb: float
    storage_per_gb_month: float
    core_hour: float
    gpu_hour: float

    @classmethod
    def example(cls) -> PriceTable:
        """Return the table that is shipped; see ``prices.yaml`` beside this module."""
        text = files("denoizarr.pipeline").joinpath("prices.yaml").read_text("utf-8")
        return cls(**yaml.safe_load(text))

    def in_currency(self, currency: str) -> PriceTable:
        """Return the same numbers as prices in another currency: nothing is converted."""
        return replace(self, currency=currency)

    @classmethod
    def load(cls, given: str | Path | Mapping[str, Any] | None) -> PriceTable:
        """Return a table from a YAML file or a mapping; what it leaves out is as in the example.

        Raises
        ------
        ConfigError
            An unknown key (the nearest known one is named), or no price.
        """
        table = cls.example()
        if given is None:
            return table
        where = "cost.prices" if isinstance(given, Mapping) else str(given)
        data = dict(given) if isinstance(given, Mapping) else _read(given)
        known = [field.name for field in fields(cls)]
        for key, value in data.items():
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, cutoff=0.5)
                raise ConfigError(
                    f"unknown price {key!r}",
                    where=where,
                    expected=None if near else f"one of {', '.join(known)}",
                    remedy=f"did you mean {near[0]!r}?" if near else None,
                )
            _check(key, value, where)
        # A number beside the example's words would pass for one of its own.
        own: dict[str, Any] = (
            {"source": f"{where}; the rest as in the example"} if "source" not in data else {}
        )
        own |= {key: value if key in _TEXTS else float(value) for key, value in data.items()}
        return replace(table, **own)


def _check(key: str, value: Any, where: str) -> None:
    if key in _TEXTS:
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"{key} is a word or two", where=where, got=repr(value))
        return
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not isfinite(value) or value < 0:
        raise ConfigError("not a price", where=f"{where}, {key}", got=repr(value), expected="0 or more")


def _read(path: str | Path) -> dict[Any, Any]:
    try:
        data = yaml.safe_load(locations.get(path).decode("utf-8"))
    except ImageNotFound as error:
        raise ConfigError("no such file of prices", where=str(path), remedy="check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError("the prices are not YAML", where=str(path), got=yaml_problem(error)) from error
    if not isinstance(data, dict):
        raise ConfigError("prices are a mapping", where=str(path), got=type(data).__name__)
    return data
