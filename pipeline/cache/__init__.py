"""The cache: a Zarr v3 store with one group per category. `cache` opens it and reads and writes its categories."""
