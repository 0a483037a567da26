"""A bare loop to compare with: pydantic-ai on the Chat Completions server at argv[1], with one function tool.

Prints its CPU seconds and peak resident kilobytes as JSON. Starting up and importing is not counted."""

import json
import resource
import sys

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import UsageLimits

model = OpenAIChatModel("gpt-test", provider=OpenAIProvider(base_url=sys.argv[1], api_key="none"))
agent = Agent(model)


@agent.tool_plain(name="everything__echo")
def echo(message: str) -> str:
    return f"Echo: {message}"


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


before = cpu()
result = agent.run_sync("Echo.", usage_limits=UsageLimits(request_limit=None))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"cpu_seconds": cpu() - before, "peak_kilobytes": peak, "output": result.output}))
