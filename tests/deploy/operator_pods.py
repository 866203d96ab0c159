"""What the Dask operator makes of our manifests: its own functions, without a cluster."""

from __future__ import annotations

import copy
from typing import Any

NAMESPACE = "denoizarr"
Made = dict[str, Any]


def made_by_operator(job: Made, groups: tuple[Made, ...] = ()) -> dict[str, Made]:
    """Return the objects that the operator creates for a DaskJob, and for more worker groups of its cluster.

    Labels go the operator's way: from the job to the cluster, from there to its scheduler and worker group,
    and from a group to its workers.
    """
    from dask_kubernetes.operator.controller import controller

    name, labels = job["metadata"]["name"], job["metadata"].get("labels", {})
    asked = job["spec"]["cluster"]["spec"]
    cluster = controller.build_cluster_spec(name, asked["worker"], asked["scheduler"], {}, labels)
    given, labels_of_cluster = cluster["spec"], cluster["metadata"]["labels"]
    first = controller.build_default_worker_group_spec(name, given["worker"], {}, labels_of_cluster)
    found = {
        "scheduler": controller.build_scheduler_deployment_spec(
            name, given["scheduler"]["spec"], {}, labels_of_cluster
        ),
        "service": controller.build_scheduler_service_spec(
            name, given["scheduler"]["service"], {}, labels_of_cluster
        ),
        "driver": controller.build_job_pod_spec(
            name, name, NAMESPACE, job["spec"]["job"]["spec"], {}, labels
        ),
    }
    for number, group in enumerate((first, *groups)):
        found["worker" if number == 0 else f"worker-{number}"] = controller.build_worker_deployment_spec(
            group["metadata"]["name"],
            NAMESPACE,
            group["spec"]["cluster"],
            "0123456789",
            group["spec"]["worker"]["spec"],
            {},
            group["metadata"].get("labels", {}),
        )
    return copy.deepcopy(found)


def pod_of(made: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return labels and spec of the pods of a Deployment, or of a Pod."""
    holder = made["spec"]["template"] if made["kind"] == "Deployment" else made
    return holder["metadata"]["labels"], holder["spec"]
