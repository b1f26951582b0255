package bundle

import "regexp"

// hidden replaces a secret.
const hidden = "(hidden)"

// secret matches secrets of one form and replaces them.
type secret struct {
	pattern     string
	replacement string
}

// secrets lists the forms that secrets have in configurations, logs and commands. The first group
// of a pattern stays.
func secrets() []secret {
	const name = `(?i)((?:[a-z0-9_.-]*(?:password|passwd|secret|secret[-_]access[-_]key|token|psk|pre-?shared-?key|private-?key|access[-_]?key[-_]?id)|authorization)`
	return []secret{
		// PEM blocks of keys
		{`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`, "${1}" + hidden},
		// "password": "x", also in JSON within a JSON string
		{name + `\\?"\s*:\s*\\?")(?:[^"\\]|\\[^"])*`, "${1}" + hidden},
		// "password": x
		{name + `\\?"\s*:\s*)[^\s"\\,{}\[\]]+`, "${1}" + hidden},
		// password=x, password: x, Authorization: Basic x
		{name + `\s*[=:]\s*)(?:"[^"]*"|'[^']*'|(?:bearer |basic )?[^\s",;&]+)`, "${1}" + hidden},
		// --password x
		{`(?i)(--[a-z0-9-]*(?:password|secret|token)\s+)[^\s]+`, "${1}" + hidden},
		// http://user:password@host
		{`([a-z][a-z0-9+.-]*://[^/\s:@"]*:)[^@/\s"]+@`, "${1}" + hidden + "@"},
		// WireGuard's keys, 32 bytes in base64: private ones look like public ones
		{`\b[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=`, hidden},
	}
}

// Redact returns text without secrets: passwords, tokens, private and pre-shared keys, and the
// public keys of WireGuard.
func Redact(text []byte) []byte {
	for _, s := range secrets() {
		text = regexp.MustCompile(s.pattern).ReplaceAll(text, []byte(s.replacement))
	}
	return text
}
