"""The official clients as judges. One JSON object a line on stdin, one answer a line on stdout:

{"api": "messages", "stream": FILE}     what the client makes of that event stream, in the form of tests/streams/*.json
{"api": "messages", "request": BODY}    {"accepted": ..}: the body as the client's own types understand it, without
                                        whatever they do not know
"""

import json
import sys
from collections.abc import Mapping

import anthropic
import httpx
import httpx2
import openai
from anthropic.types.message_create_params import MessageCreateParamsStreaming
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from pydantic import TypeAdapter

# Kept: what they validate lazily they validate only while they are there.
REQUESTS = {
    "chat": TypeAdapter(CompletionCreateParamsStreaming),
    "responses": TypeAdapter(ResponseCreateParamsStreaming),
    "messages": TypeAdapter(MessageCreateParamsStreaming),
}


def serve(library, body):
    """A client's HTTP side that answers every request with this event stream."""
    headers = {"content-type": "text/event-stream"}
    return library.Client(transport=library.MockTransport(lambda _: library.Response(200, headers=headers, content=body)))


def known(**counts):
    return {name: count for name, count in counts.items() if count is not None}


def detail(details, field):
    return getattr(details, field, None) if details is not None else None


def read_chat(body):
    client = openai.OpenAI(api_key="x", max_retries=0, http_client=serve(httpx, body))
    with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as stream:
        for _ in stream:
            pass
        # The snapshot: asked for the final answer, the client raises where it was cut.
        answer = stream.current_completion_snapshot
    choice, usage = answer.choices[0], answer.usage
    message = choice.message
    reasoning = (message.model_extra or {}).get("reasoning_content")
    items = [{"reasoning_content": reasoning}] if reasoning else []
    items += [{"text": message.content}] if message.content else []
    for call in message.tool_calls or []:
        items.append({"call": {"id": call.id, "name": call.function.name, "arguments": call.function.arguments}})
    finish = {"stop": "Stop", "tool_calls": "ToolCalls", "length": "Length", "content_filter": "ContentFilter"}
    counts = {}
    if usage is not None:
        counts = known(
            inputTokens=usage.prompt_tokens,
            cachedInputTokens=detail(usage.prompt_tokens_details, "cached_tokens"),
            outputTokens=usage.completion_tokens,
            cacheWriteTokens=detail(usage.prompt_tokens_details, "cache_write_tokens"),
            reasoningTokens=detail(usage.completion_tokens_details, "reasoning_tokens"),
        )
    return answer, items, finish[choice.finish_reason], counts


def read_responses(body):
    client = openai.OpenAI(api_key="x", max_retries=0, http_client=serve(httpx, body))
    answer = None
    with client.responses.stream(model="m", input="x") as stream:
        for event in stream:
            if event.type in ("response.completed", "response.incomplete"):
                answer = event.response
    items = []
    for item in answer.output:
        if item.type == "message":
            items.append({"text": "".join(getattr(part, "text", None) or part.refusal for part in item.content)})
        elif item.type == "function_call":
            items.append({"call": {"id": item.call_id, "name": item.name, "arguments": item.arguments}})
        else:
            items.append({"block": item.model_dump(exclude_unset=True)})
    if answer.status == "incomplete":
        finish = {"max_output_tokens": "Length", "content_filter": "ContentFilter"}[answer.incomplete_details.reason]
    else:
        finish = "ToolCalls" if any("call" in item for item in items) else "Stop"
    usage = answer.usage
    counts = known(
        inputTokens=usage.input_tokens,
        cachedInputTokens=usage.input_tokens_details.cached_tokens,
        outputTokens=usage.output_tokens,
        cacheWriteTokens=usage.input_tokens_details.cache_write_tokens,
        reasoningTokens=usage.output_tokens_details.reasoning_tokens,
    )
    return answer, items, finish, counts


def read_messages(body):
    client = anthropic.Anthropic(api_key="x", max_retries=0, http_client=serve(httpx2, body))
    with client.messages.stream(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}]) as stream:
        answer = stream.get_final_message()
    items = []
    for block in answer.content:
        if block.type == "text":
            items.append({"text": block.text})
        elif block.type == "tool_use":
            # This client keeps the arguments' value alone.
            items.append({"call": {"id": block.id, "name": block.name, "arguments": block.input}})
        else:
            items.append({"block": block.model_dump(exclude_unset=True)})
    finish = {"end_turn": "Stop", "tool_use": "ToolCalls", "max_tokens": "Length", "refusal": "ContentFilter"}
    usage = answer.usage
    cached, written = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
    counts = known(
        inputTokens=usage.input_tokens + (cached or 0) + (written or 0),
        cachedInputTokens=cached,
        outputTokens=usage.output_tokens,
        cacheWriteTokens=written,
        reasoningTokens=detail(usage.output_tokens_details, "thinking_tokens"),
    )
    return answer, items, finish[answer.stop_reason], counts


READERS = {"chat": read_chat, "responses": read_responses, "messages": read_messages}


def plain(value):
    """Walks what was validated: sequences are validated only as they are walked."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, (str, int, float, bool)) or value is None:
        return value
    return [plain(part) for part in value]


def answer_to(question):
    if "stream" in question:
        with open(question["stream"], "rb") as file:
            answer, items, finish, counts = READERS[question["api"]](file.read())
        return {"items": items, "finish": finish, "usage": counts, "responseId": answer.id, "model": answer.model}
    return {"accepted": plain(REQUESTS[question["api"]].validate_python(question["request"]))}


for line in sys.stdin:
    try:
        said = answer_to(json.loads(line))
    except Exception as error:  # a judge's no is an answer
        said = {"refused": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), flush=True)
