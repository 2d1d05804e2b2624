"""Pure decisions: options, geometry, the plan. No torch, no Ray, no Parquet, no IO."""
