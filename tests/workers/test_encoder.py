from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from workers.config import ModelConfig
from workers.encoder import Encoder
from workers.types import Example, Finish, Prompt, Text


def example(prompt: Text, *completions: Text, scores: tuple[float, ...] | None = None) -> Example:
    return Example(prompt=Prompt(id=str(prompt), text=prompt), completions=completions, scores=scores)


def encoder(model: Path, max_length: int) -> Encoder:
    return Encoder(ModelConfig(path=str(model)), max_length=max_length)


def test_pairs(qwen2: Path) -> None:
    # Ids from 3: a 3, b 4, …, > 11; every completion ends with 1.
    rows = [example("ab>", "c", "dd", scores=(1.0, 0.0)), example(">", "a", "b", scores=(0.5, 0.25))]
    encoded = encoder(qwen2, 10).encode(rows)
    assert [p.tolist() for p in encoded.prompt_tokens] == [[3, 4, 11], [11]]
    assert [c.tolist() for c in encoded.completions] == [[5, 1], [6, 6, 1], [3, 1], [4, 1]]
    assert encoded.group_offsets.tolist() == [0, 2, 4]
    assert encoded.rewards is not None
    assert encoded.rewards.tolist() == [1, 0, 0.5, 0.25]
    assert encoded.logprobs is None
    assert encoded.finish.tolist() == [Finish.stop] * 4
    assert (encoded.num_dropped, encoded.num_truncated) == (0, 0)
    assert [p.id for p in encoded.prompts] == ["ab>", ">"]


def test_what_is_too_long_is_cut_or_dropped_and_counted(qwen2: Path) -> None:
    # Room for 5 tokens: the first prompt leaves 2 for its completions, the second none.
    rows = [
        example("ab>", "c", "defg", scores=(1.0, 0.0)),
        example("abcd>", "a", "b", scores=(1.0, 0.0)),
        example("", "a", "b", scores=(1.0, 0.0)),
        example(">", "abc", "abcd", scores=(0.5, 0.25)),
    ]
    encoded = encoder(qwen2, 5).encode(rows)
    assert [p.id for p in encoded.prompts] == ["ab>", ">"]
    assert [c.tolist() for c in encoded.completions] == [[5, 1], [6, 7], [3, 4, 5, 1], [3, 4, 5, 6]]
    assert encoded.finish.tolist() == [Finish.stop, Finish.length, Finish.stop, Finish.length]
    assert encoded.rewards is not None
    assert encoded.rewards.tolist() == [1, 0, 0.5, 0.25]
    assert (encoded.num_dropped, encoded.num_truncated) == (2, 2)


def test_b14_an_end_of_sequence_that_is_also_padding_is_trained_on(qwen2: Path, tmp_path: Path) -> None:
    """Check that an end of sequence equal to the padding token is trained on. Nothing is padded here."""
    directory = tmp_path / "model"
    shutil.copytree(qwen2, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)
    assert AutoTokenizer.from_pretrained(directory).pad_token_id == 1
    encoded = encoder(directory, 10).encode([example("ab>", "c", "dd")])
    assert [c.tolist() for c in encoded.completions] == [[5, 1], [6, 6, 1]]


def test_demonstrations_have_no_scores(qwen2: Path) -> None:
    assert encoder(qwen2, 10).encode([example("a", "b"), example("c", "d")]).rewards is None


def test_the_model_s_own_limit_holds(qwen2: Path) -> None:
    encoded = encoder(qwen2, 1000).encode([example("a" * 64, "b"), example("a" * 63, "b" * 9)])
    assert [len(p) for p in encoded.prompt_tokens] == [63]
    assert [c.tolist() for c in encoded.completions] == [[4]]


@pytest.mark.parametrize("rows", [[], [example("abcdefgh", "a")]], ids=["no row", "no row is left"])
def test_an_empty_batch_is_encoded(qwen2: Path, rows: list[Example]) -> None:
    encoded = encoder(qwen2, 4).encode(rows)
    assert (len(encoded.prompts), len(encoded.completions), encoded.group_offsets.tolist()) == (0, 0, [0])
    assert encoded.num_dropped == len(rows)


def test_conversations(llama: Path) -> None:
    row = example([{"role": "user", "content": "what"}], [{"role": "assistant", "content": "four"}])
    encoded = encoder(llama, 60).encode([row])
    (prompt,), (completion,) = list(encoded.prompt_tokens), list(encoded.completions)
    # <s> 0, </s> 1, <pad> 2, <|user|> 3, <|assistant|> 4: the prompt ends in 4, the answer in 1.
    assert (prompt[0], prompt[-2], prompt[-1]) == (3, 1, 4)
    assert completion[-1] == 1
    assert not {3, 4} & set(completion.tolist())


def test_each_row_gets_the_completion_of_the_one_before(qwen2: Path) -> None:
    # Room for 6 tokens. The second row is dropped, so the third gets the first's; the first gets the last's, truncated.
    rows = [
        example("abc>", "d", scores=(1.0,)),
        example("abcdef", "a", scores=(1.0,)),
        example(">", "c", scores=(1.0,)),
        example("b>", "abcd", scores=(0.0,)),
    ]
    encoded = Encoder(ModelConfig(path=str(qwen2)), max_length=6, mismatched=True).encode(rows)
    assert [c.tolist() for c in encoded.completions] == [[6, 1], [3, 4], [5, 1], [6, 1], [3, 4, 5, 6], [5, 1]]
    assert encoded.group_offsets.tolist() == [0, 2, 4, 6]
    assert encoded.rewards is not None
    assert encoded.rewards.tolist() == [1, 0, 1, 0, 0, 0]
    assert (encoded.num_dropped, encoded.num_truncated) == (1, 1)  # a truncated mismatched completion is not counted


# ------------------------------------------------------------------------------------------------ language modelling


def whole(model: Path, max_length: int = 60) -> Encoder:
    return Encoder(ModelConfig(path=str(model)), max_length=max_length, train_on_prompts=True)


def test_every_token_of_a_text_but_the_first_is_trained_on(qwen2: Path, llama: Path) -> None:
    # The Qwen2 tokenizer has no start token, so the first token of a text has no predictor.
    for encode in (encoder(qwen2, 10), whole(qwen2)):
        encoded = encode.encode([example("", "abc")])
        assert [p.tolist() for p in encoded.prompt_tokens] == [[3]]
        assert [c.tolist() for c in encoded.completions] == [[4, 5, 1]]
        assert encoded.num_dropped == 0


def test_prompts_can_be_trained_on(qwen2: Path) -> None:
    encoded = whole(qwen2).encode([example("ab>", "cd"), example("a", "b")])
    assert [p.tolist() for p in encoded.prompt_tokens] == [[3], [3]]
    assert [c.tolist() for c in encoded.completions] == [[4, 11, 5, 6, 1], [4, 1]]


def test_a_long_prompt_can_be_trained_on(qwen2: Path) -> None:
    encoded = whole(qwen2, 4).encode([example("abcdefgh", "a")])
    assert [c.tolist() for c in encoded.completions] == [[4, 5, 6]]
    assert (encoded.num_dropped, encoded.num_truncated) == (0, 1)


def test_a_whole_conversation_is_rendered_by_the_template(llama: Path) -> None:
    question, answer = {"role": "user", "content": "what"}, {"role": "assistant", "content": "four"}
    row = example([question], [answer])
    whole_text, prompted = whole(llama).encode([row]), encoder(llama, 60).encode([row])
    tokens = [*whole_text.prompt_tokens[0], *whole_text.completions[0]]
    assert tokens == [*prompted.prompt_tokens[0], *prompted.completions[0]]
    assert AutoTokenizer.from_pretrained(llama).decode(tokens) == "<|user|>what</s><|assistant|>four</s>"


def test_a_text_of_one_token_is_dropped(llama: Path) -> None:
    # This tokenizer adds no start token, so an empty text is only the end of sequence.
    encoded = whole(llama).encode([example("", "")])
    assert (len(encoded.prompts), encoded.num_dropped) == (0, 1)
