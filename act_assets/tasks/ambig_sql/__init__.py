"""AmbigSQL: ambiguous requests for SQL, made from Spider (appendix C)."""
