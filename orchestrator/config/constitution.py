"""Constitution as a file: principles by which a model criticises and revises its answers (arXiv 2212.08073).

principles:
  - name: honest
    critique: Identify claims in your answer that you cannot know to be true.
    revision: Rewrite your answer so that it claims only what you know.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from orchestrator.config.conflicts import Conflict, ConflictsError
from orchestrator.config.document import Document, read_document
from orchestrator.config.explain import explain
from orchestrator.config.recipe import reading_order
from orchestrator.data.sources import local
from orchestrator.errors import BadInput, Problems
from workers.config import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
FIELD = re.compile(r"\{(\w*)\}")
OF_A_CRITIQUE = ("prompt", "answer", "critique_request")
OF_A_REVISION = (*OF_A_CRITIQUE, "critique", "revision_request")
CRITIQUE = "{prompt}\n\n{answer}\n\nCritique request: {critique_request}\n\nCritique:"
REVISION = CRITIQUE + " {critique}\n\nRevision request: {revision_request}\n\nRevision:"


def _check_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError("write 1 to 64 letters, digits, - and _")
    return text


def _check_request(text: str) -> str:
    if not text.strip():
        raise ValueError("write what the model is asked to do")
    return text


def _check_critique(text: str) -> str:
    return _check_template(text, OF_A_CRITIQUE, OF_A_CRITIQUE)


def _check_revision(text: str) -> str:
    return _check_template(text, OF_A_REVISION, ("prompt", "answer", "critique", "revision_request"))


def _check_template(text: str, known: tuple[str, ...], needed: tuple[str, ...]) -> str:
    found = FIELD.findall(text)
    if unknown := [name for name in found if name not in known]:
        names = ", ".join(f"{{{name}}}" for name in known)
        raise ValueError(f"remove {{{unknown[0]}}}: the placeholders are {names}")
    if absent := [name for name in needed if name not in found]:
        raise ValueError(f"add {', '.join(f'{{{name}}}' for name in absent)}, without which the model would not see it")
    return text


Request = Annotated[str, AfterValidator(_check_request)]


class PrincipleConfig(Settings):
    """A principle: what the model looks for in its answer, and how it then rewrites it."""

    name: Annotated[str, AfterValidator(_check_name)]  # name of the principle in the rows
    critique: Request  # request for a critique of the answer
    revision: Request  # request for a revision of the answer, after the critique


class TemplatesConfig(Settings):
    """Prompts of models without a chat template. Conversations get the requests as messages instead."""

    # prompt of a critique, with {prompt}, {answer} and {critique_request}
    critique: Annotated[str, AfterValidator(_check_critique)] = CRITIQUE
    # prompt of a revision, with {prompt}, {answer}, {critique} and {revision_request}, and {critique_request} if wanted
    revision: Annotated[str, AfterValidator(_check_revision)] = REVISION


class ConstitutionConfig(Settings):
    """Principles, and the templates that put their requests to models without a chat template."""

    principles: Annotated[tuple[PrincipleConfig, ...], Field(min_length=1)]  # one is drawn for each answer, at random
    templates: TemplatesConfig = TemplatesConfig()  # prompts of models without a chat template

    @model_validator(mode="after")
    def one_principle_of_a_name(self) -> Self:
        names = [principle.name for principle in self.principles]
        if repeated := [i for i, name in enumerate(names) if name in names[:i]]:
            why = "an earlier principle has this name, and rows name their principle"
            keys = [f"principles.{i}.name" for i in repeated]
            raise ConflictsError([Conflict(keys=(key,), why=why, fix="give each its own name") for key in keys])
        return self

    def principle(self, name: object) -> PrincipleConfig | None:
        """Return the principle of this name; None: there is none."""
        return next((principle for principle in self.principles if principle.name == name), None)


def read_constitution(path: str) -> ConstitutionConfig:
    """Read a constitution.

    Raises:
        BadInput: with all problems of the file.
    """
    problems = Problems()
    if not local(path).is_file():
        fix = "check the path, which is relative to the working directory; configs/constitution.yaml is an example"
        problems.add("no such file", where=f"algorithm.constitution = {path}", fix=fix)
        raise BadInput(problems)
    document = read_document(local(path), problems)
    if document is not None and not isinstance(document.data, dict):
        fix = "write `principles:`, as configs/constitution.yaml does"
        problems.add("not a constitution", where=path, why="a constitution is a mapping of keys", fix=fix)
        document = None
    config = None if document is None else _validated(document, problems)
    problems.sort(key=reading_order)
    problems.raise_if_any()
    assert config is not None
    return config


def _validated(document: Document, problems: Problems) -> ConstitutionConfig | None:
    try:
        return ConstitutionConfig.model_validate_json(json.dumps(document.data))  # JSON: lists stand for tuples
    except ValidationError as error:
        explain(error, document, problems, ConstitutionConfig)
        return None


def filled(template: str, **fields: str) -> str:
    """Return a template with its fields filled in. What stands in braces within a field stays as it is.

    >>> filled("{prompt}{answer}", prompt="2+2=", answer="{prompt}")
    '2+2={prompt}'
    """
    return FIELD.sub(lambda found: fields[found[1]], template)
