"""The model card: what the hub reads, what people read, and nothing of the machine it was written on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from act_assets.evaluation.evaluate import EvaluationReport, Metric
from act_assets.release.model_card import BaseModel, ModelCard, TrainingData, card_text, front_matter, without_paths

REPORT = EvaluationReport(
    method="act",
    task="pacific",
    train_size=50,
    seed=3,
    profile="paper",
    policy="/home/someone/weights",
    simulator="openai (/srv/models/user)",
    classifier="rule",
    judge="DROP F1",
    side="validation",
    action_supervision="gold",
    actions=("CLARIFY", "ANSWER"),
    confusion=((1, 2), (3, 4)),
    metrics=(
        Metric("accuracy", 0.75, 188),
        Metric("macro F1", 0.46286, 188, 0.4525, 0.4737),
        Metric("post-clarification official", None, 0),
    ),
    breakdown=(),
    notes=("188 turns of 27 conversations",),
)
CARD = ModelCard(
    task="pacific",
    actions=("CLARIFY", "ANSWER"),
    method="act",
    adapter=False,
    train_size=50,
    seed=3,
    profile="paper",
    profile_digest="d" * 64,
    identity="1" * 64,
    content="2" * 64,
    created_at="2026-01-02T03:04:05Z",
    made_from={"sft_checkpoint": "3" * 64},
    base=BaseModel("org/base", "org/base", "c" * 40, "mit"),
    data=TrainingData("PACIFIC", "github.com/x/PACIFIC, commit 66a5", False, "MIT", "Deng et al., EMNLP 2022"),
    training=(("ACT epochs", "12"), ("a | b", "1\n2")),
    evaluation=REPORT,
    system_message='Say "hello".\n[data]\n',
    max_new_tokens=48,
    temperature=0.0,
)


def section(card: ModelCard, name: str) -> str:
    return card_text(card).split(f"\n## {name}\n\n")[1].split("\n\n## ")[0]


def test_the_hub_reads_base_licence_task_and_figures() -> None:
    from huggingface_hub import ModelCard as HubCard

    data = HubCard(card_text(CARD)).data
    assert (data.base_model, data.license, data.pipeline_tag) == ("org/base", "mit", "text-generation")
    assert (data.library_name, data.language, data.tags[-2:]) == ("transformers", ["en"], ["act", "pacific"])
    figures = [
        (r.dataset_type, r.dataset_split, r.metric_type, r.metric_name, r.metric_value) for r in data.eval_results
    ]
    assert figures == [
        ("pacific", "validation", "accuracy", "accuracy", 0.75),
        ("pacific", "validation", "f1", "macro F1", 0.4629),
    ]


@pytest.mark.parametrize(
    ("base", "data", "license", "name"),
    [
        ("Apache-2.0", "MIT", "apache-2.0", None),
        ("apache-2.0", "MIT", "apache-2.0", None),
        ("llama3.1", "MIT", "llama3.1", None),
        ("Apache-2.0", "CC BY-SA 4.0", "other", "apache-2.0-and-cc-by-sa-4.0"),
        ("cc-by-sa-4.0", "CC BY-SA 4.0", "cc-by-sa-4.0", None),
        (None, "MIT", "other", "unknown-and-mit"),
        ("other (Some Licence)", None, "other", "other-some-licence--and-unknown"),
    ],
)
def test_the_licence_follows_base_model_and_data(
    base: str | None, data: str | None, license: str, name: str | None
) -> None:
    card = replace(CARD, base=replace(CARD.base, licence=base), data=replace(CARD.data, licence=data))
    meta = front_matter(card)
    assert (meta["license"], meta.get("license_name")) == (license, name)
    said = section(card, "Licence")
    assert f"base model (org/base): {base or 'other: see the base model'}\n" in said
    assert f"training data (PACIFIC): {data or 'not known'}" in said
    assert ("Read the licence of the data" in said) == (data != "MIT")


def test_figures_stand_with_their_interval_and_number_of_examples() -> None:
    said = section(CARD, "Metrics")
    assert "| macro F1 | 0.463 [0.453, 0.474] | 188 |" in said
    assert "| post-clarification official | – | 0 |" in said
    assert "- 188 turns of 27 conversations" in said
    assert "the validation side of PACIFIC, with a simulated user, and not by people" in section(CARD, "Limits")


def test_without_an_evaluation_no_figure_is_named() -> None:
    card = replace(CARD, evaluation=None)
    assert "model-index" not in front_matter(card)
    assert section(card, "Metrics") == "This checkpoint has no evaluation that is up to date."
    assert "evaluated on nothing" in section(card, "Limits")
    assert "figures above" not in section(card, "Use")


def test_where_it_comes_from_is_said_in_full() -> None:
    text = card_text(CARD)
    assert f"- base model: [org/base](https://huggingface.co/org/base), commit `{'c' * 40}`" in text
    assert f"| artifact identity | `{'1' * 64}` |" in text
    assert f"| profile | paper, settings `{'d' * 64}` |" in text
    assert f"| made from sft_checkpoint | `{'3' * 16}` |" in text
    assert "not verified to be the official files" in section(CARD, "Data")
    assert "verified by their git ids" in section(replace(CARD, data=replace(CARD.data, official=True)), "Data")


def test_a_cell_stays_one_cell() -> None:
    assert "| a \\| b | 1 2 |" in section(CARD, "Training")


def test_the_python_of_the_card_is_python() -> None:
    code = section(CARD, "Use").split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert '"content": "Say \\"hello\\".\\n[data]\\n"' in code


@pytest.mark.parametrize(
    ("temperature", "said", "option"), [(0.0, "greedily", True), (0.7, "at temperature 0.7", False)]
)
def test_it_says_how_vllm_decodes_as_in_the_evaluation(temperature: float, said: str, option: bool) -> None:
    use = section(replace(CARD, temperature=temperature, repository="user/name"), "Use")
    assert f"as in the evaluation: {said}, at most 48 new tokens" in use
    assert "vllm serve user/name" in use
    assert ("--override-generation-config '{\"temperature\": 0.0}'" in use) == option


def test_an_adapter_says_that_its_base_is_the_sft_checkpoint() -> None:
    card = replace(CARD, adapter=True, repository="user/name")
    meta = front_matter(card)
    assert (meta["library_name"], meta["base_model_relation"]) == ("peft", "adapter")
    assert "its base is the SFT checkpoint of the same run" in card_text(card)
    code = section(card, "Use").split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'from_pretrained("SFT"), "user/name")' in code


def test_no_folder_of_this_machine_is_named() -> None:
    text = card_text(replace(CARD, evaluation=replace(REPORT, judge="/opt/embedder (weights 12)")))
    assert "/home" not in text
    assert "/srv" not in text
    assert "/opt" not in text
    assert "embedder (weights 12)" in text
    assert "openai (user)" in text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("openai (/srv/models/user)", "openai (user)"),
        ("~/models/x and /y", "x and y"),
        ("org/name at https://host:8000/v1/x, 3 / 4", "org/name at https://host:8000/v1/x, 3 / 4"),
        ("a/b/c ./d ../e/f", "a/b/c ./d ../e/f"),
    ],
)
def test_paths_are_cut_and_nothing_else(text: str, plain: str) -> None:
    assert without_paths(text) == plain


def test_a_language_that_is_not_known_is_not_claimed() -> None:
    assert "language" not in front_matter(replace(CARD, language=None))
