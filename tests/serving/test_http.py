"""The HTTP face, as a client of the OpenAI API sees it."""

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from shoestring.generation.decode import generate
from shoestring.models.decoder import Decoder
from shoestring.models.decoder_config import DecoderConfig
from shoestring.numbers.block_format import BlockFormat
from shoestring.serving import ChunkedPrefill, Emit, Engine, EngineSettings, Finish, Reason
from shoestring.serving.driver import EngineDriver
from shoestring.serving.http import COMPLETION, MOST_BODY_BYTES, Server, create_app

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    cfg = DecoderConfig.from_dict(
        {
            "model_type": "llama", "vocab_size": 257, "hidden_size": 48, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
            "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
        }
    )  # fmt: skip
    decoder = Decoder(cfg).requires_grad_(False).eval()
    for parameter in decoder.parameters():
        parameter.data *= 5
    return decoder


def server_of(model, tokenizer, **options):
    settings = EngineSettings(BlockFormat(8), torch.float32, policy=ChunkedPrefill(16, 8), **options)
    return Server(Engine(model, n_blocks=60, settings=settings), tokenizer, "tiny")


@pytest.fixture
def client(model, byte_tokenizer):
    byte_tokenizer.chat_template = TEMPLATE
    with TestClient(create_app(server_of(model, byte_tokenizer))) as made:
        yield made
    byte_tokenizer.chat_template = None


def greedy(model, tokenizer, prompt, n=24, **settings):
    ids = tokenizer.encode(prompt)
    return generate(model, ids, tokenizer, max_new_tokens=n, stop_tokens=(), **settings).text


def body(prompt="a budget", **more):
    return {"prompt": prompt, "max_tokens": 24, "temperature": 0, **more}


def events(response):
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def test_a_completion_is_the_text_of_generate(client, model, byte_tokenizer):
    answer = client.post("/v1/completions", json=body(model="tiny"))
    assert answer.status_code == 200
    found = answer.json()
    (choice,) = found["choices"]
    assert choice["text"] == greedy(model, byte_tokenizer, "a budget")
    assert choice["finish_reason"] == "length"
    assert (found["object"], found["model"]) == ("text_completion", "tiny")
    assert found["usage"] == {"prompt_tokens": 8, "completion_tokens": 24, "total_tokens": 32}


def test_a_stream_is_the_same_text_in_pieces(client, model, byte_tokenizer):
    found = events(
        client.post("/v1/completions", json=body(stream=True, stream_options={"include_usage": True}))
    )
    assert "".join(e["choices"][0]["text"] for e in found if e["choices"]) == greedy(
        model, byte_tokenizer, "a budget"
    )
    assert len(found) > 5
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["completion_tokens"] == 24
    assert len({e["id"] for e in found}) == 1


def test_chat_goes_through_the_template(client, model, byte_tokenizer):
    messages = [{"role": "user", "content": "hello"}]
    expected = greedy(model, byte_tokenizer, "<user>hello<assistant>")
    whole = client.post(
        "/v1/chat/completions", json={"messages": messages, "max_tokens": 24, "temperature": 0}
    ).json()
    assert whole["choices"][0]["message"] == {"role": "assistant", "content": expected}
    assert whole["object"] == "chat.completion"
    stream = {"messages": messages, "max_completion_tokens": 24, "temperature": 0, "stream": True}
    found = events(client.post("/v1/chat/completions", json=stream))
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in found) == expected
    assert found[0]["object"] == "chat.completion.chunk"


def test_many_clients_get_what_each_would_get_alone(client, model, byte_tokenizer):
    prompts = [f"budget number {n} is" for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda p: client.post("/v1/completions", json=body(p)).json(), prompts))
    texts = [answer["choices"][0]["text"] for answer in answers]
    assert texts == [greedy(model, byte_tokenizer, prompt) for prompt in prompts]


def test_stop_strings_and_token_ids(client, model, byte_tokenizer):
    text = greedy(model, byte_tokenizer, "a budget")
    stop = text[9:11]
    ids = byte_tokenizer.encode("a budget")
    answer = client.post("/v1/completions", json=body(ids, stop=[stop])).json()["choices"][0]
    assert answer["text"] == text[: text.index(stop)]
    assert answer["finish_reason"] == "stop"


def metrics(client):
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_models_health_and_metrics(client):
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert client.get("/health").status_code == 200
    client.post("/v1/completions", json=body())
    # Gauges are sampled between iterations: the answer may be there a moment before.
    deadline = time.monotonic() + 10
    while (found := metrics(client))["vllm:num_requests_running"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found["vllm:prompt_tokens_total"] == 8
    assert found["vllm:generation_tokens_total"] == 24
    assert found["vllm:request_success_total"] == 1
    assert found["vllm:time_to_first_token_seconds_count"] == 1
    assert found["vllm:inter_token_latency_seconds_count"] == 23
    assert found["vllm:num_requests_running"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0


@pytest.mark.parametrize(
    ("sent", "status", "param"),
    [
        ({"prompt": "", "max_tokens": 1}, 400, "prompt"),
        ({"prompt": 7}, 400, "prompt"),
        ({"prompt": [1, True]}, 400, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        ({"prompt": "a", "max_tokens": 200}, 400, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, 400, "temperature"),
        ({"prompt": "a", "top_p": "x"}, 400, "top_p"),
        ({"prompt": "a", "stop": [""]}, 400, "stop"),
        ({"prompt": "a", "n": 2}, 400, "n"),
        ({"prompt": "a", "model": "other"}, 404, "model"),
        ({"prompt": [900]}, 400, None),
        ([1], 400, None),
    ],
)
def test_bad_requests_are_told_what_is_wrong(client, sent, status, param):
    answer = client.post("/v1/completions", json=sent)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]


def test_bad_bodies_and_messages(client):
    assert "no JSON" in client.post("/v1/completions", content=b"{").json()["error"]["message"]
    assert client.post("/v1/completions", content=b" " * (MOST_BODY_BYTES + 1)).status_code == 413
    assert client.post("/v1/chat/completions", json={"messages": [{"role": "user"}]}).status_code == 400
    assert client.post("/v1/completions", json=body([900], stream=True)).text.startswith('data: {"error"')


def test_a_full_queue_says_when_to_come_back(model, byte_tokenizer):
    with TestClient(create_app(server_of(model, byte_tokenizer, max_waiting=0))) as client:
        answer = client.post("/v1/completions", json=body())
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"


def test_a_reader_that_leaves_cancels_its_request(model, byte_tokenizer):
    server = server_of(model, byte_tokenizer)
    server.driver.start()

    async def leave_early():
        answer, messages = server.begin(body(max_tokens=100), COMPLETION)
        pieces = server.pieces(answer, messages)
        await anext(pieces)
        await pieces.aclose()
        return answer

    answer = asyncio.run(leave_early())
    assert server.driver.stop(20.0)
    assert len(answer.times.tokens) < 100
    assert 'finished_reason="abort"' in server.metrics.text().decode()
    assert server.engine.scheduler.pool.manager.used == 0


def test_stopping_lets_requests_finish_and_takes_no_more(model):
    settings = EngineSettings(BlockFormat(8), torch.float32, policy=ChunkedPrefill(16, 8))
    driver, found = EngineDriver(Engine(model, n_blocks=60, settings=settings)), []
    driver.start()
    driver.submit("a", lambda engine: engine.add("a", [1, 2], 30, stop_tokens=()), found.append)
    assert driver.stop(20.0)
    assert sum(isinstance(message, Emit) for message in found) == 30
    assert found[-1] == Finish("a", Reason.LENGTH)
    assert not driver.accepts


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_fails_tells_everyone(model):
    driver, ended = EngineDriver(Engine(model, n_blocks=9)), threading.Event()
    found = []

    def break_engine(engine):
        engine.add("a", [1, 2], 30)
        engine._batch = None

    driver.start()
    driver.submit("a", break_engine, lambda message: (found.append(message), ended.set()))
    assert ended.wait(20)
    assert found == [Finish("a", Reason.FAILED)]
    driver.stop(20.0)
    assert not driver.accepts
