"""Many idempotent blocks on Dask: clusters, the ledger and the runner."""
