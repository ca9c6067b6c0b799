"""The rollout role: prompts in, groups of completions out. New weights arrive between two calls."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from workers.config import ModelConfig, RolloutConfig
from workers.engines.base import EngineError, ModelError, Request, Response, Sampler, VersionMismatch
from workers.files import mirror, quarantine
from workers.files.rollout_files import read_experience, write_experience
from workers.files.shared_storage import SharesStorage
from workers.gold import gold_tokens, with_gold
from workers.ragged import Ragged
from workers.types import Experience, Prompt, Sampling
from workers.weights import Manifest


def environment(*, cuda: bool) -> Mapping[str, str]:
    """Return the environment variables that must be set before vLLM is imported."""
    common = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # engine and actor are one process
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # all processes of an engine are on one machine
    }
    if cuda:
        return common
    return {
        **common,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # vLLM would bind whole cores otherwise
        "OMP_NUM_THREADS": "1",
        "TORCHDYNAMO_DISABLE": "1",  # vLLM compiles one function of the sampler, which takes seconds and a C++ compiler
    }


def completion_seed(run_seed: int, prompt_id: str, sample: int, version: int) -> int:
    """Derive the seed of one completion (63 bits), so that a lost completion can be sampled again identically."""
    digest = hashlib.blake2b(f"{run_seed}/{prompt_id}/{sample}/{version}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seeds(run_seed: int, prompt_ids: Sequence[str], *, num_generations: int, version: int) -> list[list[int]]:
    """Derive the seeds of each prompt's completions.

    If a prompt occurs several times, its sample index continues, so that its groups differ.
    """
    used: Counter[str] = Counter()
    groups = []
    for id in prompt_ids:
        first = used[id]
        used[id] += num_generations
        groups.append([completion_seed(run_seed, id, first + i, version) for i in range(num_generations)])
    return groups


class Rollout(SharesStorage):
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
        """Start the engine and sample once.

        Args:
            index: index of this engine in its gang.
            student: model that trains on samples of a teacher (`model`, which has the same tokenizer). Prompts are then
                rendered with the student's chat template, and completions have no log-probabilities, like those of a
                dataset. None: `model` is the policy itself.

        Raises:
            ModelError: the sequences of the run exceed the positions of the model.
        """
        # Imported here: the environment must be set first, and the driver imports this module without vLLM.
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
            raise ModelError(
                f"rollout.max_prompt_length {config.max_prompt_length} + rollout.max_completion_length "
                f"{config.max_completion_length} = {max_model_len} exceeds the {limit} positions of {model.path}; "
                "lower one of them"
            )
        self._engine = self._start(model, max_model_len, seed=seed, cuda=cuda)
        # The first call compiles and allocates, here while the other gangs are still starting.
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
        file_prefix: str | None = None,
        chunk: int = 0,
    ) -> Experience:
        """Sample `sampling.num_generations` completions for each prompt.

        Prompts longer than max_prompt_length are dropped, and so are prompts that crash the engine repeatedly
        (`quarantine.py`).

        Args:
            versions: oldest and newest version of the policy that may be sampled from; None: any.
            file_prefix: write the experience to a file whose name starts with it, before returning; None: do not.
            chunk: number of the chunk within its step.

        Raises:
            VersionMismatch: the engine holds another version.
            EngineError: a completion is empty, or a log-probability is not finite.
        """
        started = time.perf_counter()
        version = self._engine.version
        if versions is not None and not self._foreign and not versions[0] <= version <= versions[1]:
            raise VersionMismatch(
                f"the engine holds version {version} of the policy, and was asked for {_between(*versions)}"
            )
        encoded = [(p, self._encode(p)) for p in prompts]
        with quarantine.trial(file_prefix, self._index) as trial:
            kept = [
                (p, tokens)
                for p, tokens in encoded
                if 0 < len(tokens) <= self._config.max_prompt_length and p.id not in trial.left_out
            ]
            responses = [r for batch in trial.batches(kept) for r in self._sample(batch, sampling, version)]
        if any(len(response.tokens) == 0 for response in responses):
            raise EngineError("the engine aborted a completion before its first token")
        logprobs = np.concatenate([np.zeros(0, np.float32), *(r.logprobs for r in responses)])
        if not np.isfinite(logprobs).all():  # written to disk, they would be trained on in every attempt
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
            chunk=chunk,
        )
        experience = with_gold(experience, [self._gold(p) for p, _ in kept])
        if file_prefix is not None:
            write_experience(f"{file_prefix}rollout-{self._index}", experience)
        return experience

    def texts(self, experience: Experience) -> list[str]:
        """Decode each completion, without special tokens: [N]."""
        return self._codec.decode_batch([tokens.tolist() for tokens in experience.completions])

    def _gold(self, prompt: Prompt) -> list[int]:
        """Encode a prompt's gold answer, if one joins the samples of its group."""
        return gold_tokens(self._codec, prompt, max_length=self._config.max_completion_length)

    def _encode(self, prompt: Prompt) -> list[int]:
        """Encode a prompt. Raises ModelError, which names the row."""
        try:
            return self._codec.encode_prompt(prompt.text, prompt.columns)
        except ModelError as error:
            raise ModelError(f"{prompt.id}: {error}") from error

    def _sample(self, prompts: Sequence[quarantine.Encoded], sampling: Sampling, version: int) -> Sequence[Response]:
        conversational = any(not isinstance(prompt.text, str) for prompt, _ in prompts)
        own_seeds = seeds(
            sampling.seed, [p.id for p, _ in prompts], num_generations=sampling.num_generations, version=version
        )
        requests = [
            Request(tokens, seed) for (_, tokens), group in zip(prompts, own_seeds, strict=True) for seed in group
        ]
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
        """Read back what all members sampled for `prompts`, from files of (path, SHA-256). Raises StoredFileError."""
        return read_experience(files, prompts)

    def receive_weights(self, manifest: Manifest, version: int, sent: object) -> float:
        """Load a publication of weights. Return the seconds it took.

        `sent` is the senders' answer: passing it makes this call wait until the weights have been sent.

        Raises:
            VersionMismatch: loading failed, so the engine does not hold `version`.
        """
        started = time.perf_counter()
        rank_offset = 1 + self._index * self._config.tensor_parallel_size
        self._receive(version, lambda: self._engine.receive(manifest, version, rank_offset=rank_offset))
        return time.perf_counter() - started

    def receive_adapter(self, directory: str, version: int, sent: object) -> float:
        """Load the adapters of `version`. Return the seconds it took. `sent` and errors as in `receive_weights`."""
        started = time.perf_counter()
        self._receive(version, lambda: self._load_adapter(directory, version))
        return time.perf_counter() - started

    def _load_adapter(self, directory: str, version: int) -> None:
        mirror.require(directory)
        self._engine.receive_adapter(directory, version)

    def _receive(self, version: int, load: Callable[[], None]) -> None:
        try:
            load()
        except Exception as error:
            raise VersionMismatch(f"version {version} did not arrive: {error}") from error


def _between(oldest: int, newest: int) -> str:
    return f"version {newest}" if oldest == newest else f"one of versions {oldest} to {newest}"
