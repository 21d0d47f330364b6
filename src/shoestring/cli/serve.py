"""`shoestring serve`: an OpenAI-compatible server for a model or fitted folder, in a budget of memory."""

import sys
from typing import Annotated

import typer

from shoestring.cli.cache_bits import parse_cache_bits
from shoestring.cli.console import hide_loading_bars
from shoestring.cli.sizes import format_bytes, parse_bytes


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A built-in alias, a .gguf file, a folder or a Hugging Face id."
        ),
    ],
    memory: Annotated[str, typer.Option(help="For weights, buffers and cached tokens together.")] = "1GiB",
    cache_bits: Annotated[
        str, typer.Option(help="Keep keys and values in 16, 8, 4 or 2 bits; k8v4: keys in 8, values in 4.")
    ] = "16",
    activation_bits: Annotated[
        int, typer.Option(help="32: as exact as the proof of a fitted model; 8: inputs in int8, faster.")
    ] = 32,
    max_sequences: Annotated[int, typer.Option(min=1, help="Requests that run at the same time.")] = 32,
    token_budget: Annotated[
        int, typer.Option(min=1, help="Tokens of one iteration, prompts included.")
    ] = 128,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Requests that may wait; more are told to try later.")
    ] = 256,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen on.")] = 8000,
) -> None:
    """Serve a model over HTTP: /v1/completions, /v1/chat/completions, /v1/models, /health, /metrics.

    \\b
    shoestring serve smollm2-135m --memory 512MiB --cache-bits 8
    shoestring serve build/demo --port 8080
    curl localhost:8000/v1/completions -d '{"prompt": "A budget is", "max_tokens": 32}'
    """
    hide_loading_bars()
    budget = parse_bytes(memory, "--memory")
    widths = parse_cache_bits(cache_bits)
    if activation_bits not in (8, 32):
        raise ValueError(f"--activation-bits {activation_bits} must be 8 or 32")
    from shoestring.compression.load_model import load_model
    from shoestring.errors import MissingExtra
    from shoestring.kernels.grouped_linear import Activations
    from shoestring.models.decoder import Decoder
    from shoestring.numbers.block_format import BlockFormat
    from shoestring.numbers.token_cache_format import TokenCacheFormat
    from shoestring.serving import ChunkedPrefill, Engine, EngineSettings
    from shoestring.serving.http import Server, create_app

    form = BlockFormat(16, TokenCacheFormat(*widths))
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("serving over HTTP needs uvicorn; pip install 'shoestring[serve]'") from error
    settings = EngineSettings(
        form, activations=Activations(activation_bits), policy=ChunkedPrefill(token_budget, max_sequences),
        max_waiting=max_waiting,
    )  # fmt: skip
    loaded, tokenizer = load_model(model, packed=True)
    if not isinstance(loaded, Decoder):
        raise ValueError(
            f"{model} is a {type(loaded).__name__}, which this server cannot batch; use a Decoder's family"
        )
    engine = Engine(loaded, memory_bytes=budget, settings=settings)
    plan = engine.plan
    assert plan is not None
    print(
        f"shoestring: {model} in {format_bytes(budget)}: weights {format_bytes(plan.weights_bytes)}, buffers "
        f"{format_bytes(plan.buffers_bytes)}, {plan.tokens} cached tokens; http://{host}:{port}",
        file=sys.stderr,
    )
    uvicorn.run(create_app(Server(engine, tokenizer, model)), host=host, port=port, log_level="warning")
