"""The workloads: each module has `cases(quick) -> list[Case]`."""
