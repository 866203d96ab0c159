"""Money: prices that are checked, sums that a person can follow, and a limit that holds."""

from __future__ import annotations

import json

import pytest
import yaml

from denoizarr.errors import BadRequest, ConfigError
from denoizarr.images.save import save_image
from denoizarr.pipeline.checked_job import check_job, identity_of
from denoizarr.pipeline.config import JobConfig
from denoizarr.pipeline.cost import StepWork, cost_of
from denoizarr.pipeline.job_requests import StepRequests
from denoizarr.pipeline.plan import Plan, plan
from denoizarr.pipeline.prices import PriceTable
from denoizarr.pipeline.requests import Requests
from denoizarr.pipeline.run import run_pipeline
from denoizarr.stores import locations
from tests.end_to_end.jobs import run_cli, scan_noise

STAGE = {"features": 4, "num_layers": 1, "num_epochs": 1, "patches_per_epoch": 16, "patch_size": 16}


@pytest.fixture
def job(tmp_path):
    save_image(scan_noise((2, 128, 128)), tmp_path / "in.ome.zarr", levels=1)
    return {
        "input": {"url": str(tmp_path / "in.ome.zarr")},
        "output": {"url": str(tmp_path / "run")},
        "run_stage2": False,
        "stage1": STAGE,
    }


def test_the_example_says_what_it_is():
    table = PriceTable.example()
    assert "example" in table.source
    assert "2025" in table.source
    assert table.currency == "USD"
    assert 0 < table.get_per_1000 < table.put_per_1000 < table.core_hour < table.gpu_hour


def test_a_table_of_ones_own_replaces_what_it_names(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text("core_hour: 0.5\ncurrency: EUR\n")
    table = PriceTable.load(path)
    example = PriceTable.example()
    assert (table.core_hour, table.currency) == (0.5, "EUR")
    assert table.gpu_hour == example.gpu_hour
    # Who reads the plan must see that these are not the example's prices alone.
    assert str(path) in table.source
    assert PriceTable.load({"core_hour": 0.5, "source": "our contract"}).source == "our contract"
    assert PriceTable.load(None) == example


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("core_hours: 1", "unknown price 'core_hours' at FILE; did you mean 'core_hour'?"),
        ("zzz: 1", "expected one of source, currency, get_per_1000"),
        ("core_hour: -1", "not a price at FILE, core_hour: got -1, expected 0 or more"),
        ("core_hour: .nan", "not a price"),
        ("core_hour: free", "not a price"),
        ("core_hour: true", "not a price"),
        ("currency: 3", "currency is a word or two"),
        ("- 1", "prices are a mapping at FILE: got list"),
        ("a: [", "the prices are not YAML"),
    ],
)
def test_a_wrong_table_is_refused_by_name(text, message, tmp_path, job):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        PriceTable.load(path)
    assert message.replace("FILE", str(path)) in str(error.value)
    with pytest.raises(ConfigError):
        plan(job, prices=path)
    with pytest.raises(ConfigError):
        run_pipeline({**job, "cost": {"prices": str(path), "max_cost": 5}})
    assert not (tmp_path / "run").exists()


def test_no_file_of_prices(tmp_path):
    with pytest.raises(ConfigError, match="no such file of prices"):
        PriceTable.load(tmp_path / "none.yaml")


def test_the_sum_is_what_a_person_would_reckon():
    prices = PriceTable(
        "by hand", "EUR", get_per_1000=1, head_per_1000=2, put_per_1000=4, list_per_1000=8,
        delete_per_1000=16, egress_per_gb=3, storage_per_gb_month=5, core_hour=7, gpu_hour=11,
    )  # fmt: skip
    asked = StepRequests(
        "inference",
        Requests(gets=1000, heads=500, bytes_read=2 * 10**9),
        Requests(puts=250, lists=125, deletes=1000, bytes_written=10**9, bytes_read=10**9),
    )
    how = {"stored_bytes": 10**9, "storage_months": 2, "input_is_charged": True, "output_is_charged": True}
    cost = cost_of([StepWork(asked, core_seconds=1800, gpu_seconds=7200)], prices, **how)
    (step,) = cost.steps
    assert step.requests_money == pytest.approx(1 + 1 + 1 + 1 + 16)
    assert step.egress_money == pytest.approx(9)
    assert step.compute_money == pytest.approx(3.5 + 22)
    assert cost.storage_money == pytest.approx(10)
    assert cost.money == pytest.approx(20 + 9 + 25.5 + 10)
    assert cost.largest() == ("GPU hours of inference", pytest.approx(25.5))
    half = cost_of([StepWork(asked)], prices, **{**how, "output_is_charged": False})
    assert half.money == pytest.approx(1 + 1 + 6)
    free = cost_of(
        [StepWork(asked)], prices, **{**how, "output_is_charged": False, "input_is_charged": False}
    )
    assert (free.money, free.is_free_to_ask) == (0, True)


def test_requests_add_and_multiply():
    one = Requests(gets=1, puts=2, bytes_read=3)
    assert one + one == 2 * one == one * 2
    assert (3 * one).total == 9


def test_a_plan_has_requests_and_cost_for_every_step(job):
    found = plan(job)
    names = [step.name for step in found.cost.steps]
    assert names == [
        "start",
        "periodic lines",
        "periodic lines, if found",
        "where to look for stage1",
        "index of stage1",
        "training of stage1",
        "inference",
        "report",
    ]
    assert found.requests == found.cost.requests
    assert found.requests.total > 100
    # All is on a disk: it is cores that cost.
    assert found.cost.is_free_to_ask
    assert found.cost.money == pytest.approx(found.cost.core_hours * PriceTable.example().core_hour)
    charged = plan({**job, "cost": {"charge_local": True}}).cost
    assert charged.money > found.cost.money
    assert charged.storage_money > 0
    told = charged.in_words().splitlines()
    assert told[0].split() == ["step", "requests", "read", "written", "core", "h", "USD"]
    assert told[-2].startswith("at most")
    assert "example" in told[-1]
    data = json.loads(json.dumps(found.to_json()))
    assert data["requests"]["gets"] == data["cost"]["requests"]["gets"] == found.requests.gets
    steps = data["cost"]["steps"]
    assert sum(step[place]["gets"] for step in steps for place in ("input", "output")) == found.requests.gets


def test_a_gpu_is_paid_by_its_own_hours(job):
    cpu, gpu = (plan({**job, "cost": {"processor": kind}}).cost for kind in ("cpu", "gpu"))
    assert cpu.gpu_hours == 0 < gpu.gpu_hours
    assert gpu.core_hours < cpu.core_hours
    slow = plan({**job, "cost": {"processor": "gpu", "gpu_voxels_per_second": 1e6}}).cost
    assert slow.gpu_hours == pytest.approx(20 * gpu.gpu_hours)


def test_workers_that_wait_are_paid_for(job):
    found = plan(job, workers=8)
    inference = next(step for step in found.cost.steps if step.name == "inference")
    assert inference.core_hours == pytest.approx(8 * found.projection.seconds / 3600)


def test_a_problem_leaves_no_price(tmp_path):
    found = plan({"input": str(tmp_path / "none.ome.zarr"), "output": str(tmp_path / "run")})
    assert found.problems
    assert found.cost is None
    assert found == Plan(problems=found.problems)


def test_a_job_beyond_its_limit_leaves_nothing_behind(job, tmp_path):
    costs, before = plan(job).cost.money, sorted(tmp_path.iterdir())
    for given in ({"max_cost": costs / 2}, {}):
        limited = job if given else {**job, "cost": {"max_cost": costs / 2}}
        with pytest.raises(BadRequest) as error:
            run_pipeline(limited, **given)
        text = str(error.value)
        assert f"got {costs:.4g} USD" in text
        assert f"expected at most {costs / 2:g} USD" in text
        assert "most of it core hours of" in text
        assert "\n" not in text
    (problem,) = plan(job, max_cost=costs / 2).problems
    assert problem == text
    assert sorted(tmp_path.iterdir()) == before
    # What is said on the command line counts, not what the file says.
    assert not plan({**job, "cost": {"max_cost": costs / 2}}, max_cost=2 * costs).problems


def test_the_limit_of_the_command_line(job, tmp_path):
    path, prices = tmp_path / "job.yaml", tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(job))
    prices.write_text("core_hour: 1000000\n")
    for verb in ("plan", "run"):
        done = run_cli(verb, str(path), "--prices", str(prices), "--max-cost", "1.5")
        assert done.returncode == 2, done.stderr
        assert "expected at most 1.5 USD" in done.stdout + done.stderr
        assert not (tmp_path / "run").exists()
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("get: 1\n")
    done = run_cli("plan", str(path), "--prices", str(wrong))
    assert done.returncode == 2
    assert "unknown price 'get'" in done.stderr
    done = run_cli("plan", str(path), "--prices", str(prices), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout.splitlines()[-1])["cost"]["prices"]["core_hour"] == 1e6


@pytest.mark.parametrize("place", ["s3://me:secret@bucket/metrics.prom", "nowhere/metrics.prom"])
def test_counters_go_to_this_machine(place, job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadRequest, match="metrics_file") as error:
        run_pipeline(job, metrics_file=place)
    assert "secret" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_prices_do_not_make_another_job(job, tmp_path):
    settings = {"prices": {"core_hour": 3}, "max_cost": 10, "currency": "EUR", "storage_months": 3}
    plain, priced = (check_job(JobConfig.load(j)) for j in (job, {**job, "cost": settings}))
    assert identity_of(plain) == identity_of(priced)
    assert plan({**job, "cost": settings}).cost.prices.currency == "EUR"
    with pytest.raises(ConfigError, match="max_cots"):
        JobConfig.load({**job, "cost": {"max_cots": 1}})


def test_prices_lie_beside_the_job_file(job, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "prices.yaml").write_text("source: mine\n")
    path = tmp_path / "mine" / "job.yaml"
    path.write_text(yaml.safe_dump({**job, "cost": {"prices": "prices.yaml"}}))
    assert plan(path).cost.prices.source == "mine"


@pytest.mark.parametrize(
    ("url", "is_charged"),
    [("s3://bucket/a", True), ("gs://b/a", True), ("https://host/a", True), ("/data/a", False), ("a", False),
     ("file:///data/a", False)],
)  # fmt: skip
def test_which_stores_charge(url, is_charged):
    assert locations.is_remote(url) == is_charged
