"""The dataset on disk: parts, plan and manifest, written so that what is visible is complete.

Knows pyarrow; knows no torch but for `to_torch`.
"""
