"""The rights that the documentation asks for are enough, and none of them is too many."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from denoizarr.errors import PermissionDenied
from denoizarr.images.save import save_image
from denoizarr.inference.predict import predict
from denoizarr.stores import backends
from denoizarr.stores.images import open_image
from tests.end_to_end.predictions import OPTIONS, Case

PAGE = Path(__file__).parents[2] / "docs" / "object-stores.md"
POLICY = re.search(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


@pytest.mark.parametrize(
    "without", [None, "s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
)
def test_a_job_needs_these_rights(case, guarded_s3, monkeypatch, without):
    bucket = guarded_s3.make_bucket()
    assert POLICY is not None
    policy = json.loads(POLICY[1].replace("BUCKET", bucket.name))
    for statement in policy["Statement"]:
        statement["Action"] = [action for action in statement["Action"] if action != without]
    policy["Statement"] = [statement for statement in policy["Statement"] if statement["Action"]]
    for name, value in guarded_s3.environment().items():
        monkeypatch.setenv(name, value)
    save_image(open_image(case.source), f"{bucket.url}/in.zarr", levels=1)
    user = guarded_s3.with_policy(policy)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    for name, value in user.environment().items():
        monkeypatch.setenv(name, value)
    backends.open_store.cache_clear()

    def work() -> None:
        destination = f"{bucket.url}/out.zarr"
        predict(case.model, f"{bucket.url}/in.zarr", destination, progress=False, **OPTIONS)
        predict(case.model, f"{bucket.url}/in.zarr", destination, progress=False, overwrite=True, **OPTIONS)

    if without is None:
        work()
        return
    with pytest.raises(PermissionDenied):
        work()
