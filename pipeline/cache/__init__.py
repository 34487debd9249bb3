"""The cache, a Zarr v3 store with a group per category: made, updated, read, summarised and verified."""
