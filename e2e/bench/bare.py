"""A bare loop to compare with: the official client of argv[1] (chat, responses or messages) on the server at argv[2],
with one function tool. Says after "used" its CPU seconds and peak resident kilobytes as JSON. Importing is not counted."""

import json
import resource
import sys

import anthropic
import openai

api, url = sys.argv[1:3]
description, schema = "does echo", {"type": "object", "properties": {"text": {"type": "string"}}}
instructions, asked, name = "Be brief.", "Do it.", "server__echo"


def echo(arguments: str | dict) -> str:
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    return arguments["text"]


def chat() -> None:
    client = openai.OpenAI(base_url=url, api_key="none")
    tools = [{"type": "function", "function": {"name": name, "description": description, "parameters": schema}}]
    messages = [{"role": "system", "content": instructions}, {"role": "user", "content": asked}]
    while True:
        with client.chat.completions.stream(model="m", messages=messages, tools=tools) as stream:
            answer = stream.get_final_completion().choices[0].message
        if not answer.tool_calls:
            return
        calls = [{"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": call.function.arguments}}
                 for call in answer.tool_calls]
        messages.append({"role": "assistant", "content": answer.content, "tool_calls": calls})
        for call in answer.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": echo(call.function.arguments)})


def responses() -> None:
    client = openai.OpenAI(base_url=url, api_key="none")
    tools = [{"type": "function", "name": name, "description": description, "parameters": schema, "strict": False}]
    items = [{"role": "user", "content": asked}]
    while True:
        calls = []
        for event in client.responses.create(model="m", instructions=instructions, input=items, tools=tools, store=False, stream=True):
            if event.type == "response.output_item.done" and event.item.type == "function_call":
                calls.append(event.item)
        if not calls:
            return
        for call in calls:
            items.append({"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments})
            items.append({"type": "function_call_output", "call_id": call.call_id, "output": echo(call.arguments)})


def messages() -> None:
    client = anthropic.Anthropic(base_url=url, api_key="none")
    tools = [{"name": name, "description": description, "input_schema": schema}]
    said = [{"role": "user", "content": asked}]
    while True:
        with client.messages.stream(model="m", max_tokens=512, system=instructions, messages=said, tools=tools) as stream:
            answer = stream.get_final_message()
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            return
        said.append({"role": "assistant", "content": [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": call.input} for call in calls]})
        said.append({"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": call.id, "content": echo(call.input)} for call in calls]})


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


before = cpu()
{"chat": chat, "responses": responses, "messages": messages}[api]()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("used", json.dumps({"cpu_seconds": cpu() - before, "peak_kilobytes": peak}))
