"""PACIFIC: conversational questions about finance tables (Deng et al., 2022)."""
