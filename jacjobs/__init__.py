"""Large Jacobians as batch jobs."""
