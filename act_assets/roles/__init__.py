"""The LLM roles of the method: generator M, annotator G, classifier A, simulator U and the intents.

Each role turns typed records into requests and texts back into results; one result per item, in
order, where a failed item is an `LLMFailure` and never a text.
"""

from __future__ import annotations

from act_assets.roles.annotator import Annotator as Annotator
from act_assets.roles.annotator import GoldAnnotator as GoldAnnotator
from act_assets.roles.annotator import RuleAnnotator as RuleAnnotator
from act_assets.roles.classifier import Classifier as Classifier
from act_assets.roles.classifier import RuleClassifier as RuleClassifier
from act_assets.roles.embedded import EmbeddedProvider as EmbeddedProvider
from act_assets.roles.generator import Generator as Generator
from act_assets.roles.intent import IntentSummarizer as IntentSummarizer
from act_assets.roles.simulator import GoldUser as GoldUser
from act_assets.roles.simulator import Simulator as Simulator
