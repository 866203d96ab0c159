"""What a cluster is to be: one object for all kinds, checked as a whole before anything is started."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from denoizarr.errors import BadRequest

from .cluster_addresses import check_address

Kind = Literal["local", "address", "slurm", "kubernetes"]
_KINDS = ("local", "address", "slurm", "kubernetes")
# Kinds that start workers somewhere else: how many there are to be has no natural answer.
_ELSEWHERE = ("slurm", "kubernetes")


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Where a private authority's certificate lies, one that it signed, and that one's key.

    Attributes
    ----------
    ca, certificate, key : str
        Paths of PEM files. Never their text: a job file is copied into the run folder.
    """

    ca: str
    certificate: str
    key: str

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            text = getattr(self, name)
            if not text or "\n" in text or "-----" in text:
                raise BadRequest(
                    "not a path",
                    where=f"cluster.tls.{name}",
                    got="text of another kind, which is not repeated here",
                    expected="the path of a PEM file",
                )


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    """How workers are asked of SLURM: each is one job.

    Attributes
    ----------
    queue, account : str, optional
        Partition, and who pays; by default the site's.
    walltime : str
        Of each worker's job, as SLURM reads it. Workers leave some minutes before, and others are asked for.
    cores : int
        Per worker; its memory is so many times the limit of one.
    gres : str, optional
        Such as ``gpu:1`` or ``gpu:a100:1``. One GPU a worker, which then declares it.
    directives : tuple of str
        More of ``#SBATCH``, such as ``--constraint=haswell``.
    interface : str, optional
        Network interface at which scheduler and workers listen, such as ``ib0``.
    prologue : tuple of str
        Shell lines before the worker starts. Not shown: people put secrets there, although they go into
        job scripts that others may read.
    local_directory : str, optional
        A fast disk of the node, for what Dask keeps while it works.
    log_directory : str, optional
        Of the jobs' outputs; by default where the job was started.
    shared_directory : str, optional
        Where workers find the certificate that is made for one run; by default the home folder.
    python : str, optional
        What starts Python on a node, such as ``apptainer exec --nv denoizarr.sif python``; by default this
        process's.
    wait_hours : float
        How long workers may wait in the queue while there are none.
    """

    queue: str | None = None
    account: str | None = None
    walltime: str = "01:00:00"
    cores: int = 1
    gres: str | None = None
    directives: tuple[str, ...] = ()
    interface: str | None = None
    prologue: tuple[str, ...] = field(default=(), repr=False)
    local_directory: str | None = None
    log_directory: str | None = None
    shared_directory: str | None = None
    python: str | None = None
    wait_hours: float = 24.0

    def __post_init__(self) -> None:
        walltime_seconds(self.walltime)
        if self.cores < 1:
            raise BadRequest(
                "a worker needs a core", where="cluster.slurm.cores", got=self.cores, expected="1 or more"
            )
        if self.gres is not None and not re.fullmatch(r"gpu(:[A-Za-z][\w.-]*)?(:1)?", self.gres):
            raise BadRequest(
                "a worker has one GPU",
                where="cluster.slurm.gres",
                got=repr(self.gres),
                expected="gpu:1 or gpu:TYPE:1",
                remedy="ask for more workers to have more GPUs",
            )


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """How workers are asked of the Dask operator of Kubernetes.

    Attributes
    ----------
    image : str
        With the same versions of everything as this process.
    namespace : str, optional
    cores : int
        Per worker; its memory is so many times the limit of one.
    gpus : {0, 1}
        Per worker, as ``nvidia.com/gpu``.
    """

    image: str
    namespace: str | None = None
    cores: int = 1
    gpus: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Which cluster does the work.

    Attributes
    ----------
    kind : {"local", "address", "slurm", "kubernetes"}
        Processes on this machine, a scheduler that runs already, or workers that are asked of SLURM or of the
        Dask operator.
    workers : int or "auto"
        Of ``local``: processes of one thread each; "auto" is the number of cores. Where there are fewer
        batches than that, there are as few workers, with the threads and the memory of those that are not
        there; where a network runs on GPUs, one worker for each. Of ``slurm`` and ``kubernetes``: workers.
    memory_limit_bytes : int
        Per worker process and thread.
    address : str, optional
        Of the running scheduler.
    minimum, maximum : int, optional
        Instead of ``workers``: as many as there is work for, between these.
    tls : TLSFiles, optional
    insecure : bool
        Whether a scheduler may be reached from other machines without TLS. Whoever reaches one can run
        programs as its owner.
    slurm : SlurmSettings, optional
    kubernetes : KubernetesSettings, optional
    """

    kind: Kind = "local"
    workers: int | Literal["auto"] = "auto"
    memory_limit_bytes: int = 2 * 2**30
    address: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    tls: TLSFiles | None = None
    insecure: bool = False
    slurm: SlurmSettings | None = None
    kubernetes: KubernetesSettings | None = None

    @property
    def is_adaptive(self) -> bool:
        """Whether workers come and go with the work."""
        return self.maximum is not None

    @property
    def reads_images(self) -> bool:
        """Whether its workers also look at images before training: they run anyway, or leave after it.

        Jobs of a fixed number would be paid for through hours of training that they have no part in.
        """
        return self.kind == "address" or (self.kind in _ELSEWHERE and self.is_adaptive)

    def check(self) -> None:
        """Raise ``BadRequest`` where settings contradict each other or what is safe."""
        if self.kind not in _KINDS:
            raise BadRequest(
                "no such cluster", where="cluster.kind", got=repr(self.kind), expected=", ".join(_KINDS)
            )
        self._check_numbers()
        self._check_sections()
        if self.tls is not None and self.insecure:
            raise BadRequest(
                "insecure and tls contradict each other", where="cluster", remedy="leave one out"
            )
        if self.kind == "address":
            if not self.address:
                raise BadRequest(
                    "cluster kind address needs an address",
                    where="cluster.address",
                    expected="tls://host:port",
                )
            check_address(self.address, has_files=self.tls is not None, insecure=self.insecure)
        if self.kind == "kubernetes" and not self.insecure:
            raise BadRequest(
                "kind kubernetes has no TLS: dask-kubernetes speaks to its scheduler without",
                where="cluster",
                remedy="run the job as a DaskJob with TLS (deploy/kubernetes) and kind: address, or allow it "
                "with insecure: true behind a network policy",
            )

    def _check_numbers(self) -> None:
        if self.workers != "auto" and self.workers < 1:
            raise BadRequest(
                "a cluster needs a worker", where="cluster.workers", got=self.workers, expected="1 or more"
            )
        if (self.minimum is None) != (self.maximum is None):
            raise BadRequest("minimum and maximum go together", where="cluster")
        if self.minimum is not None and self.maximum is not None:
            if not 1 <= self.minimum <= self.maximum:
                raise BadRequest(
                    "not a range of workers",
                    where="cluster.minimum, cluster.maximum",
                    got=f"{self.minimum} to {self.maximum}",
                    expected="1 or more, in this order",
                )
            if self.workers != "auto":
                raise BadRequest("workers says how many, minimum and maximum too", where="cluster")
            if self.kind == "address":
                raise BadRequest("a scheduler that runs already has its own workers", where="cluster.maximum")
        elif self.kind in _ELSEWHERE and self.workers == "auto":
            raise BadRequest(
                f"kind {self.kind} needs to know how many workers",
                where="cluster.workers",
                expected="workers, or minimum and maximum",
            )

    def _check_sections(self) -> None:
        for name in ("address", *_ELSEWHERE):
            if getattr(self, name) is not None and self.kind != name:
                raise BadRequest(
                    f"kind: {name} and {name} go together", where="cluster", got=f"kind: {self.kind}"
                )
        if self.kind == "kubernetes" and self.kubernetes is None:
            raise BadRequest("kind kubernetes needs an image", where="cluster.kubernetes.image")
        if self.kind == "kubernetes" and self.tls is not None:
            raise BadRequest(
                "kind kubernetes has no TLS: dask-kubernetes speaks to its scheduler without",
                where="cluster.tls",
                remedy="run the job as a DaskJob with TLS (deploy/kubernetes) and kind: address",
            )


def cores_of(settings: ClusterSettings, here: int) -> int:
    """Return the cores that a cluster may come to have, where this machine has ``here``."""
    workers = settings.maximum or (here if settings.workers == "auto" else settings.workers)
    section = settings.slurm or settings.kubernetes
    return workers * (1 if section is None else section.cores)


def walltime_seconds(text: str) -> int:
    """Return the seconds of a time limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if match is None:
        raise BadRequest(
            "not a time limit",
            where="cluster.slurm.walltime",
            got=repr(text),
            expected='such as "04:00:00" or "1-12"',
        )
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    total = ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
    if total < 60:
        raise BadRequest(
            "too short a time limit",
            where="cluster.slurm.walltime",
            got=repr(text),
            expected="a minute or more",
        )
    return total
