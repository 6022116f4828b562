// Command evaluator judges objects as GitOps tools do: it reads JSON lines, writes a verdict for each.
//
// Owns: the lines and the choice of an evaluator. Does not own: any rule of health. They are those of
// kstatus (Flux, Helm 4), of Flux's CEL health checks and of Argo CD's Lua (argo.go).
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

const maxLine = 16 << 20

// A question: which evaluator, about which object, by which rules.
type question struct {
	Evaluator string                        `json:"evaluator"` // kstatus, flux or argo
	Object    json.RawMessage               `json:"object"`
	Script    string                        `json:"script,omitempty"` // Lua, for argo
	Checks    []kustomize.CustomHealthCheck `json:"checks,omitempty"` // healthCheckExprs, for flux
}

type answer struct {
	Verdict string `json:"verdict"`
	Message string `json:"message,omitempty"`
	Error   string `json:"error,omitempty"`
}

func main() {
	lines, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		said, err := judge(lines.Bytes())
		if err != nil {
			said = answer{Error: err.Error()}
		}
		if err := out.Encode(said); err != nil {
			fail(err)
		}
	}
	if err := lines.Err(); err != nil {
		fail(err)
	}
}

func judge(line []byte) (answer, error) {
	var asked question
	if err := json.Unmarshal(line, &asked); err != nil {
		return answer{}, err
	}
	object := &unstructured.Unstructured{}
	if err := object.UnmarshalJSON(asked.Object); err != nil { // Whole numbers stay int64.
		return answer{}, err
	}
	switch asked.Evaluator {
	case "kstatus":
		found, err := status.Compute(object)
		if err != nil {
			return answer{}, err
		}
		return answer{Verdict: found.Status.String(), Message: found.Message}, nil
	case "flux":
		return judgeByExpressions(object, asked.Checks)
	case "argo":
		return judgeByLua(object, asked.Script)
	}
	return answer{}, fmt.Errorf("no evaluator %q", asked.Evaluator)
}

func judgeByExpressions(object *unstructured.Unstructured, checks []kustomize.CustomHealthCheck) (answer, error) {
	newReader, err := cel.NewStatusReader(checks)
	if err != nil {
		return answer{}, err
	}
	// Neither a mapper nor a reader is asked anything: the object is here already.
	found, err := newReader(nil).ReadStatusForObject(context.Background(), nil, object)
	if err != nil {
		return answer{}, err
	}
	if found.Error != nil {
		return answer{}, found.Error
	}
	return answer{Verdict: found.Status.String(), Message: found.Message}, nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "evaluator:", err)
	os.Exit(1)
}
