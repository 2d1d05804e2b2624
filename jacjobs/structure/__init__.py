"""Sparse Jacobians: which entries can be other than zero, and how few products make them all."""
