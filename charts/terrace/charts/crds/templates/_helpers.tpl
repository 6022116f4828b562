{{/*
Names of the CRDs that this release makes, one a line. A CRD that somebody else put there (kubectl,
another release) is left alone, or Helm would refuse the whole install. Three ways to be ours: there
is none yet; Helm's marks on it name this release; the operator's Deployment says that it was ours
before, whatever happened to the marks, because what a release no longer renders is deleted.
*/}}
{{- define "crds.owned" -}}
{{- $operator := include "terrace.name" (dict "root" . "component" "operator") -}}
{{- $deployment := lookup "apps/v1" "Deployment" .Release.Namespace $operator -}}
{{- $before := dig "metadata" "annotations" "terrace.dev/crds" "" $deployment | splitList "," -}}
{{- $release := printf "%s/%s" .Release.Namespace .Release.Name -}}
{{- range $path, $_ := .Files.Glob "files/*.yaml" -}}
{{- $name := ($.Files.Get $path | fromYaml).metadata.name -}}
{{- $live := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $name -}}
{{- $marks := dig "metadata" "annotations" dict $live -}}
{{- $holder := printf "%s/%s" (get $marks "meta.helm.sh/release-namespace") (get $marks "meta.helm.sh/release-name") -}}
{{- if or (not $live) (eq $holder $release) (has $name $before) }}
{{ $name }}
{{- end -}}
{{- end -}}
{{- end }}
