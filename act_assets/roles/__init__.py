"""The LLM roles of the method: generator M, annotator G, classifier A, simulator U and the intents.

Each role turns typed records into requests and texts back into results; one result per item, in
order, where a failed item is an `LLMFailure` and never a text.
"""

from __future__ import annotations

from act_assets.roles.annotator import Annotator, GoldAnnotator, RuleAnnotator
from act_assets.roles.classifier import Classifier, RuleClassifier
from act_assets.roles.embedded import EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.roles.intent import IntentSummarizer
from act_assets.roles.simulator import GoldUser, Simulator

__all__ = [
    "Annotator",
    "Classifier",
    "EmbeddedProvider",
    "Generator",
    "GoldAnnotator",
    "GoldUser",
    "IntentSummarizer",
    "RuleAnnotator",
    "RuleClassifier",
    "Simulator",
]
