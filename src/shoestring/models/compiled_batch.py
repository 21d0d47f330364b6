"""A compiled decoder for many sequences at once, each with its own blocks of keys and values."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from shoestring.kernels.cached_attention import StoredRows
from shoestring.kernels.decode_batch import BatchSequence, DecodeBatch
from shoestring.kernels.decode_mamba import LayerState
from shoestring.models.compiled_decoder import CompiledDecoder


class CompiledBatch(CompiledDecoder):
    """A `CompiledDecoder` that also runs the rows of many sequences in one call; arguments and errors are its
    own.
    """

    def use_blocks(self, layers: Sequence[tuple[StoredRows, StoredRows] | LayerState]) -> None:
        """Keep keys and values, or states, of each layer here from now on. layers, Raises: as
        `DecodeBatch`."""
        self.batch = DecodeBatch(self.step, layers)

    def run(
        self, ids: Int[Tensor, " rows"], sequences: Sequence[BatchSequence]
    ) -> Float[Tensor, "wanted vocab"]:
        """Logits of the sequences that want them, good until the next call; ids of all, one after the other.

        Raises: ValueError, as `DecodeBatch`.
        """
        self.reach(max(sequence.start + sequence.tokens for sequence in sequences))
        return self.batch(self._embed(ids), sequences)
