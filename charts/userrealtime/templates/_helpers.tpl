{{/* The name of the operator's objects. */}}
{{- define "userrealtime.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "userrealtime.selector" -}}
app.kubernetes.io/name: userrealtime-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* managed-by is not userrealtime-operator, because the operator sets that value on the objects that it creates. */}}
{{- define "userrealtime.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: userrealtime
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{- define "userrealtime.labels" -}}
{{ include "userrealtime.selector" . }}
{{ include "userrealtime.commonLabels" . }}
{{- end }}

{{- define "userrealtime.namespaces" -}}
{{- .Values.namespaces | default (list .Release.Namespace) | toJson -}}
{{- end }}

{{- define "userrealtime.databaseSecret" -}}
{{- .Values.database.existingSecret.name | default (printf "%s-database" (include "userrealtime.name" .)) -}}
{{- end }}

{{/* Where the database's URL is: the name and the key of a Secret, as JSON. */}}
{{- define "userrealtime.databaseSource" -}}
{{- $key := ternary .Values.database.existingSecret.key "DATABASE_URL" (ne .Values.database.existingSecret.name "") -}}
{{- dict "name" (include "userrealtime.databaseSecret" .) "key" $key | toJson -}}
{{- end }}

{{- define "userrealtime.brokerSecret" -}}
{{- .Values.signals.existingSecret.name | default (printf "%s-broker" (include "userrealtime.name" .)) -}}
{{- end }}

{{/* Where the broker's URL for users' pods is, as JSON. */}}
{{- define "userrealtime.brokerSource" -}}
{{- $key := ternary .Values.signals.existingSecret.key "BROKER_URL" (ne .Values.signals.existingSecret.name "") -}}
{{- dict "name" (include "userrealtime.brokerSecret" .) "key" $key | toJson -}}
{{- end }}

{{/* The broker as the bridge reaches it: with `url` and `existingSecret`. As JSON. */}}
{{- define "userrealtime.bridgeBroker" -}}
{{- $own := .Values.signals.bridge.broker -}}
{{- if or $own.url $own.existingSecret.name }}{{ toJson $own }}{{ else }}{{ pick .Values.signals "url" "existingSecret" | toJson }}{{ end -}}
{{- end }}

{{/* Where the broker's URL for the bridge is, as JSON. */}}
{{- define "userrealtime.bridgeBrokerSource" -}}
{{- $own := .Values.signals.bridge.broker -}}
{{- if $own.existingSecret.name -}}
{{- toJson $own.existingSecret -}}
{{- else if $own.url -}}
{{- dict "name" (printf "%s-bridge-broker" (include "userrealtime.name" .)) "key" "BROKER_URL" | toJson -}}
{{- else -}}
{{- include "userrealtime.brokerSource" . -}}
{{- end }}
{{- end }}

{{/* Secrets are files and not environment variables, which child processes and crash dumps would contain. */}}
{{- define "userrealtime.credentials.env" -}}
- {name: CREDENTIALS_DIR, value: /var/run/userrealtime/credentials}
{{- end }}

{{- define "userrealtime.credentials.volumeMount" -}}
- name: credentials
  mountPath: /var/run/userrealtime/credentials
  readOnly: true
{{- end }}

{{/* A volume with one file for each secret. Parameter: a mapping from the names of the files to their sources (JSON). */}}
{{- define "userrealtime.credentials.volume" -}}
- name: credentials
  projected:
    sources:
      {{- range $name, $source := . }}
      {{- $source = fromJson $source }}
      - secret:
          name: {{ $source.name }}
          items: [{key: {{ $source.key | quote }}, path: {{ $name }}}]
      {{- end }}
{{- end }}

{{/* The certificates for the chart's ConfigMap. Empty without certificates and with an existing ConfigMap. */}}
{{- define "userrealtime.trust.certificates" -}}
{{- if not .Values.trust.existingConfigMap.name }}{{ .Values.trust.certificates }}{{ end }}
{{- end }}

{{/* The name of the ConfigMap with additional certificate authorities. Empty without any. */}}
{{- define "userrealtime.trust.configMap" -}}
{{- if include "userrealtime.trust.certificates" . }}{{ include "userrealtime.name" . }}-trust{{ else }}{{ .Values.trust.existingConfigMap.name }}{{ end }}
{{- end }}

{{- define "userrealtime.trust.key" -}}
{{- if .Values.trust.existingConfigMap.name }}{{ .Values.trust.existingConfigMap.key }}{{ else }}ca.crt{{ end }}
{{- end }}

{{/* The variables for the additional certificate authorities: OpenSSL's, and libpq's, which does not use OpenSSL's. */}}
{{- define "userrealtime.trust.env" -}}
{{- if include "userrealtime.trust.configMap" . -}}
- {name: SSL_CERT_FILE, value: /var/run/userrealtime/trust/ca.crt}
- {name: PGSSLROOTCERT, value: /var/run/userrealtime/trust/ca.crt}
{{- end }}
{{- end }}

{{- define "userrealtime.trust.volumeMount" -}}
{{- if include "userrealtime.trust.configMap" . -}}
- name: trust
  mountPath: /var/run/userrealtime/trust
  readOnly: true
{{- end }}
{{- end }}

{{/* The volume of the ConfigMap. Parameter: (list context suffix), with a suffix of the ConfigMap's name. */}}
{{- define "userrealtime.trust.volume" -}}
{{- $suffix := last . -}}
{{- with first . -}}
{{- $configMap := include "userrealtime.trust.configMap" . -}}
{{- if $configMap -}}
- name: trust
  configMap:
    name: {{ $configMap }}{{ $suffix }}
    items: [{key: {{ include "userrealtime.trust.key" . }}, path: ca.crt}]
{{- end }}
{{- end }}
{{- end }}

{{- define "userrealtime.bridge.selector" -}}
app.kubernetes.io/name: userrealtime-bridge
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "userrealtime.bridge.labels" -}}
{{ include "userrealtime.bridge.selector" . }}
{{ include "userrealtime.commonLabels" . }}
{{- end }}

{{- define "userrealtime.broadcastApi.selector" -}}
app.kubernetes.io/name: userrealtime-broadcast-api
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "userrealtime.broadcastApi.labels" -}}
{{ include "userrealtime.broadcastApi.selector" . }}
{{ include "userrealtime.commonLabels" . }}
{{- end }}

{{/* The reference of an image, with its digest if there is one. Parameter: (list context image). */}}
{{- define "userrealtime.image" -}}
{{- $image := last . -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (first .).Chart.AppVersion) -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{- define "userrealtime.podSecurity" -}}
runAsNonRoot: true
{{- with int .Values.runAsUser }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "userrealtime.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "userrealtime.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "userrealtime.edge.selector" -}}
app.kubernetes.io/name: userrealtime-edge
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "userrealtime.edge.labels" -}}
{{ include "userrealtime.edge.selector" . }}
{{ include "userrealtime.commonLabels" . }}
{{- end }}

{{/* The name of the activator's objects. */}}
{{- define "userrealtime.activator" -}}
{{ include "userrealtime.name" . }}-activator
{{- end }}

{{/* Where the key is that encrypts token keys for the activator, as JSON. Empty: the activator reads Secrets, or needs no
token keys. */}}
{{- define "userrealtime.sealSource" -}}
{{- with .Values.activator -}}
{{- if and .enabled .userKeys .sealedKeys.existingSecret.name }}{{ toJson .sealedKeys.existingSecret }}{{ end -}}
{{- end }}
{{- end }}

{{- define "userrealtime.activator.selector" -}}
app.kubernetes.io/name: userrealtime-activator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "userrealtime.activator.labels" -}}
{{ include "userrealtime.activator.selector" . }}
{{ include "userrealtime.commonLabels" . }}
{{- end }}

{{/* The host of the Ingress for all users: a wildcard if the host contains the user's name. */}}
{{- define "userrealtime.edge.host" -}}
{{- $host := regexReplaceAll "^https?://([^/:]+).*$" .Values.route.url "${1}" -}}
{{- if contains "{" $host }}*.{{ regexReplaceAll "^.*\\{[a-z]+\\}[^.]*\\." $host "" }}{{ else }}{{ $host }}{{ end -}}
{{- end }}

{{/* The path of that Ingress: the part before the segment with the user's name. */}}
{{- define "userrealtime.edge.prefix" -}}
{{- $path := regexReplaceAll "^https?://[^/]+(/.*)?$" .Values.route.url "${1}" | trimSuffix "/" -}}
{{- if contains "{" $path }}{{ regexReplaceAll "/[^/]*\\{.*$" $path "" | default "/" }}{{ else }}{{ $path | default "/" }}{{ end -}}
{{- end }}

{{/* An HAProxy expression for the part of a request that matches a placeholder of the URL template. A value that does not
match stays unchanged, and a later rule rejects it. */}}
{{- define "userrealtime.edge.placeholder" -}}
{{- $host := regexReplaceAll "^https?://([^/:]+).*$" .in "${1}" -}}
{{- $path := regexReplaceAll "^https?://[^/]+(/.*)?$" .in "${1}" | trimSuffix "/" -}}
{{- $inHost := contains .placeholder $host -}}
{{- $template := ternary $host $path $inHost -}}
{{/* The dot is the only character of a URL template that must be escaped in a regular expression. */}}
{{- $pattern := $template | replace .placeholder .pattern | replace "." "[.]" -}}
{{- $pattern = regexReplaceAll "\\{[a-z]+\\}" $pattern "[a-z0-9-]+" -}}
'{{ ternary "var(txn.host)" "path" $inHost }},regsub("^{{ $pattern }}{{ ternary "$" "(/.*)?$" $inHost }}","\1")'
{{- end }}

{{/* The port of a URL. Parameters: (list URL default). A password can contain colons, so only the part after @ is parsed. */}}
{{- define "userrealtime.port" -}}
{{- $authority := first . | regexFind "://[^/?#]*" | trimPrefix "://" | splitList "@" | last -}}
{{- $authority | regexFind ":[0-9]+$" | trimPrefix ":" | default (last .) -}}
{{- end }}

{{/* The egress rule for DNS. A NetworkPolicy applies to the port of the pod, not of the Service. CoreDNS listens on 53, or on
5353 on platforms where it cannot bind a port below 1024, such as OpenShift. */}}
{{- define "userrealtime.dnsEgress" -}}
- ports:
    {{- range $port := list 53 5353 }}
    {{- range $protocol := list "UDP" "TCP" }}
    - {port: {{ $port }}, protocol: {{ $protocol }}}
    {{- end }}
    {{- end }}
{{- end }}

{{/* An egress rule. Parameters: (list ports cidrs), ports as integers. Without addresses: to all pods and all addresses
except link-local ones, at which clouds serve the credentials of nodes. Some network plugins do not match pods by address. */}}
{{- define "userrealtime.egress" -}}
- ports:
    {{- range first . }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
  to:
    {{- range last . }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- else }}
    - namespaceSelector: {}
    - ipBlock: {cidr: 0.0.0.0/0, except: [169.254.0.0/16]}
    - ipBlock: {cidr: "::/0", except: ["fe80::/10"]}
    {{- end }}
{{- end }}

{{- define "userrealtime.databaseEgress" -}}
{{- $url := ternary "" .Values.database.url (ne .Values.database.existingSecret.name "") -}}
{{- $port := .Values.networkPolicy.database.port | default (include "userrealtime.port" (list $url 5432)) | int -}}
{{- include "userrealtime.egress" (list (list $port) .Values.networkPolicy.database.cidrs) -}}
{{- end }}

{{/* Parameters: (list context broker), with `url` and `existingSecret` in broker. */}}
{{- define "userrealtime.brokerEgress" -}}
{{- $broker := last . -}}
{{- with first . -}}
{{- $default := get (dict "nats" 4222 "redis" 6379 "kafka" 9092) .Values.signals.type -}}
{{- $ports := list -}}
{{- range ternary "" $broker.url (ne $broker.existingSecret.name "") | splitList "," -}}
{{- $ports = append $ports (include "userrealtime.port" (list . $default) | int) -}}
{{- end -}}
{{- with .Values.networkPolicy.broker.port | int }}{{ $ports = list . }}{{ end -}}
{{- include "userrealtime.egress" (list (uniq $ports) .Values.networkPolicy.broker.cidrs) -}}
{{- end }}
{{- end }}

{{/* Without addresses, the rule names ports only: the API server can be a node, and some network plugins match nodes
neither by address nor as pods. The ports are those of managed clusters, of kubeadm, minikube and MicroK8s. */}}
{{- define "userrealtime.apiServerEgress" -}}
{{- $policy := .Values.networkPolicy.apiServer -}}
{{- $ports := list 443 6443 8443 16443 -}}
{{- with int $policy.port }}{{ $ports = list . }}{{ end -}}
{{- if $policy.cidrs -}}
{{- include "userrealtime.egress" (list $ports $policy.cidrs) -}}
{{- else -}}
- ports:
    {{- range $ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}
{{- end }}

{{/* The pods of a component of the release, as a peer. Parameters: (list context name). */}}
{{- define "userrealtime.releasePeer" -}}
- namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: {{ (first .).Release.Namespace }}}}
  podSelector: {matchLabels: {app.kubernetes.io/name: {{ last . }}}}
{{- end }}

{{/* The pods of users, as a peer. */}}
{{- define "userrealtime.relayPeers" -}}
- namespaceSelector:
    matchExpressions:
      - {key: kubernetes.io/metadata.name, operator: In, values: {{ include "userrealtime.namespaces" . }}}
  podSelector: {matchLabels: {app.kubernetes.io/name: userrealtime-relay}}
{{- end }}
