"""Secret sharing between processes: parties, protocols, and what they cost."""

from shoestring.generation.secret.channel import Channel, Counters, HandshakeError
from shoestring.generation.secret.cost import Cost, CostModel, cost_model
from shoestring.generation.secret.engine import Engine, FixedOperand
from shoestring.generation.secret.parties import Dealing, PartyGroup, Run, Setting
from shoestring.generation.secret.shares import Secret, combine, share

__all__ = [
    "Channel",
    "Cost",
    "CostModel",
    "Counters",
    "Dealing",
    "Engine",
    "FixedOperand",
    "HandshakeError",
    "PartyGroup",
    "Run",
    "Secret",
    "Setting",
    "combine",
    "cost_model",
    "share",
]
