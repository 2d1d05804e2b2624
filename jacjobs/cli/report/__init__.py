"""The page that `jacjobs report` writes: facts, from a run's folder alone, and their layout."""
