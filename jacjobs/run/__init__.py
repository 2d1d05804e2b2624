"""A plan being carried out: the ledger decides, an executor acts, workers compute, assemblers write."""
