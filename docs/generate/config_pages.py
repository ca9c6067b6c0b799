"""Configuration reference: pages with one table for each settings class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from links import anchor
from settings import Setting, SettingsClass, first_sentence, settings_of

from orchestrator.compare.recipe import CompareConfig
from orchestrator.config import RunConfig
from orchestrator.config.alarms import AlarmsConfig
from orchestrator.config.constitution import ConstitutionConfig
from orchestrator.evaluation.suite import SuiteConfig
from workers.config import AlgorithmConfig, Optimisation, RewardConfig


def _members(union: Any) -> tuple[SettingsClass, ...]:
    """Return the classes of an annotated union."""
    return get_args(get_args(union)[0])


ALGORITHMS, REWARDS = _members(AlgorithmConfig), _members(RewardConfig)
ELSEWHERE: Mapping[SettingsClass, str] = {
    AlarmsConfig: "alarms.md",
    **dict.fromkeys(ALGORITHMS, "algorithms.md"),
    **dict.fromkeys(REWARDS, "rewards.md"),
}
"""Page of the classes that have a page of their own."""

FILLED_IN: Mapping[tuple[SettingsClass, str], str] = {(RunConfig, "name"): "made from the recipe"}
"""Defaults of required settings that the reader of recipes fills in."""

HEAD = "| key | type | default | unit | meaning |\n|---|---|---|---|---|"
WRITTEN = "Generated from the settings classes; the meaning of a setting is the comment on its field."


def pages() -> dict[str, str]:
    """Return the text of every page by its path below `docs/`."""
    return {
        "reference/recipe.md": recipe_page(),
        "reference/algorithms.md": algorithms_page(),
        "reference/rewards.md": rewards_page(),
        "reference/alarms.md": alarms_page(),
        "reference/suite.md": suite_page(),
        "reference/comparison.md": comparison_page(),
        "reference/constitution.md": constitution_page(),
    }


def recipe_page() -> str:
    return _page(
        "Recipe reference",
        "Every setting of a run. A recipe is a YAML file with these keys, or a list of runs under `stages:`. On the "
        "command line, write `key=value` with the full key, such as `rollout.temperature=0.7`. "
        "`rlhf run RECIPE --dry-run` prints the values of a recipe. For editors there is a "
        "[JSON schema](recipe.schema.json). How to write recipes: [recipes](../recipes.md).",
        _sections(RunConfig, "Run", ""),
    )


def algorithms_page() -> str:
    return _page(
        "Algorithm reference",
        "Settings of the section `algorithm` of a recipe; `type` selects the method. The settings of the optimiser are "
        "common to all. Which method to use when: [methods](../methods.md).",
        [
            Section("All methods: optimiser", "algorithm", Optimisation, settings_of(Optimisation)),
            *(section for cls in ALGORITHMS for section in _method(cls)),
        ],
    )


def rewards_page() -> str:
    return _page(
        "Reward reference",
        "Entries of the list `reward` of a recipe or a suite; `type` selects the scorer. How they score: "
        "[rewards](../rewards.md).",
        [Section(f"`type: {_type(cls)}`", "reward[]", cls, settings_of(cls)) for cls in REWARDS],
    )


def alarms_page() -> str:
    return _page(
        "Alarm reference",
        "Settings of the section `alarms` of a recipe. `alarms.NAME: null` switches an alarm off. When each alarm "
        "fires: [alarms](../alarms.md).",
        _sections(AlarmsConfig, "All alarms", "alarms"),
    )


def suite_page() -> str:
    return _page(
        "Suite reference",
        "Every key of an evaluation suite, for `rlhf evaluate --suite` and `rlhf rank`. How to evaluate: "
        "[evaluation](../evaluation.md).",
        _sections(SuiteConfig, "Suite", ""),
    )


def comparison_page() -> str:
    return _page(
        "Comparison reference",
        "Every key of a comparison file, for `rlhf compare`. How methods are compared: [compare](../compare.md).",
        _sections(CompareConfig, "Comparison", ""),
    )


def constitution_page() -> str:
    return _page(
        "Constitution reference",
        "Every key of a constitution, the file that `algorithm.constitution` names. How a model criticises and revises "
        "its answers: [constitution](../constitution.md).",
        _sections(ConstitutionConfig, "Constitution", ""),
    )


# --------------------------------------------------------------------------------------------- sections


@dataclass(frozen=True, kw_only=False, slots=True)
class Section:
    """One table. Example: `Section("cluster", "cluster", ClusterConfig, [...])`."""

    title: str
    prefix: str  # of the keys; empty: top level
    cls: SettingsClass
    settings: Sequence[Setting]


def _sections(cls: SettingsClass, title: str, prefix: str) -> Iterator[Section]:
    """Yield the table of a class, then those of the classes of its settings that have no page of their own."""
    settings = settings_of(cls)
    yield Section(title, prefix, cls, settings)
    for setting in settings:
        for nested in setting.nested:
            if nested not in ELSEWHERE:
                key = _key(prefix, setting)
                yield from _sections(nested, f"`{key}`", key)


def _method(cls: SettingsClass) -> Iterator[Section]:
    """Yield the settings of a method that the optimiser's table does not have, and their nested ones."""
    common = {setting.name: setting for setting in settings_of(Optimisation)}
    own = [s for s in settings_of(cls) if common.get(s.name) != s]
    own.sort(key=lambda setting: setting.name != "type")
    yield Section(f"`type: {_type(cls)}`", "algorithm", cls, own)
    for setting in own:
        for nested in setting.nested:
            yield from _sections(nested, f"`algorithm.{setting.name}`", f"algorithm.{setting.name}")


def _type(cls: SettingsClass) -> str:
    name: str = get_args(cls.model_fields["type"].annotation)[0]
    return name


def _key(prefix: str, setting: Setting) -> str:
    listed = "[]" if setting.type.startswith("list of mapping") else ""
    return ".".join(filter(None, [prefix, setting.name])) + listed


# ------------------------------------------------------------------------------------------------- text


def _page(title: str, lead: str, sections: Iterator[Section] | Sequence[Section]) -> str:
    return "\n\n".join([f"# {title}", lead, WRITTEN, *map(_text, sections)]) + "\n"


def _text(section: Section) -> str:
    rows = "\n".join(_row(section, setting) for setting in section.settings)
    return f"## {section.title}\n\n{_cell(first_sentence(section.cls))}\n\n{HEAD}\n{rows}"


def _row(section: Section, setting: Setting) -> str:
    key = ".".join(filter(None, [section.prefix, setting.name]))
    default = FILLED_IN.get((section.cls, setting.name), "required") if setting.required else _code(setting.default)
    cells = [_code(key), _type_cell(section.prefix, setting), default, setting.unit, _cell(setting.meaning)]
    return f"| {' | '.join(cells)} |"


def _type_cell(prefix: str, setting: Setting) -> str:
    """Return the type; where it is a settings class, with a link to its table."""
    text = _cell(setting.type)
    if not setting.nested:
        return text
    pages = {ELSEWHERE[cls] for cls in setting.nested if cls in ELSEWHERE}
    if len(pages) == 1 and len(setting.nested) == sum(cls in ELSEWHERE for cls in setting.nested):
        return f"[{text}]({pages.pop()})"
    return f"[{text}](#{anchor(f'`{_key(prefix, setting)}`')})"


def _code(text: str) -> str:
    return f"`{text}`" if text else '`""`'


def _cell(text: str) -> str:
    """Return a text that does not end its cell, with `null` for Python's None."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("None", "null")
