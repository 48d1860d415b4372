"""The whole graph without Dagster: stages, what they compute, plans and checks."""
