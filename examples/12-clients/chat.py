"""Ask a model through Terrace's gateway with the openai package: pip install openai.

OPENAI_BASE_URL is the gateway's address: http://terrace-gateway.terrace-system/v1 in the cluster,
http://localhost:8080/v1 after `kubectl port-forward -n terrace-system svc/terrace-gateway 8080:80`.
"""

import os
import sys

from openai import OpenAI

MODEL = os.environ.get("MODEL", "demo")
QUESTION = " ".join(sys.argv[1:]) or "What is a pod?"

# The gateway asks for no key yet; the package wants one.
client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://localhost:8080/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)

print("models:", ", ".join(model.id for model in client.models.list()))

# An answer as it comes.
stream = client.chat.completions.create(
    model=MODEL,
    messages=[{"role": "user", "content": QUESTION}],
    max_tokens=64,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices and chunk.choices[0].delta.content:
        print(chunk.choices[0].delta.content, end="", flush=True)
    if chunk.usage:
        print(f"\n{chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens} tokens")

# A whole answer.
answer = client.chat.completions.create(
    model=MODEL,
    messages=[
        {"role": "system", "content": "You explain Kubernetes in one sentence."},
        {"role": "user", "content": QUESTION},
    ],
    temperature=0,
    max_tokens=64,
)
print(answer.choices[0].message.content, f"({answer.choices[0].finish_reason})")
