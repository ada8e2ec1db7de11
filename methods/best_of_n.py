"""Best of N (Stiennon et al. 2020, arXiv:2009.01325, §4.3): nothing is trained but a reward model, which picks at the end.

    data     pairs of the start's completions, as a noisy annotator ranks them
    answer   argmax_i r_φ(x, y_i),   y_1 … y_N ~ π(·|x);  r_φ as in methods/_preferences.py

What it costs is paid at every answer, not in the budget: N completions and N readings of r_φ. The columns `kl` and `greedy` are
those of the policy that is sampled from; the picked answers' KL to it is at most log N - (N-1)/N a completion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from torch import Tensor

from harness.method import Batch
from harness.policy import Scalar
from harness.space import PowersOfTwo
from methods._preferences import LearnedReward, final
from methods._untrained import Untrained

if TYPE_CHECKING:
    from harness.run import Run


@dataclass(kw_only=True)
class BestOfN(LearnedReward, Untrained):
    data = "pairs of its start's completions, ranked once"
    reward = "a reward model fitted to preferences, asked at evaluation"
    objective = "0; the answer is argmax r of N completions"

    n: Annotated[int, Field(ge=2), PowersOfTwo(2, 64)] = 8  # N

    reward_model: Scalar = field(init=False, repr=False)  # r_φ

    def setup(self, run: Run) -> None:
        self.reward_model = Scalar(run.reference)
        run.best_of = self.n, self.r

    def r(self, batch: Batch) -> Tensor:
        return final(self.reward_model.after(batch.tokens_BT), batch.mask_BT)

    def prepare(self, run: Run) -> None:
        self.fit(run, self.reward_model)

    def state(self) -> dict[str, Any]:
        return {"reward_model": self.reward_model.state_dict()}

    def restore(self, run: Run, state: dict[str, Any]) -> None:
        self.reward_model.load_state_dict(state["reward_model"])
        run.freeze("reward model", self.reward_model)

    def card(self) -> dict[str, str]:
        return {"samples from": f"the start, {self.n} an answer", "reward": f"a reward model, of {self.share:.0%} of the budget"}


METHOD = BestOfN
