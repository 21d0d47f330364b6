"""An embedding whose rows are multiplied as they are read, as those of Gemma are."""

from jaxtyping import Float, Int
from torch import Tensor, nn


class ScaledEmbedding(nn.Embedding):
    """ids (…) -> scale · rows (…, embedding_dim); a head tied to the table uses it without the scale.

    The scale is rounded to the table's type first, as models were trained.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, scale: float, **options: object) -> None:
        super().__init__(num_embeddings, embedding_dim, **options)  # type: ignore[arg-type]
        self.scale = scale

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch embedding_dim"]:
        return super().forward(ids) * self.weight.new_tensor(self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"
