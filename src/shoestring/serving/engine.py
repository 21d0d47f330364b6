"""The live engine: a decoder, blocks of memory and a scheduler, advanced one iteration at a time."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from shoestring.errors import NoCompiler
from shoestring.generation.block_storage import BlockStorage
from shoestring.generation.decoder_runner import end_tokens
from shoestring.generation.sampling import Sampling
from shoestring.kernels.decode_batch import BatchSequence, room_bytes
from shoestring.kernels.decode_step import PROMPT_TOKENS
from shoestring.kernels.grouped_linear import Activations
from shoestring.models.compiled_batch import CompiledBatch
from shoestring.models.compiled_decoder import CannotCompile
from shoestring.models.decoder import Decoder
from shoestring.notices import notice_fallback
from shoestring.numbers.block_format import BlockFormat
from shoestring.serving.events import (
    Action,
    Emit,
    Event,
    Finish,
    IterationDone,
    Reject,
    RequestArrived,
    RequestCancelled,
    Slice,
    SliceOutput,
    StartIteration,
    started,
)
from shoestring.serving.memory_plan import MemoryPlan, plan_memory
from shoestring.serving.naive_batch import NaiveBatch
from shoestring.serving.policy import ChunkedPrefill
from shoestring.serving.scheduler import Scheduler
from shoestring.yardstick.memory import tensor_bytes

Message = Emit | Finish | Reject


@dataclass
class _Output:
    """One request as the engine knows it: all its tokens, prompt first, and how to choose the next."""

    ids: list[int]
    sampling: Sampling
    generator: torch.Generator
    ends: frozenset[int]


@dataclass(frozen=True)
class EngineSettings:
    """How an engine works. form: of blocks. cache_dtype: of keys and values that are not in codes.
    activations: in what inputs of packed layers take part. policy: who works when; its token budget may not
    be above what one call takes. max_waiting: requests that may wait.
    share_prefixes: whether requests that begin alike share blocks."""

    form: BlockFormat = BlockFormat(64)  # noqa: RUF009  (frozen)
    cache_dtype: torch.dtype = torch.float16
    activations: Activations = Activations.FLOAT32
    policy: ChunkedPrefill = field(default_factory=ChunkedPrefill)
    max_waiting: int | None = None
    share_prefixes: bool = True


class Engine:
    """Serves many requests with one decoder on the CPU. Not for several threads at once.

    memory_bytes: for weights, buffers, keys and values together; blocks fill what weights and buffers leave.
    n_blocks: instead, how many blocks there are. clock: seconds that never go back.

    Raises: ValueError for a hybrid, a budget without room, with the smallest that works, both or neither of
    the two, a form that does not fit the model, or a token budget above `PROMPT_TOKENS`.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        memory_bytes: int | None = None,
        n_blocks: int | None = None,
        settings: EngineSettings = EngineSettings(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if (memory_bytes is None) == (n_blocks is None):
            raise ValueError(f"give memory_bytes={memory_bytes} or n_blocks={n_blocks}: one of the two.")
        if settings.policy.token_budget > PROMPT_TOKENS:
            raise ValueError(
                f"token_budget={settings.policy.token_budget} is more than the {PROMPT_TOKENS} of one call."
            )
        if model.cfg.is_hybrid:
            raise ValueError("the engine keeps keys and values, no states: a hybrid cannot be served yet.")
        self.model, self.settings, self.clock = model, settings, clock
        self._ends = end_tokens(model.generation_config, model.config, model.cfg)
        compiled = _compiled(model, settings.activations)
        self.compiled = compiled is not None
        """Whether all sequences run in one compiled call; else one by one."""
        self.weights_bytes = tensor_bytes(model, compiled.step.tensors if compiled else [])
        self.buffers_bytes = self._buffers(compiled)
        self.plan: MemoryPlan | None = None
        """How the budget was divided; None where blocks were counted instead."""
        cfg, form = model.cfg, settings.form
        if memory_bytes is not None:
            self.plan = self._plan(memory_bytes)
            n_blocks = self.plan.n_blocks
        assert n_blocks is not None
        self.storages = [
            BlockStorage(form, n_blocks, cfg.num_key_value_heads, cfg.head_dim, dtype=settings.cache_dtype)
            for _ in range(cfg.num_hidden_layers)
        ]
        self._batch: CompiledBatch | NaiveBatch = compiled or NaiveBatch(model, self.storages)
        if compiled is not None:
            compiled.use_blocks([storage.rows() for storage in self.storages])
        self.scheduler = Scheduler(
            n_blocks, form.slots, settings.policy, max_context=cfg.max_position_embeddings,
            max_waiting=settings.max_waiting,
        )  # fmt: skip
        self._outputs: dict[str, _Output] = {}
        self._next: StartIteration | None = None
        self._messages: list[Message] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do or to say."""
        return self._next is not None or bool(self._messages)

    def add(
        self,
        rid: str,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        sampling: Sampling = Sampling(),  # noqa: B008  (frozen)
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
    ) -> None:
        """A request for up to `max_new_tokens` after `prompt`; what becomes of it, `step` says.

        stop_tokens: tokens that end the output; by default the model's own.

        Raises: ValueError for a name that is taken, an empty prompt or ids outside the vocabulary.
        """
        ids = [int(i) for i in prompt]
        if bad := [i for i in ids if not 0 <= i < self.model.cfg.vocab_size]:
            raise ValueError(f"token {bad[0]} is not in a vocabulary of {self.model.cfg.vocab_size}.")
        if not ids:
            raise ValueError("the prompt is empty; give at least one token to go on from.")
        if rid in self._outputs:
            raise ValueError(f"request {rid!r} is there already; give every request its own name.")
        ends = self._ends if stop_tokens is None else frozenset(stop_tokens)
        self._outputs[rid] = _Output(ids, sampling, torch.Generator().manual_seed(seed), ends)
        known = tuple(ids) if self.settings.share_prefixes else None
        self._send(RequestArrived(rid, len(ids), max_new_tokens, known))

    def cancel(self, rid: str) -> None:
        """End a request early; one that is done already is no matter."""
        self._send(RequestCancelled(rid))

    @torch.inference_mode()
    def step(self) -> list[Message]:
        """Run one iteration, if there is one; what is new for clients: tokens, ends, refusals."""
        if self._next is not None:
            iteration, began = self._next, self.clock()
            outputs = self._run(iteration.plan)
            self._next = None
            self._send(IterationDone(iteration.iteration, self.clock() - began, outputs))
        messages, self._messages = self._messages, []
        return messages

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **options: object
    ) -> list[list[int]]:
        """The new tokens of all prompts, served together. options: as `add`.

        Raises: ValueError where a request is refused; else as `add`.
        """
        for number, prompt in enumerate(prompts):
            self.add(str(number), prompt, max_new_tokens, **options)  # type: ignore[arg-type]
        found: list[list[int]] = [[] for _ in prompts]
        while self.busy:
            for message in self.step():
                if isinstance(message, Reject):
                    raise ValueError(f"prompt {message.rid}: {message.reason}")
                if isinstance(message, Emit):
                    found[int(message.rid)] += message.new_token_ids or ()
        return found

    def _send(self, event: Event) -> None:
        actions: list[Action] = self.scheduler.on_event(event, self.clock())
        self._next = started(actions) or self._next
        for action in actions:
            if isinstance(action, Emit | Finish | Reject):
                self._messages.append(action)
            elif not isinstance(action, StartIteration):
                self.preemptions += 1
            if isinstance(action, Finish | Reject):
                del self._outputs[action.rid]

    def _run(self, plan: Sequence[Slice]) -> tuple[SliceOutput, ...]:
        rows = [
            token for piece in plan for token in self._outputs[piece.rid].ids[piece.start : piece.kv_length]
        ]
        sequences = [BatchSequence(p.start, p.tokens, p.blocks, p.samples) for p in plan]
        logits = self._batch.run(torch.tensor(rows), sequences)
        sampled = [piece.rid for piece in plan if piece.samples]
        return tuple(self._choose(rid, row) for rid, row in zip(sampled, logits, strict=True))

    def _choose(self, rid: str, logits: torch.Tensor) -> SliceOutput:
        output = self._outputs[rid]
        if output.sampling.greedy and output.sampling.repetition_penalty == 1.0:
            token = int(logits.argmax())
        else:
            token = int(output.sampling.choose(logits[None], torch.tensor([output.ids]), output.generator))
        output.ids.append(token)
        return SliceOutput(rid, 1, (token,), token in output.ends)

    def _plan(self, memory_bytes: int) -> MemoryPlan:
        return plan_memory(
            self.model.cfg, memory_bytes, self.settings.form, self.settings.cache_dtype,
            weights_bytes=self.weights_bytes, buffers_bytes=self.buffers_bytes,
        )  # fmt: skip

    def _buffers(self, compiled: CompiledBatch | None) -> int:
        """Logits of all requests, and what a call with as many rows as the policy allows works on."""
        rows = self.settings.policy.token_budget
        logits = 4 * self.settings.policy.max_sequences * self.model.cfg.vocab_size
        if compiled is None:
            return logits
        return logits + room_bytes(compiled.step, rows) + 4 * rows * self.model.cfg.hidden_size


def _compiled(model: Decoder, activations: Activations) -> CompiledBatch | None:
    try:
        return CompiledBatch(model, activations=activations)
    except (CannotCompile, NoCompiler) as error:
        notice_fallback("serving", f"sequences one by one instead of one compiled call for all ({error})")
        return None
