"""One file a scheduler: what it reads, from job files. Nothing here is written or run."""
