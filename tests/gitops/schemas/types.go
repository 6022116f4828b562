// Package schemas pins types whose CustomResourceDefinition is in no module: it is generated.
package schemas

import _ "github.com/fluxcd/helm-controller/api/v2" // HelmRelease
