"""Tasks and where they run: threads, processes, or a Dask cluster."""
