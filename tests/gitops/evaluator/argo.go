package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	luajson "layeh.com/gopher-json"
)

// Argo CD allows a script one second and these libraries: neither string nor math, and of os no more
// than the time (argo-cd v3, util/lua), which a verdict must not depend on, so that it is left out.
const maxTime = time.Second

var (
	libraries = []struct {
		name string
		open lua.LGFunction
	}{
		{lua.LoadLibName, lua.OpenPackage},
		{lua.BaseLibName, lua.OpenBase},
		{lua.TabLibName, lua.OpenTable},
	}
	verdicts = []string{"Unknown", "Progressing", "Suspended", "Healthy", "Degraded", "Missing"}
)

func judgeByLua(object *unstructured.Unstructured, script string) (answer, error) {
	if object.GetDeletionTimestamp() != nil { // Argo CD asks no script then.
		return answer{Verdict: "Progressing", Message: "Pending deletion"}, nil
	}
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range libraries {
		call := lua.P{Fn: state.NewFunction(library.open), Protect: true}
		if err := state.CallByParam(call, lua.LString(library.name)); err != nil {
			return answer{}, err
		}
	}
	within, cancel := context.WithTimeout(context.Background(), maxTime)
	defer cancel()
	state.SetContext(within)
	state.SetGlobal("obj", luajson.DecodeValue(state, numbersAsFloats(object.Object)))
	if err := state.DoString(script); err != nil {
		return answer{}, err
	}
	if said := state.Get(-1); said.Type() != lua.LTTable {
		return answer{}, fmt.Errorf("the script returned %s, not a table", said.Type())
	}
	text, err := luajson.Encode(state.Get(-1))
	if err != nil {
		return answer{}, err
	}
	var health struct{ Status, Message string }
	if err := json.Unmarshal(text, &health); err != nil {
		return answer{}, err
	}
	if !slices.Contains(verdicts, health.Status) {
		return answer{}, fmt.Errorf("Argo CD knows no health %q", health.Status)
	}
	return answer{Verdict: health.Status, Message: health.Message}, nil
}

// numbersAsFloats because the JSON library of gopher-lua takes whole numbers for nothing.
func numbersAsFloats(value any) any {
	switch known := value.(type) {
	case int64:
		return float64(known)
	case []any:
		list := make([]any, len(known))
		for i, item := range known {
			list[i] = numbersAsFloats(item)
		}
		return list
	case map[string]any:
		table := make(map[string]any, len(known))
		for key, item := range known {
			table[key] = numbersAsFloats(item)
		}
		return table
	}
	return value
}
