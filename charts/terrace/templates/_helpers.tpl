{{/* Labels of every object. Takes the root context and the component. */}}
{{- define "terrace.labels" -}}
{{ include "terrace.selector" . }}
app.kubernetes.io/part-of: terrace
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that never change between versions. */}}
{{- define "terrace.selector" -}}
app.kubernetes.io/name: terrace
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Name of a component's objects. */}}
{{- define "terrace.name" -}}
{{ printf "%s-%s" (.root.Release.Name | trunc 50 | trimSuffix "-") .component }}
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

{{/* Where a pod may run. Takes the component's values. */}}
{{- define "terrace.scheduling" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Base URL of the gateway, as clients write it. */}}
{{- define "terrace.gatewayUrl" -}}
{{- $port := .Values.gateway.service.port | int -}}
{{- $host := printf "%s.%s.svc" (include "terrace.name" (dict "root" . "component" "gateway")) .Release.Namespace -}}
{{- .Values.gateway.url | default (printf "http://%s%s/v1" $host (ternary "" (printf ":%d" $port) (eq $port 80))) -}}
{{- end }}
