"""Abg-CoQA: ambiguous questions about stories (Guo et al., 2021)."""
