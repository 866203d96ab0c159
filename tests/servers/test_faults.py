"""Faults are drawn from a seed and from what is asked, and from nothing else."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .faults import ANSWERS, FAULTS, Asked, FaultSource, Weather
from .listings import names_in, without

GET = Asked("GET", "b", "x/0", range="bytes=0-9")
ALL_OFTEN = Weather.mixed(0.9, *FAULTS, jitter_seconds=1.0)
asked = st.builds(
    Asked,
    st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"]),
    st.just("b"),
    st.sampled_from(["x/0", "x/1", "zarr.json"]),
    st.sampled_from(["", "list-type=2&prefix=x", "partNumber=1"]),
    st.sampled_from([None, "bytes=0-9", "bytes=-4"]),
)


def drawn(source: FaultSource, requests: Sequence[Asked]) -> list[tuple[str, str | None, float]]:
    return [(request.identity, *source.draw(request)) for request in requests]


@given(st.lists(asked, max_size=60), st.integers(0, 2**32), st.randoms())
def test_faults_do_not_depend_on_the_order_of_different_requests(
    requests: list[Asked], seed: int, order: random.Random
) -> None:
    shuffled = requests.copy()
    order.shuffle(shuffled)
    found = Counter(drawn(FaultSource(seed, ALL_OFTEN), requests))
    assert Counter(drawn(FaultSource(seed, ALL_OFTEN), shuffled)) == found


def test_another_seed_and_another_try_draw_anew() -> None:
    tries = [GET] * 200
    one, two = (drawn(FaultSource(seed, ALL_OFTEN), tries) for seed in (1, 2))
    assert one != two
    assert len({fault for _, fault, _ in one}) > 4
    assert len({waits for _, _, waits in one}) == 200


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_comes_as_often_as_it_is_said_to_and_only_where_it_can(fault: str) -> None:
    listing = Asked("GET", "b", "", "list-type=2", "bytes=0-9")
    put = Asked("PUT", "b", "x")
    source = FaultSource(0, Weather({fault: 0.2}))
    for request in (GET, listing, put):
        times = sum(source.draw(request)[0] == fault for _ in range(3000))
        assert times == 0 if not request.suits(fault) else 500 < times < 700
    assert any(request.suits(fault) for request in (GET, listing, put))
    assert fault not in ANSWERS or all(request.suits(fault) for request in (GET, listing, put))


def test_the_bucket_and_an_upload_do_not_matter_to_the_draw_but_key_range_and_part_do() -> None:
    part = Asked("PUT", "b", "x", "partNumber=3&uploadId=abc")
    assert part.identity == Asked("PUT", "other", "x", "uploadId=def&partNumber=3").identity
    assert part.identity != Asked("PUT", "b", "x", "partNumber=4&uploadId=abc").identity
    assert (
        Asked("POST", "b", "", "delete=").identity != Asked("POST", "b", "", "delete=", digest="1").identity
    )
    assert GET.identity != Asked("GET", "b", "x/0").identity
    assert GET.identity != Asked("GET", "b", "x/1", range=GET.range).identity


def test_what_is_planned_comes_at_its_turn_and_no_sooner_or_later() -> None:
    source = FaultSource(0, Weather())
    source.plan("internal_error", method="PUT", key="*.json", after=2, times=2)
    put = [Asked("PUT", "b", f"a/{n}.json") for n in range(6)]
    other = [Asked("PUT", "b", "a/c/0"), Asked("GET", "b", "a/0.json")]
    assert [source.draw(request)[0] for request in other * 3] == [None] * 6
    assert [source.draw(request)[0] is not None for request in put] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_what_is_planned_for_good_stays_until_the_plans_are_cleared() -> None:
    source = FaultSource(0, Weather())
    source.plan("expired_token", after=3, times=None)
    assert [source.draw(GET)[0] for _ in range(6)] == [None] * 3 + ["expired_token"] * 3
    source.clear_plans()
    assert source.draw(GET)[0] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"probabilities": {"no such": 0.1}},
        {"probabilities": {"hang": -0.1}},
        {"probabilities": {"hang": 0.6, "cut": 0.6}},
        {"latency_seconds": -1.0},
    ],
)
def test_a_weather_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"fault|probabilities|before"):
        Weather(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no such fault"):
        FaultSource(0, Weather()).plan("no such")


def listing(*names: str) -> bytes:
    entries = "".join(f"<Contents><Key>{name}</Key><Size>1</Size></Contents>" for name in names)
    return f"<R><KeyCount>{len(names)}</KeyCount>{entries}</R>".encode()


def test_a_listing_lies_by_the_seed_and_about_half() -> None:
    names = [f"c/0/{n}" for n in range(200)]
    left = names_in(without(listing(*names), lambda name: FaultSource(5, Weather()).uniform("l", name)))
    assert 60 < len(left) < 140
    assert left == [name for name in names if name in left]
    again = without(listing(*reversed(names)), lambda name: FaultSource(5, Weather()).uniform("l", name))
    assert sorted(names_in(again)) == sorted(left)
    assert f"<KeyCount>{len(left)}</KeyCount>".encode() in again


def test_a_listing_that_lies_drops_at_least_one() -> None:
    assert names_in(without(listing("a"), lambda _: 0.9)) == []
    assert without(listing(), lambda _: 0.9) == listing()
