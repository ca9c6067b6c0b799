"""Valid data: detection of TRL's formats, and the order of rows in batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_dir import RecipeDir

from orchestrator.data import batch_indices, read_examples, read_prompts
from orchestrator.data.batches import cut_batches, shuffled
from orchestrator.data.formats import COLUMNS, Format, common_length, detect
from orchestrator.data.remarks import count_labels, remarks
from orchestrator.data.sources import is_hub_name
from orchestrator.errors import BadInput
from workers.config import KtoConfig, SftConfig
from workers.types import Example, Prompt


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def read(recipe_dir: RecipeDir) -> Any:
    def read(algorithm: str, *rows: object) -> tuple[Example, ...]:
        recipe_dir.jsonl("data.jsonl", list(rows))
        return read_examples("./data.jsonl", algorithm=algorithm)

    return read


def test_prompts_keep_their_columns_and_lines(recipe_dir: RecipeDir) -> None:
    text = '{"prompt": "1+1=", "solution": "2", "level": 3}\r\n\n{"prompt": "ü", "solution": null}\n'
    (recipe_dir.path / "p.jsonl").write_bytes(text.encode())
    assert read_prompts("p.jsonl") == (
        Prompt(id="p.jsonl:1", text="1+1=", columns={"solution": "2", "level": 3}),
        Prompt(id="p.jsonl:3", text="ü", columns={"solution": None}),
    )
    assert len(read_prompts("p.jsonl", max_rows=1)) == 1


def test_the_last_line_may_lack_its_end(recipe_dir: RecipeDir) -> None:
    (recipe_dir.path / "p.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}')
    assert [prompt.text for prompt in read_prompts("p.jsonl")] == ["a", "b"]


def test_preferences(read: Any) -> None:
    row = {"prompt": "1+1=", "chosen": "2", "rejected": "3", "source": "x"}
    (example,) = read("dpo", row)
    assert example == Example(
        prompt=Prompt(id="data.jsonl:1", text="1+1=", columns={"source": "x"}),
        completions=("2", "3"),
        scores=(1.0, 0.0),
    )
    assert read("dpo", {**row, "margin": 2.5})[0].scores == (2.5, 0.0)
    assert read("reward_model", row) == (example,)


def test_ratings_are_scores_best_first(read: Any) -> None:
    row = {"prompt": "1+1=", "completions": ["3", "2", "two", "4"], "ratings": [1, 5, 4.5, 1], "source": "x"}
    assert read("dpo", row) == (
        Example(
            prompt=Prompt(id="data.jsonl:1", text="1+1=", columns={"source": "x"}),
            completions=("2", "two", "3", "4"),
            scores=(5.0, 4.5, 1.0, 1.0),
        ),
    )


def test_of_ranks_the_first_is_the_best(read: Any) -> None:
    chat = {"prompt": [user("1+1=")], "completions": [[assistant("3")], [assistant("2")]], "ranks": [2, 1]}
    (example,) = read("dpo", chat)
    assert (example.completions, example.scores) == (([assistant("2")], [assistant("3")]), (-1.0, -2.0))


def test_some_rows_may_rate_all_alike(read: Any) -> None:
    row = {"prompt": "1+1=", "completions": ["2", "3"], "ratings": [2, 2]}
    assert [e.scores for e in read("dpo", row, {**row, "ratings": [1, 2]})] == [(2.0, 2.0), (2.0, 1.0)]


def test_a_nan_in_a_parquet_file_is_no_rating(recipe_dir: RecipeDir) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    row = {"prompt": "1+1=", "completions": ["2", "3"], "ratings": [1.0, float("nan")]}
    parquet.write_table(pa.Table.from_pylist([row]), "ratings.parquet")
    with pytest.raises(BadInput, match=r"`ratings\[1\]` is not finite"):
        read_examples("ratings.parquet", algorithm="dpo")


def test_feedback_on_single_completions(read: Any) -> None:
    good = {"prompt": "1+1=", "completion": "2", "label": True, "source": "x"}
    assert read("kto", good, {**good, "completion": "3", "label": False}) == (
        Example(
            prompt=Prompt(id="data.jsonl:1", text="1+1=", columns={"source": "x"}), completions=("2",), scores=(1.0,)
        ),
        Example(
            prompt=Prompt(id="data.jsonl:2", text="1+1=", columns={"source": "x"}), completions=("3",), scores=(0.0,)
        ),
    )
    assert len(read_examples("./data.jsonl", algorithm="kto", max_rows=1)) == 1  # the other label may come later


def test_conversations_stay_conversations(read: Any) -> None:
    row = {"prompt": [user("1+1=")], "chosen": [assistant("2")], "rejected": [assistant("3")]}
    (example,) = read("dpo", row)
    assert (example.prompt.text, example.completions) == ([user("1+1=")], ([assistant("2")], [assistant("3")]))


def test_an_implicit_prompt_is_the_common_start(read: Any) -> None:
    (example,) = read("dpo", {"chosen": "The sky is blue.", "rejected": "The sky is green."})
    assert (example.prompt.text, example.completions) == ("The sky is", (" blue.", " green."))
    chosen, rejected = [user("a"), assistant("b")], [user("a"), assistant("c")]
    (example,) = read("dpo", {"chosen": chosen, "rejected": rejected})
    assert (example.prompt.text, example.completions) == ([user("a")], ([assistant("b")], [assistant("c")]))


def test_whole_conversations_beside_a_prompt_that_repeats_their_start(read: Any) -> None:
    row = {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    (example,) = read("dpo", row)
    assert (example.prompt.text, example.completions) == ([user("a")], ([assistant("b")], [assistant("c")]))


SYSTEM = {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    ("prompt", "beginning", "expected"),
    [
        ([SYSTEM], [user("a")], [SYSTEM, user("a")]),
        ([SYSTEM, user("a")], [user("a")], [SYSTEM, user("a")]),
        ([user("a")], [SYSTEM, user("a")], [SYSTEM, user("a")]),
        ([SYSTEM, user("a")], [SYSTEM, user("a")], [SYSTEM, user("a")]),
        ([SYSTEM, user("a"), assistant("b")], [user("c")], [SYSTEM, user("a"), assistant("b"), user("c")]),
        ([user("c")], [user("a"), assistant("b"), user("c")], [user("a"), assistant("b"), user("c")]),
        (" a\n", [SYSTEM, user("a")], [SYSTEM, user("a")]),
        ("Human: a\n\nAssistant:", [user("a")], [user("a")]),
    ],
)
def test_a_prompt_and_the_beginning_of_its_answers_are_one_conversation(
    prompt: Any, beginning: Any, expected: Any, read: Any
) -> None:
    row = {"prompt": prompt, "chosen": [*beginning, assistant("x")], "rejected": [*beginning, assistant("y")]}
    for algorithm in ("dpo", "reward_model"):
        (example,) = read(algorithm, row)
        assert (example.prompt.text, example.completions) == (expected, ([assistant("x")], [assistant("y")]))


@pytest.mark.parametrize(
    ("prompt", "beginning"),
    [
        ([user("other")], [user("a")]),
        ([{**SYSTEM, "content": "t"}, user("a")], [SYSTEM, user("a")]),
        ([SYSTEM, user("b")], [user("a")]),
        ("other", [user("a")]),
        ([user("a"), user("b")], [user("a")]),
    ],
)
def test_a_prompt_that_contradicts_its_answers_is_refused(prompt: Any, beginning: Any, read: Any) -> None:
    row = {"prompt": prompt, "chosen": [*beginning, assistant("x")], "rejected": [*beginning, assistant("y")]}
    with pytest.raises(BadInput, match=r"data\.jsonl:1: `chosen` starts with another message than `prompt`"):
        read("dpo", row)


def test_one_answer_may_be_the_beginning_of_the_other(read: Any) -> None:
    short, long = "It is blue", "It is blue today"
    assert read("dpo", {"prompt": "1", "chosen": short, "rejected": long})[0].completions == (short, long)
    for chosen, rejected in ((short, long), (long, short)):
        (example,) = read("dpo", {"chosen": chosen, "rejected": rejected})
        assert example.prompt.text == short
        assert example.completions == (chosen[len(short) :], rejected[len(short) :])
    (example,) = read("reward_model", {"chosen": [user("a"), assistant("b")], "rejected": LONGER})
    assert (example.prompt.text, example.completions) == ([user("a")], ([assistant("b")], LONGER[1:]))
    with pytest.raises(BadInput, match="`chosen` is an empty list"):
        read("dpo", {"chosen": [user("a")], "rejected": [user("a"), assistant("b")]})
    with pytest.raises(BadInput, match="`chosen` is empty"):
        read("dpo", {"prompt": "1", "chosen": "", "rejected": "2"})


def test_a_rejected_answer_may_lack_text(read: Any) -> None:
    assert read("dpo", {"prompt": "1", "chosen": "2", "rejected": " "})[0].completions == ("2", " ")
    row = {"prompt": [user("1")], "chosen": [assistant("2")], "rejected": [assistant("")]}
    assert read("dpo", row)[0].completions == (row["chosen"], row["rejected"])
    for wrong in ([user("")], [{**assistant(""), "tool_calls": 0}, user("x")], []):
        with pytest.raises(BadInput):
            read("dpo", {**row, "rejected": wrong})
    with pytest.raises(BadInput, match="`prompt` is a list of messages and `rejected` text"):
        read("dpo", {**row, "rejected": "2"})


LONGER = [user("a"), assistant("b"), user("c"), assistant("d")]
TOOL_TURNS = [
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
    {"role": "tool", "content": "2"},
    assistant("2"),
]


@pytest.mark.parametrize("answer", [LONGER[1:], TOOL_TURNS], ids=["a user's", "a tool's"])
def test_only_assistant_messages_are_trained_on(answer: Any, read: Any) -> None:
    plain = {"prompt": [user("a")], "rejected": [assistant("no")], "completion": [assistant("x")], "label": False}
    row = {"prompt": [user("a")], "chosen": answer, "rejected": [assistant("no")], "completion": answer, "label": True}
    for algorithm, columns in (
        ("sft", ("prompt", "completion")),
        ("distill", ("prompt", "completion")),
        ("kto", ("prompt", "completion", "label")),
        ("dpo", ("prompt", "chosen", "rejected")),
    ):
        rows = [{**plain, "chosen": [assistant("yes")]}, row]
        with pytest.raises(BadInput, match=r"data\.jsonl:2: a completion contains messages of users or tools"):
            read(algorithm, *({name: each[name] for name in columns} for each in rows))
    rated = {"prompt": [user("a")], "completions": [[assistant("no")], answer], "ratings": [1, 2]}
    with pytest.raises(BadInput, match="a completion contains messages of users or tools"):
        read("dpo", rated)
    # A reward model is trained on one number per text, not on tokens.
    assert read("reward_model", row)[0].completions == (answer, [assistant("no")])
    several = [assistant("one"), assistant("two")]
    assert read("sft", {"prompt": [user("a")], "completion": several})[0].completions == (several,)


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "1+1=", "completion": "2"}, "1+1=", "2"),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, [user("a")], [assistant("b")]),
        ({"messages": [user("a"), assistant("b")]}, [user("a")], [assistant("b")]),
        ({"text": "all of it"}, "", "all of it"),
    ],
)
def test_demonstrations(row: dict[str, Any], prompt: object, completion: object, read: Any) -> None:
    (example,) = read("sft", row)
    assert (example.prompt.text, example.completions, example.scores) == (prompt, (completion,), None)


def test_tool_calls_need_no_content(read: Any) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    (example,) = read("sft", {"prompt": [user("a")], "completion": [call], "tools": ["add"]})
    assert example.completions == ([call],)
    assert example.prompt.columns == {"tools": ["add"]}


def test_parquet_gives_what_jsonl_gives(read: Any, recipe_dir: RecipeDir) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")], "margin": 1.5},
        {"prompt": [user("d")], "chosen": [assistant("e")], "rejected": [assistant("f")], "margin": 0.0},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), "data.parquet")
    found = read_examples("data.parquet", algorithm="dpo")
    expected = read("dpo", *rows)
    assert [(e.prompt.text, e.completions, e.scores) for e in found] == [
        (e.prompt.text, e.completions, e.scores) for e in expected
    ]
    assert [example.prompt.id for example in found] == ["data.parquet:1", "data.parquet:2"]


def test_empty_keys_that_columnar_files_add_are_left_out(recipe_dir: RecipeDir) -> None:
    message = {"role": "user", "content": "a", "tool_calls": None, "name": None}
    recipe_dir.jsonl("p.jsonl", [{"prompt": [message]}])
    assert read_prompts("p.jsonl")[0].text == [user("a")]


def test_columnar_files_fill_nulls_into_objects(recipe_dir: RecipeDir) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def row(tool: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        call = {"function": {"name": "f", "arguments": tool}}
        messages = [user("a"), {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"prompt": messages, "tools": [tool], "chat_template_kwargs": kwargs, "info": tool, "label": None}

    rows = [row({"x": 1}, {"thinking": True}), row({"y": [None]}, {"depth": 2})]
    for each in rows:
        each["prompt"].append({"role": "tool", "content": "2"})
    parquet.write_table(pa.Table.from_pylist(rows), "p.parquet")
    first, second = read_prompts("p.parquet")
    assert isinstance(first.text, list)
    assert first.text[1]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]
    assert (first.columns["tools"], first.columns["chat_template_kwargs"]) == ([{"x": 1}], {"thinking": True})
    assert (second.columns["tools"], second.columns["chat_template_kwargs"]) == ([{"y": [None]}], {"depth": 2})
    assert (first.columns["info"], first.columns["label"]) == ({"x": 1, "y": None}, None)  # a reward may want them


def test_detection_takes_the_most_specific_format() -> None:
    assert {format: detect(columns) for format, columns in COLUMNS.items()} == {format: format for format in Format}
    assert detect(["prompt", "chosen", "rejected", "completion", "label", "x"]) == Format.preference
    assert detect(["question"]) is None


def test_a_space_before_the_difference_belongs_to_the_completions() -> None:
    assert common_length("It is red", "It is blue") == len("It is")
    assert common_length("same", "same again") == len("same")
    assert common_length("a", "b") == 0


@pytest.mark.parametrize(
    ("source", "is_hub"),
    [
        ("trl-lib/ultrafeedback_binarized", True),
        ("imdb", True),
        ("./trl-lib/x", False),
        ("/data/x", False),
        ("~/x", False),
        ("data/x.jsonl", False),
        ("x.parquet", False),
        ("model/x", False),  # `model` is a folder here
        ("a/b/c", False),
    ],
)
def test_what_can_only_be_a_hub_dataset(source: str, is_hub: bool, recipe_dir: RecipeDir) -> None:
    assert is_hub_name(source) is is_hub


@pytest.mark.slow
def test_a_folder_that_datasets_saved(recipe_dir: RecipeDir) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"prompt": "a", "solution": "1"}, {"prompt": "b", "solution": "2"}])
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk("saved")
    assert [prompt.id for prompt in read_prompts("./saved")] == ["saved:1", "saved:2"]
    assert [prompt.text for prompt in read_prompts("./saved", split="test")] == ["b"]
    with pytest.raises(BadInput, match="there is no split dev"):
        read_prompts("./saved", split="dev")
    with pytest.raises(BadInput, match="cannot be loaded"):
        read_prompts("./model")


def test_a_huge_line_is_read_in_bounded_memory(recipe_dir: RecipeDir) -> None:
    """Read a sparse file with one huge line; the row after it is still read."""
    import tracemalloc

    path = recipe_dir.path / "p.jsonl"
    with open(path, "wb") as file:
        file.truncate(2**28)
        file.seek(2**28)
        file.write(b'\n{"prompt": "a"}\n')
    tracemalloc.start()
    with pytest.raises(BadInput, match=r"p\.jsonl:1: a line of more than 8 MiB"):
        read_prompts(str(path))
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()


# -------------------------------------------------------------------------------------------------- batches


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 3))
def test_each_row_comes_once_per_epoch(num_rows: int, batch_size: int, seed: int) -> None:
    steps = -(-3 * num_rows // batch_size)
    stream = np.concatenate([batch_indices(num_rows, batch_size, step, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_no_batch_has_a_row_twice(num_rows: int, batch_size: int, seed: int) -> None:
    for step in range(-(-3 * num_rows // batch_size) if batch_size <= num_rows else 0):
        batch = batch_indices(num_rows, batch_size, step, seed).tolist()
        assert len({*batch}) == batch_size, f"step {step} takes {batch}"


def test_the_order_changes_only_where_a_row_would_come_twice() -> None:
    """Shuffle 3 rows with seed 0 as 0 1 2, 2 1 0, …: the batch 2 2 becomes 2 1, and its second 2 comes after it."""
    assert batch_indices(3, 3, 1, seed=0).tolist() == [2, 1, 0]
    assert [batch_indices(3, 2, step, seed=0).tolist() for step in range(3)] == [[0, 1], [2, 1], [2, 0]]


def test_a_batch_depends_on_nothing_but_its_arguments() -> None:
    late = batch_indices(10, 4, 7, seed=1)
    for step in range(20):
        batch_indices(10, 4, step, seed=1)
    assert (batch_indices(10, 4, 7, seed=1) == late).all()
    assert not (batch_indices(1000, 100, 0, seed=1) == batch_indices(1000, 100, 0, seed=2)).all()
    assert not (batch_indices(1000, 1000, 0, seed=1) == batch_indices(1000, 1000, 1, seed=1)).all()


@pytest.mark.parametrize("num_rows", [5, 2**16, 2**16 + 1, 300_001])
def test_the_order_of_many_rows_is_that_of_one_sort(num_rows: int) -> None:
    """Check that the parts, in which the order of many rows is made to save memory, change nothing."""
    bits = np.random.Philox(np.random.SeedSequence((7, 2))).random_raw(num_rows)
    assert (shuffled(num_rows, 2, seed=7) == np.argsort(bits, kind="stable")).all()


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 3))
def test_equal_cuts_are_the_batches_of_the_stream(num_rows: int, size: int, seed: int) -> None:
    size = min(size, num_rows)
    batches = [batch_indices(num_rows, size, step, seed).tolist() for step in range(9)]
    assert [batch.tolist() for batch in cut_batches(num_rows, (size,) * 9, seed)] == batches


@given(st.integers(1, 20), st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 3))
def test_unequal_cuts_take_each_row_once_before_any_comes_again(num_rows: int, sizes: list[int], seed: int) -> None:
    batches = [batch.tolist() for batch in cut_batches(num_rows, tuple(sizes), seed)]
    assert [len(batch) for batch in batches] == [min(size, num_rows) for size in sizes]
    assert all(len({*batch}) == len(batch) for batch in batches)
    taken = np.bincount(np.concatenate(batches), minlength=num_rows)
    assert taken.max() - taken.min() <= 1


def test_the_order_of_a_seed_never_changes() -> None:
    """Check that a run resumes with the same rows under later versions of numpy."""
    assert batch_indices(8, 8, 0, seed=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_impossible_batches_are_refused() -> None:
    for arguments in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match="no batch"):
            batch_indices(*arguments, seed=0)


def test_rows_of_a_golden_file_read_the_same_twice(recipe_dir: RecipeDir) -> None:
    first = read_prompts("./prompts.jsonl")
    assert first == read_prompts("./prompts.jsonl")
    assert json.loads(Path("prompts.jsonl").read_text().splitlines()[0])["prompt"] == first[0].text


@pytest.mark.parametrize(
    ("good", "bad", "weights", "expected"),
    [
        (4, 4, {}, []),
        (4, 3, {}, []),  # 4/3
        (3, 6, {"desirable_weight": 2.0}, []),
        (3, 6, {}, ["3 desirable and 6 undesirable rows have a weight ratio of 0.50: set "
                    "algorithm.desirable_weight from 2.00 to 2.67 for the recommended 1 to 1.33"]),
        (6, 3, {"undesirable_weight": 0.5}, ["6 desirable and 3 undesirable rows have a weight ratio of 4.00: set "
                    "algorithm.desirable_weight from 0.25 to 0.33 for the recommended 1 to 1.33"]),
    ],
)  # fmt: skip
def test_unbalanced_feedback_is_reported(good: int, bad: int, weights: dict[str, float], expected: list[str]) -> None:
    prompt = Prompt(id="p", text="")
    examples = [Example(prompt=prompt, completions=("a",), scores=(float(i < good),)) for i in range(good + bad)]
    assert remarks(count_labels(examples), KtoConfig.model_validate({"type": "kto", **weights})) == expected
    assert remarks(count_labels(examples), SftConfig(type="sft")) == []
