"""The rollout role: prompts in, groups of completions out, and new weights now and then."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from workers.config import ModelConfig, RolloutConfig
from workers.files import quarantine
from workers.files.rollout_files import read_experience, write_experience
from workers.types import Experience, Prompt, Ragged, Sampling

if TYPE_CHECKING:
    from workers.engines.base import Response, Sampler
    from workers.weights import Manifest


def environment(*, cuda: bool) -> Mapping[str, str]:
    """What must stand in the process's environment before vLLM is imported."""
    common = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine and actor are one process
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if cuda:
        return common
    return {
        **common,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # it would take whole cores for itself
        "VLLM_HOST_IP": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }


def completion_seed(run_seed: int, prompt_id: str, sample: int, version: int) -> int:
    """Every completion has a seed of its own, so that a lost one can be drawn again, equal."""
    digest = hashlib.blake2b(f"{run_seed}/{prompt_id}/{sample}/{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits


def seeds(run_seed: int, prompt_ids: Sequence[str], *, num_generations: int, version: int) -> list[list[int]]:
    """Of each prompt's completions. A prompt that comes again goes on counting, so that its groups differ."""
    begun: Counter[str] = Counter()
    found = []
    for id in prompt_ids:
        first = begun[id]
        begun[id] += num_generations
        found.append([completion_seed(run_seed, id, first + i, version) for i in range(num_generations)])
    return found


class Rollout:
    """One vLLM engine with its tokenizer."""

    def __init__(
        self,
        model: ModelConfig,
        config: RolloutConfig,
        *,
        index: int,
        seed: int,
        cuda: bool,
        student: ModelConfig | None = None,
    ) -> None:
        """`student`: another model of the same tokenizer, which is to learn from what this one samples. Prompts are
        written as the student's, and completions come without log-probabilities, as a dataset's do. None: the policy
        itself is sampled."""
        # Imported here: the environment must be set first, and the driver names this class without wanting vLLM.
        from workers.engines import hf_models, hf_text

        assert model.path is not None
        self._codec, self._foreign = hf_text.TextCodec(student or model), student is not None
        self._config = config
        self._index = index
        own = hf_text.stop_token_ids(model.path, self._codec.eos_token_id)
        self._stop = {kind: sorted({*own, *self._codec.stop_tokens(conversational=kind)}) for kind in (False, True)}
        max_model_len = config.max_prompt_length + config.max_completion_length
        limit = hf_models.max_positions(model.path)
        if limit is not None and max_model_len > limit:
            raise hf_models.ModelError(
                f"rollout.max_prompt_length {config.max_prompt_length} + rollout.max_completion_length "
                f"{config.max_completion_length} = {max_model_len} is more than the {limit} positions of {model.path}; "
                "lower one of them"
            )
        self._engine = self._start(model, max_model_len, seed=seed, cuda=cuda)
        # The first call compiles and allocates: better now, while the other gangs are still starting.
        self.generate([Prompt(id="warm-up", text="a")], Sampling(num_generations=2, max_completion_length=2))

    def _start(self, model: ModelConfig, max_model_len: int, *, seed: int, cuda: bool) -> Sampler:
        from workers.engines.vllm_engine import VllmEngine

        assert model.path is not None
        rank = model.lora.r if model.lora is not None else None
        return VllmEngine(model.path, model.dtype, max_model_len, self._config, seed=seed, cuda=cuda, adapter_rank=rank)

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        versions: tuple[int, int] | None = None,
        keep: str | None = None,
    ) -> Experience:
        """`sampling.num_generations` completions for each prompt; prompts over max_prompt_length are dropped, and those
        that have ended their engine again and again (`quarantine.py`).

        `versions`: the oldest and the newest of the policy that may answer; None: any. `keep`: they are on disk, in a
        file whose name begins like this, before this returns; None: they are not kept.

        Raises:
            VersionMismatch: when the engine holds another one.
        """
        from workers.engines.base import EngineError, VersionMismatch

        started = time.perf_counter()
        version = self._engine.version
        if versions is not None and not self._foreign and not versions[0] <= version <= versions[1]:
            raise VersionMismatch(
                f"the engine holds version {version} of the policy, and was asked for {_between(*versions)}"
            )
        encoded = [(p, self._encoded(p)) for p in prompts]
        with quarantine.trial(keep, self._index) as trial:
            kept = [
                (p, tokens)
                for p, tokens in encoded
                if 0 < len(tokens) <= self._config.max_prompt_length and p.id not in trial.left_out
            ]
            responses = [r for batch in trial.batches(kept) for r in self._sample(batch, sampling, version)]
        if any(len(response.tokens) == 0 for response in responses):
            raise EngineError("the engine gave up on a completion before its first token")
        logprobs = np.concatenate([np.zeros(0, np.float32), *(r.logprobs for r in responses)])
        if not np.isfinite(logprobs).all():  # recorded, it would be learned from in every attempt
            raise EngineError(f"version {version} gives log-probabilities that are NaN or infinite")
        experience = Experience(
            prompts=tuple(p for p, _ in kept),
            prompt_tokens=Ragged.of([tokens for _, tokens in kept]),
            completions=Ragged.of([r.tokens for r in responses]),
            group_offsets=np.arange(len(kept) + 1, dtype=np.int64) * sampling.num_generations,
            logprobs=None if self._foreign else logprobs,
            versions=np.full(len(responses), version, np.int32),
            finish=np.asarray([r.finish for r in responses], np.int32),
            temperature=sampling.temperature,
            num_dropped=len(prompts) - len(kept),
            seconds=time.perf_counter() - started,
        )
        if keep is not None:
            write_experience(f"{keep}rollout-{self._index}", experience)
        return experience

    def texts(self, experience: Experience) -> list[str]:
        """What each completion says, without special tokens: [N]."""
        return self._codec.decode_batch([tokens.tolist() for tokens in experience.completions])

    def _encoded(self, prompt: Prompt) -> list[int]:
        """Raises ModelError with the row."""
        from workers.engines import hf_models

        try:
            return self._codec.encode_prompt(prompt.text, prompt.columns)
        except hf_models.ModelError as error:
            raise hf_models.ModelError(f"{prompt.id}: {error}") from error

    def _sample(self, prompts: Sequence[quarantine.Encoded], sampling: Sampling, version: int) -> Sequence[Response]:
        from workers.engines.base import Request

        conversational = any(not isinstance(prompt.text, str) for prompt, _ in prompts)
        own = seeds(
            sampling.seed, [p.id for p, _ in prompts], num_generations=sampling.num_generations, version=version
        )
        requests = [Request(tokens, seed) for (_, tokens), group in zip(prompts, own, strict=True) for seed in group]
        return self._engine.generate(
            requests,
            max_tokens=sampling.max_completion_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop_token_ids=[] if sampling.ignore_eos else self._stop[conversational],
            ignore_eos=sampling.ignore_eos,
        )

    def recall(self, files: Sequence[tuple[str, str]], prompts: Sequence[Prompt]) -> Experience:
        """What all members sampled for `prompts` and kept in files of (path, SHA-256). Raises KeptError."""
        return read_experience(files, prompts)

    def receive_weights(self, manifest: Manifest, version: int, sent: object) -> float:
        """Load a publication; `sent` is the senders' answer and only makes this call wait for it. Returns seconds."""
        started = time.perf_counter()
        rank_offset = 1 + self._index * self._config.tensor_parallel_size
        self._receive(version, lambda: self._engine.receive(manifest, version, rank_offset=rank_offset))
        return time.perf_counter() - started

    def receive_adapter(self, directory: str, version: int, sent: object) -> float:
        """Load the adapters of `version`; `sent` is the senders' answer and only makes this call wait for it. Returns
        seconds."""
        started = time.perf_counter()
        self._receive(version, lambda: self._engine.receive_adapter(directory, version))
        return time.perf_counter() - started

    def _receive(self, version: int, load: Callable[[], None]) -> None:
        """Whatever went wrong, the engine does not hold what it should."""
        from workers.engines.base import VersionMismatch

        try:
            load()
        except Exception as error:
            raise VersionMismatch(f"version {version} did not arrive: {error}") from error


def _between(oldest: int, newest: int) -> str:
    return f"version {newest}" if oldest == newest else f"one of versions {oldest} to {newest}"
