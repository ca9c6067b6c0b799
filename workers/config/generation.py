"""Settings of the method that trains nothing: it writes the samples of a model as a data set."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from workers.config.base import Count, PathText, Pattern, Settings, Share
from workers.config.method import Needs, Sampled
from workers.config.optimisation import Optimisation

Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]


class FiltersConfig(Settings):
    """Filters of single completions: one that fails a filter is dropped, with the name of the filter as the reason."""

    # smallest reward of a completion that is kept; None: no threshold
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    min_tokens: Count = 1  # smallest length in tokens, the end of sequence included
    max_tokens: Count | None = None  # greatest length in tokens; None: that of rollout.max_completion_length
    truncated: Literal["drop", "keep"] = "drop"  # treatment of completions without an end of sequence
    # greatest share of a completion's tokens in a block that is repeated at its end; None: no limit
    max_repetition: Share | None = 0.5
    # languages that a completion may be in, as ISO 639-1 codes, by a classifier of text; empty: any
    languages: tuple[Language, ...] = ()
    pattern: Pattern | None = None  # regular expression that must occur in the completion; None: no format is asked for


class DeduplicationConfig(Settings):
    """Removal of duplicates, and of text of evaluations. The first row in the order of the prompts stays."""

    # treatment of equal completions of one prompt, white space aside
    exact: Literal["drop", "keep"] = "drop"
    # Jaccard similarity of word 5-grams from which two completions are near duplicates, also of different prompts, as
    # estimated by MinHash; None: near duplicates are kept. Completions of fewer than 5 words are never near duplicates,
    # and critiques neither
    near: Annotated[float, Field(ge=0.5, le=1)] | None = 0.9
    # number of successive words that no row may share with a prompt of data.eval_prompts, eval_harmful or eval_benign;
    # a shorter prompt must not be the prompt of a row
    ngram: Annotated[int, Field(ge=4, le=64)] = 13


class AbstentionConfig(Settings):
    """Pairs that teach a model to say that it does not know (arXiv 2312.07000): by how often its samples are right."""

    answer: Annotated[str, Field(min_length=1)] = "I don't know."  # answer of a model that does not know
    # smallest reward of a right completion
    right: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    # smallest share of right completions from which the model knows: a right one is preferred to the abstention
    known_from: Share = 0.75
    # greatest share of right completions up to which it does not know: the abstention is preferred to a wrong one
    unknown_up_to: Share = 0.0

    @model_validator(mode="after")
    def apart(self) -> Self:
        if self.unknown_up_to >= self.known_from:
            raise ValueError("a model is right more often where it knows: set unknown_up_to below known_from")
        return self


class GenerateConfig(Sampled):
    """A data set of the model's own samples: completions of each prompt, scored, filtered and without duplicates.

    Nothing is trained. A later stage reads the data set with `data.from_stage`.
    """

    needs: ClassVar[Needs] = Needs(row="completion", prompts=True, trains=False)
    implementation: ClassVar[str] = ""
    OF_FILTERING: ClassVar[tuple[str, ...]] = (
        "filters", "duplicates", "keep", "min_agreement", "per_prompt", "rows", "abstention",
    )  # fmt: skip
    """Settings that no sample depends on: only what is made of the samples."""

    type: Literal["generate"]  # samples as a data set, nothing is trained
    filters: FiltersConfig = FiltersConfig()  # filters of single completions
    duplicates: DeduplicationConfig = DeduplicationConfig()  # removal of duplicates and of evaluation text
    # completions of a prompt that may be kept; majority: those whose final answer is the most frequent one among the
    # completions of the prompt (arXiv 2203.11171), before any filter
    keep: Literal["all", "majority"] = "all"
    min_agreement: Share = 0.0  # smallest share of a prompt's completions that the majority must have
    # number of completions kept of each prompt, those with the highest rewards; None: all
    per_prompt: Count | None = None
    # form of a row; completion: one completion, for sft; ratings: all kept completions of a prompt with their rewards,
    # for dpo and reward_model; abstention: a completion and an abstention, for dpo; critique: a critique of an answer,
    # for a stage of revisions; revision: an answer revised after its critique, for sft, and beside it a pair with the
    # answer before, for dpo and reward_model
    rows: Literal["completion", "ratings", "abstention", "critique", "revision"] = "completion"
    # YAML file of the principles by which answers are criticised and revised, with rows critique and revision: for each
    # answer one of them, drawn at random (arXiv 2212.08073)
    constitution: PathText | None = None
    abstention: AbstentionConfig = AbstentionConfig()  # which of the two is preferred, with rows abstention

    @model_validator(mode="after")
    def nothing_is_trained(self) -> Self:
        for name, field in Optimisation.model_fields.items():
            if getattr(self, name) != field.default:
                raise ValueError(f"generate trains nothing and has no {name}: leave it out")
        return self

    @model_validator(mode="after")
    def rows_that_compare(self) -> Self:
        if self.rows != "abstention" and self.abstention != AbstentionConfig():
            raise ValueError("abstention is of rows that have one: set rows to abstention, or leave it out")
        if self.rows == "abstention" and (self.keep != "all" or self.per_prompt is not None):
            raise ValueError(
                "a row of an abstention is one per prompt, by all its completions: leave keep and per_prompt out"
            )
        if self.rows == "ratings" and (self.num_generations < 2 or self.per_prompt == 1):
            raise ValueError(
                "rows of ratings compare completions of a prompt: set num_generations, and per_prompt if it is given, "
                "to 2 or more"
            )
        if (self.constitution is not None) != (self.rows in ("critique", "revision")):
            raise ValueError(
                "critiques and revisions go by a constitution: set rows to critique or revision and constitution to "
                "the file of its principles, or leave constitution out"
            )
        if self.constitution is not None and self.keep != "all":
            raise ValueError("a critique or revision has no final answer to vote on: leave keep out")
        if self.min_agreement and self.keep != "majority":
            raise ValueError("min_agreement is the share of the majority: set keep to majority, or leave it out")
        return self
