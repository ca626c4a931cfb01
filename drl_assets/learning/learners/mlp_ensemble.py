"""An ensemble of K perceptrons of equal widths, trained together by hand-written backpropagation.

What flows in are batches [K, B, in] and the derivative of any loss by the outputs; what flows out
are outputs [K, B, out] and updated weights. All parameters are one flat tensor [K, P], so that
clipping, AdamW and the moving average are a few passes over memory instead of one call per layer.

Derivation. With h_0 = x, a layer is z_i = h_(i-1) W_i + b_i, h_i = max(z_i, 0); the last one's z
is the output. Let D_i = dL/dz_i. By the chain rule, summed over the rows of the batch,

    dL/dW_i = h_(i-1)^T D_i,    dL/db_i = 1^T D_i,    D_(i-1) = (D_i W_i^T) * [h_(i-1) > 0],

where h > 0 exactly where z > 0 (at 0 the slope is 0, as in torch). The caller gives D of the last
layer. The first layer's D_0 is never needed. That is 3L - 1 matrix products per update.

`reference` is the same function for autograd: the tests hold one against the other, and on a GPU,
where launching kernels costs more than the products, it is what trains, captured in CUDA graphs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from drl_assets.learning.learners.networks import QNetwork

RELU_BACKWARD = torch.ops.aten.threshold_backward.grad_input
BETAS = (0.9, 0.999)
EPSILON = 1e-8
ALIGNMENT = 16
"""Members begin at multiples of so many numbers, a cache line of float32."""
BLOCK = {"cpu": 512, "cuda": 65_536}
"""Rows that `predict` takes at once."""


@dataclass(frozen=True)
class Layers:
    """Weights and biases as views into one flat tensor."""

    flat: Tensor
    """[K, P]: all weights, then all biases, then zeros up to the alignment."""
    weights: list[Tensor]
    """Of each layer, [K, in, out]; in memory the narrower side comes first, whose products with
    narrow sides (30 inputs, 5 actions) cost as little as half."""
    biases: list[Tensor]
    """Of each layer, [K, 1, out]."""
    members: list[list[tuple[Tensor, Tensor]]]
    """Of each member, each layer's ([in, out], [1, out])."""

    @classmethod
    def of(cls, flat: Tensor, widths: Sequence[int]) -> "Layers":
        """View a flat tensor [K, P] as layers of these widths; differentiable by it."""
        shapes = list(pairwise(widths))
        sizes = [i * o for i, o in shapes] + [o for _, o in shapes] + [padding(widths)]
        parts = torch.split(flat, sizes, dim=1)
        weights = [
            part.view(-1, i, o) if i < o else part.view(-1, o, i).mT
            for part, (i, o) in zip(parts, shapes, strict=False)
        ]
        biases = [p[:, None] for p in parts[len(shapes) : -1]]
        members = [
            [(w[k], b[k]) for w, b in zip(weights, biases, strict=True)] for k in range(len(flat))
        ]
        return cls(flat, weights, biases, members)


def padding(widths: Sequence[int]) -> int:
    """Unused numbers at the end of a member's parameters."""
    return -sum(i * o + o for i, o in pairwise(widths)) % ALIGNMENT


class MLPEnsemble:
    """K perceptrons, their gradient, and AdamW's moments."""

    def __init__(
        self,
        widths: Sequence[int],
        members: int = 1,
        batch: int = 64,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        autograd: bool | None = None,
    ) -> None:
        """All parameters are zero.

        Args:
            widths: of the inputs, the hidden layers and the outputs.
            members: K.
            batch: rows per member of `forward`.
            device: where everything lies.
            dtype: of everything.
            autograd: whether `reference` trains; where None, on a GPU only.
        """
        self.widths, self.batch = list(widths), batch
        self.device = torch.device(device)
        self.autograd = self.device.type == "cuda" if autograd is None else autograd
        size = sum(i * o + o for i, o in pairwise(widths)) + padding(widths)
        new: dict[str, Any] = {"dtype": dtype, "device": self.device}
        self.parameters = Layers.of(torch.zeros(members, size, **new), widths)
        self.gradient = Layers.of(torch.zeros(members, size, **new), widths)
        self._decayed = self.parameters.flat[:, : sum(i * o for i, o in pairwise(widths))]
        self._moments = [torch.zeros(members, size, **new) for _ in range(2)]
        self._steps = torch.zeros((), dtype=torch.float32, device=self.device)
        hidden = [torch.zeros(members, batch, width, **new) for width in widths[1:]]
        self._outputs, self._deltas = hidden, [torch.zeros_like(h) for h in hidden[:-1]]
        self._scratch = [torch.zeros(batch, width, **new) for width in widths[1:-1]]
        self._no_scratch = [None] * len(self._scratch)
        self._by_member = [[h[k] for h in self._outputs] for k in range(members)]
        self._deltas_by_member = [[d[k] for d in self._deltas] for k in range(members)]
        self._input = torch.zeros(members, batch, widths[0], **new)
        self._leaf = self.parameters.flat.detach().requires_grad_(self.autograd)
        self._trained = self._graphed() if self.device.type == "cuda" else self.reference

    @classmethod
    def of(cls, networks: Sequence[QNetwork], batch: int = 64, **rest: Any) -> "MLPEnsemble":
        """A stack that begins with the parameters of K networks of equal widths.

        Raises:
            ValueError: their widths differ.
        """
        shapes = [p.shape for p in networks[0].parameters() if p.dim() == 2]
        widths = [shapes[0][1], *(shape[0] for shape in shapes)]
        stack = cls(widths, len(networks), batch, **rest)
        for k, network in enumerate(networks):
            stack.load_state_dict(network.state_dict(), k)
        return stack

    def __len__(self) -> int:
        return len(self.parameters.flat)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [K, B, out] of a batch [K, B, in], or [B, in] for all members alike.

        The result is a buffer that the next call overwrites; `x` must not change until `backward`.
        """
        self._input = x if x.dim() == 3 else x.expand(len(self), -1, -1)
        if self.autograd:
            self._differentiable: Tensor = self._trained(self._leaf, self._input)
            return self._differentiable.detach()
        last = len(self.widths) - 2
        for k, layers in enumerate(self.parameters.members):
            h = self._input[k]
            for i, (weight, bias) in enumerate(layers):
                h = torch.addmm(bias, h, weight, out=self._by_member[k][i])
                if i < last:
                    h.relu_()
        return self._outputs[-1]

    def backward(self, d_out: Tensor) -> None:
        """Write the gradient, given dL/d_out [K, B, out] of the last `forward`'s batch."""
        if self.autograd:
            (found,) = torch.autograd.grad(self._differentiable, self._leaf, d_out)
            self.gradient.flat.copy_(found)
            return
        for k, gradients in enumerate(self.gradient.members):
            delta = d_out[k]
            for i in range(len(gradients) - 1, -1, -1):
                before = self._by_member[k][i - 1] if i else self._input[k]
                torch.mm(before.T, delta, out=gradients[i][0])
                torch.sum(delta, 0, keepdim=True, out=gradients[i][1])
                if i:
                    weight, into = (
                        self.parameters.members[k][i][0],
                        self._deltas_by_member[k][i - 1],
                    )
                    torch.mm(delta, weight.T, out=into)
                    delta = RELU_BACKWARD(into, before, 0, grad_input=into)

    def clip(self, bound: float) -> Tensor:
        """Scale each member's gradient down to a norm; gives the norms [K] before that."""
        norms: Tensor = torch.linalg.vector_norm(self.gradient.flat, dim=1)
        if self.device.type == "cuda" or max(norms.tolist()) > bound:  # a GPU is not waited for
            self.gradient.flat.mul_((bound / (norms + 1e-6)).clamp_(max=1.0)[:, None])
        return norms

    def step(self, learning_rate: float, weight_decay: Tensor | float = 0.0) -> None:
        """AdamW by the gradient; the decay, a number or [K], is of weights only, not of biases."""
        if isinstance(weight_decay, Tensor):
            self._decayed.mul_(1 - learning_rate * weight_decay[:, None])
        elif weight_decay:
            self._decayed.mul_(1 - learning_rate * weight_decay)
        self._steps += 1
        torch._fused_adam_(
            [self.parameters.flat],
            [self.gradient.flat],
            [self._moments[0]],
            [self._moments[1]],
            [],
            [self._steps],
            lr=learning_rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def copy(self) -> Layers:
        """The parameters as they are now: a target, or where a moving average begins."""
        return Layers.of(self.parameters.flat.clone(), self.widths)

    def average_into(self, average: Layers, decay: float) -> None:
        """average = decay * average + (1 - decay) * parameters."""
        average.flat.lerp_(self.parameters.flat, 1 - decay)

    def predict(self, x: Tensor, layers: Layers | None = None) -> Tensor:
        """Outputs [K, N, out] of any number of rows [K, N, in], or [N, in] for all members alike.

        Args:
            x: the rows.
            layers: whose, where not the parameters'.
        """
        x = x if x.dim() == 3 else x.expand(len(self), -1, -1)
        result = x.new_empty(len(self), x.shape[1], self.widths[-1])
        size = BLOCK[self.device.type]
        for k, member in enumerate((layers or self.parameters).members):
            for low in range(0, x.shape[1], size):
                h = x[k, low : low + size]
                kept = self._scratch if len(h) == self.batch else self._no_scratch
                for (weight, bias), into in zip(member, kept, strict=False):
                    h = torch.addmm(bias, h, weight, out=into).relu_()
                torch.addmm(member[-1][1], h, member[-1][0], out=result[k, low : low + size])
        return result

    def reference(self, flat: Tensor, x: Tensor) -> Tensor:
        """Outputs [K, B, out] of [K, B, in], differentiable by the flat parameters [K, P]."""
        layers = Layers.of(flat, self.widths)
        for i, (weight, bias) in enumerate(zip(layers.weights, layers.biases, strict=True)):
            x = torch.baddbmm(bias, x.relu() if i else x, weight)
        return x

    def _graphed(self) -> Any:
        """`reference` and its derivative as CUDA graphs, matrix products in bfloat16."""

        def trained(flat: Tensor, x: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                return self.reference(flat, x).to(flat.dtype)

        return torch.cuda.make_graphed_callables(trained, (self._leaf, self._input))

    def network(self, member: int = 0, layers: Layers | None = None) -> QNetwork:
        """A member as a network of its own, on the CPU; `layers` as in `predict`."""
        network = QNetwork(self.widths[1:-1])
        network.load_state_dict(self.state_dict(member, layers))
        return network

    def state_dict(self, member: int = 0, layers: Layers | None = None) -> dict[str, Tensor]:
        """A member's copy as `network.QNetwork.state_dict()` has it."""
        found = {}
        for i, (weight, bias) in enumerate((layers or self.parameters).members[member]):
            found[f"layers.{2 * i}.weight"] = weight.T.clone()
            found[f"layers.{2 * i}.bias"] = bias[0].clone()
        return found

    def load_state_dict(self, state: Mapping[str, Tensor], member: int = 0) -> None:
        """Take a member's parameters from a `network.QNetwork.state_dict()`.

        Raises:
            ValueError: it is of other widths.
        """
        shapes = {name: tensor.shape for name, tensor in self.state_dict(member).items()}
        if shapes != {name: tensor.shape for name, tensor in state.items()}:
            raise ValueError(f"state: a network of widths {self.widths} expected")
        for i, (weight, bias) in enumerate(self.parameters.members[member]):
            weight.copy_(state[f"layers.{2 * i}.weight"].T)
            bias.copy_(state[f"layers.{2 * i}.bias"][None])

    def dump(self) -> dict[str, Tensor]:
        """Parameters, moments and steps: what training needs to resume bit for bit."""
        return {
            "parameters": self.parameters.flat,
            "first_moment": self._moments[0],
            "second_moment": self._moments[1],
            "steps": self._steps,
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Bring a stack of the same widths to where `dump` was called."""
        for name, tensor in self.dump().items():
            tensor.copy_(saved[name])
