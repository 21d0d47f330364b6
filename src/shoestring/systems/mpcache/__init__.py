"""MPCache: a cache from which a secret-shared model reads little, chosen by operations that are cheap in
secret."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoestring.data.needles import needle_prompts
from shoestring.generation.clusters import ClusterOptions
from shoestring.generation.decoder_runner import decoder_cache
from shoestring.generation.mpcache import KeepShare, LastQueries
from shoestring.generation.secret.parties import Dealing, PartyGroup, Setting
from shoestring.generation.secret.step_cost import StepShape
from shoestring.models.built_in import built_in_file
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_step import Want
from shoestring.models.hooks import AttnPlan, Context
from shoestring.models.load import load_decoder, load_tokenizer
from shoestring.notices import record_fallbacks
from shoestring.systems.card import Card, Effort
from shoestring.systems.language_task import MODEL, text_halves, tiny_task
from shoestring.systems.mpcache.claims import CLAIMS, LENGTHS
from shoestring.systems.mpcache.network import KEPT, Layer, Measured, measure_step, network_rows
from shoestring.systems.mpcache.quality import as_tasks, losses, needle_rows, text_rows
from shoestring.yardstick.comparison import Comparison, Row

card = Card(
    slug="mpcache",
    title="MPCache",
    paper="MPCache: MPC-Friendly KV Cache Eviction for Efficient Private Large Language Model Inference "
    "(NeurIPS 2025)",
    year=2025,
    authors_code="zwxandy/MPCache",
    saves=("communication", "time"),
    parts=(
        "shoestring.generation.mpcache.MPCache",
        "shoestring.generation.clusters.mpcache_select",
        "shoestring.generation.secret.parties.PartyGroup",
        "shoestring.generation.secret.secret_cache.SecretCache",
        "shoestring.generation.secret.decode_step.decode_attention",
        "shoestring.generation.secret.cost.cost_model",
        "shoestring.numbers.ring.RingFormat",
    ),
    claims=CLAIMS,
)
LAYERS = (10, 11)
"""Of SmolLM2-135M: in the middle of its 30."""
Task = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Work:
    """What is measured on. network: prompts by length; texts, needles: prompts with what follows."""

    model: Decoder
    layers: tuple[int, int]
    network: dict[int, Tensor]
    texts: list[Task]
    needles: list[Task]
    clusters: ClusterOptions
    origin: str


class LastQuery:
    """A hook that keeps the query of the last token of some layers, scaled."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers, self.found = layers, dict[int, Tensor]()

    def attn_plan(self, layer: int, q: Tensor, pos: Tensor, ctx: Context) -> AttnPlan | None:
        """Look, and plan nothing."""
        if layer in self.layers:
            self.found[layer] = q[0, :, -1] * q.shape[-1] ** -0.5
        return None


def measure(effort: Effort, seed: int) -> Comparison:
    """Bytes and rounds between processes, and quality without secrets."""
    smoke = effort is Effort.SMOKE
    work = _tiny(seed) if smoke else _smollm2(effort, seed)
    with record_fallbacks() as fallbacks:
        network, shape = _network(work, smoke)
        rows = network_rows(network, sorted(network)[len(network) // 2], shape, 2)
        rows += _quality(work, seed)
    return Comparison(
        system=card.slug,
        method="MPCache",
        baseline="the full cache",
        work="attention of a decoded token between two parties; continuations and needles in the clear",
        rows=tuple(rows),
        effort=effort,
        seed=seed,
        notes=(
            work.origin,
            "bytes of the dealer are offline and not counted, for either method",
            "bounds of the prompt's clusters are taken as known: they are made once, with the prompt",
            *fallbacks,
        ),
    )


def _network(work: Work, smoke: bool) -> tuple[dict[int, Measured], StepShape]:
    """Both methods at every length; a smoke run has its parties in threads, as processes take long to
    start."""
    setting = Setting(dealer=Dealing.STUB if smoke else Dealing.PROCESS)
    found = {}
    with PartyGroup(setting, threads=smoke) as group:
        for tokens, ids in work.network.items():
            layers = _captured(work, ids)
            found[tokens] = measure_step(group, layers, work.clusters)
    heads, _, dim = layers[0].q.shape
    return found, StepShape(heads, 1, dim)


@torch.inference_mode()
def _captured(work: Work, ids: Tensor) -> tuple[Layer, Layer]:
    """The two layers at the last token: one query head of each KV head."""
    cache, queries, last = decoder_cache(work.model), LastQueries(), LastQuery(work.layers)
    work.model(ids[:, :-1], cache=cache, hooks=(queries,), want=Want(logits=None))
    work.model(ids[:, -1:], hooks=(last,), cache=cache, want=Want(logits=None))
    found = []
    for layer in work.layers:
        view = cache.view(layer)
        # The last token was decoded; what was there before it is the prompt.
        k, v = view.k[0, :, :-1], view.v[0, :, :-1]
        group = work.model.cfg.num_attention_heads // k.shape[0]
        kept = KeepShare(KEPT).keep(queries.attention(layer, k[None]))
        found.append(Layer(last.found[layer][::group, None], k, v, kept))
    return found[0], found[1]


def _quality(work: Work, seed: int) -> list[Row]:
    texts = losses(work.model, work.texts, seed, clusters=work.clusters, static=KeepShare(), pairs=True)
    needles = losses(work.model, work.needles, seed, clusters=work.clusters, static=KeepShare(), pairs=False)
    return [*text_rows(texts, len(work.texts[0][0])), *needle_rows(needles)]


def _smollm2(effort: Effort, seed: int) -> Work:
    """SmolLM2-135M on the second half of `$SHOESTRING_TEXT` or of the default text."""
    path = built_in_file(MODEL)
    tokenizer, halves = load_tokenizer(path), text_halves()
    ids = torch.tensor(tokenizer.encode(halves.held_out))
    full = effort is Effort.FULL
    count, following = (8, 128) if full else (2, 48)
    window = 1024 + following
    if len(ids) < max(count * window, LENGTHS[-1] + 1):
        raise ValueError(f"{halves.name} has {len(ids)} tokens to judge on, too few; give a longer text.")
    starts = torch.linspace(0, len(ids) - window, count).long().tolist()
    texts: list[Task] = [(ids[s : s + 1024].tolist(), ids[s + 1024 : s + window].tolist()) for s in starts]
    needles = as_tasks(needle_prompts(halves.held_out, tokenizer, 1024, 8 if full else 4, seed=seed))
    needles += as_tasks(needle_prompts(halves.held_out, tokenizer, 2048, 4 if full else 1, seed=seed))
    network = {tokens: ids[None, : tokens + 1] for tokens in LENGTHS}
    origin = f"{MODEL}; {halves.name}; layers {LAYERS[0]} and {LAYERS[1]} between the parties"
    model = load_decoder(path, torch.float32)
    return Work(model, LAYERS, network, texts, needles, ClusterOptions(), origin)


def _tiny(seed: int) -> Work:
    """A random model and random tokens."""
    task = tiny_task(seed, held_out=(2, 120))
    ids = task.held_out
    # Shorter prompts stand in for those of the claims.
    network = {claimed: ids[:1, : tokens + 1] for claimed, tokens in zip(LENGTHS, (48, 64, 96), strict=True)}
    tasks: list[Task] = [(row[:100].tolist(), row[100:104].tolist()) for row in ids]
    clusters = ClusterOptions(coarse=8, fine=4)
    return Work(task.model, (0, 1), network, tasks, tasks, clusters, task.origin)
