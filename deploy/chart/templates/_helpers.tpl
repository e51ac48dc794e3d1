{{- define "rebalancer.labels" -}}
app.kubernetes.io/name: rebalancer
{{- end }}

{{- define "rebalancer.image" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default .version }}
{{- end }}
{{- end }}

{{- /* So many bytes as Mi, in steps of 64, at least 128. */ -}}
{{- define "rebalancer.memory" -}}
{{- $step := 67108864 -}}
{{- max 128 (mul 64 (div (add . (sub $step 1)) $step)) }}Mi
{{- end }}

{{- define "rebalancer.resources" -}}
{{- if .Values.resources -}}
{{ toYaml .Values.resources }}
{{- else -}}
{{- $connections := int64 .Values.maxConnections -}}
requests:
  cpu: 20m
  memory: {{ include "rebalancer.memory" (add 20000000 (mul 2600 $connections)) }}
limits:
  memory: {{ include "rebalancer.memory" (add 20000000 (mul 6400 $connections)) }}
{{- end }}
{{- end }}

{{- /* Not empty if there are coordinators. A comment of the policy does not count. */ -}}
{{- define "rebalancer.coordinates" -}}
{{- $enabled := .Values.coordinator.enabled -}}
{{- if eq (toString $enabled) "auto" -}}
{{- $enabled = regexMatch "(?m)^[^#\n]*\\bbalance:" .Values.policy -}}
{{- end -}}
{{- if $enabled }}true{{ end -}}
{{- end }}
