"""Programs as jaxprs: the primitives `sample`, `lanes` and `composite`, sites, keys, evaluation, staging."""
