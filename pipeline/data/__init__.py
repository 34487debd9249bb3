"""Images on a disk or in an object store: data sets, their layouts, and how a file becomes pixels."""
