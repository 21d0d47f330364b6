"""The scheduler under random events: nothing leaks, nothing starves, no budget is exceeded, memory is never
mixed up.
"""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shoestring.serving import (
    ChunkedPrefill,
    Emit,
    Finish,
    IterationDone,
    Kind,
    Preempt,
    Reason,
    Reject,
    RequestArrived,
    RequestCancelled,
    Scheduler,
    SliceOutput,
    StartIteration,
)

BLOCKS, SLOTS = 9, 4


class Machine(RuleBasedStateMachine):
    """Plays the engine: memory holds, for every place, the tokens up to it; what a slice reads must be its
    own.
    """

    @initialize(budget=st.integers(1, 12), most=st.integers(1, 5), seed=st.integers(0, 1000))
    def start(self, budget, most, seed):
        self.policy = ChunkedPrefill(budget, most, watermark=0.1)
        self.scheduler = Scheduler(BLOCKS, SLOTS, self.policy)
        self.random, self.now, self.iteration = random.Random(seed), 0.0, None
        self.ids, self.wanted, self.ended, self.memory = {}, {}, {}, {}

    def send(self, event):
        self.now += self.random.random()
        for action in self.scheduler.on_event(event, self.now):
            match action:
                case StartIteration():
                    assert self.iteration is None
                    self.iteration = action
                    self.check_plan(action)
                case Emit():
                    self.ids[action.rid] += action.new_token_ids
                case Finish():
                    assert action.rid not in self.ended, "a request ends once"
                    self.ended[action.rid] = action.reason
                case Reject():
                    self.ended[action.rid] = action
                case Preempt():
                    assert self.iteration is None

    def check_plan(self, action):
        assert action.tokens <= self.policy.token_budget
        assert 1 <= len(action.plan) <= self.policy.max_sequences
        assert len({piece.rid for piece in action.plan}) == len(action.plan)
        for piece in action.plan:
            known = self.ids[piece.rid]
            assert piece.tokens >= 1
            assert piece.kv_length <= len(known)
            assert piece.samples == (piece.kv_length == len(known))
            assert piece.kind is Kind.PREFILL or piece.tokens == 1
            assert len(piece.blocks) * SLOTS >= piece.kv_length

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=24),
        new=st.integers(1, 14),
        known=st.booleans(),
    )
    def arrive(self, prompt, new, known):
        rid = str(len(self.ids))
        self.ids[rid], self.wanted[rid] = tuple(prompt), len(prompt) + new
        self.send(RequestArrived(rid, len(prompt), new, tuple(prompt) if known else None))
        fits = len(prompt) + new - 1 <= BLOCKS * SLOTS
        assert isinstance(self.ended.get(rid), Reject) != fits

    @precondition(lambda self: self.scheduler.requests)
    @rule(data=st.data())
    def cancel(self, data):
        rid = data.draw(st.sampled_from(sorted(self.scheduler.requests)))
        self.send(RequestCancelled(rid))

    @precondition(lambda self: self.iteration)
    @rule(stop=st.integers(0, 9))
    def finish_iteration(self, stop=9):
        plan, self.iteration = self.iteration, None
        outputs = []
        for piece in plan.plan:
            ids = self.ids[piece.rid]
            # Rows are written before any is read, as in the step.
            for at in range(piece.start, piece.kv_length):
                self.memory[piece.blocks[at // SLOTS], at % SLOTS] = ids[: at + 1]
            if piece.samples:
                outputs.append(SliceOutput(piece.rid, 1, (self.random.randint(0, 1),), stop == 0))
        for piece in plan.plan:
            for at in range(piece.kv_length):
                held = self.memory[piece.blocks[at // SLOTS], at % SLOTS]
                assert held == self.ids[piece.rid][: at + 1], "a block that another request wrote to"
        self.send(IterationDone(plan.iteration, 0.1, tuple(outputs)))

    @invariant()
    def every_request_is_in_one_place(self):
        if not hasattr(self, "scheduler"):
            return
        pool = self.scheduler.pool
        queued = [request.rid for request in (*pool.waiting, *pool.running)]
        assert sorted(queued) == sorted(self.scheduler.requests)
        assert all(not request.blocks for request in pool.waiting)

    @invariant()
    def every_block_is_accounted_for(self):
        if not hasattr(self, "scheduler"):
            return
        pool = self.scheduler.pool
        held = {block for request in pool.running for block in request.blocks}
        assert pool.manager.used == len(held) == pool.manager.n_blocks - pool.manager.available

    @invariant()
    def nobody_idles(self):
        if hasattr(self, "scheduler"):
            assert (self.iteration is None) == (not self.scheduler.requests)

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        for _ in range(4000):
            if self.iteration is None:
                break
            self.finish_iteration()
        assert not self.scheduler.requests, "every request finishes"
        assert set(self.ended) == set(self.ids)
        assert self.scheduler.pool.manager.available == BLOCKS
        for rid, reason in self.ended.items():
            if reason is Reason.LENGTH:
                assert len(self.ids[rid]) == self.wanted[rid]


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


def run(scheduler, arrivals, now=0.0):
    """Feed arrivals, then iterations to the end; all actions in order."""
    actions = []
    for event in arrivals:
        actions += scheduler.on_event(event, now)
    while scheduler.requests:
        now += 1.0
        plan = next(a for a in reversed(actions) if isinstance(a, StartIteration))
        outputs = tuple(SliceOutput(piece.rid) for piece in plan.plan if piece.samples)
        actions += scheduler.on_event(IterationDone(plan.iteration, 1.0, outputs), now)
    return actions


def test_decoding_goes_first_and_prompts_fill_up_the_iteration():
    scheduler = Scheduler(100, 4, ChunkedPrefill(8))
    actions = run(scheduler, [RequestArrived("a", 3, 4), RequestArrived("b", 20, 2)])
    plans = [
        [(p.rid, p.kind, p.start, p.tokens) for p in a.plan] for a in actions if isinstance(a, StartIteration)
    ]
    assert plans[:4] == [
        [("a", Kind.PREFILL, 0, 3)],
        [("a", Kind.DECODE, 3, 1), ("b", Kind.PREFILL, 0, 7)],
        [("a", Kind.DECODE, 4, 1), ("b", Kind.PREFILL, 7, 7)],
        [("a", Kind.DECODE, 5, 1), ("b", Kind.PREFILL, 14, 6)],
    ]


def test_the_last_to_arrive_gives_way_and_keeps_what_it_wrote():
    scheduler = Scheduler(4, 4, ChunkedPrefill(16, watermark=0))
    actions = run(scheduler, [RequestArrived("a", 6, 8), RequestArrived("b", 6, 8)])
    assert Preempt("b") in actions
    assert Preempt("a") not in actions
    again = next(
        piece
        for action in actions[actions.index(Preempt("b")) :]
        if isinstance(action, StartIteration)
        for piece in action.plan
        if piece.rid == "b"
    )
    assert again.kind is Kind.PREFILL
    assert again.start == 0
    assert again.tokens > 6
    assert [a.rid for a in actions if isinstance(a, Finish)] == ["a", "b"]


def test_requests_that_begin_alike_share_blocks():
    scheduler = Scheduler(20, 4, ChunkedPrefill(16))
    prompt = tuple(range(13))
    first = run(scheduler, [RequestArrived("a", 13, 1, prompt)])
    second = run(scheduler, [RequestArrived("b", 14, 1, (*prompt[:12], 5, 6))], now=9.0)
    (a,), (b,) = (
        next(x for x in actions if isinstance(x, StartIteration)).plan for actions in (first, second)
    )
    assert (b.start, b.tokens) == (12, 2)
    assert b.blocks[:3] == a.blocks[:3]
    assert b.blocks[3] not in a.blocks[:3]


def test_the_same_events_give_the_same_actions():
    arrivals = [RequestArrived(str(i), 5 + i % 7, 3 + i % 5, priority=i) for i in range(20)]
    assert run(Scheduler(12, 4), arrivals) == run(Scheduler(12, 4), arrivals)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (RequestArrived("a", 0, 1), "prompt_tokens=0"),
        (RequestArrived("a", 1, 0), "max_new_tokens=0"),
        (RequestArrived("a", 3, 1, (1, 2)), "there are 2 token ids"),
        (RequestArrived("a", 30, 20), "30 tokens and 20 new ones are more than the context of 45"),
        (RequestArrived("a", 20, 22), "42 tokens need 11 blocks of 4 tokens; there are 10"),
    ],
)
def test_requests_that_can_never_be_served_are_rejected(event, message):
    (action,) = Scheduler(10, 4, max_context=45).on_event(event, 0.0)
    assert isinstance(action, Reject)
    assert message in action.reason


def test_a_full_queue_rejects():
    scheduler = Scheduler(10, 4, ChunkedPrefill(4, max_sequences=1), max_waiting=1)
    scheduler.on_event(RequestArrived("a", 1, 1), 0.0)
    scheduler.on_event(RequestArrived("b", 1, 1), 0.0)
    (action,) = scheduler.on_event(RequestArrived("c", 1, 1), 0.0)
    assert "1 requests wait already" in action.reason


@pytest.mark.parametrize(
    ("event", "now", "message"),
    [
        (RequestArrived("a", 1, 1), 1.0, "'a' is there already"),
        (RequestArrived("b", 1, 1), 0.5, "time does not go back"),
        (IterationDone(7, 1.0, ()), 1.0, "iteration 7 is not under way; 0 is"),
        (IterationDone(0, 1.0, ()), 1.0, "outputs of \\[\\] are not those"),
    ],
)
def test_events_that_cannot_be_are_refused(event, now, message):
    scheduler = Scheduler(10, 4)
    scheduler.on_event(RequestArrived("a", 1, 1), 1.0)
    with pytest.raises(ValueError, match=message):
        scheduler.on_event(event, now)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChunkedPrefill(0), "token_budget=0"),
        (lambda: ChunkedPrefill(8, 0), "max_sequences=0"),
        (lambda: ChunkedPrefill(watermark=1.0), "watermark=1.0"),
        (lambda: Scheduler(0), "n_blocks=0"),
        (lambda: Scheduler(1, -16), "slots=-16"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_the_scheduler_under_many_random_events():
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=150, stateful_step_count=60, deadline=None)
    )
