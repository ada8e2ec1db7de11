"""Rollouts from vLLM (Kwon et al. 2023, arXiv:2309.06180), in the process that trains and on its device.

It samples with kernels of its own, so what it samples from, μ, is never quite the policy π that is trained, however fresh its
weights. What a loss expects over π it is given over μ, each token with the weight

    w_t = min(π(y_t|s_t) / μ(y_t|s_t), C),   C = 2

which makes up for the choice of the token, not for the states s_t on the way to it: truncated importance sampling (Ionides 2008,
"Truncated Importance Sampling"), token by token (TRL's `token_truncate`). Evaluation samples from π itself, as ever.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from harness import models
from harness.generate import Completion, Heard, Samples, samples, seed
from harness.policy import Policy

MEMORY = 0.3  # of a GPU, for weights and cache; the rest is for training
CAP = 2.0  # C

# read when vllm is imported: the engine in this process, on the threads that the run has, silent
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class VLLM:
    """The interface of `generate`, for one policy: it is given the policy's weights before every batch of prompts.

    folder   of any model of the policy's architecture: its configuration is read, its weights are not
    """

    def __init__(self, policy: Policy, folder: Path):
        self.policy, self.folder = policy, folder

    @cached_property
    def llm(self) -> Any:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        from vllm import LLM  # pyright: ignore[reportMissingImports]

        return LLM(
            model=str(self.folder),
            skip_tokenizer_init=True,
            load_format="dummy",
            hf_overrides={"vocab_size": self.policy.vocabulary},
            dtype="bfloat16" if self.policy.dtype == torch.bfloat16 else "float32",
            max_model_len=-1,  # as long as the memory allows
            gpu_memory_utilization=MEMORY,
            enforce_eager=self.policy.device.type == "cpu",  # elsewhere: CUDA graphs
        )

    def generate(
        self,
        prompts: Sequence[list[int]],
        group: int,
        keys: Sequence[str],
        limit: int,
        eos: int,
        heard: Heard | None = None,
    ) -> Samples:
        """`group` completions of each prompt, of at most `limit` tokens, at temperature 1 from μ, with log μ of each token.

        keys    P·group strings, one a completion, that seed its random numbers
        heard   told of every completion once, as they finish, while others are sampled
        """
        self.sync()
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]

        engine = self.llm.llm_engine
        asked = engine.renderer.render_cmpl([{"prompt_token_ids": prompt} for prompt in prompts for _ in range(group)])
        for i, (prompt, key) in enumerate(zip(asked, keys, strict=True)):
            how = SamplingParams(
                temperature=1.0,
                max_tokens=limit,
                logprobs=0,  # of the token that is taken, and of no other
                seed=seed(key),
                ignore_eos=True,  # whatever the model's configuration calls by that name
                stop_token_ids=[eos],
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(i), prompt, how)
        drawn = dict[int, Completion]()
        while engine.has_unfinished_requests():
            for request in engine.step():
                i, one = int(request.request_id), request.outputs[0]
                logp = [at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)]
                drawn[i] = list(one.token_ids), logp, one.finish_reason == "stop"
                if heard:
                    heard(i, drawn[i][0], drawn[i][2])
        return samples(drawn[i] for i in range(len(keys)))

    def sync(self) -> None:
        """Hand over the policy's weights, and forget what was computed from the ones before."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": self._weights()})
        self.llm.reset_prefix_cache()

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """By the names of a saved model, a tied head too; of embedding and head the rows of the tokenizer's tokens; no drafts."""
        model = self.policy.model
        rows = {m.weight.data_ptr() for m in (model.get_input_embeddings(), model.get_output_embeddings())}
        for name, weight in revert_weight_conversion(model, models.undrafted(model)).items():
            yield name, weight[: self.policy.vocabulary] if weight.data_ptr() in rows else weight


def weights(logp_BT: Tensor, sampled_BT: Tensor) -> Tensor:
    """[B, T] w, of log π and log μ."""
    return (logp_BT - sampled_BT).exp().clamp(max=CAP)
