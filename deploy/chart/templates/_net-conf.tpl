{{/* weft.net-conf is net-conf.json, the network config of the values. */}}
{{- define "weft.net-conf" -}}
{{- $f := .Values.flannel -}}
{{- $allowed := list "vxlan" "host-gw" "ipip" "wireguard" "udp" -}}
{{- if not (has $f.backend $allowed) -}}
{{- fail (printf "flannel.backend: %q: want one of %s" $f.backend (join ", " $allowed)) -}}
{{- end -}}
{{- $keys := dict
  "vxlan" (dict "backendPort" "Port" "vni" "VNI" "mtu" "MTU" "GBP" "GBP" "directRouting" "DirectRouting")
  "host-gw" dict
  "ipip" (dict "directRouting" "DirectRouting")
  "wireguard" (dict "backendPort" "ListenPort" "backendPortv6" "ListenPortV6" "mtu" "MTU" "psk" "PSK"
    "tunnelMode" "Mode" "keepaliveInterval" "PersistentKeepaliveInterval")
  "udp" (dict "backendPort" "Port") -}}
{{- $backend := dict "Type" $f.backend -}}
{{- range $value, $key := get $keys $f.backend -}}
{{- with get $f $value -}}
{{- /* Numbers of a values file are floats. */ -}}
{{- $_ := set $backend $key (ternary (. | toString | float64 | int) . (or (kindIs "float64" .) (kindIs "int64" .))) -}}
{{- end -}}
{{- end -}}
{{- $c := dict "Backend" $backend -}}
{{- if not (or .Values.podCidr .Values.podCidrv6) -}}{{- fail "podCidr and podCidrv6 are empty: set one" -}}{{- end -}}
{{- with .Values.podCidr -}}{{- $_ := set $c "Network" . -}}{{- else -}}{{- $_ := set $c "EnableIPv4" false -}}{{- end -}}
{{- with .Values.podCidrv6 -}}{{- $_ := set $c "IPv6Network" . -}}{{- $_ := set $c "EnableIPv6" true -}}{{- end -}}
{{- if $f.enableNFTables -}}{{- $_ := set $c "EnableNFTables" true -}}{{- end -}}
{{- toPrettyJson $c -}}
{{- end -}}
