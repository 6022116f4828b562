{{/* Labels of every object. Takes the root context and the component. */}}
{{- define "terrace.labels" -}}
{{ include "terrace.selector" . }}
app.kubernetes.io/part-of: terrace
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels that never change between versions. */}}
{{- define "terrace.selector" -}}
app.kubernetes.io/name: terrace
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of a component's pods. Takes the root context and the component. */}}
{{- define "terrace.podLabels" -}}
{{ include "terrace.selector" . }}
app.kubernetes.io/part-of: terrace
{{- with merge dict (get .root.Values .component).podLabels .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Name of a component's objects. */}}
{{- define "terrace.name" -}}
{{ printf "%s-%s" (.root.Release.Name | trunc 50 | trimSuffix "-") .component }}
{{- end }}

{{/* Name of a component's service account. Takes the root context and the component. */}}
{{- define "terrace.account" -}}
{{- if not (and .root.Values.crds .root.Values.priorityClass (get .root.Values .component).serviceAccount) -}}
{{- fail "these are values of an older version of this chart: upgrade with --reset-then-reuse-values instead of --reuse-values" -}}
{{- end -}}
{{- $wanted := (get .root.Values .component).serviceAccount -}}
{{- if not (or $wanted.create $wanted.name) -}}
{{- printf "%s.serviceAccount.name: name the account to use, or let the chart make one with %s.serviceAccount.create=true" .component .component | fail -}}
{{- end -}}
{{- $wanted.name | default (include "terrace.name" .) -}}
{{- end }}

{{/* The service account itself, unless it exists already. */}}
{{- define "terrace.serviceAccount" -}}
{{- $wanted := (get .root.Values .component).serviceAccount -}}
{{- if $wanted.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "terrace.account" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "terrace.labels" . | nindent 4 }}
  {{- with $wanted.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
---
{{- end }}
{{- end }}

{{/* An image reference. Takes the root context and the values with repository and digest. */}}
{{- define "terrace.image" -}}
{{- with .root.Values.image.registry }}{{ . }}/{{ end -}}
{{ .of.repository }}
{{- if .of.digest }}@{{ .of.digest }}{{ else }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{/* What the restricted pod security standard asks of a pod; no runAsUser, for OpenShift. */}}
{{- define "terrace.podSecurity" -}}
runAsNonRoot: true
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* And of a container. */}}
{{- define "terrace.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The pod's own names, for args and for the programs. */}}
{{- define "terrace.podEnv" -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- with .Values.watchNamespaces }}
- name: TERRACE_WATCH_NAMESPACES
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}

{{/* A component's own variables and then the user's. Takes root, component, env (YAML of a list). */}}
{{- define "terrace.env" -}}
{{- $own := dict -}}
{{- range .env | fromYamlArray }}{{ $_ := set $own .name true }}{{ end -}}
{{- range (get .root.Values .component).extraEnv -}}
{{- if hasKey $own .name -}}
{{- printf "%s.extraEnv: the chart itself sets %s; use the value that it comes from, or another name" $.component .name | fail -}}
{{- end -}}
{{- $_ := set $own .name true -}}
{{- end -}}
{{ .env }}
{{- with (get .root.Values .component).extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where a pod may run and which goes first. Takes the root context and the component. */}}
{{- define "terrace.scheduling" -}}
{{- $part := . -}}
{{- $of := get .root.Values .component -}}
{{- with $of.priorityClassName | default (ternary (include "terrace.priorityClass" .root) "" .root.Values.priorityClass.create) }}
priorityClassName: {{ . }}
{{- end }}
{{- with $of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $apart := dict "maxSkew" 1 "topologyKey" "kubernetes.io/hostname" "whenUnsatisfiable" "ScheduleAnyway" -}}
{{- $spread := $of.topologySpreadConstraints -}}
{{- if and (not $spread) (gt (int $of.replicas) 1) }}{{ $spread = list $apart }}{{ end -}}
{{- with $spread }}
topologySpreadConstraints:
  {{- range . }}
  -
    {{- toYaml . | nindent 4 }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "terrace.selector" $part | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Name of the PriorityClass that the chart may make. */}}
{{- define "terrace.priorityClass" -}}
{{ include "terrace.name" (dict "root" . "component" "control") }}
{{- end }}

{{/* A budget that lets a drain take one pod at a time. Takes the root context and the component. */}}
{{- define "terrace.budget" -}}
{{- if gt (int (get .root.Values .component).replicas) 1 }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "terrace.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "terrace.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  # A pod that is broken anyway must not hold up a drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "terrace.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* Base URL of the gateway, as clients write it. */}}
{{- define "terrace.gatewayUrl" -}}
{{- $port := .Values.gateway.service.port | int -}}
{{- $host := printf "%s.%s.svc" (include "terrace.name" (dict "root" . "component" "gateway")) .Release.Namespace -}}
{{- .Values.gateway.url | default (printf "http://%s%s/v1" $host (ternary "" (printf ":%d" $port) (eq $port 80))) -}}
{{- end }}
