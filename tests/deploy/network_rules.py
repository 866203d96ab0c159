"""Which pod may talk to which, by NetworkPolicies: the API's rules, for what our policies use."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any


@dataclass(frozen=True)
class Pod:
    """What a policy sees of a pod."""

    labels: dict[str, str]
    namespace: str = "denoizarr"


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Tell whether a label selector holds."""
    for one in selector.get("matchExpressions", ()):
        assert one["operator"] == "In"
        if labels.get(one["key"]) not in one["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def names(peer: dict[str, Any], other: Pod | str) -> bool:
    """Tell whether a peer of a rule is a pod, or an address outside the cluster."""
    if isinstance(other, str):
        block = peer.get("ipBlock")
        return (
            block is not None
            and ip_address(other) in ip_network(block["cidr"])
            and not any(ip_address(other) in ip_network(one) for one in block.get("except", ()))
        )
    if "ipBlock" in peer:
        return False  # whether pods' addresses fall under it differs from network to network
    if "namespaceSelector" in peer:
        there = selects(peer["namespaceSelector"], {"kubernetes.io/metadata.name": other.namespace})
    else:
        there = other.namespace == "denoizarr"
    return there and selects(peer.get("podSelector", {}), other.labels)


def lets(policies: list[Any], way: str, pod: Pod, other: Pod | str, port: int) -> bool:
    """Tell whether the policies let a pod be talked to (Ingress) or talk (Egress)."""
    of_pod = [
        one["spec"]
        for one in policies
        if way in one["spec"]["policyTypes"] and selects(one["spec"]["podSelector"], pod.labels)
    ]
    if pod.namespace != "denoizarr" or not of_pod:
        return True  # a pod that no policy selects is open
    side = "from" if way == "Ingress" else "to"
    return any(
        any(names(peer, other) for peer in rule[side])
        and any(one["port"] <= port <= one.get("endPort", one["port"]) for one in rule["ports"])
        for spec in of_pod
        for rule in spec.get(way.lower(), ())
    )


def may_talk(policies: list[Any], source: Pod | str, target: Pod | str, port: int) -> bool:
    """Tell whether the policies of our namespace let a connection through.

    Parameters
    ----------
    policies : list of dict
    source, target : Pod or str
        A str is an address outside the cluster.
    port : int
        Of the target.
    """
    leaves = isinstance(source, str) or lets(policies, "Egress", source, target, port)
    enters = isinstance(target, str) or lets(policies, "Ingress", target, source, port)
    return leaves and enters
