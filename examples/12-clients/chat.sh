#!/bin/sh
# Ask a model through Terrace's gateway with curl.
# BASE is the gateway's address: http://terrace-gateway.terrace-system/v1 in the cluster,
# http://localhost:8080/v1 after `kubectl port-forward -n terrace-system svc/terrace-gateway 8080:80`.
set -eu

BASE=${OPENAI_BASE_URL:-http://localhost:8080/v1}
MODEL=${MODEL:-demo}

echo "# What there is"
curl -sS --fail-with-body "$BASE/models"

echo
echo "# A whole answer; headers say how much of the prompt was known already"
curl -sS --fail-with-body -D - "$BASE/chat/completions" -H 'content-type: application/json' -d '{
  "model": "'"$MODEL"'", "max_tokens": 32, "temperature": 0,
  "messages": [{"role": "user", "content": "What is a pod?"}]
}'

echo
echo "# The same as it comes (server-sent events); -N: curl must not collect it"
curl -sS -N --fail-with-body "$BASE/chat/completions" -H 'content-type: application/json' -d '{
  "model": "'"$MODEL"'", "max_tokens": 32, "temperature": 0, "stream": true,
  "messages": [{"role": "user", "content": "What is a pod?"}]
}'
