"""Requests, the scheduler without I/O, and the live engine."""

from shoestring.serving.block_manager import BlockManager
from shoestring.serving.engine import Engine, EngineSettings
from shoestring.serving.events import (
    Action,
    Emit,
    Event,
    Finish,
    IterationDone,
    Kind,
    Preempt,
    Reason,
    Reject,
    RequestArrived,
    RequestCancelled,
    Slice,
    SliceOutput,
    StartIteration,
)
from shoestring.serving.memory_plan import MemoryPlan, plan_memory
from shoestring.serving.metrics import RequestTimes, summarise
from shoestring.serving.policy import ChunkedPrefill, Policy
from shoestring.serving.pool import Pool
from shoestring.serving.request import Phase, Request
from shoestring.serving.scheduler import Scheduler

__all__ = [
    "Action",
    "BlockManager",
    "ChunkedPrefill",
    "Emit",
    "Engine",
    "EngineSettings",
    "Event",
    "Finish",
    "IterationDone",
    "Kind",
    "MemoryPlan",
    "Phase",
    "Policy",
    "Pool",
    "Preempt",
    "Reason",
    "Reject",
    "Request",
    "RequestArrived",
    "RequestCancelled",
    "RequestTimes",
    "Scheduler",
    "Slice",
    "SliceOutput",
    "StartIteration",
    "plan_memory",
    "summarise",
]
