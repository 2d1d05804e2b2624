"""Runs on a cluster that is reached by Ray's Jobs API, over HTTP: what travels there, what is asked of it."""
