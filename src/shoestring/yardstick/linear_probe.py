"""What a linear classifier finds in fixed features: the usual judge of embeddings."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def probe_accuracy(
    features: Float[Tensor, "n channels"],
    labels: Int[Tensor, " n"],
    test_features: Float[Tensor, "m channels"],
    test_labels: Int[Tensor, " m"],
    *,
    c: float = 1.0,
    iterations: int = 200,
) -> float:
    """Share of the test set that multinomial logistic regression, fitted on the rest, names rightly.

    It minimises c · Σ cross-entropy + ½ Σ w², without a penalty on the biases, in float64: deterministic.

    Raises: ValueError for c that is not above 0, or empty sets.
    """
    if c <= 0:
        raise ValueError(f"c={c} must be above 0.")
    if len(features) == 0 or len(test_features) == 0:
        raise ValueError(f"{len(features)} samples to fit and {len(test_features)} to test: both need some.")
    x = features.detach().double()
    classes = int(labels.max()) + 1
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-9
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        error = F.cross_entropy(x @ weight + bias, labels, reduction="sum")
        # Divided by c and n: the same minimum at a scale that suits the solver.
        value = error / len(x) + weight.square().sum() / (2 * c * len(x))
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    found = (test_features.double() @ weight.detach() + bias.detach()).argmax(1)
    return float((found == test_labels).double().mean())
