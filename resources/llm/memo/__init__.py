"""The memo of LLM answers: each is on disk before it is used, and none is paid twice (docs/llm-calls.md)."""
