"""Pictures: of `tune`, `show` and `report`."""
