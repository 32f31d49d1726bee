{{- define "weir.selector" -}}
app.kubernetes.io/name: weir
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "weir.labels" -}}
{{ include "weir.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "weir.image" -}}
{{- with .Values.image -}}
{{ .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The Agent object: what the values say, over what the chart knows. */ -}}
{{- define "weir.agent" -}}
{{- $known := dict }}
{{- if not (hasKey .Values.agent "seed") }}
{{- $_ := set $known "seedFile" "/etc/weir-secret/seed" }}
{{- end }}
{{- if hasKey .Values.agent "kubernetes" }}
{{- $_ := set $known "kubernetes" (dict "namespace" .Release.Namespace) }}
{{- end -}}
apiVersion: weir.dev/v1alpha1
kind: Agent
metadata:
  name: {{ .Release.Name }}
spec:
  {{- mergeOverwrite $known (deepCopy .Values.agent) | toYaml | nindent 2 }}
{{- end }}

{{- define "weir.subjects" }}
- kind: ServiceAccount
  name: {{ .Release.Name }}
  namespace: {{ .Release.Namespace }}
{{- range .Values.rbac.users }}
- kind: User
  apiGroup: rbac.authorization.k8s.io
  name: {{ . | quote }}
{{- end }}
{{- end }}
