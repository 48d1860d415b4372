"""The LLM roles of the method: generator M, annotator G, classifier A, intent summariser and simulator U.

Each role turns typed records into requests and texts back into results; one result per item, in order, where a
failed item is an `LLMFailure` and never a text.
"""

from __future__ import annotations

from act_assets.roles.annotator import Annotator
from act_assets.roles.classifier import Classifier
from act_assets.roles.embedded import EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.roles.intent import IntentSummarizer
from act_assets.roles.role import (
    PromptTemplate,
    RoleResult,
    RoleSettings,
    load_template,
    prompt_hash,
    require_all,
)
from act_assets.roles.simulator import GoldUser, Simulator

__all__ = [
    "Annotator",
    "Classifier",
    "EmbeddedProvider",
    "Generator",
    "GoldUser",
    "IntentSummarizer",
    "PromptTemplate",
    "RoleResult",
    "RoleSettings",
    "Simulator",
    "load_template",
    "prompt_hash",
    "require_all",
]
