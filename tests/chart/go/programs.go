//go:build programs

// Package programs names the programs that tests of the chart are built with; go.mod pins them.
package programs

import (
	_ "github.com/yannh/kubeconform/cmd/kubeconform"
	_ "helm.sh/helm/v3/cmd/helm"
)
