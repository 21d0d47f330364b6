"""Recurrent layers whose state is rounded at every step, as a machine that stores it in few bits does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from shoestring.layers.emulated.module import EmulatedModule
from shoestring.layers.emulated.straight_through import round_gradient, straight_through

State = tuple[Tensor, ...]


class _QuantRecurrent(EmulatedModule, nn.RNNBase):
    """With an `output` rounder the hidden (and cell) state is rounded after every step; else torch's loop.

    Raises: TypeError for a packed sequence when more than weight and bias is rounded.
    """

    def forward(self, input: Any, hx: Any = None) -> Any:
        rounders = self.rounders
        if isinstance(input, PackedSequence) and (rounders.input or rounders.output or rounders.gradient):
            raise TypeError(
                "a PackedSequence cannot be rounded step by step; give a padded tensor, or rounders for "
                "weight and bias only"
            )
        (input, hx), _ = self.round_inputs((input, hx), {})
        with self.rounded_parameters(), self._flat_weights_as_seen():
            if self.rounders.output is None:
                return self.round_output(super(EmulatedModule, self).forward(input, hx))
            return self._step_by_step(input, hx)

    @contextmanager
    def _flat_weights_as_seen(self) -> Iterator[None]:
        """Torch's loop reads a list and not the parameters: let it hold the rounded ones."""
        self._flat_weights = [getattr(self, name) for name in self._flat_weights_names]
        try:
            yield
        finally:
            self._flat_weights = [self._parameters[name] for name in self._flat_weights_names]

    def _step_by_step(self, input: Tensor, hx: Any) -> Any:
        batched = input.dim() == 3
        if not batched:
            input = input.unsqueeze(0 if self.batch_first else 1)
            hx = None if hx is None else _map_states(lambda s: s.unsqueeze(1), hx)
        x = input.transpose(0, 1) if self.batch_first else input
        initial = self._initial_states(x, hx)
        x, final = self._layers(x, initial)
        output = x.transpose(0, 1) if self.batch_first else x
        states = tuple(torch.stack(each) for each in zip(*final, strict=True))
        if not batched:
            output, states = output.squeeze(0 if self.batch_first else 1), tuple(s.squeeze(1) for s in states)
        output = round_gradient(output, self.rounders.gradient)
        return output, states if isinstance(self, nn.LSTM) else states[0]

    def _layers(self, x: Tensor, initial: list[State]) -> tuple[Tensor, list[State]]:
        directions = 2 if self.bidirectional else 1
        final: list[State] = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                sequence = x.flip(0) if direction else x
                index = layer * directions + direction
                output, state = self._one_direction(sequence, initial[index], self._cell_weights(index))
                outputs.append(output.flip(0) if direction else output)
                final.append(state)
            x = torch.cat(outputs, dim=-1)
            if layer + 1 < self.num_layers:
                x = F.dropout(x, self.dropout, self.training)
        return x, final

    def _one_direction(self, x: Tensor, state: State, weights: list[Any]) -> tuple[Tensor, State]:
        outputs = []
        for step in x:
            state = self._cell(step, state, weights)
            state = tuple(straight_through(each, self.rounders.output) for each in state)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def _cell(self, x: Tensor, state: State, weights: list[Any]) -> State:
        raise NotImplementedError

    def _cell_weights(self, index: int) -> list[Any]:
        names = self._all_weights[index]
        by_name = dict(zip(self._flat_weights_names, self._flat_weights, strict=True))
        weights: list[Any] = [by_name[name] for name in names[: 4 if self.bias else 2]]
        return weights if self.bias else [*weights, None, None]

    def _initial_states(self, x: Tensor, hx: Any) -> list[State]:
        """One state per layer and direction; zeros unless given."""
        n_states = self.num_layers * (2 if self.bidirectional else 1)
        if hx is None:
            zeros = x.new_zeros(x.shape[1], self.hidden_size)
            state: State = (zeros, zeros) if isinstance(self, nn.LSTM) else (zeros,)
            return [state] * n_states
        parts = hx if isinstance(hx, tuple) else (hx,)
        return [tuple(part[index] for part in parts) for index in range(n_states)]


class QuantRNN(_QuantRecurrent, nn.RNN):
    """`nn.RNN` with rounded operands and states; takes its arguments and `rounders`."""

    def _cell(self, x: Tensor, state: State, weights: list[Any]) -> State:
        cell = torch.rnn_tanh_cell if self.nonlinearity == "tanh" else torch.rnn_relu_cell
        return (cell(x, state[0], *weights),)


class QuantGRU(_QuantRecurrent, nn.GRU):
    """`nn.GRU` with rounded operands and states; takes its arguments and `rounders`."""

    def _cell(self, x: Tensor, state: State, weights: list[Any]) -> State:
        return (torch.gru_cell(x, state[0], *weights),)


class QuantLSTM(_QuantRecurrent, nn.LSTM):
    """`nn.LSTM` with rounded operands, hidden and cell states; takes its arguments and `rounders`.

    Raises: ValueError for a projected state (proj_size) with an `output` rounder.
    """

    def _cell(self, x: Tensor, state: State, weights: list[Any]) -> State:
        if self.proj_size:
            raise ValueError(f"proj_size={self.proj_size}: projected states are not rounded; use proj_size=0")
        return tuple(torch.lstm_cell(x, state, *weights))


def _map_states(function: Callable[[Tensor], Tensor], hx: Any) -> Any:
    return tuple(map(function, hx)) if isinstance(hx, tuple) else function(hx)
