"""Ray: everything that imports it, but for a dataset's way into Ray Data.

Ray's own retries stay off: the ledger decides what is done again, and a death keeps its reason. Block data
goes from worker to assembler through the object store; the coordinator only sees metadata.
"""
